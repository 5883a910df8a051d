"""Numbers and boxes in text: what is read, what is not, never evaluated, in time that grows with the text alone."""

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.environments.mathematics.boxed import Box, boxes, last_box
from lockstep.environments.mathematics.stated import number_alone, only_number

ALONE = {
    "72": 72,
    "-3": -3,
    "\u22123": -3,
    "1,234,567": 1234567,
    "$1,200.50": Fraction(2401, 2),
    "-$5": -5,
    "$-5": -5,
    "$ 5": 5,
    "72$": 72,
    "€72": 72,
    "72.0": 72,
    "72.": 72,
    ".5": Fraction(1, 2),
    "007": 7,
    "5%": 5,
    r"5\%": 5,
    "1/2": Fraction(1, 2),
    "3 / 4": Fraction(3, 4),
    "-1 3/4": Fraction(-7, 4),
    r"\frac{3}{4}": Fraction(3, 4),
    r"-\dfrac34": Fraction(-3, 4),
    r"\frac{-3}{4}": Fraction(-3, 4),
    r"\frac{270}7": Fraction(270, 7),
    r"1\frac{4}{5}": Fraction(9, 5),
    r"137 \tfrac{1}{2}": Fraction(275, 2),
    "10{,}080": 10080,
    r"10,\!080": 10080,
    r"\$32,\!348": 32348,
    r"90^\circ": 90,
    "90°": 90,
    r"$72$": 72,
    r"\(72\)": 72,
    "+72": 72,
    "US$72": 72,
    "-US$72": -72,
    "72¢": 72,
    r"10\,000": 10000,
    r"1\,234": 1234,
    "10~000": 10000,
    r"10\ 000": 10000,
    r"\$1\,234\,567.50": Fraction(2469135, 2),
}
IN_WORDS = {
    "72 clips": 72,
    "The answer is 72": 72,
    "The answer is: $72.00!": 72,
    "18 dollars per day": 18,
    "18$/day": 18,
    "x = 72": 72,
    "**72**": 72,
    "**Answer:** 72": 72,
    "72km": 72,
    "72 m²": 72,
    r"72\text{ clips}": 72,
    "3/4 of a pie": Fraction(3, 4),
    "12 o'clock": 12,
    "Ответ: 72": 72,
    "The answer: +72": 72,
    "72 more eggs": 72,
    "It is 72 cm longer than the other": 72,
    "The two boys got 72": 72,
    "It adds up to US$72": 72,
    "She has 72 eggs left over.": 72,
}
NOTHING = [
    "",
    "clips",
    "71 or 72",
    "72 72",
    "7 2",
    "7,2",
    "1,2,3",
    "1,23",
    "12,3456",
    "1.2.3",
    "36*2",
    "5*x",
    "24+48=72",
    "5-3",
    "x-5",
    "- 5",
    "--5",
    "-$-5",
    "72²",
    "5'",
    "72-page",
    "x5",
    "a_5",
    "x/5",
    "5/x",
    "72^",
    "72+",
    "~72",
    "≈72",
    "<72",
    "72?",
    "72π",
    "√72",
    r"\sqrt{72}",
    r"2\pi",
    "5½",
    "1e2",
    "0x48",
    "nan",
    "inf",
    "\u0667",
    "\uff17\uff12",
    "3/0",
    "3/4/5",
    "3   /4",
    "1,2345",
    "6 dozen",
    "2 million",
    "5 and a half",
    "negative 5",
    "not 72",
    "isn't 72",
    "about 72",
    "72 or so",
    "9" * 41,
    "1/" + "9" * 41,
    "9" * 10_000,
    "{72}",
    "5 = 72",
    "less than 72",
    "no more than 72",
    "at most 72",
    "at least 72",
    "never 72",
    "72 below zero",
    "over 72",
    "72k",
    "72x",
    "72 M",
    "1.5M",
    "3x",
    "72 minutes and thirty seconds",
    "seventy 2",
    "Two and 72",
    "72 at the most",
    "x +5",
    "x+5",
    "(x) +5",
    "+ 5",
    "++5",
    "+-5",
    "-+5",
    "+$-5",
    "BUS$72",
    r"1234\,567",
    r"1\,2345",
    r"1\,234\,56",
    r"1.5\,234",
    r"0\,123",
    r"10\,00",
]


