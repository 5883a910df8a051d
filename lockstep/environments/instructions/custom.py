"""IFBench's instructions of one row each, whose whole prompt is in the checker."""

from __future__ import annotations

import csv
import io
import re
from datetime import date
from itertools import pairwise

from lockstep.environments.instructions.places import (
    AFRICA,
    AFRICAN_NAMES,
    BATTLE_STARTS,
    BATTLE_YEARS,
    CAPITAL_NAMES,
    CAPITALS,
)
from lockstep.environments.instructions.sentences import sentences
from lockstep.environments.instructions.text import initial, lines, plain, without_fence, words

QUESTION = re.compile(r"[\s*#_]*+Question\b")
OPTION = re.compile(r"\s*+(?:[-*+]\s++)?\(?(?:[A-Ea-e]|[1-5])[).:]")
LABEL = re.compile(r"[\s*#_]*+Question\b[ \t]*+#?\d*[.:)*_]*+")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def character_reverse(response: str) -> bool:
    """custom:character_reverse. Read backwards, the response is words that name the bald eagle in a sentence."""
    backwards = [plain(word) for word in words(response[::-1])]
    return len(backwards) >= 3 and "eagle" in backwards and bool({"the", "is", "of", "a"} & set(backwards))


def word_reverse(response: str) -> bool:
    """custom:word_reverse. The words in reverse order: the eagle comes before what makes it bald, in a sentence."""
    found = [plain(word) for word in words(response)]
    return len(found) >= 3 and ("eagle", "bald") in pairwise(found) and bool({"the", "is", "of", "a"} & set(found))


def csv_city(response: str) -> bool:
    """custom:csv_city. The header asked for and 7 rows of 5 filled fields between commas."""
    table = _table(response, ",")
    return table[:1] == [["ID", "Country", "City", "Year", "Count"]] and len(table) == 8 and _is_full(table, 5)


def csv_special_character(response: str) -> bool:
    """custom:csv_special_character. The header and 14 rows between commas; a field in double quotes has a special
    character: what is no letter, digit or space."""
    table = _table(response, ",")
    quoted = re.findall(r'"((?:[^"\n]|"")*+)"', response)
    special = any(not (c.isalnum() or c.isspace()) for field in quoted for c in field)
    header = ["ProductID", "Category", "Brand", "Price", "Stock"]
    return table[:1] == [header] and len(table) == 15 and _is_full(table, 5) and special


def csv_quotes(response: str) -> bool:
    """custom:csv_quotes. The header and 3 rows between tabs, each field in double quotes, the header's too."""
    table = _table(response, "\t")
    header = ["StudentID", "Subject", "Grade", "Semester", "Score"]
    fields = [field.strip() for line in lines(without_fence(response)) for field in line.split("\t")]
    quoted = all(len(field) >= 2 and field[0] == field[-1] == '"' for field in fields)
    return table[:1] == [header] and len(table) == 4 and _is_full(table, 5) and quoted


def _table(response: str, delimiter: str) -> list[list[str]]:
    """The rows of a CSV text, also within a Markdown fence; none when it is no CSV."""
    try:
        rows = list(csv.reader(io.StringIO(without_fence(response)), delimiter=delimiter, strict=True))
    except csv.Error:
        return []
    return [[field.strip() for field in row] for row in rows if row]


def _is_full(table: list[list[str]], num_columns: int) -> bool:
    return all(len(row) == num_columns and all(row) for row in table)


def date_format_list(response: str) -> bool:
    """custom:date_format_list. Different dates as YYYY-MM-DD between commas and nothing else, all in the years of
    Napoleon's battles, and at least half of his best known battles among them. Which battles are all of them no two
    books agree on."""
    found = [text.strip() for text in response.split(",")]
    if len(found) != len(set(found)) or not all(DATE.fullmatch(text) and _is_date(text) for text in found):
        return False
    return 2 * len(BATTLE_STARTS & set(found)) >= len(BATTLE_STARTS)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).year in BATTLE_YEARS
    except ValueError:
        return False


def european_capitals_sort(response: str) -> bool:
    """custom:european_capitals_sort. All capitals above 45 degrees north, between commas, from north to south, and
    nothing else."""
    found = [plain(name.strip().rstrip(".")) for name in response.split(",")]
    return [CAPITAL_NAMES.get(name, name) for name in found] == list(CAPITALS)


def reverse_newline(response: str) -> bool:
    """custom:reverse_newline. All 54 countries of Africa, one a line, each name before the one above it in the
    alphabet."""
    found = [plain(line.strip()).replace("\u2019", "'") for line in lines(response)]
    countries = [AFRICAN_NAMES.get(name, name) for name in found]
    return sorted(countries) == sorted(AFRICA) and all(former > later for former, later in pairwise(found))


def multiples(response: str) -> bool:
    """custom:multiples. The multiples of 7 from 14 to 49 in order and no other word."""
    return words(response.replace(",", " ")) == [str(number) for number in range(14, 51, 7)]


def mcq_count_length(response: str) -> bool:
    """custom:mcq_count_length. Four questions that each begin a line with `Question`, nothing before the first, five
    options each (A to E or 1 to 5), and each question longer in characters than the one before."""
    blocks: list[list[str]] = []
    for line in lines(response):
        if QUESTION.match(line):
            blocks.append([])
        elif not blocks:
            return False
        blocks[-1].append(line)
    lengths = [_question_length(block) for block in blocks]
    return len(blocks) == 4 and min(lengths) > 0 and all(former < later for former, later in pairwise(lengths))


def _question_length(block: list[str]) -> int:
    """Characters of the question without its label; 0 when it has not five options."""
    first = next((i for i, line in enumerate(block) if OPTION.match(line)), len(block))
    options = sum(OPTION.match(line) is not None for line in block)
    asked = " ".join(line.strip() for line in block[:first])
    return len(LABEL.sub("", asked, count=1).strip(" *_")) if options == 5 else 0


def sentence_alphabet(response: str) -> bool:
    """custom:sentence_alphabet. 26 sentences whose first words begin with A, B, C and so on to Z."""
    first = "".join(initial(inside[0]) for sentence in sentences(response) if (inside := words(sentence)))
    return first == "abcdefghijklmnopqrstuvwxyz"
