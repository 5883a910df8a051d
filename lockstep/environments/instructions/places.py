"""What IFBench's instructions of their own kind ask about: capitals, countries, battles. From general knowledge."""

from __future__ import annotations

from lockstep.environments.instructions.text import listed

# Capitals of Europe's states above 45 degrees north with their latitudes in degrees, rounded to two decimals.
CAPITALS = {
    "reykjavik": 64.15, "helsinki": 60.17, "oslo": 59.91, "tallinn": 59.44, "stockholm": 59.33, "riga": 56.95,
    "moscow": 55.76, "copenhagen": 55.68, "vilnius": 54.69, "minsk": 53.90, "dublin": 53.35, "berlin": 52.52,
    "amsterdam": 52.37, "warsaw": 52.23, "london": 51.51, "brussels": 50.85, "kyiv": 50.45, "prague": 50.08,
    "luxembourg": 49.61, "paris": 48.86, "vienna": 48.21, "bratislava": 48.15, "budapest": 47.50, "vaduz": 47.14,
    "chisinau": 47.01, "bern": 46.95, "ljubljana": 46.06, "zagreb": 45.81,
}  # fmt: skip
CAPITAL_NAMES = {"kiev": "kyiv", "luxembourg city": "luxembourg", "berne": "bern"}

# The 54 member states of the African Union that the United Nations know, by one name, and their other names.
AFRICA = frozenset(
    """algeria|angola|benin|botswana|burkina faso|burundi|cabo verde|cameroon|central african republic|chad|comoros|
    congo|dr congo|cote d'ivoire|djibouti|egypt|equatorial guinea|eritrea|eswatini|ethiopia|gabon|gambia|ghana|guinea|
    guinea-bissau|kenya|lesotho|liberia|libya|madagascar|malawi|mali|mauritania|mauritius|morocco|mozambique|namibia|
    niger|nigeria|rwanda|sao tome and principe|senegal|seychelles|sierra leone|somalia|south africa|south sudan|sudan|
    tanzania|togo|tunisia|uganda|zambia|zimbabwe""".replace("\n    ", "").split("|")
)
AFRICAN_NAMES = {
    "cape verde": "cabo verde",
    "ivory coast": "cote d'ivoire",
    "swaziland": "eswatini",
    "the gambia": "gambia",
    "gambia, the": "gambia",
    "guinea bissau": "guinea-bissau",
    "republic of the congo": "congo",
    "congo, republic of the": "congo",
    "congo (brazzaville)": "congo",
    "congo-brazzaville": "congo",
    "congo (republic)": "congo",
    "congo republic": "congo",
    "democratic republic of the congo": "dr congo",
    "democratic republic of congo": "dr congo",
    "congo, democratic republic of the": "dr congo",
    "congo (kinshasa)": "dr congo",
    "congo-kinshasa": "dr congo",
    "congo (democratic republic)": "dr congo",
    "sao tome & principe": "sao tome and principe",
    "united republic of tanzania": "tanzania",
}

# Battles of Napoleon's on whose first days books agree.
BATTLE_STARTS = listed("""
    1796-05-10 1797-01-14 1798-07-21 1800-06-14 1805-12-02 1806-10-14 1807-02-07 1807-06-14 1809-07-05 1812-09-07
    1813-10-16 1815-06-18
    """)
BATTLE_YEARS = range(1793, 1816)
