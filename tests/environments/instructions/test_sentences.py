"""Where sentences end, and where a full stop ends nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.environments.instructions.sentences import kind, sentences
from lockstep.environments.instructions.text import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("No mark at all", ["No mark at all"]),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It cost 3.50 in 1.5 hours. Then we left.", ["It cost 3.50 in 1.5 hours.", "Then we left."]),
        ("Dr. Smith met Mr. and Mrs. Jones vs. St. John.", ["Dr. Smith met Mr. and Mrs. Jones vs. St. John."]),
        ("Use tools, e.g. a saw, i.e. sharp ones. Go.", ["Use tools, e.g. a saw, i.e. sharp ones.", "Go."]),
        ("J. R. R. Tolkien wrote it. I read it.", ["J. R. R. Tolkien wrote it.", "I read it."]),
        ("It was I. You knew.", ["It was I.", "You knew."]),
        (
            "He is of the U.S. Army. He left the U.S. He came back.",
            ["He is of the U.S. Army.", "He left the U.S.", "He came back."],
        ),
        ("We met at 5 p.m. on Friday. At 6 p.m. We left.", ["We met at 5 p.m. on Friday.", "At 6 p.m.", "We left."]),
        (
            "Pens, ink, etc. are sold. Pens, ink, etc. We sell.",
            ["Pens, ink, etc. are sold.", "Pens, ink, etc.", "We sell."],
        ),
        ("See no. 5 here. He said no. 5 left.", ["See no. 5 here.", "He said no. 5 left."]),
        ("He said no. Then he left.", ["He said no.", "Then he left."]),
        ('"Really?" he asked. "Yes!" she said.', ['"Really?" he asked.', '"Yes!" she said.']),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("Well... maybe not. Well... Maybe.", ["Well... maybe not.", "Well...", "Maybe."]),
        ("well... maybe not.", ["well...", "maybe not."]),
        ("Hey! what is it? A dog.", ["Hey!", "what is it?", "A dog."]),
        ("hello there. how are you? fine.", ["hello there.", "how are you?", "fine."]),
        ("What?! No way!!! Yes.", ["What?!", "No way!!!", "Yes."]),
        ("One line\nthat goes on. Two.", ["One line\nthat goes on.", "Two."]),
        ("First part\n\nSecond part", ["First part", "Second part"]),
        ("1. One thing\n2. Two things. More.", ["One thing", "Two things.", "More."]),
        ("* one\n- two\n> three", ["one", "two", "three"]),
        ("Which?\nA. The sea.\nB. It.\nC. Rain.", ["Which?", "The sea.", "It.", "Rain."]),
        ("I. Snow falls.\nII. Ice is here.", ["Snow falls.", "Ice is here."]),
        ("1.\nOne.\n\n2.\nTwo.", ["One.", "Two."]),
        ("It is by\nJ. Smith. I read\nit.", ["It is by\nJ. Smith.", "I read\nit."]),
        ("J. Smith came.\n\nR. Roe left.", ["J. Smith came.", "R. Roe left."]),
        ("# Title\nText here.\n**Bold head**\nMore text.", ["Text here.", "More text."]),
        ("**Bold sentence.** Another.", ["**Bold sentence.**", "Another."]),
        ("**A bold line that is a sentence.**\nMore.", ["**A bold line that is a sentence.**", "More."]),
        ("One.\n***\nTwo.\n---\n", ["One.", "Two."]),
        ("Hi. \U0001f600 Bye. \U0001f389\U0001f389", ["Hi. \U0001f600", "Bye. \U0001f389\U0001f389"]),
        ("(One.) [Two.] Three.", ["(One.)", "[Two.]", "Three."]),
        ("Go to example.com or v2.0.1 now. Ok.", ["Go to example.com or v2.0.1 now.", "Ok."]),
        (
            "\u4eca\u5929\u5f88\u597d\u3002\u6211\u4eec\u8d70\u3002",
            ["\u4eca\u5929\u5f88\u597d\u3002", "\u6211\u4eec\u8d70\u3002"],
        ),
        (
            "\u090f\u0915 \u0939\u0948\u0964 \u0926\u094b \u0939\u0948\u0902\u0964",
            ["\u090f\u0915 \u0939\u0948\u0964", "\u0926\u094b \u0939\u0948\u0902\u0964"],
        ),
        ("\u0646\u0639\u0645\u061f \u0644\u0627.", ["\u0646\u0639\u0645\u061f", "\u0644\u0627."]),
        ("P.S. I like it. P.P.S. You too.", ["P.S. I like it.", "P.P.S. You too."]),
        (". . . ! ? One.", [". . . ! ? One."]),
        ("... !!!", []),
        ('End."\n x', ['End."', "x"]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("It is.", "declarative"),
        ("It is", "declarative"),
        ("Is it?", "interrogative"),
        ("Is it?!", "interrogative"),
        ('"Is it?"', "interrogative"),
        ("Is it? \U0001f600", "interrogative"),
        ("It is!", "exclamatory"),
        ("**It is!**", "exclamatory"),
        ("Wow! It is.", "declarative"),
        ("\u0646\u0639\u0645\u061f", "interrogative"),
        ("", "declarative"),
    ],
)
def test_kinds(sentence, expected):
    assert kind(sentence) == expected


@given(st.lists(st.sampled_from(["The dog sat.", "Who came?", "We won!", 'She said "no."', "Go (now)."]), max_size=8))
def test_plain_sentences_are_found_again(parts):
    assert sentences(" ".join(parts)) == parts


@given(st.text(alphabet=st.sampled_from("aB1.!?\"' \n*-#\u2026\u3002\U0001f600")))
def test_no_word_is_lost_outside_headings(text):
    said = "".join("".join(words(sentence)) for sentence in sentences(text.replace("#", "").replace("**", "")))
    spoken = "".join(words(text.replace("#", "").replace("**", "")))
    if not any(mark in text for mark in "-*1B"):  # list marks are left out
        assert said == spoken
    assert len(said) <= len(spoken)
