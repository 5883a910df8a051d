"""How far the embedded engine's log-probs are from the trainer's: by default, with routes replayed, and in exact mode.

    python benchmarks/mismatch.py

A GPT-OSS with weights and sinks so large that rounding grows (--std 0.06 --sinks 0: the tiny model at its start) holds
random conversations of four turns, some contexts fed token by token and some prefilled; all are then packed into one
microbatch. A flipped token is one whose experts differ between engine and trainer in some layer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import GptOssForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.workloads import gpt_oss_config
from lockstep.compute import prepare_cpu
from lockstep.data.packing import pack
from lockstep.data.samples import to_samples
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.engine.engine import Sampling
from lockstep.model.precision import Precision
from lockstep.rollout.trajectory import turn_routes
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import UNKNOWN_ROUTE, Sample, Task, Trajectory, Turn

VOCABULARY, LENGTH = 544, 900


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--std", type=float, default=0.3)
    parser.add_argument("--sinks", type=float, default=4.0, help="their standard deviation")
    chosen = parser.parse_args(arguments)
    prepare_cpu(1)
    print("| seed | mode | tokens | flipped | largest gap | mean gap |\n|---|---|---|---|---|---|")
    for seed in chosen.seeds:
        for precision in (Precision(), Precision(deterministic=True)):
            model = build(chosen.std, chosen.sinks)
            samples = asyncio.run(converse(model, precision, chosen.trajectories, seed))
            trainer = Trainer(model, Optimizer(), precision=precision)
            for replay in (False, True):
                gaps, flipped = compare(trainer, samples, replay)
                mode = f"{'exact' if precision.deterministic else 'default'}, routes {'replayed' if replay else 'live'}"
                row = (seed, mode, len(gaps), flipped, f"{gaps.max():.2g}", f"{gaps.mean():.2g}")
                print("|", " | ".join(map(str, row)), "|", flush=True)


def build(std: float, sinks: float) -> GptOssForCausalLM:
    torch.manual_seed(1)
    config = gpt_oss_config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=32,
        initializer_range=std,
    )
    model = GptOssForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, std=sinks)
    model.set_attn_implementation("lockstep")
    model.set_experts_implementation("lockstep")
    return model


async def converse(model, precision: Precision, num: int, seed: int) -> list[Sample]:
    engine = EmbeddedEngine(model, max_concurrency=40, max_length=LENGTH, precision=precision, record_routes=True)

    async def one(i: int) -> Trajectory:
        draw, history, turns = np.random.default_rng([seed, i]), [], []
        for number in range(4):
            context = draw.integers(0, VOCABULARY, int(draw.integers(1, 40 if number else 120))).tolist()
            history += context
            sampling = Sampling(
                temperature=1.0, max_tokens=int(draw.integers(1, 60)), stop_token_ids=(), seed=7 * i + number
            )
            done = await engine.generate(history, sampling)
            history += done.tokens
            turns.append(
                Turn(
                    context=tuple(context),
                    action=done.tokens,
                    engine_logprobs=done.logprobs,
                    weights_version=0,
                    routed_experts=turn_routes(done, len(context), first=number == 0),
                )
            )
        task = Task(id="benchmark", messages=())
        return Trajectory(
            id=str(i),
            task=task,
            turns=tuple(turns),
            messages=(),
            reward=0,
            reward_parts={},
            stop_reason="done",
            events={},
        )

    trajectories = await asyncio.gather(*map(one, range(num)))
    return [sample for trajectory in trajectories for sample in to_samples(trajectory)]


def compare(trainer: Trainer, samples: list[Sample], replay: bool) -> tuple[torch.Tensor, int]:
    """|trainer - engine| of every action token [A], and how many tokens the two routed differently."""
    (batch,) = pack(samples, max_tokens=10**9).microbatches
    found = trainer.logprobs(batch if replay else replace(batch, routed_experts=None))
    engine, used = batch.routed_experts.sort(-1).values, found.routes.sort(-1).values
    flipped = (engine != used).any(-1).any(-1) & (batch.routed_experts[:, 0, 0] != UNKNOWN_ROUTE)
    sampled = torch.from_numpy(np.concatenate([s.engine_logprobs[s.action_mask] for s in samples]))
    return (found.logprobs - sampled[batch.action_place]).abs(), int(flipped.sum())


if __name__ == "__main__":
    main()
