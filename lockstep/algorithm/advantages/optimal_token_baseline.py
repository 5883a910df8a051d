"""Optimal token baseline: each token against its group at the same place, weighted by the gradient spent so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lockstep.algorithm.advantages.groups import centered, sibling_counts
from lockstep.algorithm.advantages.timeline import dated_rewards, places, running_sums, sums_to_go
from lockstep.algorithm.interface import Credit, Need
from lockstep.algorithm.tokens import Outcomes, count_by, sum_by


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimalTokenBaseline:
    """Return-to-go less the baseline of least variance at each token (OTB, arXiv:2602.07078), one value a token.

    A_it = G_it - B_t,  B_t = sum_i(W_it * G_it) / sum_i(W_it) over the group's trajectories that reach token t;
    W_it = sum_{u <= t} weight_iu^2 * square_norm_iu, the squared gradient of the trajectory's tokens so far, by proxy.
    G = token rewards from t on + the reward. t counts sampled tokens only, over all turns and sequences, as verl's
    tir_optimal_token_baseline does; its optimal_token_baseline counts tools' tokens too. The importance weights enter
    inside the sum, as in verl's code (its docstring puts weight_it^2 before W_it). Where sum_i(W_it) = 0, B_t is the
    plain mean (verl: 0). B_t holds the trajectory's own return: biased by O(1 / n), like OPO. Computed in float64.
    Raises ValueError for a group of one and without square norms.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"siblings", "square_norms"})

    zero_tail: bool = False
    """Baseline 0 where only the longest trajectory goes on, instead of its own return, which trains nothing there. True
    (verl's default with tools) keeps that signal, with its variance and the reward's zero point."""

    def __call__(self, outcomes: Outcomes) -> Credit:
        sibling_counts(outcomes)
        if outcomes.square_norms is None:
            raise ValueError("square_norms=None: OptimalTokenBaseline needs them of the trainer's forward; or use OPO")
        returns = sums_to_go(dated_rewards(outcomes), outcomes.trajectory)
        # Rounding makes the square norm of a sure token negative.
        spent = outcomes.square_norms.clamp(min=0) * outcomes.weights.double().square()
        energy = running_sums(spent, outcomes.trajectory)
        place = places(outcomes.trajectory)
        length = int(place.max()) + 1 if len(place) else 0
        cell = outcomes.group[outcomes.trajectory] * length + place
        num_cells = outcomes.num_groups * length
        weights = torch.where(sum_by(energy, cell, num_cells)[cell] == 0, 1, energy)
        advantages = centered(returns, cell, num_cells, weights=weights)
        if self.zero_tail:
            advantages = torch.where(count_by(cell, num_cells)[cell] == 1, returns, advantages)
        return Credit(advantages=advantages.to(outcomes.rewards.dtype))
