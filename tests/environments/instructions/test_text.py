"""Words, paragraphs, bullets and the rest as a reader would count them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.environments.instructions.text import (
    bare,
    bullets,
    lines,
    occurrences,
    paragraphs,
    plain,
    without_fence,
    without_quotes,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One, two.", ["One", "two"]),
        ("It's a well-known fact", ["It's", "a", "well-known", "fact"]),
        ("1,000.5 and 3/4", ["1,000.5", "and", "3", "4"]),
        ("yes\u2014no\u2013maybe", ["yes", "no", "maybe"]),
        ("a--b ... c....d", ["a", "b", "c", "d"]),
        ("and/or|nor", ["and", "or", "nor"]),
        ("- * # \U0001f600 \u2764\ufe0f !", []),
        ("**Bold** _it_ <<x>>", ["Bold", "it", "x"]),
        ("fun\u2764\ufe0f", ["fun"]),
        (
            "\u0915\u093f\u0924\u093e\u092c\u0947\u0902 \u0939\u0948\u0902\u0964",
            ["\u0915\u093f\u0924\u093e\u092c\u0947\u0902", "\u0939\u0948\u0902"],
        ),
        ("e.g. U.S.", ["e.g", "U.S"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.lists(st.text("abcXYZ019", min_size=1)), st.sampled_from([" ", "\n", ", ", " - ", "\u2014", " ** "]))
def test_words_are_what_was_joined(parts, between):
    assert words(between.join(parts)) == parts


@given(st.text())
def test_words_are_bare_and_counted_once_more_when_joined(text):
    found = words(text)
    assert all(word and bare(word) == word for word in found)
    assert words(" ".join(found)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\n\nc", ["a\nb", "c"]),
        ("\n\n a \n \t\n\nb\n", ["a", "b"]),
        (" \n", []),
    ],
)
def test_paragraphs(text, expected):
    assert paragraphs(text) == expected


def test_lines_keep_their_indentation():
    assert lines("a \n\n  b\r\n\t\nc") == ["a", "  b", "c"]


@pytest.mark.parametrize(
    ("text", "keyword", "times"),
    [
        ("war War WAR", "war", 3),
        ("wars warm toward _war_ *war*", "war", 2),
        ("war-torn, the war's", "war", 2),
        ("C++ and c++!", "c++", 2),
        ("ice cream, ice  cream", "ice cream", 1),
        ("a.b a+b", "a.b", 1),
        ("\u00c9lan \u00e9lan elan", "\u00e9lan", 2),
    ],
)
def test_occurrences(text, keyword, times):
    assert occurrences(text, keyword) == times


def test_bullets():
    text = "* a\n  - b\n\u2022 c\n*d*\n* * *\n---\n- \n+ e\n*\tf"
    assert bullets(text) == ["* a", "  - b", "\u2022 c", "*\tf"]
    assert bullets(text, "*") == ["* a", "*\tf"]


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("```json\n{}\n```", "{}"),
        ("```\n{}\n```", "{}"),
        (" ```JSON\n[1,\n2]\n``` ", "[1,\n2]"),
        ("```{}```", "{}"),
        ("{}", "{}"),
        ("```json\n{}", "```json\n{}"),
        ("``````", ""),
        ("`````", "`````"),
    ],
)
def test_without_fence(text, inside):
    assert without_fence(text) == inside


@pytest.mark.parametrize(
    ("text", "inside"), [('"a"', "a"), (" \u201ca b\u201d ", "a b"), ('"', '"'), ("a", "a"), ('""', ""), ('"a', '"a')]
)
def test_without_quotes(text, inside):
    assert without_quotes(text) == inside


def test_plain():
    assert plain("\u00c9LAN Stra\u00dfe") == "elan strasse"