@pytest.mark.parametrize(("text", "number"), ALONE.items())
def test_a_number_alone_is_read(text, number):
    assert number_alone(text) == only_number(text) == number


@pytest.mark.parametrize(("text", "number"), IN_WORDS.items())
def test_the_only_number_among_words_is_read(text, number):
    assert (only_number(text), number_alone(text)) == (number, None)


@pytest.mark.parametrize("text", NOTHING)
def test_doubt_states_no_number(text):
    assert (only_number(text), number_alone(text)) == (None, None)


@given(st.fractions(min_value=-(10**9), max_value=10**9), st.sampled_from(["{}", " {} ", "{}.", "{} apples", "= {}"]))
def test_every_fraction_is_read_back(number, frame):
    assert only_number(frame.format(number)) == number


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_every_decimal_is_read_back_with_and_without_commas(number: Decimal):
    assert number_alone(f"{number:f}") == number_alone(f"{number:,f}") == Fraction(number)


@settings(max_examples=300)
@given(st.text(alphabet="0123456789,./-$%\\{} abcx^_*²½\u0667frac", max_size=60), st.integers(0, 10**6))
def test_a_second_number_unsays_the_first(text, other):
    assert only_number(f"{text} and {other}") is None or only_number(text) is None
    assert only_number(f"{other}, {text}") is None or only_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000 + "}" * 20_000,
        "\\boxed{" * 50_000,
        "{" * 100_000,
        "1," * 50_000,
        "1 " * 50_000,
        "1" + " " * 100_000 + "^",
        "²" * 100_000 + "^",
        "\\frac{" * 30_000,
        "\\frac{1" + " " * 100_000,
        "\\text{" * 30_000,
        "9" * 100_000,
        ",234" * 50_000,
        "-" * 100_000,
        r"1\," + r"234\," * 30_000 + "5",
        "1~" * 50_000,
        "+" * 100_000,
        "US$" * 30_000,
        "^ " * 50_000,
        "or " * 50_000,
    ],
)
def test_hostile_text_is_read_in_one_pass(text):
    """Quadratic time would take minutes here, and the suite's own limit would end it."""
    assert only_number(text) is None and number_alone(text) is None
    assert len(boxes(text)) <= 1


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("no box", None),
        (r"\boxed{5}", "5"),
        (r"\boxed { 5 }", "5"),
        (r"a \boxed{\frac{1}{2}} b \boxed{3", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{\boxed{\boxed{7}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\text{a\}b}}", r"\text{a\}b}"),
        ("\\boxed{a\nb}", "a\nb"),
        (r"}} \boxed{1}", "1"),
        (r"{ \boxed{1}", "1"),
        (r"\\\boxed{1}", "1"),
        (r"\\boxed{1}", None),
        (r"\boxed 5", None),
        (r"\boxed{}", ""),
        ("\\boxed{5}\\", "5"),
        (r"\fbox{5}", None),
        (r"$x=\boxed{1}$ or $x=\boxed{-1}$.", "1, -1"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1, 2, 3"),
        (r"\boxed{1} \text{ and } \boxed{2}", "1, 2"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"\boxed{9}. Then \boxed{1} or \boxed{2}", "1, 2"),
        (r"\boxed{1} order \boxed{2}", "2"),
        (r"\boxed{1}" + " " * 20_000 + "x" + r"\boxed{2}", "2"),
    ],
)
def test_the_last_box(text, content):
    assert last_box(text) == content


def test_a_box_says_where_it_stands():
    text = r"So \boxed{1} and \boxed{2}."
    assert boxes(text) == [Box("1", 3, 12), Box("2", 17, 26)]
    assert boxes(r"\boxed{1 \boxed{2} \boxed{3}}") == [Box(r"1 \boxed{2} \boxed{3}", 0, 29)]
    assert [text[box.start : box.end] for box in boxes(text)] == [r"\boxed{1}", r"\boxed{2}"]


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\{", "\\}", "\\", "x", " "]), max_size=40).map("".join))
def test_boxes_are_balanced_and_do_not_overlap(text):
    found = boxes(text)
    for box in found:
        assert text[box.start :].startswith("\\boxed") and text[box.end - 1] == "}"
        bare = box.content.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert bare.count("{") == bare.count("}")
    assert all(before.end <= after.start for before, after in pairwise(found))
