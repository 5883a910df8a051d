"""What becomes of a step's groups: advantages, samples, a packed batch, and its updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from lockstep.algorithm.algorithm import GRPO
from lockstep.data.packing import pack
from lockstep.data.samples import to_samples
from lockstep.trainer.trainer import Pass, Trainer
from lockstep.types import Batch, Group, InvariantError, Microbatch


def update(
    algorithm: GRPO, trainer: Trainer, groups: Sequence[Group], *, learning_rate: float, microbatch_tokens: int
) -> dict[str, float]:
    """The groups' optimiser step, or algorithm.epochs of them; returns the metrics. Raises InvariantError when nothing
    is left to train on."""
    batch = make_batch(algorithm, groups, microbatch_tokens)
    if not batch.num_action_tokens:
        first = next((t.error for g in groups for t in g.trajectories if t.error), "no trajectory has a sampled token")
        raise InvariantError(f"nothing to train on in this step: every trajectory is masked; the first says: {first}")

    def loss(logprobs: torch.Tensor, microbatch: Microbatch) -> torch.Tensor:
        return algorithm.loss(
            logprobs,
            microbatch.old_logprobs,
            microbatch.engine_logprobs,
            microbatch.advantages,
            denominator=batch.num_action_tokens,
        )

    advantages = torch.cat([m.advantages for m in batch.microbatches])
    passes = [trainer.forward_backward(microbatch, loss) for microbatch in batch.microbatches]
    metrics = _first_metrics(algorithm, trainer, batch, passes, advantages)
    metrics |= {"grad_norm": trainer.optim_step(learning_rate), "lr": learning_rate}
    microbatches = [
        dataclasses.replace(microbatch, old_logprobs=first.logprobs, routed_experts=first.routes)
        for microbatch, first in zip(batch.microbatches, passes, strict=True)
    ]
    for _ in range(1, algorithm.epochs):
        passes = [trainer.forward_backward(microbatch, loss) for microbatch in microbatches]
        metrics["last_epoch/grad_norm"] = trainer.optim_step(learning_rate)
    if algorithm.epochs > 1:
        old_logprobs = torch.cat([m.old_logprobs for m in microbatches if m.old_logprobs is not None])
        metrics |= algorithm.later_metrics(torch.cat([p.logprobs for p in passes]), old_logprobs, advantages)
    return metrics


def _first_metrics(
    algorithm: GRPO, trainer: Trainer, batch: Batch, passes: Sequence[Pass], advantages: torch.Tensor
) -> dict[str, float]:
    """Metrics of a batch's first update. Raises InvariantError when the ratio is not 1, and in deterministic mode when
    engine and trainer do not agree exactly."""
    logprobs = torch.cat([each.logprobs for each in passes])
    metrics = algorithm.metrics(logprobs, torch.cat([m.engine_logprobs for m in batch.microbatches]), advantages)
    if trainer.precision.deterministic and metrics["mismatch/max_abs"]:
        raise InvariantError(
            f"precision.deterministic: engine and trainer differ by up to {metrics['mismatch/max_abs']} in a token's "
            "log-prob, but must agree exactly; this processor's matrix products depend on the batch: set it to False"
        )
    agreements = [each.route_agreement for each in passes if each.route_agreement is not None]
    if agreements:
        metrics["routes/agreement"] = sum(agreements) / len(agreements)
    return metrics | {
        "loss": sum(each.loss.item() for each in passes if each.loss is not None),
        "entropy": torch.cat([each.entropies for each in passes]).mean().item(),
    }


def make_batch(algorithm: GRPO, groups: Sequence[Group], microbatch_tokens: int) -> Batch:
    """Advantages over each group's unmasked trajectories, then samples, then packing. A group left with one is
    skipped."""
    samples = []
    for group in groups:
        trained = [t for t in group.trajectories if t.error is None]
        if len(trained) >= 2:
            advantages = algorithm.advantages([t.reward for t in trained])
            for trajectory, advantage in zip(trained, advantages, strict=True):
                samples += to_samples(trajectory, advantage)
    return pack(samples, max_tokens=microbatch_tokens)
