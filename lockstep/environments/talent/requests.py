"""A request: what a user says at first, keeps to itself until asked, and later changes, and who is right in the end.

Whether a request is held out is decided by a hash of its skills and place, before the change and after, so nothing that
is wanted in a held-out request, in whatever words, is wanted in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lockstep.environments.talent.constraints import Constraint, Preference
from lockstep.environments.talent.vocabulary import written

Trigger = Literal["proposal", "profiles"]
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """text: what the user says at first. hidden: what it says when asked. change: what takes the place of the wish of
    the same kind, once the user has seen a proposal, or the agent has opened two profiles (trigger). right: ids of the
    people who suit the final intent; best_liking: the most that `number` of them can be liked. par: calls that a
    careful agent needs."""

    number: int
    text: str
    stated: tuple[Constraint, ...]
    hidden: tuple[Constraint, ...]
    soft: tuple[Preference, ...]
    change: Constraint | None
    trigger: Trigger
    right: frozenset[int]
    best_liking: int
    par: int

    @property
    def first(self) -> tuple[Constraint, ...]:
        """The hard wishes before the change."""
        return (*self.stated, *self.hidden)

    @property
    def final(self) -> tuple[Constraint, ...]:
        """The hard wishes in the end."""
        return changed(self.first, self.change)

    @property
    def opening(self) -> str:
        """What was said at first, whatever the words."""
        return repr((self.number, sorted(self.stated), list(self.soft)))


def subject_of(wishes: Sequence[Constraint]) -> str:
    """What a request with these hard wishes is about: its skills and its place. Both are always said at first."""
    return repr(sorted((wish.kind, wish.value) for wish in wishes if wish.kind in ("skill", "place")))


def changed(wishes: Sequence[Constraint], change: Constraint | None) -> tuple[Constraint, ...]:
    """The wishes with the change in the place of the one it is about: of its kind, or about the same skill."""

    def about(wish: Constraint, change: Constraint) -> bool:
        return wish.kind == change.kind and (wish.kind != "skill" or wish.value == change.value)

    return tuple(change if change is not None and about(wish, change) else wish for wish in wishes)


def query_of(hard: Sequence[Constraint]) -> str:
    """A search's words for the skills among the wishes, in every way they are written."""
    groups = [written(wish.value) for wish in hard if wish.kind == "skill"]
    return " ".join(" OR ".join(f'"{w}"' if " " in w else w for w in group) for group in groups)
