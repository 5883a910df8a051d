"""Numbers, clocks, bars and other people's text, by hand-worked examples."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.observe.formats import bars, count, duration, number, percent, printable, ratio_range


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.74249, "0.742"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (-0.0021, "-0.0021"),
        (1.3e-7, "1.3e-07"),
        (1e6, "1.0e+06"),
        (1.0, "1.00"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_count_percent_and_duration() -> None:
    assert [count(value) for value in (940, 7513, 123456, 1.2e6, 3e10)] == ["940", "7.5k", "123k", "1.2M", "30.0G"]
    assert [percent(value) for value in (0, 1e-5, 0.031, 1)] == ["0%", "0.0%", "3.1%", "100.0%"]
    assert [duration(value) for value in (-1, 58.9, 725, 3723)] == ["0:00", "0:58", "12:05", "1:02:03"]


def test_no_rounding_hides_a_ratio_that_is_not_one() -> None:
    assert ratio_range(1.0, 1.0) == "1 exactly"
    assert ratio_range(1.0, 1.0 + 1e-9) != "1 exactly"
    assert ratio_range(0.9876, 1.00002) == "0.9876..1.00002"


def test_bars() -> None:
    assert bars([0, 0.5, 1, None, math.nan], rows=1, low=0, high=1) == ["▁▄█  "]
    assert bars([0, 0.5, 0.75, 1], rows=2, low=0, high=1) == ["  ▄█", "▁███"]
    assert bars([3, 3], rows=1, low=3, high=3) == ["▁▁"]


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters()), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_printable_text_moves_no_cursor_and_can_be_encoded(text: str, encoding: str) -> None:
    shown = printable(text, encoding)
    shown.encode(encoding)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in shown)


def test_printable_leaves_ordinary_text_alone() -> None:
    assert printable("Ada [red] é → 😀\n\tx") == "Ada [red] é → 😀\n\tx"
    assert printable("\x1b[2J\u202e\ud800") == "␛[2J\\u202e\\ud800"
