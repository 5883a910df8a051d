"""The supervised cold start: imitate demonstrations, on the same packing and the same trainer as reinforcement
learning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from lockstep.algorithm.losses.supervised import supervised_loss
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.rollout.collector import shuffled
from lockstep.rollout.renderer import Renderer
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Outputs, Trainer
from lockstep.types import Demonstration, Microbatch, Sample, ToolDescription


@dataclass(frozen=True, kw_only=True)
class SFT:
    """The cold start. num_steps=0 leaves it out."""

    num_steps: int = 0
    """Optimiser steps."""
    batch_size: int = 32
    """Demonstrations a step."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-5))
    """The cold start's own optimiser; its state does not carry over."""


def demonstration_samples(
    renderer: Renderer, demonstrations: Sequence[Demonstration], tools: Sequence[ToolDescription], max_tokens: int
) -> list[Sample]:
    """Demonstrations as samples whose actions are the demonstrator's; those longer than max_tokens are left out."""
    samples = []
    for i, shown in enumerate(demonstrations):
        opening = shown.task.messages
        tokens, mask = renderer.demonstrate((*opening, *shown.messages), tools, len(opening))
        if len(tokens) <= max_tokens:
            samples.append(supervised_sample(f"demonstration/{i}", tokens, mask))
    return samples


def _loss(outputs: Outputs, microbatch: Microbatch, *, denominator: int) -> torch.Tensor:
    return supervised_loss(outputs.logprobs, denominator=denominator)


def supervised_steps(
    trainer: Trainer,
    samples: Sequence[Sample],
    settings: SFT,
    *,
    seed: int,
    start_step: int,
    microbatch_tokens: int,
    after_step: Callable[[int, dict[str, float]], None],
) -> None:
    """Steps start_step..num_steps-1. after_step(number of steps done, metrics) records, shows and checkpoints."""
    for step in range(start_step, settings.num_steps):
        began = time.perf_counter()
        chosen = shuffled(len(samples), step * settings.batch_size, settings.batch_size, seed=seed)
        batch = pack([samples[i] for i in chosen], max_tokens=microbatch_tokens)
        mean_loss = partial(_loss, denominator=batch.num_action_tokens)
        passes = [trainer.forward_backward(microbatch, mean_loss) for microbatch in batch.microbatches]
        learning_rate = settings.optimizer.learning_rate_at(step, settings.num_steps)
        norm = trainer.optim_step(learning_rate)
        seconds = time.perf_counter() - began
        metrics = {
            "loss": sum(each.loss.item() for each in passes if each.loss is not None),
            "lr": learning_rate,
            "grad_norm": norm,
            "tokens_per_s/train": batch.num_tokens / seconds,
        }
        after_step(step + 1, metrics)
