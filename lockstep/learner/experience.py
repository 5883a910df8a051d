"""From a step's groups to what is trained on: trajectories, their rewards, their samples, and their tokens, flat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.interface import smallest_group
from lockstep.algorithm.tokens import ActionTokens
from lockstep.data.samples import to_samples
from lockstep.types import Group, InvariantError, Sample, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """A step's N trajectories and their S samples.

    rewards float64 [N], the length penalty included; group int64 [N]: 0..num_groups-1; greedy_rewards float64 [N] or
    None. samples, and sample_trajectory: the trajectory of each. Trajectories that are left out of training but not of
    the baseline have no samples.
    """

    trajectories: Sequence[Trajectory]
    rewards: torch.Tensor
    group: torch.Tensor
    num_groups: int
    greedy_rewards: torch.Tensor | None
    samples: Sequence[Sample]
    sample_trajectory: Sequence[int]

    def tokens(self) -> ActionTokens:
        """The samples' action tokens, in the samples' order, as far as they are known before any pass: old log-probs
        are the engine's, advantages 0. Raises InvariantError for an engine's log-prob that is not finite."""
        counts = [int(sample.action_mask.sum()) for sample in self.samples]
        engine_logprobs = _of_actions([sample.engine_logprobs for sample in self.samples], self.samples)
        sequence = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
        if not torch.isfinite(engine_logprobs).all():
            bad = int(sequence[torch.nonzero(~torch.isfinite(engine_logprobs))[0, 0]])
            raise InvariantError(
                f"trajectory {self.samples[bad].trajectory_id}: the engine returned a log-prob that is not finite for "
                "a token it sampled; look at the engine's logits"
            )
        return ActionTokens(
            engine_logprobs=engine_logprobs,
            old_logprobs=engine_logprobs,
            advantages=torch.zeros_like(engine_logprobs),
            sequence=sequence,
            trajectory=torch.tensor(self.sample_trajectory, dtype=torch.int64)[sequence],
            turn=_of_actions([sample.turn for sample in self.samples], self.samples),
            num_sequences=len(self.samples),
            num_trajectories=len(self.trajectories),
        )

    def deal(self, num_parts: int, *, seed: int) -> list[list[int]]:
        """The samples dealt into at most so many parts, whole trajectories each: a function of the seed."""
        owners = sorted(set(self.sample_trajectory))
        if num_parts > 1:
            random.Random(seed).shuffle(owners)
        parts = [set(owners[i::num_parts]) for i in range(min(num_parts, len(owners)))]
        return [[s for s, owner in enumerate(self.sample_trajectory) if owner in part] for part in parts]


def experience(algorithm: Algorithm, groups: Sequence[Group]) -> Experience:
    """What of the groups can be trained on: trajectories that are not masked, of groups that have what the advantages
    need (siblings, a greedy baseline)."""
    needs = algorithm.advantages.needs
    trajectories: list[Trajectory] = []
    group, greedy = [], []
    num_groups = 0
    for each in groups:
        found = [t for t in each.trajectories if t.error is None]
        baseline = each.baseline if each.baseline is not None and each.baseline.error is None else None
        if len(found) < smallest_group(algorithm.advantages) or ("greedy" in needs and baseline is None):
            continue
        trajectories += found
        group += [num_groups] * len(found)
        greedy += [0.0 if baseline is None else _rewards(algorithm, [baseline])[0]] * len(found)
        num_groups += 1
    samples, owners = [], []
    for i, trajectory in enumerate(trajectories):
        if algorithm.filter_truncated and trajectory.stop_reason != "done":
            continue
        found = to_samples(trajectory)
        samples += found
        owners += [i] * len(found)
    return Experience(
        trajectories=trajectories,
        rewards=torch.tensor(_rewards(algorithm, trajectories), dtype=torch.float64),
        group=torch.tensor(group, dtype=torch.int64),
        num_groups=num_groups,
        greedy_rewards=torch.tensor(greedy, dtype=torch.float64) if "greedy" in needs else None,
        samples=samples,
        sample_trajectory=owners,
    )


def _rewards(algorithm: Algorithm, trajectories: Sequence[Trajectory]) -> list[float]:
    rewards = torch.tensor([t.reward for t in trajectories], dtype=torch.float64)
    if algorithm.overlong is not None:
        rewards = rewards + algorithm.overlong(torch.tensor([t.num_action_tokens for t in trajectories]))
    return rewards.tolist()


def _of_actions(arrays: Sequence[np.ndarray], samples: Sequence[Sample]) -> torch.Tensor:
    """The arrays' values at action tokens, one after the other."""
    if not samples:
        return torch.zeros(0)
    return torch.from_numpy(np.concatenate([a[s.action_mask] for a, s in zip(arrays, samples, strict=True)]))
