"""Freezing: parameters, named by shell-style patterns, that training leaves as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from torch import nn

from lockstep.types import UserError

NUM_SUGGESTIONS = 3


class FreezeError(UserError):
    """A pattern that freezes nothing, or patterns that leave nothing to train. One line, with the fix."""


def freeze(model: nn.Module, patterns: Iterable[str]) -> tuple[str, ...]:
    """Set requires_grad False on every parameter whose name matches one of `patterns`; the rest stays as it is.

    patterns: as in fnmatch, case counts, over whole names: "*.router.*", "*embed_tokens*", "model.layers.0.*". None
    freezes nothing.
    Returns the names now frozen by them, in the model's order. A tied weight is one parameter under two names: matching
    either freezes both, and both are returned.

    What frozen means: gradients still pass through to what is below, and the value still counts. Frozen attention sinks
    ("*.sinks") stay in every softmax, in the trainer as in the engine, and only cease to be learned; a frozen router
    still sends tokens elsewhere as the layers below it change.

    Raises FreezeError, and freezes nothing, for a pattern that matches no name, and when no parameter would be left to
    train.
    """
    if isinstance(patterns, str):
        raise FreezeError(f"freeze={patterns!r}: must be a sequence of patterns; write ({patterns!r},)")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen: set[int] = set()
    for pattern in patterns:
        matched = [id(parameter) for name, parameter in parameters.items() if fnmatchcase(name, pattern)]
        if not matched:
            close = ", ".join(repr(name) for name in _closest(pattern, parameters))
            raise FreezeError(f"freeze: pattern {pattern!r} matches no parameter; close names are {close}")
        chosen.update(matched)
    if chosen and not any(p.requires_grad and id(p) not in chosen for p in parameters.values()):
        raise FreezeError("freeze: the patterns leave nothing to train; drop one, or make it narrower")
    frozen = {name: parameter for name, parameter in parameters.items() if id(parameter) in chosen}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return tuple(frozen)


def _closest(pattern: str, names: Iterable[str]) -> list[str]:
    """The names with the likest piece to the pattern's longest one without wildcards; of names that differ in a number
    only, the likest."""
    piece = max(re.split(r"[*?\[\]]+", pattern), key=len).strip(".")
    best: dict[str, tuple[float, str]] = {}
    for name in names:
        score, kind = _likeness(piece, name), re.sub(r"\d+", "#", name)
        if kind not in best or score > best[kind][0]:
            best[kind] = (score, name)
    return [name for _, name in sorted(best.values(), key=lambda found: -found[0])[:NUM_SUGGESTIONS]]


def _likeness(piece: str, name: str) -> float:
    """0 to 1: of `piece` and the likest run of as many dotted components of `name`."""
    words, width = name.split("."), piece.count(".") + 1
    runs = [".".join(words[start : start + width]) for start in range(max(1, len(words) - width + 1))]
    return max(SequenceMatcher(None, piece.lower(), run.lower()).ratio() for run in runs)
