"""What breaks a mixture of experts with sinks, one cause at a time, on Ledger: runs each arm, then draws them.

    make ablation          (or: python recipes/ablation.py --out runs/ablation --steps 30)

(a) old log-probs from a pass of their own, under routers that are not deterministic, against a ratio forced to 1;
(b) an engine in bfloat16 that ignores the sinks, with and without importance weights;
(c) sinks trained, frozen, absent; (d) an engine in bfloat16 with the routes replayed and not.
Sinks begin at 3, where they matter. Arms that are done are not run again. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from transformers import PreTrainedModel

from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction.presets import preset
from lockstep.config import Evaluation, Run
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.engine.engine import Engine
from lockstep.environments.ledger import Ledger
from lockstep.evaluate_checkpoint import main as evaluate_checkpoint
from lockstep.model.precision import Precision
from lockstep.model.routing import routers
from lockstep.model.tiny import TinyModel
from lockstep.observe.alarms import Alarms
from lockstep.observe.recorder import read_metrics
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Rollout
from lockstep.setup import embedded_engine
from lockstep.sft import SFT
from lockstep.train import MakeEngine, train
from lockstep.trainer.checkpoint import newest_checkpoint
from lockstep.trainer.optimizer import Optimizer

RIGHT_ENGINE = "right-engine"  # where a policy that a wrong engine sampled is evaluated by its own
NO_SINK = -30.0  # exp(-30) of the softmax: nothing
ROUTER_NOISE = 0.15  # of the router's input: about a tenth of the choices change between two passes

# An ablation wants to see what an alarm would stop.
OFF: dict[str, Any] = {field.name: None for field in dataclasses.fields(Alarms) if field.name != "patience"}


class OtherEngine(EmbeddedEngine):
    """An engine with weights of its own, in bfloat16, copied from the trainer's at each update; without sinks if asked
    to be. So real engines differ from trainers, some of them by mistake."""

    def __init__(self, run: Run, model: PreTrainedModel, *, sinks: bool) -> None:
        self.source, self.sinks = model, sinks
        super().__init__(
            copy.deepcopy(model).bfloat16(),
            max_length=run.rollout.max_tokens,
            precision=Precision(dtype="bfloat16"),
            record_routes=run.replay_routes,
        )

    async def update_weights(self, version: int) -> None:
        with torch.no_grad():
            for (name, own), new in zip(self.model.named_parameters(), self.source.parameters(), strict=True):
                own.fill_(NO_SINK) if name.endswith(".sinks") and not self.sinks else own.copy_(new)
        await super().update_weights(version)


def noisy_engine(run: Run, model: PreTrainedModel) -> Engine:
    """The embedded engine, under routers whose input is never twice the same, for the trainer too."""
    generator = torch.Generator().manual_seed(run.seed)

    def disturb(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]
        noise = torch.randn(hidden.shape, generator=generator, dtype=hidden.dtype)
        return (hidden * (1 + ROUTER_NOISE * noise), *arguments[1:])

    for router in routers(model):
        router.register_forward_pre_hook(disturb)
    return embedded_engine(run, model)


def without_sinks(run: Run, model: PreTrainedModel) -> Engine:
    return OtherEngine(run, model, sinks=False)


def in_bfloat16(run: Run, model: PreTrainedModel) -> Engine:
    return OtherEngine(run, model, sinks=True)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """start: the cold start that it goes on from; None for a cold start."""

    start: str | None = "cold"
    make_engine: MakeEngine = embedded_engine
    change: Callable[[Run], Run] = lambda run: run


def _algorithm(**changes) -> Callable[[Run], Run]:
    return lambda run: dataclasses.replace(run, algorithm=dataclasses.replace(run.algorithm, **changes))


def _frozen(run: Run) -> Run:
    return dataclasses.replace(run, freeze=("*.sinks",))


def _absent(run: Run) -> Run:
    return _frozen(dataclasses.replace(run, tiny=dataclasses.replace(run.tiny, sinks=NO_SINK)))


def _not_replayed(run: Run) -> Run:
    return dataclasses.replace(run, replay_routes=False)


def _noisy(old_logprobs: str) -> Callable[[Run], Run]:
    return lambda run: _not_replayed(_algorithm(old_logprobs=old_logprobs)(run))


ARMS: Mapping[str, Arm] = {
    "cold": Arm(start=None),
    "cold-frozen": Arm(start=None, change=_frozen),
    "cold-absent": Arm(start=None, change=_absent),
    "baseline": Arm(),
    "ratio-recomputed": Arm(make_engine=noisy_engine, change=_noisy("recomputed")),
    "ratio-forced": Arm(make_engine=noisy_engine, change=_noisy("current")),
    "mismatch-uncorrected": Arm(make_engine=without_sinks, change=_algorithm(correction=preset("none"))),
    "mismatch-sequence": Arm(make_engine=without_sinks, change=_algorithm(correction=preset("sequence-tis"))),
    "mismatch-token": Arm(make_engine=without_sinks, change=_algorithm(correction=preset("token-tis"))),
    "sinks-frozen": Arm(start="cold-frozen", change=_frozen),
    "sinks-absent": Arm(start="cold-absent", change=_absent),
    "routes-replayed": Arm(make_engine=in_bfloat16),
    "routes-live": Arm(make_engine=in_bfloat16, change=_not_replayed),
}

PANELS = (  # title, metrics with their axis' name, arms with their legend
    (
        "(a) old log-probs under noisy routers",
        (("clip_fraction", "clip fraction"), ("grad_norm", "gradient norm"), ("reward", "reward")),
        {"ratio-recomputed": "recomputed", "ratio-forced": "ratio forced to 1", "baseline": "no noise"},
    ),
    (
        "(b) engine in bfloat16 without sinks",
        (("mismatch/kl", "mismatch KL"), ("grad_norm", "gradient norm"), ("reward", "reward")),
        {
            "mismatch-uncorrected": "uncorrected",
            "mismatch-sequence": "sequence weights",
            "mismatch-token": "token weights",
            "baseline": "the right engine",
        },
    ),
    (
        "(c) sinks",
        (("reward", "reward"), ("grad_norm", "gradient norm"), ("entropy", "entropy")),
        {"baseline": "trained", "sinks-frozen": "frozen", "sinks-absent": "absent"},
    ),
    (
        "(d) routes of an engine in bfloat16",
        (("mismatch/kl", "mismatch KL"), ("mismatch/max_abs", "largest gap"), ("reward", "reward")),
        {"routes-live": "chosen anew", "routes-replayed": "replayed"},
    ),
)


def make_run(name: str, out: Path, *, steps: int, cold_steps: int, seed: int) -> Run:
    arm = ARMS[name]
    model = "tiny"
    if arm.start is not None:
        found = newest_checkpoint(out / arm.start / "checkpoints")
        assert found is not None, f"run {arm.start} first"
        model = str(found[0])
    cold = Optimizer(learning_rate=1.5e-3, warmup_steps=20, decay_share=0.4)
    run = Run(
        name=name,
        runs=out,
        environment=Ledger(),
        model=model,
        tiny=TinyModel(sinks=3.0),
        harmony=HarmonyOptions(system=False, tool_definitions=False),
        sft=SFT(num_steps=0 if arm.start else cold_steps, batch_size=16, optimizer=cold),
        num_steps=steps,
        rollout=Rollout(num_prompts=16, group_size=8, max_turns=7, max_tokens=320, max_action_tokens=64),
        algorithm=Algorithm(),
        optimizer=Optimizer(learning_rate=6e-4, decay_share=1.0, final_share=0.2),
        evaluation=Evaluation(num_tasks=128),
        alarms=Alarms(**OFF),
        checkpoint_every=10**6,
        tensorboard=False,
        threads=1,
        seed=seed,
    )
    return arm.change(run)


def run_arm(name: str, options: argparse.Namespace) -> None:
    run = make_run(name, options.out, steps=options.steps, cold_steps=options.cold_steps, seed=options.seed)
    directory = train(run, sft_only=ARMS[name].start is None, make_engine=ARMS[name].make_engine)
    if ARMS[name].make_engine is without_sinks:
        found = newest_checkpoint(directory / "checkpoints")
        assert found is not None
        evaluate_checkpoint([str(found[0]), "--out", str(directory / RIGHT_ENGINE)])


def start_arm(name: str, options: argparse.Namespace) -> None:
    """In a process of its own, unless it is done."""
    done = options.out / f"{name}.done"
    if done.exists():
        return
    command = [sys.executable, __file__, "--arm", name, "--out", str(options.out), "--seed", str(options.seed)]
    command += ["--steps", str(options.steps), "--cold-steps", str(options.cold_steps)]
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"{name}.log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
            raise RuntimeError(f"arm {name} failed; see {log.name}")
    done.touch()
    print(f"{name}: done", flush=True)


def steps_of(out: Path, name: str) -> list[dict]:
    return [line for line in read_metrics(out / name) if line["phase"] == "rl"]


def print_table(out: Path) -> None:
    """What docs/LOG.md says of the arms: a column's numbers are over all steps unless it says otherwise."""
    print("held-out: sampled success before and after; in (): after, by the right engine")
    columns = ("reward, last 10", "gradient mean, max", "clip", "KL mean, median, max", "largest gap", "weight, ess")
    print(f"{'arm':22}" + "".join(f"{column:>27}" for column in (*columns, "held-out")))
    for name, arm in ARMS.items():
        if arm.start is None:
            continue
        norms, clips, kls, gaps, rewards, weights, sizes = (
            [step[metric] for step in steps_of(out, name)]
            for metric in (
                *("grad_norm", "clip_fraction", "mismatch/kl", "mismatch/max_abs"),
                *("reward", "correction/weight_mean", "correction/ess"),
            )
        )
        held = [line["eval/success_sampled"] for line in read_metrics(out / name) if line["phase"] == "eval"]
        held_out = f"{held[0]:.3f} -> {held[-1]:.3f}"
        if (out / name / RIGHT_ENGINE).is_dir():
            held_out += f" ({read_metrics(out / name / RIGHT_ENGINE)[-1]['eval/success_sampled']:.3f})"
        cells = (
            f"{mean(rewards[-10:]):.3f}",
            f"{mean(norms):.3f}, {max(norms):.2f}",
            f"{mean(clips):.4f}",
            f"{mean(kls):.2g}, {median(kls):.2g}, {max(kls):.2g}",
            f"{max(gaps):.2g}",
            f"{mean(weights):.2f}, {mean(sizes):.2f}",
            held_out,
        )
        print(f"{name:22}" + "".join(f"{cell:>27}" for cell in cells))


