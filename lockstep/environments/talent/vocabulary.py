"""The words that people, companies and requests are made of. Invented; order is part of the content.

Whoever works as a recruiter knows this much: which skills belong to a role, how a skill is also written, and which
country a city is in. The scripted expert may use it; it is no secret of any request.
"""

from __future__ import annotations

from collections.abc import Mapping

FIRST_NAMES = (
    *("Ana", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jan", "Karin", "Luca", "Marta"),
    *("Nils", "Olga", "Paul", "Rita", "Sven", "Teresa", "Victor", "Wanda", "Yara", "Anton", "Bea", "Carlo", "Dora"),
    *("Emil", "Flora", "Gino", "Helga", "Ivo", "Julia", "Klaus", "Lena", "Mario", "Nora", "Oskar", "Petra", "Ralf"),
    *("Sara", "Tomas", "Ursula", "Vera", "Willem", "Xenia", "Zofia", "Alba", "Boris", "Celia", "Dario"),
)
LAST_NAMES = (
    *("Costa", "Weber", "Rossi", "Novak", "Silva", "Dubois", "Jansen", "Moreno", "Berg", "Lindt", "Kowal", "Ferri"),
    *("Braun", "Santos", "Leroy", "Visser", "Garcia", "Holm", "Mazur", "Conti", "Vogel", "Pinto", "Moreau", "Bakker"),
    *("Ruiz", "Nyberg", "Wilk", "Greco", "Keller", "Matos", "Blanc", "Smit", "Ortega", "Dahl", "Zajac", "Marino"),
    *("Fuchs", "Rocha", "Perrin", "Mulder", "Vidal", "Strand", "Duda", "Galli", "Huber", "Lopes", "Caron", "Kuiper"),
    *("Serra", "Falk", "Pawlak", "Riva", "Lang", "Neves", "Girard", "Brink", "Campos", "Sund", "Wrona", "Testa"),
)

# The skills of each role, the first ones the most typical. The first roles make up a narrow population.
ROLES: Mapping[str, tuple[str, ...]] = {
    "backend engineer": ("Java", "Go", "Rust", "PostgreSQL", "Python", "Kafka", "C#", "Scala"),
    "web developer": ("JavaScript", "TypeScript", "React", "Vue", "PHP", "Angular", "Figma"),
    "platform engineer": ("Kubernetes", "Terraform", "AWS", "Linux", "Docker", "Azure", "site reliability"),
    "data scientist": ("machine learning", "Python", "natural language processing", "computer vision", "SQL", "R"),
    "data engineer": ("SQL", "Spark", "Kafka", "Python", "PostgreSQL", "Scala", "AWS"),
    "mobile developer": ("Kotlin", "Swift", "Flutter", "Java", "React"),
    "embedded engineer": ("C++", "C", "Verilog", "Linux", "Rust", "MATLAB"),
    "business analyst": ("SQL", "SAP", "Salesforce", "Tableau", "product management"),
}
RECRUITER = "technical recruiter"  # a decoy: speaks of skills and has none of them
RECRUITER_SKILLS = ("sourcing", "interviewing", "employer branding")

# How a skill is written, its usual name first. What is not listed is always written as it is called.
WRITTEN: Mapping[str, tuple[str, ...]] = {
    "Java": ("Java", "J2EE"),
    "JavaScript": ("JavaScript", "JS", "Java Script"),
    "TypeScript": ("TypeScript", "TS"),
    "Go": ("Go", "Golang"),
    "Rust": ("Rust", "Rustlang"),
    "PostgreSQL": ("PostgreSQL", "Postgres"),
    "React": ("React", "ReactJS"),
    "Vue": ("Vue", "VueJS"),
    "Kubernetes": ("Kubernetes", "K8s"),
    "Terraform": ("Terraform", "HCL"),
    "AWS": ("AWS", "Amazon cloud"),
    "site reliability": ("site reliability", "SRE"),
    "machine learning": ("machine learning", "ML"),
    "natural language processing": ("natural language processing", "NLP"),
    "computer vision": ("computer vision", "image recognition"),
    "Spark": ("Spark", "PySpark"),
    "C++": ("C++", "CPP"),
    "C#": ("C#", "CSharp"),
    "Salesforce": ("Salesforce", "SFDC"),
    "product management": ("product management", "product ownership"),
}

# City: country. Country: language.
CITIES: Mapping[str, str] = {
    **{"Lisbon": "Portugal", "Madrid": "Spain", "Paris": "France", "Berlin": "Germany", "Milan": "Italy"},
    **{"Utrecht": "Netherlands", "Krakow": "Poland", "Malmo": "Sweden", "Porto": "Portugal", "Valencia": "Spain"},
    **{"Lyon": "France", "Hamburg": "Germany", "Turin": "Italy", "Delft": "Netherlands", "Gdansk": "Poland"},
    **{"Uppsala": "Sweden", "Braga": "Portugal", "Bilbao": "Spain", "Nantes": "France", "Munich": "Germany"},
    **{"Bologna": "Italy", "Eindhoven": "Netherlands", "Wroclaw": "Poland", "Stockholm": "Sweden"},
}
LANGUAGES: Mapping[str, str] = {
    **{"Portugal": "Portuguese", "Spain": "Spanish", "France": "French", "Germany": "German", "Italy": "Italian"},
    **{"Netherlands": "Dutch", "Poland": "Polish", "Sweden": "Swedish"},
}
ENGLISH = "English"
FLUENCY = ("basic", "fluent", "native")

INDUSTRIES = (
    *("fintech", "health", "retail", "games", "energy", "logistics"),
    *("education", "travel", "insurance", "automotive", "media", "telecom"),
)
SENIORITIES = ("junior", "mid", "senior", "lead")
DEGREES = ("none", "BSc", "MSc", "PhD")
FIELDS = ("physics", "mathematics", "informatics", "economics", "biology", "design", "statistics")
MODES = ("on site", "hybrid", "remote")
SIZES = ("startup", "medium", "large")  # fewer than 50 people, fewer than 1000, more

COMPANY_HEADS = ("Vel", "Nor", "Tri", "Cas", "Lum", "Orb", "Pex", "Quo", "Sil", "Zen", "Bri", "Dax", "Fen", "Gal")
COMPANY_MIDDLES = ("", "a", "o", "i", "e")
COMPANY_TAILS = ("tro", "dane", "mont", "via", "nex", "lio", "bank", "gard", "sys")


def written(skill: str) -> tuple[str, ...]:
    """The ways in which a skill is written, its usual name first."""
    return WRITTEN.get(skill, (skill,))
