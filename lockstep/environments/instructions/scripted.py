"""Small tasks and responses that a program writes, for the cold start of a model too small to follow any instruction.

The data has no demonstrations. Each of these asks for a few lines about some thing under one to three instructions of
IFEval and IFBench in the data's words, and answers in plain sentences. Every response is checked by the checkers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lockstep.environments.instructions.instruction import Instruction, bind

THINGS = [
    "river",
    "garden",
    "train",
    "lamp",
    "bread",
    "horse",
    "market",
    "bridge",
    "window",
    "forest",
    "kitchen",
    "harbor",
    "teacher",
    "boat",
    "winter",
    "dog",
]
KEYWORDS = "story water quiet morning bright paper simple journey golden music".split()  # noqa: SIM905
SENTENCES = (
    "The {} is old and quiet.",
    "I like the {} very much.",
    "We see the {} every day.",
    "It is good to have a {}.",
    "My friend has a {} too.",
    "The {} was here before us.",
    "You can find the {} in the town.",
    "They talk about the {} in the evening.",
)
REQUESTS = ("Write a few lines about a {}.", "Tell me something about a {}.", "Describe a {} in a few words.")
MAX_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Exercise:
    """A prompt, its instructions and a response that follows them all."""

    prompt: str
    instructions: tuple[Instruction, ...]
    response: str


@dataclass(frozen=True, slots=True)
class Part:
    """One instruction as the prompt words it, with what makes a text follow it."""

    id: str
    ask: str
    shape: Callable[[str], str]
    arguments: Mapping[str, Any]


def exercises(seed: int, count: int) -> list[Exercise]:
    """That many exercises; the same seed gives the same ones."""
    random = Random(seed)
    return [_exercise(random) for _ in range(count)]


def _exercise(random: Random) -> Exercise:
    """Parts that cannot stand together (two of them shape the same thing) are drawn again."""
    for _ in range(MAX_TRIES):
        thing = random.choice(THINGS)
        families = sorted(random.sample(range(len(FAMILIES)), random.choice((1, 1, 2, 2, 3))))
        parts = [random.choice(FAMILIES[family])(random, thing) for family in families]
        prompt = " ".join([random.choice(REQUESTS).format(thing), *(part.ask for part in parts)])
        said = random.sample(SENTENCES, random.choice((2, 3)))
        text = " ".join(said).format(*[thing] * len(said))
        for part in parts:
            text = part.shape(text)
        bound = tuple(bind(part.id, part.arguments, prompt) for part in parts)
        if all(instruction.followed(text) for instruction in bound):
            return Exercise(prompt=prompt, instructions=bound, response=text)
    raise RuntimeError(f"no parts of {MAX_TRIES} draws stand together: loosen FAMILIES")


def _existence(random: Random, thing: str) -> Part:
    words = random.sample(KEYWORDS, 2)
    added = f" A {words[0]} and a {words[1]} come to mind."
    ask = f"Include keywords {words[0]!r} and {words[1]!r} in the response."
    return Part("keywords:existence", ask, lambda text: text + added, {"keywords": words})


def _frequency(random: Random, thing: str) -> Part:
    word, times = random.choice(KEYWORDS), random.randint(2, 3)
    arguments = {"keyword": word, "relation": "at least", "frequency": times}
    ask = f"The word {word} should appear at least {times} times."
    return Part("keywords:frequency", ask, lambda text: text + f" It has a {word}." * times, arguments)


def _forbidden(random: Random, thing: str) -> Part:
    word = random.choice(KEYWORDS)
    return Part("keywords:forbidden_words", f"Do not include the word {word}.", str, {"forbidden_words": [word]})


def _few_sentences(random: Random, thing: str) -> Part:
    limit = random.randint(5, 8)
    arguments = {"relation": "less than", "num_sentences": limit}
    return Part("length_constraints:number_sentences", f"Use less than {limit} sentences.", str, arguments)


def _few_words(random: Random, thing: str) -> Part:
    limit = random.randint(6, 10) * 10
    arguments = {"relation": "less than", "num_words": limit}
    return Part("length_constraints:number_words", f"Use less than {limit} words.", str, arguments)


def _no_comma(random: Random, thing: str) -> Part:
    return Part("punctuation:no_comma", "Do not use any commas.", str, {})


def _bullets(random: Random, thing: str) -> Part:
    number = random.randint(2, 4)
    ask = f"Your answer must contain exactly {number} bullet points such as:\n* This is a point."
    points = "\n".join(f"* {sentence.format(thing)}" for sentence in random.sample(SENTENCES, number))
    return Part("detectable_format:number_bullet_lists", ask, lambda text: f"{text}\n{points}", {"num_bullets": number})


def _highlights(random: Random, thing: str) -> Part:
    number = random.randint(1, 3)
    ask = f"Highlight at least {number} sections with markdown, i.e. *highlighted section*."
    added = "".join(f" The *{word} {thing}* is here." for word in random.sample(KEYWORDS, number))
    arguments = {"num_highlights": number}
    return Part("detectable_format:number_highlighted_sections", ask, lambda text: text + added, arguments)


def _placeholders(random: Random, thing: str) -> Part:
    number = random.randint(1, 3)
    ask = f"The response must contain at least {number} placeholders in square brackets, such as [address]."
    added = "".join(f" Ask for [{word}]." for word in random.sample(["name", "address", "date", "time"], number))
    return Part("detectable_content:number_placeholders", ask, lambda text: text + added, {"num_placeholders": number})


def _list(random: Random, thing: str) -> Part:
    mark = random.choice(("-", "!?!?", "SEPARATOR"))
    ask = f"Answer with a list of items, instead of bullet points use {mark}."
    lines = "\n".join(f"{mark} {sentence.format(thing)}" for sentence in random.sample(SENTENCES, 2))
    return Part("format:list", ask, lambda text: lines, {"sep": mark})


def _lines(random: Random, thing: str) -> Part:
    return Part("format:newline", "Write each word on a new line.", lambda text: "\n".join(text.split()), {})


def _title(random: Random, thing: str) -> Part:
    ask = "Your answer must contain a title, wrapped in double angular brackets, i.e. <<title>>."
    return Part("detectable_format:title", ask, lambda text: f"<<the {thing}>>\n{text}", {})


def _two(random: Random, thing: str) -> Part:
    ask = "Give exactly two different responses, separated by 6 asterisk symbols: ******."
    other = random.choice(SENTENCES).format(thing)
    return Part("combination:two_responses", ask, lambda text: f"{text}\n******\n{other}", {})


def _postscript(random: Random, thing: str) -> Part:
    marker = random.choice(("P.S.", "P.P.S"))
    ask = f"At the end of your response, please add a postscript starting with {marker}"
    added = f"\n\n{marker} {random.choice(SENTENCES).format(thing)}"
    return Part("detectable_content:postscript", ask, lambda text: text + added, {"postscript_marker": marker})


def _end(random: Random, thing: str) -> Part:
    phrase = random.choice(("Is there anything else I can help with?", "Hope you agree with me.", "That is all."))
    ask = f"Finish your response with this exact phrase: {phrase}"
    return Part("startend:end_checker", ask, lambda text: f"{text} {phrase}", {"end_phrase": phrase})


def _small(random: Random, thing: str) -> Part:
    ask = "Your entire response should be in English and in all lowercase letters."
    return Part("change_case:english_lowercase", ask, str.lower, {})


def _capital(random: Random, thing: str) -> Part:
    ask = "Your entire response should be in English and in all capital letters."
    return Part("change_case:english_capital", ask, str.upper, {})


def _quotation(random: Random, thing: str) -> Part:
    ask = "Wrap your entire response with double quotation marks."
    return Part("startend:quotation", ask, lambda text: f'"{text}"', {})


def _json(random: Random, thing: str) -> Part:
    ask = "Wrap your entire output in JSON format."
    return Part("detectable_format:json_format", ask, lambda text: json.dumps({"answer": text}), {})


# Drawn at most once each, and applied in this order: what is said, its form, what ends it, its letters, its wrapping.
FAMILIES: Sequence[Sequence[Callable[[Random, str], Part]]] = (
    (_existence, _frequency, _forbidden, _few_sentences, _few_words, _no_comma),
    (_bullets, _highlights, _placeholders, _list, _lines, _title, _two),
    (_postscript, _end),
    (_small, _capital),
    (_quotation, _json),
)
