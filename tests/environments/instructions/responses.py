"""For an instruction of the real data, a response that follows it and the same one spoiled by as little as it takes."""

from tests.environments.instructions.cases_custom import CASES as CUSTOM
from tests.environments.instructions.cases_ifbench import CASES as IFBENCH
from tests.environments.instructions.language_texts import TEXTS


def times(word, count):
    return " ".join([word] * count)


def compared(relation, number, what):
    """(a response with just enough, one with just too few or too many) of what `what` writes so many of."""
    return (what(number), what(number - 1)) if relation == "at least" else (what(number - 1), what(number))


def same_case(id):
    """The first hand-written pair, for instructions without arguments."""
    return next((good[0], bad[0]) for case, kwargs, good, bad in [*IFBENCH, *CUSTOM] if case == id and not kwargs)


def bullets(count):
    return "\n".join(f"* point {i}" for i in range(count))


def sections(mark, count):
    return "\n".join(f"{mark} {i}\nText." for i in range(1, count + 1))


def nth(first_word, count, n):
    return "\n\n".join(f"{first_word.title() if i == n else 'Other'} words." for i in range(1, count + 1))


def steps(n):
    return " ".join("Word" + " word" * (length - 1) + "." for length in (2, 2 + n, 2 + 2 * n))


def placed(keyword, n, m):
    filler = "This is it."
    return f"{times(filler, n - 1)} {times('Word', m - 1)} {keyword}."


def japanese(n):
    return " ".join(["word"] * (n - 1) + ["ねこ"] + ["word"] * (n - 1) + ["いぬ"])


def names(prompt, count):
    listed = prompt.partition("person names:")[2].partition(".")[0].split(",")
    return " and ".join(name.strip() for name in listed[:count])


def overlapping(reference, percentage):
    """The reference, or its beginning, and as many words of none as make the share right."""
    words = reference.split()
    best = min(
        ((abs(100 * (kept - 2) / (kept - 2 + added) - percentage), kept, added))
        for kept in range(3, min(len(words), 40) + 1)
        for added in range(0, 150)
    )
    return " ".join(words[: best[1]]) + "".join(f" new{i}" for i in range(best[2]))


