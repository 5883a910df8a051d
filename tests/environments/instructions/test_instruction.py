# ruff: noqa: RUF001 - letters of other scripts are what some of this is about
"""Binding rows to checkers, the loose variants, and checkers on whatever a model may write."""

import gc
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.environments.instructions.instruction import CHECKERS, bind, variants
from tests.environments.instructions.test_checkers import CASES, bound

INSTRUCTIONS = [bound(id, kwargs) for id, kwargs, *_ in CASES]
FRAGMENTS = """
the The rain RAIN war moon é ß 猫 ねこ है الكتاب слово I don't one. Two! three? ... … 。 , ; : ' " ‘ ’ “ ”
( ) [ ] { } < > << >> * ** *** ****** - -- — _ # ## ``` ```json / | = + @ 1 2.5 1,000 ½ ٣ ² 14 😊 ❤️
👩‍👩‍👧 \ufe0f \u200d \u0301 \ud800 \x00
<i>x</i> [name] {"a": *bold* Question A) SECTION P.S. Dr. U.S. eagle e.g."""
PIECES = st.sampled_from(FRAGMENTS.split())
SPACES = st.sampled_from(["", " ", "\n", "\n\n", "\t", "  * ", "\r\n", "\u00a0", "\u2028", "\x0b", "\x1c"])
WRITTEN = st.lists(st.tuples(PIECES, SPACES).map("".join), max_size=25).map("".join)
RESPONSES = st.one_of(WRITTEN, st.text(max_size=60), st.text(alphabet=st.sampled_from("aA1 .,\"'*-([{\n"), max_size=60))


def try_all(response):
    for instruction in INSTRUCTIONS:
        strict = instruction.followed(response)
        assert strict is True or strict is False
        assert instruction.followed_loosely(response) >= strict
    assert not (not response.strip() and any(i.followed_loosely(response) for i in INSTRUCTIONS))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RESPONSES)
def test_no_checker_raises_and_loose_forgives(response):
    assert len(INSTRUCTIONS) * 250 > 20_000
    try_all(response)


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RESPONSES)
def test_no_checker_raises_on_many_more(response):
    try_all(response)


LONG = [
    "a",
    "a ",
    "ab. ",
    "! ",
    ". ",
    "*",
    "**a",
    "* a\n",
    "'",
    '"',
    "\"' ",
    "(",
    "([{",
    "[a",
    "[a] ",
    "<",
    "<<a",
    "```",
    "\n",
    "1,",
    "1. ",
]
LONG += [
    "a\n\n",
    "Question A)\n",
    "My Answer: My Conclusion: ",
    "SECTION 1\n",
    "P.S. ",
    "ä",
    "猫",
    "है ",
    "😊 ",
    "-",
    "- a\n",
    "_",
    "{",
    ",",
]


SHAPES = [("", piece, "") for piece in LONG]
SHAPES += [("a", " ", "b"), ("a,", " ", "b"), ("a", "\t", ","), ("a", "\n", "b"), ("a", "*", "b"), ("(", "a", "]")]
SHAPES += [
    ("```", "\n", "x"),
    ('"', "a ", "'"),
    ("a", "-", "b"),
    ("<<", "a ", ">"),
    ("Question", " ", "A"),
    ("1", " ", "."),
]


