"""Languages of texts written for this test, in sentences and in capitals."""

import pytest

from lockstep.environments.instructions.language import detect, is_in, known
from tests.environments.instructions.language_texts import LATER, TEXTS


def mistaken(texts):
    return [(code, detect(text), text) for code, written in texts.items() for text in written if detect(text) != code]


def test_texts_that_the_lists_were_mended_with():
    assert mistaken(TEXTS) == []
    capitals = {code: [text.upper() for text in written] for code, written in TEXTS.items()}
    assert mistaken(capitals) == []


def test_texts_written_afterwards():
    assert mistaken(LATER) == []


@pytest.mark.parametrize("text", ["", "12 + 3", "!?", "\U0001f600", "abc \u043f\u0440\u0438 def \u0432\u0435\u0442"])
def test_no_language(text):
    assert detect(text) is None


@pytest.mark.parametrize("text", ["Hello", "PyTorch 2", "Ok.", "x = 1"])
def test_plain_latin_without_a_telling_word_counts_as_english(text):
    assert detect(text) == "en"


def test_names_in_other_letters_are_let_pass():
    german = "Der Autor Лев Толстой schrieb dieses Buch, und ich habe es sehr gern gelesen."
    assert is_in(german, "de")


def test_no_long_paragraph_may_be_in_another_language():
    german = "Der Himmel ist heute blau, und die Sonne scheint den ganzen Tag auf die Stadt."
    english = "The sky is blue today and the sun will be out over the city for the whole day."
    assert is_in(f"{german}\n\n{german}", "de")
    assert not is_in(f"{german}\n\n{german}\n\n{english}", "de")
    assert is_in(f"{german}\n\n{german}\n\nSee the link", "de")  # too short to be judged alone


def test_known():
    assert all(map(known, TEXTS)) and not known("xx") and not known("EN")
