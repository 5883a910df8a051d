"""What every algorithm works on: a step's sampled tokens, flat, and what its trajectories were worth.

A = sampled (action) tokens, N = trajectories, S = sequences. A *sequence* is one unbroken token history (a Sample):
what a token's log-prob is conditioned on. A trajectory is one sequence, or several where its history was rewritten. The
tokens of a trajectory stand together and in the order of time; tools' tokens are not among them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

LOG_BOUND = 20.0  # exp of more than this is no number to train with, and exp(89) is inf in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionTokens:
    """Constants of A sampled tokens, of a whole step or (`at`) of a part of it. The ids stay those of the step.

    engine_logprobs [A]: under the engine that sampled them. old_logprobs [A]: what ratios are taken against; the
    trainer's before the step's first update, or, in bypass mode, the engine's. advantages [A]. sequence, trajectory,
    turn int64 [A]: which of the step's S sequences and N trajectories a token belongs to, and which turn of its
    trajectory, from 0.

    What is not known, or not in use, is None. loss_weights [A]: the aggregation's, so that a step's loss is the sum of
    its tokens'. weights [A], kept bool [A]: the rollout correction's. reference_logprobs [A]. selected bool [A]: by
    their covariance. values, targets [A]: the critic's before the step, and what they should have been.
    """

    engine_logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    sequence: torch.Tensor
    trajectory: torch.Tensor
    turn: torch.Tensor
    num_sequences: int
    num_trajectories: int
    loss_weights: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    selected: torch.Tensor | None = None
    values: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    def at(self, place: torch.Tensor) -> ActionTokens:
        """The tokens at int64 `place`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: v[place] for k, v in fields.items() if isinstance(v, torch.Tensor)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What a step's N trajectories were worth, for an advantage estimator. Constants all, float64 unless said.

    rewards [N]: a whole trajectory's. lengths int64 [N]: sampled tokens of whole trajectories, also of those that are
    not trained on and have no tokens here; None: as many as are here. group int64 [N]: 0..num_groups-1, the
    trajectories on one task. greedy_rewards [N]: of the greedy trajectory on the same task, or None. trajectory int64
    [A]: each token's trajectory. token_rewards [A]: what single tokens cost or earned beside that (a KL penalty), zeros
    without. values [A]: the critic's, of the state before each token, or None. square_norms [A]: of the gradient of
    each token's log-prob with respect to its logits, 1 - 2 p(token) + sum_v p(v)^2, or None. weights [A]: importance
    weights of trainer over engine, ones without.
    """

    rewards: torch.Tensor
    group: torch.Tensor
    num_groups: int
    trajectory: torch.Tensor
    token_rewards: torch.Tensor
    weights: torch.Tensor
    lengths: torch.Tensor | None = None
    greedy_rewards: torch.Tensor | None = None
    values: torch.Tensor | None = None
    square_norms: torch.Tensor | None = None

    @property
    def num_trajectories(self) -> int:
        return len(self.rewards)

    def returns(self) -> torch.Tensor:
        """[N]: reward and token rewards of whole trajectories."""
        return self.rewards + sum_by(self.token_rewards, self.trajectory, self.num_trajectories)


def sum_by(values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """[size]: the sums of values [X] with the same index [X]; differentiable."""
    return values.new_zeros(size).index_add(0, index, values)


def count_by(index: torch.Tensor, size: int) -> torch.Tensor:
    """int64 [size]: how often each index occurs."""
    return torch.bincount(index, minlength=size)


def mean_by(values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """[size]: the means of values [X] with the same index [X], 0 where there are none; differentiable."""
    return sum_by(values, index, size) / count_by(index, size).clamp(min=1)
