"""Rewards from named parts: what a grader sees, what it gives, and several of them at once, each limited in time.

    async def grade(self, ending):
        return await score(ending, (Reward("correct", is_correct), Reward("style", judge, weight=0.1)))

Parts with a weight of 0 are measured and logged (as measure/NAME) but change no reward.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from lockstep.rollout.concurrency import Late, in_thread, together, within
from lockstep.rollout.tool import infrastructure_in, said
from lockstep.types import Message, Task, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a trajectory ended, for whoever grades it.

    answer: the final message's text; None when the trajectory ended without one. messages: the whole conversation, from
    the task's own on. state: what the environment opened for this trajectory. truncated: a limit cut it short.
    """

    task: Task
    answer: str | None
    messages: Sequence[Message]
    state: Any = None
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """parts: by name, summed to the reward. measures: by name, logged and recorded beside them, without a say in it."""

    parts: Mapping[str, float]
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reward:
    """One named part of a reward: `weight` times what the function says of an ending. A plain function runs in a
    thread. timeout_s: seconds it may take."""

    name: str
    function: Callable[[Ending], float | Awaitable[float]]
    weight: float = 1.0
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not isinstance(self.weight, Real) or not math.isfinite(self.weight):
            raise UserError(f"Reward({self.name!r}, weight={self.weight!r}): must be a finite number; 0 only measures")
        if not self.timeout_s > 0:
            raise UserError(f"Reward({self.name!r}, timeout_s={self.timeout_s}): must be above 0; 10 is usual")


class RewardFault(RuntimeError):
    """A part of a reward failed or was late. The message names it; the trajectory is masked, never scored 0."""


async def score(ending: Ending, rewards: Sequence[Reward]) -> Score:
    """All parts at once. Raises RewardFault when one raises or is late (its cause is what it raised), and
    InfrastructureError as it comes."""
    names = [reward.name for reward in rewards]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two rewards are named {min(twice)!r}: give each a name of its own")
    values = await together(_value(ending, reward) for reward in rewards)
    found = list(zip(rewards, values, strict=True))
    return Score(
        parts={reward.name: reward.weight * value for reward, value in found if reward.weight},
        measures={reward.name: value for reward, value in found if not reward.weight},
    )


async def _value(ending: Ending, reward: Reward) -> float:
    try:
        return as_number(await within(reward.timeout_s, _asked(ending, reward)))
    except Late:
        raise RewardFault(
            f"reward {reward.name!r} did not finish within {reward.timeout_s:g} s; raise its timeout_s or fix it"
        ) from None
    except Exception as error:  # the environment boundary: a reward is other people's code
        if broken := infrastructure_in(error):
            raise broken from None
        raise RewardFault(f"reward {reward.name!r} raised {type(error).__name__}: {said(error)}") from error


async def _asked(ending: Ending, reward: Reward) -> Any:
    if inspect.iscoroutinefunction(reward.function):
        return await reward.function(ending)
    result = await in_thread(lambda: reward.function(ending))
    return await result if inspect.isawaitable(result) else result


def as_number(value: Any) -> float:
    """A number of Python, numpy or torch as a float. Raises TypeError for anything else, text that spells one
    included."""
    if isinstance(value, str | bytes | bytearray):
        raise TypeError(f"{value[:40]!r} is text and not a number")
    return float(value)
