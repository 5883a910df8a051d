# ruff: noqa: RUF001 - letters of other scripts are what this is about
"""Which language a text is in, by its script and, where languages share one, by their commonest small words and their
own letters. No download, no randomness, linear time.

Told apart: ar bg bn de en es fa fi fr gu hi id it ja kn ko ml mr ne nl pa pl pt ro ru si sr sv sw ta te th tl tr uk ur
vi zh. A text is taken to be in a language when most of its letters are of that language's script and no other language
of the script fits better; text of no telling word (a name, a formula) counts as English when it is in plain Latin.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from lockstep.environments.instructions.language_words import FUNCTION_WORDS
from lockstep.environments.instructions.text import paragraphs, same, words

OWN_SCRIPT = 0.7  # of the letters; names, units and code may be written in another
# Signs that stand for so many letters of an alphabet: a word of six letters takes about two of Chinese.
DENSE = {"CJK": 3, "HIRAGANA": 2, "KATAKANA": 2, "HANGUL": 2}
NO_SCRIPT = ("COMBINING", "VARIATION")  # marks that may stand on a letter of any script
OTHER_NAMES = {"IDEOGRAPHIC": "CJK", "KATAKANA-HIRAGANA": "KATAKANA"}
TELLING_WORDS = 12  # a paragraph shorter than this is not judged alone

# Languages that are alone in their script, as Unicode names its letters.
ALONE = {
    "BENGALI": "bn",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
SHARED = {
    "LATIN": ["en", "de", "it", "pt", "es", "fr", "nl", "sv", "fi", "sw", "vi", "id", "tl", "tr", "pl", "ro"],
    "CYRILLIC": ["ru", "bg", "uk", "sr"],
    "DEVANAGARI": ["hi", "mr", "ne"],
    "ARABIC": ["ar", "fa", "ur"],
}
# Letters and endings that few other languages of the script have; each counts as a share of a small word.
TELLING = {
    "de": (r"[äöüß]|(?:ung|lich|keit|isch)\b", 0.5),
    "pt": (r"[ãõ]|ç[ãõ]", 1.0),
    "es": (r"[ñ¿¡]|ción\b", 1.0),
    "it": (r"[ìò]\b|zion[ei]\b|\bdell'|\bl'|gli\b", 0.5),
    "fr": (r"[œêçèù]|\b(?:qu|d|l|n|c|j)['’]", 0.5),
    "sv": (r"[åäö]|å", 0.7),
    "fi": (r"[äö]|yy|(?:ssa|ssä|sta|stä|lla|llä|ista|istä|inen|isen|minen|ään|aan|een|iin|vat|vät)\b", 0.7),
    "vi": (r"[ơưđạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]", 0.5),
    "tr": (r"[ğışİ]", 0.7),
    "pl": (r"[łąęśćźż]", 0.7),
    "ro": (r"[ăâîșț]", 0.5),
    "sw": (
        r"\b(?:ku|wa|ki|vi|m|ni|u|a|ana|wana|una|tuna|nina)[a-z]*[aeiou](?:sha|lia|kia|nya|mba|nda|nga|ngu|wa|ji)\b",
        0.5,
    ),
    "ru": (r"[ыэё]|(?:ый|ий|ого|ому|ть|тся|ться|ешь|ают|ую)\b", 0.5),
    "bg": (r"ъ|\w(?:та|то|ят|ите|ът|ва|ха|ме|те)\b", 0.4),
    "uk": (r"[іїєґ]", 0.7),
    "sr": (r"[ђћљњџј]", 0.7),
    "hi": (r"\u0921\u093c|\u095c|ों|ें(?=\s)|ता है|ते हैं|ती है", 0.5),
    "mr": (r"ळ|ण्या|च्या|ांना|ाचा|ाची|ाचे|ामध्ये|ासाठी|ऱ्य", 0.7),
    "ne": (r"छ|हरू|हरु|ाई\b|्छ|ेको|ँदा|नुहोस्|ौं", 0.5),
    "ar": (r"ة|ى|[أإؤئ]|\bال", 0.4),
    "fa": (r"[پچژگ]|\u200c|ی|ک", 0.3),
    "ur": (r"[ٹڈڑںےھہ]", 0.5),
}
TELLING_PATTERNS = {code: (re.compile(pattern), weight) for code, (pattern, weight) in TELLING.items()}


def is_in(text: str, language: str) -> bool:
    """Whether a text is in the language of this code, and no long paragraph of it in another."""
    parts = [part for part in paragraphs(text) if len(words(part)) >= TELLING_WORDS]
    return detect(text) == language and all(detect(part) == language for part in parts)


def known(language: str) -> bool:
    """Whether `detect` can answer with this code."""
    return language in {*ALONE.values(), *(code for codes in SHARED.values() for code in codes), "ja", "zh"}


def detect(text: str) -> str | None:
    """The code of the language that most of a text is in; None without letters, or where scripts mix evenly."""
    scripts = _scripts(text)
    total = scripts.total()
    if not total:
        return None
    chinese, kana = scripts["CJK"], scripts["HIRAGANA"] + scripts["KATAKANA"]
    if chinese + kana >= OWN_SCRIPT * total:
        return "ja" if kana >= 0.1 * total else "zh"
    script, count = scripts.most_common(1)[0]
    if count < OWN_SCRIPT * total:
        return None
    return ALONE.get(script) or (_best(text, SHARED[script]) if script in SHARED else None)


def _scripts(text: str) -> Counter[str]:
    """How many letters each script has, dense signs counted as several, vowel signs as letters."""
    letters = Counter(c for c in text if c.isalpha() or unicodedata.category(c) in ("Mn", "Mc"))
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        script = _script(letter)
        if script not in NO_SCRIPT:
            scripts[script] += count * DENSE.get(script, 1)
    return scripts


def _script(letter: str) -> str:
    """A name in Unicode begins with the script, but for its width: FULLWIDTH LATIN SMALL LETTER A."""
    first, *rest = unicodedata.name(letter, "OTHER").split(" ")
    name = rest[0] if first in ("FULLWIDTH", "HALFWIDTH") else first
    return OTHER_NAMES.get(name, name)


def _best(text: str, codes: list[str]) -> str:
    """The language whose small words and letters a text shows most of; the first of them when it shows none."""
    lowered = text.lower()
    tokens = Counter(same(word) for word in words(lowered))
    scores = dict.fromkeys(codes, 0.0)
    for code in codes:
        scores[code] = float(sum(tokens[word] for word in FUNCTION_WORDS[code] if word in tokens))
        if code in TELLING_PATTERNS:
            pattern, weight = TELLING_PATTERNS[code]
            scores[code] += weight * sum(1 for _ in pattern.finditer(lowered))
    return max(codes, key=lambda code: scores[code])
