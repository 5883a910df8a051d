"""IFEval's instructions about the form of the whole response: sections, marks, titles, what it begins and ends with."""

from __future__ import annotations

import json
import re

from lockstep.environments.instructions.relation import may_be_more
from lockstep.environments.instructions.text import bullets, without_fence, words

# A mark opens before what is no space and closes after what is no space, on the same line.
HIGHLIGHT = re.compile(r"\*\*([^*\s](?:[^*\n]*+(?<!\s))?)\*\*|\*([^*\s](?:[^*\n]*+(?<!\s))?)\*")
TITLE = re.compile(r"<<([^<>\n]++)>>")
PLACEHOLDER = re.compile(r"\[([^\[\]\n]++)\](?!\()")
ASTERISKS = re.compile(r"\*{6,}")
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
BEFORE_A_MARK = " \t*_#>\"'\u201c("
AFTER_AN_END = " \t\n*_\"'\u201d\u2019)"


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    """detectable_format:number_bullet_lists. Exactly that many lines that begin with `* ` or `- `, indented or not."""
    return len(bullets(response, "*-")) == num_bullets


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    """detectable_format:number_highlighted_sections. At least that many stretches in *one* or **two** asterisks."""
    found = (match[1] or match[2] for match in HIGHLIGHT.finditer(response))
    return sum(bool(words(text)) for text in found) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int, prompt: str) -> bool:
    """detectable_format:multiple_sections. Lines begin with the mark and 1, 2, 3 ... (or I, II ..., or A, B ...): as
    many different ones as asked, or more where the prompt says `at least`. The mark is spelled as in the instruction.
    """
    mark = re.compile(rf"{re.escape(section_spliter)}[^\S\n]+(\d{{1,4}}|[IVXLC]{{1,8}}|[A-Z])(?![^\W_])")
    begun = (mark.match(line.lstrip(BEFORE_A_MARK)) for line in response.split("\n"))
    found = len({match[1] for match in begun if match})
    return found >= num_sections if may_be_more(prompt, num_sections) else found == num_sections


def title(response: str) -> bool:
    """detectable_format:title. A text in <<double angular brackets>> on one line."""
    return any(words(match[1]) for match in TITLE.finditer(response))


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    """detectable_content:number_placeholders. At least that many [texts in square brackets]; links are none."""
    return sum(bool(words(match[1])) for match in PLACEHOLDER.finditer(response)) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    """detectable_content:postscript. The marker, in either case, begins a line or a sentence, and something follows.

    It must begin in the response's second half, or within the last paragraph but one or the last: the postscript of a
    letter stands at its end.
    """
    mark = re.escape(postscript_marker.rstrip("."))
    start = min(len(response) // 2, _last_two(response))
    found = re.compile(rf"(?<![^\s*_>\"'\u201c(]){mark}\b\.?", re.IGNORECASE).finditer(response, start)
    begun = [match.end() for match in found]
    return bool(begun) and bool(words(response[begun[-1] :]))


def _last_two(response: str) -> int:
    """Where the last paragraph but one begins."""
    rows = response.split("\n")
    written = [i for i, row in enumerate(rows) if row.strip()]
    begins = [i for i in written if i == 0 or not rows[i - 1].strip()]
    return len("\n".join(rows[: begins[-2]])) if len(begins) >= 2 else 0


def constrained_response(response: str) -> bool:
    """detectable_format:constrained_response. Exactly one of the three phrases occurs, as often as it will."""
    return sum(answer in response for answer in ANSWERS) == 1


def json_format(response: str) -> bool:
    """detectable_format:json_format. The whole response is a JSON object or array, also within a Markdown fence."""
    try:
        return isinstance(json.loads(without_fence(response), parse_constant=_refused), dict | list)
    except (ValueError, RecursionError):
        return False


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def two_responses(response: str, *, prompt: str) -> bool:
    """combination:two_responses. Two different texts with six asterisks between them, once; or as many as the prompt
    shows (one row asks for six and shows seven)."""
    lengths = {6, *(len(mark) for mark in ASTERISKS.findall(prompt))}
    marks = [mark for mark in ASTERISKS.finditer(response) if len(mark[0]) in lengths]
    if len(marks) != 1:
        return False
    former, later = response[: marks[0].start()].strip(), response[marks[0].end() :].strip()
    return bool(former) and bool(later) and former != later


def quotation(response: str) -> bool:
    """startend:quotation. A double quotation mark, straight or curly, first and last, and something in between."""
    text = response.strip()
    return len(text) > 2 and text[0] in '"\u201c' and text[-1] in '"\u201d' and bool(words(text))


def end_phrase(response: str, *, end_phrase: str) -> bool:
    """startend:end_checker. The response ends with the phrase, in either case (other instructions may ask for
    capitals); closing quotation marks and emphasis may follow."""
    phrase = end_phrase.strip().casefold()
    return any(text.casefold().endswith(phrase) for text in (response.rstrip(), response.rstrip(AFTER_AN_END)))
