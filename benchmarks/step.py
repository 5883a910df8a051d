"""Tokens trained per second of a whole GRPO step, Lockstep and TRL side by side, on the same tiny GPT-OSS.

    make benchmark-step

A step samples `--group-size` completions of exactly `--max-new-tokens` tokens for each of `--num-prompts` prompts and
makes one optimiser update on all of them, in float32. Both sides get the same model folder, prompts, lengths and
threads; the trivial reward (the parity of the tokens' sum) leaves nothing but generation and training to time. They run
in turn, `--rounds` times over, each in its own process; the table gives each side's median step and the ratios. The
first step of each process is warm-up.

TRL runs twice: tuned (the fastest settings we found for it, see step_trl.py) and as it comes (gradient checkpointing,
8 sequences a pass, transformers' default experts, the C library's allocator untouched), in float32 as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
AS_IT_COMES = ["--gradient-checkpointing", "--microbatch=8", "--experts=grouped_mm", "--malloc=default"]
SIDES = ("Lockstep", "TRL, tuned", "TRL, as it comes")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="steps a process, the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trl-python", type=Path, default=HERE.parent / ".venv-trl/bin/python")
    parser.add_argument("--lockstep-side", type=Path, help=argparse.SUPPRESS)  # the folder of a child process
    return parser.parse_args()


def main() -> None:
    chosen = options()
    if chosen.lockstep_side:
        lockstep_side(chosen, chosen.lockstep_side)
        return
    if not chosen.trl_python.exists():
        sys.exit(f"no {chosen.trl_python}: `make benchmark-step` makes TRL's virtual environment first")
    results: dict[str, list[dict]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(chosen, folder)
        trl = trl_command(chosen, folder)
        commands = (lockstep_command(chosen, folder), trl, [*trl, *AS_IT_COMES])
        for round_ in range(chosen.rounds):
            for side, command in zip(SIDES, commands, strict=True):
                print(f"round {round_ + 1}/{chosen.rounds}: {side} ...", flush=True)
                done = subprocess.run(command, env=environment(chosen), capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{side} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
                results[side].append(json.loads((folder / "result.json").read_text()))
    report(chosen, results)


def prepare(chosen: argparse.Namespace, folder: Path) -> None:
    """The model and the prompts that both sides get."""
    from lockstep.environments.ledger import Ledger
    from lockstep.model.tiny import TinyModel, build_model, build_tokenizer

    tasks = Ledger(num_train=2000).tasks("train")
    texts = [task.messages[0].content for task in tasks]
    tokenizer = build_tokenizer(texts, TinyModel().vocab_size)
    tokenizer.save_pretrained(folder / "model")
    build_model(TinyModel(), tokenizer, seed=0).save_pretrained(folder / "model")
    prompts = [
        tokenizer(text, add_special_tokens=False).input_ids for text in texts[: chosen.num_prompts * chosen.steps]
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts))


def lockstep_command(chosen: argparse.Namespace, folder: Path) -> list[str]:
    arguments = [
        f"--{name.replace('_', '-')}={getattr(chosen, name)}"
        for name in ("num_prompts", "group_size", "max_new_tokens", "steps", "threads")
    ]
    return [sys.executable, __file__, *arguments, f"--lockstep-side={folder}"]


def trl_command(chosen: argparse.Namespace, folder: Path) -> list[str]:
    arguments = [
        f"--{name.replace('_', '-')}={getattr(chosen, name)}"
        for name in ("num_prompts", "group_size", "max_new_tokens", "steps", "threads")
    ]
    paths = [f"--model={folder / 'model'}", f"--prompts={folder / 'prompts.json'}", f"--out={folder / 'result.json'}"]
    return [str(chosen.trl_python), str(HERE / "step_trl.py"), *arguments, *paths]


def environment(chosen: argparse.Namespace) -> dict[str, str]:
    threads = str(chosen.threads)
    return os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}


def lockstep_side(chosen: argparse.Namespace, folder: Path) -> None:
    """Time Lockstep's steps in this process and write result.json, as TRL's side does."""
    import torch

    from lockstep.algorithm.algorithm import Algorithm
    from lockstep.compute import prepare_cpu
    from lockstep.engine.embedded import EmbeddedEngine
    from lockstep.learner.learner import Learner
    from lockstep.model.loading import load_model
    from lockstep.model.tiny import TinyModel
    from lockstep.trainer.optimizer import Optimizer
    from lockstep.trainer.trainer import Trainer

    prepare_cpu(chosen.threads)
    model = load_model(folder / "model")
    engine = EmbeddedEngine(model, max_concurrency=chosen.num_prompts * chosen.group_size, record_routes=True)
    learner = Learner(
        Algorithm(),
        Trainer(model, Optimizer(learning_rate=1e-6)),
        microbatch_tokens=16384,
        max_tokens=TinyModel().max_length,
        num_steps=chosen.steps,
    )
    prompts = json.loads((folder / "prompts.json").read_text())
    steps = []
    for step in range(chosen.steps):
        own = prompts[step * chosen.num_prompts : (step + 1) * chosen.num_prompts]
        steps.append(asyncio.run(one_step(chosen, step, own, engine, learner)))
    counted = steps[1:]
    result = {
        "step_s": statistics.median(s["generate_s"] + s["train_s"] for s in counted),
        "generate_s": statistics.median(s["generate_s"] for s in counted),
        "train_s": statistics.median(s["train_s"] for s in counted),
        "tokens": counted[0]["tokens"],
        "completion_tokens": chosen.num_prompts * chosen.group_size * chosen.max_new_tokens,
        "versions": {"torch": torch.__version__},
    }
    (folder / "result.json").write_text(json.dumps(result))


async def one_step(chosen, step, prompts, engine, learner) -> dict[str, float]:
    """Rollout, advantages, packing, gradient, update and publish: what `lockstep.train` does in a step."""
    from lockstep.engine.engine import Sampling
    from lockstep.types import Group, Task, Trajectory, Turn

    began = time.perf_counter()

    async def attempt(i: int, j: int) -> Trajectory:
        sampling = Sampling(
            temperature=1.0, max_tokens=chosen.max_new_tokens, stop_token_ids=(), seed=1000 * step + 10 * i + j
        )
        done = await engine.generate(prompts[i], sampling)
        turn = Turn(
            context=tuple(prompts[i]),
            action=done.tokens,
            engine_logprobs=done.logprobs,
            weights_version=step,
            routed_experts=done.routed_experts,
        )
        reward = float(sum(done.tokens) % 2)
        return Trajectory(
            id=f"{i}/{j}",
            task=task,
            turns=(turn,),
            messages=(),
            reward=reward,
            reward_parts={},
            stop_reason="length",
            events={},
        )

    async def group(i: int) -> Group:
        return Group(
            task=task, trajectories=tuple(await asyncio.gather(*(attempt(i, j) for j in range(chosen.group_size))))
        )

    task = Task(id="benchmark", messages=())
    groups = await asyncio.gather(*(group(i) for i in range(len(prompts))))
    sampled = time.perf_counter()
    learner.update(groups, step=step)
    await engine.update_weights(step + 1)
    tokens = sum(t.num_tokens for g in groups for t in g.trajectories)
    return {"generate_s": sampled - began, "train_s": time.perf_counter() - sampled, "tokens": tokens}


def report(chosen: argparse.Namespace, results: dict[str, list[dict]]) -> None:
    print(
        f"\nGRPO step: {chosen.num_prompts} prompts x {chosen.group_size} completions x {chosen.max_new_tokens} "
        f"new tokens, {chosen.threads} thread(s), median of {chosen.rounds} x {chosen.steps - 1} steps"
    )
    print(f"{'':18}{'step s':>9}{'generate s':>12}{'train s':>9}{'trained tokens/s':>18}")
    speeds = {}
    for side, found in results.items():
        keys = ("step_s", "generate_s", "train_s", "tokens")
        step_s, generate_s, train_s, tokens = (statistics.median(r[key] for r in found) for key in keys)
        speeds[side] = tokens / step_s
        print(f"{side:18}{step_s:9.2f}{generate_s:12.2f}{train_s:9.2f}{speeds[side]:18.0f}")
    for side in SIDES[1:]:
        print(f"Lockstep / {side}: {speeds['Lockstep'] / speeds[side]:.1f}x")
    print(f"TRL's side: {results[SIDES[1]][0]['versions']}")


if __name__ == "__main__":
    main()