def cpu_s(instruction, response) -> float:
    gc.disable()  # one collection of all that the suite holds takes longer than most checks
    try:
        before = time.process_time()
        instruction.followed(response)
        return time.process_time() - before
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize(("start", "piece", "end"), SHAPES)
def test_a_long_response_takes_no_longer_than_its_length(start, piece, end):
    """Processor time at a length and at four times of it: linear time grows by 4, quadratic by 16. What takes less
    than a tenth of a second for 100,000 characters is linear enough."""
    short, long = (start + piece * (size // len(piece)) + end for size in (25_000, 100_000))
    for instruction in INSTRUCTIONS:
        assert cpu_s(instruction, long) < 0.1 or min(cpu_s(instruction, long) for _ in range(3)) < 8 * max(
            0.02, min(cpu_s(instruction, short) for _ in range(3))
        ), instruction.id


def test_variants_are_the_eight():
    assert variants("one\n*two*\nthree") == [
        "one\n*two*\nthree",
        "one\ntwo\nthree",
        "*two*\nthree",
        "two\nthree",
        "one\n*two*",
        "one\ntwo",
        "*two*",
        "two",
    ]
    assert len(variants("")) == 8


@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        ("all small", True, True),
        ("Sure:\nall small", False, True),
        ("all small\nBye!", False, True),
        ("Sure:\nall small\nBye!", False, True),
        ("Sure:\nOf course:\nall small", False, False),
        ("Sure", False, False),
        ("Sure\nBye", False, False),
    ],
)
def test_loose_forgives_a_first_and_a_last_line(response, strict, loose):
    instruction = bind("change_case:english_lowercase", {}, "x")
    assert (instruction.followed(response), instruction.followed_loosely(response)) == (strict, loose)


def test_loose_forgives_asterisks():
    instruction = bind("startend:end_checker", {"end_phrase": "the end of it"}, "x")
    assert not instruction.followed("This is the *end* of it")
    assert instruction.followed_loosely("This is the *end* of it")


@pytest.mark.parametrize(
    ("id", "kwargs", "said"),
    [
        (
            "keywords:existance",
            {},
            "no checker for the instruction 'keywords:existance', did you mean 'keywords:existence'?",
        ),
        ("zzz", {}, "no checker for the instruction 'zzz': correct the id, or remove the row"),
        ("keywords:existence", {}, "keywords:existence has no 'keywords' in its kwargs: add it"),
        ("keywords:existence", {"keywords": None}, "has no 'keywords'"),
        ("keywords:existence", {"keywords": []}, "has keywords=[]: give a list of texts"),
        ("keywords:existence", {"keywords": "rain"}, "has keywords='rain': give a list of texts"),
        ("keywords:existence", {"keywords": ["rain", 3]}, "has keywords=3: give a text"),
        ("keywords:existence", {"keywords": ["rain"], "letter": "a"}, "takes no 'letter': remove it"),
        ("count:numbers", {"N": 2.5}, "has N=2.5: give a whole number, 1 or more"),
        ("count:numbers", {"N": 0}, "has N=0: give a whole number, 1 or more"),
        (
            "repeat:repeat_span",
            {"prompt_to_repeat": "a", "n_start": -1, "n_end": 0},
            "n_start=-1: give a whole number, 0 or",
        ),
        ("count:numbers", {"N": -1}, "has N=-1: give a whole number"),
        ("count:numbers", {"N": True}, "has N=True: give a whole number"),
        ("count:numbers", {"N": float("nan")}, "has N=nan: give a whole number"),
        ("count:numbers", {"N": "2"}, "has N='2': give a whole number"),
        ("ratio:stop_words", {"percentage": 101}, "has percentage=101: give a number from 0 to 100"),
        (
            "keywords:frequency",
            {"keyword": " ", "relation": "at least", "frequency": 1},
            "has keyword=' ': give a text",
        ),
        (
            "keywords:frequency",
            {"keyword": "a", "relation": "at most", "frequency": 1},
            "has relation='at most': give one of at least, less than",
        ),
        (
            "language:response_language",
            {"language": "xx"},
            "language='xx', which is not told apart here: remove the row",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_fix(id, kwargs, said):
    with pytest.raises(ValueError) as error:
        bind(id, kwargs, "x")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_arguments_come_in_the_checkers_types():
    bound_range = bind("count:word_count_range", {"min_words": 2.0, "max_words": 3.0, "N": None}, "x")
    assert bound_range.arguments == {"min_words": 2, "max_words": 3}
    assert all(type(value) is int for value in bound_range.arguments.values())
    assert bind("keywords:existence", {"keywords": ["a"]}, "x").arguments == {"keywords": ("a",)}
    assert bind("ratio:stop_words", {"percentage": 20}, "x").arguments == {"percentage": 20.0}
    assert bind("count:person_names", {"N": 1}, "the prompt").arguments == {"N": 1, "prompt": "the prompt"}


def test_there_are_83_kinds():
    assert len(CHECKERS) == 25 + 58
