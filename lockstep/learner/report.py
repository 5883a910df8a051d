"""What a step's update has to say: metrics of the whole step, and whom to look at when an alarm goes off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.metrics import (
    advantage_metrics,
    correction_metrics,
    entropy_metrics,
    mismatch_metrics,
    mismatch_shares,
    ratio_metrics,
    staleness_metrics,
    turn_metrics,
    value_metrics,
)
from lockstep.algorithm.tokens import mean_by
from lockstep.learner.step import Step
from lockstep.types import InvariantError


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """metrics by name; scores: for 'mismatch', 'ratio', 'entropy' and 'surprise', each trajectory's by its id, the
    largest being the one to look at first."""

    metrics: dict[str, float]
    scores: Mapping[str, Mapping[str, float]]

    def scores_for(self, metric: str) -> Mapping[str, float]:
        """The scores of the trajectories that made `metric` what it is."""
        family = metric.split("/")[0]
        kinds = {"mismatch": "mismatch", "correction": "mismatch", "routes": "mismatch", "staleness": "mismatch"}
        kinds |= {"ratio": "ratio", "update": "ratio", "clip_fraction": "ratio", "entropy": "entropy"}
        return self.scores.get(kinds.get(family, "surprise"), {})


NO_UPDATE = Report(metrics={"update/epochs_done": 0.0, "update/stopped_early": 0.0}, scores={})
"""Of a step that nothing could be learned from."""


def report(algorithm: Algorithm, state: Step, *, step: int, deterministic: bool) -> Report:
    """deterministic: engine and trainer must agree in every bit. Raises InvariantError when they do not."""
    tokens = state.tokens
    before = state.flat(state.first, lambda found: found.logprobs)  # under the weights before the step
    entropies = state.flat(state.first, lambda found: found.entropies)
    metrics = mismatch_metrics(before, tokens.engine_logprobs, tokens.sequence, tokens.num_sequences)
    if deterministic and metrics["mismatch/max_abs"]:
        raise InvariantError(
            f"precision.deterministic: engine and trainer differ by up to {metrics['mismatch/max_abs']} in a token's "
            "log-prob, but must agree exactly; this processor's matrix products depend on the batch: set it to False"
        )
    if state.corrected is not None:
        weights = algorithm.correction.weights
        bounded = weights is not None and weights.outside == "truncate" and not weights.normalize
        upper = weights.upper if weights is not None and bounded else None
        applied = state.corrected.weights, state.corrected.kept
        metrics |= correction_metrics(*applied, tokens.sequence, tokens.num_sequences, upper=upper)
    if algorithm.correction.divergence_mask is not None:
        metrics["correction/masked_tokens"] = 1 - algorithm.correction.keeps(before, tokens).double().mean().item()
    if tokens.selected is not None:
        metrics["covariance/selected"] = tokens.selected.double().mean().item()
    metrics |= _ratios(algorithm, state)
    metrics |= advantage_metrics(tokens.advantages, tokens.trajectory, tokens.num_trajectories)
    metrics |= entropy_metrics(entropies)
    metrics |= turn_metrics(tokens.turn, before, tokens.engine_logprobs, entropies)
    if tokens.values is not None and tokens.targets is not None:
        metrics |= value_metrics(tokens.values, tokens.targets)
    metrics |= staleness_metrics(torch.tensor([step - sample.weights_version for sample in state.found.samples]))
    agreed = [
        (each.route_agreement, len(microbatch.tokens))
        for microbatch, each in zip(state.microbatches, state.first, strict=True)
        if each.route_agreement is not None
    ]
    if agreed:
        metrics["routes/agreement"] = sum(share * n for share, n in agreed) / sum(n for _, n in agreed)
    return Report(metrics=metrics | state.metrics, scores=_scores(state, before, entropies))


def _ratios(algorithm: Algorithm, state: Step) -> dict[str, float]:
    """Of the last epoch, and as first_epoch/* of the first where that is another; nothing without an update."""
    found = {}
    for prefix, epochs in (("first_epoch/", state.epochs[:-1][:1]), ("", state.epochs[-1:])):
        for epoch in epochs:
            tokens = state.tokens.at(epoch.place)
            clipped = algorithm.loss(epoch.logprobs, tokens).clipped
            metrics = ratio_metrics(epoch.logprobs, tokens.old_logprobs, tokens.advantages, clipped)
            found |= {prefix + name: value for name, value in metrics.items()} | {f"{prefix}loss": epoch.loss}
    return found


def _scores(state: Step, before: torch.Tensor, entropies: torch.Tensor) -> dict[str, dict[str, float]]:
    tokens = state.tokens
    ids = [trajectory.id for trajectory in state.found.trajectories]

    def means(values: torch.Tensor) -> torch.Tensor:
        return mean_by(values.double(), tokens.trajectory, tokens.num_trajectories)

    scores = {
        "mismatch": mismatch_shares(before, tokens.engine_logprobs, tokens.trajectory, tokens.num_trajectories),
        "entropy": means(entropies),
        "surprise": means(-before * tokens.advantages.abs()),
    }
    for last in state.epochs[-1:]:
        moved = torch.zeros_like(before)
        moved[last.place] = (last.logprobs - tokens.old_logprobs[last.place]).abs()
        scores["ratio"] = means(moved)
    return {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in scores.items()}