def draw(out: Path, png: Path) -> None:
    from matplotlib.figure import Figure

    colours = ("#3b8eea", "#e07b39", "#2fa37c", "#b07aa1")
    figure = Figure(figsize=(12, 12), layout="constrained")
    grid = figure.add_gridspec(len(PANELS), 1)
    for number, (title, metrics, arms) in enumerate(PANELS):
        row = figure.add_subfigure(grid[number, 0])
        row.suptitle(title, x=0.01, ha="left", fontsize=11)
        for place, (axes, (metric, label)) in enumerate(zip(row.subplots(1, 3), metrics, strict=True)):
            for colour, (arm, legend) in zip(colours, arms.items(), strict=False):
                lines = steps_of(out, arm)
                axes.plot([s["step"] for s in lines], [s[metric] for s in lines], color=colour, label=legend, lw=1.6)
            axes.set_xlabel("RL step")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if metric.startswith("mismatch/"):
                axes.set_yscale("log")
            elif metric != "entropy":
                axes.set_ylim(bottom=0)
            if not place:
                axes.legend(frameon=False, fontsize=8)
    figure.savefig(png, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=30, help="RL steps of an arm")
    parser.add_argument("--cold-steps", type=int, default=750, help="steps of a cold start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="arms at once, one thread each")
    parser.add_argument("--arm", choices=ARMS, help="run this one only, in this process")
    options = parser.parse_args()
    if options.arm:
        return run_arm(options.arm, options)
    for wave in (lambda arm: arm.start is None, lambda arm: arm.start is not None):
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda name: start_arm(name, options), [name for name, arm in ARMS.items() if wave(arm)]))
    png = options.out / "ablation.png"
    draw(options.out, png)
    print_table(options.out)
    print(f"picture: {png}")


if __name__ == "__main__":
    main()
