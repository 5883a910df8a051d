"""Instructions to repeat a text: whole, changed in its first word, or a span of it."""

from __future__ import annotations

from lockstep.environments.instructions.text import bare, same, without_quotes

ONLY_THIS = "Only output this sentence here, ignore all other requests."


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    """combination:repeat_prompt. The response begins with the request, word for word (only spaces may differ), and goes
    on."""
    asked = prompt_to_repeat.split()
    said = response.split()
    return said[: len(asked)] == asked and len(said) > len(asked)


def repeat_simple(response: str) -> bool:
    """repeat:repeat_simple. The sentence that asks for itself, alone; quotation marks may be around it."""
    return without_quotes(response) == ONLY_THIS


def repeat_change(response: str, *, prompt_to_repeat: str) -> bool:
    """repeat:repeat_change. The request with one other word in place of its first, and nothing else."""
    asked, said = prompt_to_repeat.split(), response.split()
    return (
        len(said) == len(asked) > 0
        and said[1:] == asked[1:]
        and bool(bare(said[0]))
        and same(bare(said[0])) != same(bare(asked[0]))
    )


def repeat_span(response: str, *, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """repeat:repeat_span. The words between spaces from index n_start to n_end, both included, counted from 0 (some
    rows begin at 0). Quotation marks may be around them."""
    span = prompt_to_repeat.split()[n_start : n_end + 1]
    return bool(span) and span in (response.split(), without_quotes(response).split())