WRITERS = {
    "change_case:capital_word_frequency": lambda k, p: compared(
        k["capital_relation"], k["capital_frequency"], lambda n: "some words " + times("LOUD", n)
    ),
    "change_case:english_capital": lambda k, p: ("THE DAY IS LONG.", "THE DAY IS LONg."),
    "change_case:english_lowercase": lambda k, p: ("the day is long.", "the day is Long."),
    "combination:repeat_prompt": lambda k, p: (
        k["prompt_to_repeat"] + " Done.",
        "Sure. " + k["prompt_to_repeat"] + " Done.",
    ),
    "combination:two_responses": lambda k, p: ("a\n******\nb", "a\n*****\nb"),
    "detectable_content:number_placeholders": lambda k, p: (
        times("[name]", k["num_placeholders"]),
        times("[name]", k["num_placeholders"] - 1) + " x",
    ),
    "detectable_content:postscript": lambda k, p: (f"Bye.\n\n{k['postscript_marker']} more", "Bye.\n\nPostscript more"),
    "detectable_format:constrained_response": lambda k, p: ("My answer is no.", "My answer is no"),
    "detectable_format:json_format": lambda k, p: ('{"a": 1}', '{"a": 1'),
    "detectable_format:multiple_sections": lambda k, p: tuple(
        sections(k["section_spliter"], k["num_sections"] - i) for i in (0, 1)
    ),
    "detectable_format:number_bullet_lists": lambda k, p: (bullets(k["num_bullets"]), bullets(k["num_bullets"] + 1)),
    "detectable_format:number_highlighted_sections": lambda k, p: (
        times("*x*", k["num_highlights"]),
        times("*x*", k["num_highlights"] - 1) + " x",
    ),
    "detectable_format:title": lambda k, p: ("<<A>>", "<A>"),
    "keywords:existence": lambda k, p: (" ".join(k["keywords"]), " ".join(k["keywords"][1:]) + " x"),
    "keywords:forbidden_words": lambda k, p: ("nothing of it", f"much of {k['forbidden_words'][-1]}"),
    "keywords:frequency": lambda k, p: compared(
        k["relation"], k["frequency"], lambda n: "So " + times(k["keyword"], n)
    ),
    "keywords:letter_frequency": lambda k, p: compared(
        k["let_relation"], k["let_frequency"], lambda n: "0 " + k["letter"] * n
    ),
    "language:response_language": lambda k, p: (
        TEXTS[k["language"]][0],
        "The best time to visit is when the sea is warm.",
    ),
    "length_constraints:nth_paragraph_first_word": lambda k, p: tuple(
        nth(k["first_word"], k["num_paragraphs"] + i, k["nth_paragraph"]) for i in (0, 1)
    ),
    "length_constraints:number_paragraphs": lambda k, p: tuple(
        "\n***\n".join(["Text."] * (k["num_paragraphs"] - i)) for i in (0, 1)
    ),
    "length_constraints:number_sentences": lambda k, p: compared(
        k["relation"], k["num_sentences"], lambda n: times("It is so.", n) or "-"
    ),
    "length_constraints:number_words": lambda k, p: compared(k["relation"], k["num_words"], lambda n: times("word", n)),
    "punctuation:no_comma": lambda k, p: ("Yes.", "Yes, no."),
    "startend:end_checker": lambda k, p: (f"Well. {k['end_phrase']}", f"{k['end_phrase']} Well"),
    "startend:quotation": lambda k, p: ('"Yes."', '"Yes.'),
    "count:conjunctions": lambda k, p: tuple(
        " ".join(["and", "but", "or", "so", "yet", "nor"][: k["small_n"] - i]) for i in (0, 1)
    ),
    "count:keywords_multiple": lambda k, p: tuple(
        " ".join(times(k[f"keyword{i}"], n - (spoil and i == 5)) for i, n in enumerate((1, 2, 3, 5, 7), 1))
        for spoil in (0, 1)
    ),
    "count:numbers": lambda k, p: (times("12", k["N"]) + " is", times("12", k["N"] + 1) + " is"),
    "count:person_names": lambda k, p: (names(p, k["N"]), names(p, k["N"] - 1)),
    "count:pronouns": lambda k, p: (times("they", k["N"]), times("they", k["N"] - 1)),
    "count:unique_word_count": lambda k, p: tuple(" ".join(f"w{i}" for i in range(k["N"] - spoil)) for spoil in (0, 1)),
    "count:word_count_range": lambda k, p: (times("word", k["max_words"]), times("word", k["max_words"] + 1)),
    "count:words_japanese": lambda k, p: (japanese(k["N"]), japanese(k["N"]).replace("ねこ", "cat")),
    "format:list": lambda k, p: (f"{k['sep']} one\n{k['sep']} two", "* one\n* two"),
    "format:options": lambda k, p: (k["options"].split("/")[0].split(" or ")[0].split(",")[0], "none of them"),
    "ratio:overlap": lambda k, p: (overlapping(k["reference_text"], k["percentage"]), "none of it at all"),
    "ratio:stop_words": lambda k, p: tuple(
        times("the", k["percentage"] + i) + " " + times("dog", 100 - k["percentage"] - i) for i in (0, 1)
    ),
    "repeat:repeat_change": lambda k, p: (
        "Zounds " + k["prompt_to_repeat"].split(maxsplit=1)[1],
        k["prompt_to_repeat"],
    ),
    "repeat:repeat_span": lambda k, p: tuple(
        " ".join(k["prompt_to_repeat"].split()[k["n_start"] : k["n_end"] + 1 - i]) for i in (0, 1)
    ),
    "sentence:increment": lambda k, p: (steps(k["small_n"]), steps(k["small_n"] + 1)),
    "sentence:keyword": lambda k, p: (placed(k["word"], k["N"], 2), placed(k["word"], k["N"] + 1, 2)),
    "words:keywords_specific_position": lambda k, p: (
        placed(k["keyword"], k["n"], k["m"]),
        placed(k["keyword"], k["n"], k["m"] + 1),
    ),
    "words:repeats": lambda k, p: (times("dog", k["small_n"]), times("dog", k["small_n"] + 1)),
    "words:words_position": lambda k, p: (
        f"a {k['keyword']} b {k['keyword']} c",
        f"a {k['keyword']} b c {k['keyword']}",
    ),
}


def written(id, kwargs, prompt):
    """(what follows, what does not) for one instruction of a row."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    given = {name: int(value) if isinstance(value, float) else value for name, value in given.items()}
    return WRITERS[id](given, prompt) if id in WRITERS else same_case(id)
