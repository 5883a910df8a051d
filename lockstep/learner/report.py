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
    metrics |= _ratios(algorithm, state)
    metrics |= advantage_metrics(tokens.advantages, tokens.trajectory, tokens.num_trajectories)
    metrics |= entropy_metrics(entropies)
    metrics |= turn_metrics(tokens.turn, before, tokens.engine_logprobs, entropies)
    if tokens.values is not None and tokens.targets is not None:
        metrics |= value_metrics(tokens.values, tokens.targets)
    metrics |= staleness_metrics(torch.tensor([step - sample.weights_version for sample in state.found.samples]))
    agreements = [each.route_agreement for each in state.first if each.route_agreement is not None]
    if agreements:
        metrics["routes/agreement"] = sum(agreements) / len(agreements)
    return Report(metrics=metrics | state.metrics, scores=_scores(state, before, entropies))


def _ratios(algorithm: Algorithm, state: Step) -> dict[str, float]:
    """Of the last epoch, and as first_epoch/* of the first where that is another; nothing without an update."""
    found = {}
    for prefix, passes in (("first_epoch/", state.epochs[:-1][:1]), ("", state.epochs[-1:])):
        for epoch in passes:
            logprobs = state.flat(epoch, lambda each: each.logprobs)
            tokens = state.tokens
            clipped = algorithm.loss(logprobs, tokens).clipped
            metrics = ratio_metrics(logprobs, tokens.old_logprobs, tokens.advantages, clipped)
            metrics["loss"] = sum(each.loss.item() for each in epoch if each.loss is not None) / len(state.batches)
            found |= {prefix + name: value for name, value in metrics.items()}
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
    if state.epochs:
        last = state.flat(state.epochs[-1], lambda found: found.logprobs)
        scores["ratio"] = means((last - tokens.old_logprobs).abs())
    return {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in scores.items()}
