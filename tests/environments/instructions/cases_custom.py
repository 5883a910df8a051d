"""Responses by hand: (instruction, kwargs, what follows, what does not), for IFBench's prompts of their own kind."""

from lockstep.environments.instructions.places import AFRICA, CAPITALS

CITY = "ID,Country,City,Year,Count\n" + "\n".join(f"{i},France,Paris,20{i:02},{i * 3}" for i in range(1, 8))
GRADES = [["StudentID", "Subject", "Grade", "Semester", "Score"], *([f"S{i}", "Art", "B", "1", "9"] for i in range(3))]
QUOTED = "\n".join("\t".join(f'"{field}"' for field in row) for row in GRADES)
STOCK = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(f"{i},Toys,Acme,9.5,{i}" for i in range(1, 14))
SPECIAL = STOCK + '\n14,"Toys & Games",Acme,9.5,3'
ALPHABET = " ".join(f"{letter}nd so it went." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
BATTLES = "1796-05-10, 1797-01-14, 1800-06-14, 1805-12-02, 1806-10-14, 1815-06-18"
CAPITAL_LIST = ", ".join(name.title() for name in CAPITALS)
COUNTRIES = "\n".join(sorted((name.title() for name in AFRICA), key=str.casefold, reverse=True))
FORWARDS = "The national symbol of the US is the bald eagle."


def _question(number: int, extra: int, options: str = "ABCDE") -> str:
    asked = f"Question {number}: Who painted this{' very' * extra} famous picture?"
    return "\n".join([asked, *(f"{letter}) Painter {letter}" for letter in options)])


QUESTIONS = "\n\n".join(_question(i, i) for i in range(1, 5))

CASES = [
    ("custom:character_reverse", {}, [FORWARDS[::-1], FORWARDS.lower()[::-1]], [FORWARDS, "elgae", "nwod edispu"]),
    (
        "custom:word_reverse",
        {},
        ["eagle bald the is US the of symbol national The", "eagle. bald the is symbol The"],
        [FORWARDS, "eagle bald", "US the of symbol"],
    ),
    (
        "custom:csv_city",
        {},
        [CITY, f"```csv\n{CITY}\n```", CITY.replace("Paris", '"Paris, Texas"')],
        [
            CITY.rpartition("\n")[0],
            CITY + "\n8,a,b,c,d",
            CITY.replace("Paris", ""),
            CITY.replace("ID", "Id", 1),
            f"Here:\n{CITY}",
        ],
    ),
    (
        "custom:csv_quotes",
        {},
        [QUOTED, QUOTED.replace("Art", "Fine art")],
        [
            QUOTED.replace('"', ""),
            QUOTED.replace("\t", ","),
            QUOTED.rpartition("\n")[0],
            QUOTED.replace('"Art"', "Art", 1),
        ],
    ),
    (
        "custom:csv_special_character",
        {},
        [SPECIAL, SPECIAL.replace("&", "#")],
        [
            SPECIAL.replace('"', ""),
            SPECIAL.replace("&", "and"),
            STOCK,
            SPECIAL + "\n15,a,b,c,d",
            SPECIAL.replace('Games"', "Games"),
        ],
    ),
    (
        "custom:date_format_list",
        {},
        [BATTLES, BATTLES.replace(", ", ",\n") + ", 1809-05-21"],
        [
            BATTLES + ".",
            BATTLES.replace("1815-06-18", "18.6.1815"),
            BATTLES + ", 1815-06-18",
            "1805-12-02",
            BATTLES + ", 1815-02-30",
            BATTLES + ", 1900-01-01",
            BATTLES.replace("1815-06-18", "1815-06-19"),
        ],
    ),
    (
        "custom:european_capitals_sort",
        {},
        [CAPITAL_LIST, CAPITAL_LIST.replace("Reykjavik", "Reykjavík").replace("Kyiv", "Kiev") + "."],
        [
            ", ".join(reversed(CAPITAL_LIST.split(", "))),
            CAPITAL_LIST.replace("Oslo, ", ""),
            CAPITAL_LIST + ", Belgrade",
            "Oslo",
        ],
    ),
    (
        "custom:mcq_count_length",
        {},
        [QUESTIONS, QUESTIONS.replace("Question", "**Question")],
        [
            "\n".join(_question(i, 5 - i) for i in range(1, 5)),
            "\n".join(_question(i, i) for i in range(1, 4)),
            "Sure!\n" + QUESTIONS,
            "\n".join(_question(i, i, "ABCD") for i in range(1, 5)),
            "\n".join(_question(i, 1) for i in range(1, 5)),
        ],
    ),
    (
        "custom:multiples",
        {},
        ["14 21 28 35 42 49", "14,21,28,35,42,49", "14\n21\n28\n35\n42\n49"],
        ["7 14 21 28 35 42 49", "14 21 28 35 42", "Here: 14 21 28 35 42 49", "49 42 35 28 21 14"],
    ),
    (
        "custom:reverse_newline",
        {},
        [
            COUNTRIES,
            COUNTRIES.replace("Cote D'Ivoire", "C\u00f4te d\u2019Ivoire").replace("\nTanzania", "\nTanzania\n"),
        ],
        [
            "\n".join(reversed(COUNTRIES.split("\n"))),
            COUNTRIES.replace("\nTogo", ""),
            "Zimbabwe\nZambia",
            COUNTRIES + "\nAbyssinia",
        ],
    ),
    (
        "custom:sentence_alphabet",
        {},
        [ALPHABET, ALPHABET.replace(". ", ".\n\n")],
        [ALPHABET.replace("Znd", "And"), ALPHABET[: -len(" Znd so it went.")], "A b c.", ALPHABET + " And more."],
    ),
]
