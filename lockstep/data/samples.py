"""Trajectories to samples: concatenation only. Where a turn restarts the history, a new sample begins."""

from __future__ import annotations

import dataclasses

import numpy as np

from lockstep.types import UNKNOWN_ROUTE, InvariantError, Sample, Trajectory, Turn


def to_samples(trajectory: Trajectory) -> list[Sample]:
    """The trajectory's unbroken token histories that hold an action, in the order of time."""
    histories: list[list[Turn]] = []
    starts: list[int] = []
    for i, turn in enumerate(trajectory.turns):
        if turn.restarts or not histories:
            histories.append([])
            starts.append(i)
        histories[-1].append(turn)
    return [
        _flatten(trajectory.id, turns, start)
        for turns, start in zip(histories, starts, strict=True)
        if any(turn.action for turn in turns)
    ]


def _flatten(trajectory_id: str, turns: list[Turn], first_turn: int) -> Sample:
    tokens, mask, logprobs = [], [], []
    for turn in turns:
        tokens += [*turn.context, *turn.action]
        mask += [False] * len(turn.context) + [True] * len(turn.action)
        logprobs += [0.0] * len(turn.context) + list(turn.engine_logprobs)
    if mask[0]:
        raise InvariantError(
            f"trajectory {trajectory_id} begins with a sampled token: its first turn needs context to be conditioned on"
        )
    version = min(turn.weights_version for turn in turns)
    sample = supervised_sample(trajectory_id, tokens, mask, logprobs, version)
    numbers = np.arange(first_turn, first_turn + len(turns))
    return dataclasses.replace(
        sample,
        turn=np.repeat(numbers, [turn.num_tokens for turn in turns]),
        routed_experts=_routes(trajectory_id, turns, len(tokens)),
    )


def _routes(trajectory_id: str, turns: list[Turn], num_tokens: int) -> np.ndarray | None:
    """The routes of a history's tokens; unknown for its last one, which no engine was fed."""
    found = [turn.routed_experts for turn in turns if turn.routed_experts is not None]
    if not found:
        return None
    fed = np.concatenate(found)
    if len(fed) != num_tokens - 1:
        raise InvariantError(
            f"trajectory {trajectory_id}: {len(found)} of {len(turns)} turns have routes, of {len(fed)} tokens in all, "
            f"but the history feeds {num_tokens - 1}: the engine must record every turn's, or none"
        )
    return np.concatenate([fed, np.full((1, *fed.shape[1:]), UNKNOWN_ROUTE, np.uint8)])


def supervised_sample(
    sample_id: str,
    tokens: list[int] | tuple[int, ...],
    action_mask: list[bool] | tuple[bool, ...],
    logprobs: list[float] | None = None,
    weights_version: int = 0,
) -> Sample:
    """A sample of one turn from plain lists; a demonstration has no engine log-probs (zeros)."""
    return Sample(
        trajectory_id=sample_id,
        tokens=np.array(tokens, dtype=np.int64),
        action_mask=np.array(action_mask, dtype=bool),
        engine_logprobs=np.zeros(len(tokens), np.float32) if logprobs is None else np.array(logprobs, np.float32),
        turn=np.zeros(len(tokens), np.int64),
        weights_version=weights_version,
    )
