"""`lockstep plan`: what a run would need, by arithmetic alone. Nothing is loaded, sampled or written.

In: a Run. Out: parameters, bytes, tokens and operations, with every trajectory as long as it may be. Bytes follow from
how Lockstep stores things: float32 masters beside bfloat16 weights, gradients and both of Adam's moments in float32.
Left out are activations (they follow from microbatch_tokens) and the passes that only some options of an algorithm
need before the first gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, GptOssConfig, PreTrainedConfig

from lockstep.config import ConfigError, Run, check
from lockstep.model.freezing import freeze
from lockstep.model.tiny import shape
from lockstep.rollout.environment import tasks_of
from lockstep.trainer.critic import OwnCritic

GIB = 1 << 30
# The shapes of models that are planned for where their folders are not at hand.
KNOWN: Mapping[str, PreTrainedConfig] = {
    "openai/gpt-oss-20b": GptOssConfig(num_hidden_layers=24, num_local_experts=32),
    "openai/gpt-oss-120b": GptOssConfig(num_hidden_layers=36, num_local_experts=128),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """parameters: of the policy; active: those a token is multiplied with (its experts and the head, not the embedding
    it is looked up in); trained: those that learn. *_bytes: of the whole
    run, over all devices; cache_bytes: keys and values of one trajectory at its longest. Of one step: trajectories and
    tokens that are trained on; sampled_trajectories, with refills and greedy baselines; floating-point operations, of
    products with weights and of attention, critic and reference included."""

    parameters: int
    active: int
    trained: int
    weights_bytes: int
    optimizer_bytes: int
    others_bytes: int
    cache_bytes: int
    trajectories: int
    sampled_trajectories: int
    tokens: int
    train_flops: float
    sample_flops: float


def plan(run: Run) -> Plan:
    """Raises UserError for a run that cannot be, and for a model whose shape is not known."""
    check(run)
    config = _shape(run)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=run.precision.torch_dtype)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    trained = total - sum(sizes[name] for name in freeze(model, run.freeze))
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    embedding = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    active = total - embedding - experts + experts * getattr(config, "num_experts_per_tok", 1) // num_experts
    width = run.precision.torch_dtype.itemsize
    learning = trained * (4 + 8 + (4 if width == 2 else 0))  # gradients, moments, masters
    copies = int(run.algorithm.kl is not None) * total * width
    if isinstance(run.critic, OwnCritic):
        copies += total * width + learning
    rollout = run.rollout
    trajectories = rollout.num_prompts * rollout.group_size
    greedy = rollout.num_prompts if "greedy" in run.algorithm.advantages.needs else 0
    sampled = (trajectories + greedy) * (1 + rollout.max_refills)
    tokens = trajectories * rollout.max_tokens
    forward = 2.0 * active + _attention_flops(config, rollout.max_tokens)  # of one token
    learned = 4 if run.gradient_checkpointing else 3  # forward and backward, and forward again
    passes = learned * run.algorithm.epochs + int(run.algorithm.kl is not None)
    passes += (1 + learned) * isinstance(run.critic, OwnCritic)
    return Plan(
        parameters=total,
        active=active,
        trained=trained,
        weights_bytes=total * width,
        optimizer_bytes=learning,
        others_bytes=copies,
        cache_bytes=_cache_bytes(config, run.rollout.max_tokens, width),
        trajectories=trajectories,
        sampled_trajectories=sampled,
        tokens=tokens,
        train_flops=passes * forward * tokens,
        sample_flops=forward * sampled * rollout.max_tokens,
    )


def show(run: Run, console: Console | None = None) -> None:
    """Print the plan as a table."""
    planned = plan(run)
    try:
        train, heldout = (len(tasks_of(run.environment, split)) for split in ("train", "heldout"))
    except (ValueError, OSError) as error:  # what an environment says of its data
        raise ConfigError(str(error)) from error
    table = Table(title=f"plan of {run.name}: {run.model}, {type(run.environment).__name__}", title_justify="left")
    table.add_column("")
    table.add_column("at most", justify="right")
    for name, value in [*_rows(run, planned), ("tasks", f"{train:,}"), ("held-out tasks", f"{heldout:,}")]:
        table.add_row(name, value)
    (console or Console()).print(table)


def _rows(run: Run, planned: Plan) -> list[tuple[str, str]]:
    state = planned.weights_bytes + planned.optimizer_bytes + planned.others_bytes
    return [
        ("parameters", f"{planned.parameters:,}"),
        ("multiplied with a token", f"{planned.active:,}"),
        ("trained", f"{planned.trained:,}"),
        ("weights", _size(planned.weights_bytes)),
        ("gradients, moments, masters", _size(planned.optimizer_bytes)),
        ("critic and reference", _size(planned.others_bytes)),
        ("all of that", _size(state)),
        ("keys and values of a trajectory", _size(planned.cache_bytes)),
        ("trajectories sampled a step", f"{planned.sampled_trajectories:,}"),
        ("trajectories trained on a step", f"{planned.trajectories:,}"),
        ("tokens of a history", f"{run.rollout.max_tokens:,}"),
        ("tokens trained on a step, without restarts", f"{planned.tokens:,}"),
        ("sampling, a step", f"{planned.sample_flops:.2g} FLOP"),
        ("training, a step", f"{planned.train_flops:.2g} FLOP"),
        ("steps", f"{run.num_steps:,}"),
    ]


def _size(num_bytes: int) -> str:
    if not num_bytes:
        return "none"
    return f"{num_bytes / GIB:,.1f} GiB" if num_bytes >= GIB else f"{num_bytes / (1 << 20):,.1f} MiB"


def _shape(run: Run) -> PreTrainedConfig:
    if run.model == "tiny":
        return shape(run.tiny)
    if run.model in KNOWN:
        return KNOWN[run.model]
    if not Path(run.model).is_dir():
        raise ConfigError(
            f"model={run.model!r}: no folder, and its shape is not known; give its folder, or one of {', '.join(KNOWN)}"
        )
    try:
        return AutoConfig.from_pretrained(run.model)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"model={run.model!r}: its config.json cannot be read ({said}); give another folder"
        ) from error


def _cache_bytes(config: Any, max_tokens: int, width: int) -> int:
    """Keys and values of one trajectory: all its tokens in full layers, the window's in sliding ones."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * heads * _head_dim(config) * width * sum(_reaches(config, max_tokens))


def _attention_flops(config: Any, max_tokens: int) -> float:
    """Of a token in the forward pass, on average over a trajectory: scores and weighted values over the keys it sees,
    half of the trajectory's in full layers."""
    seen = sum(min(reach, max_tokens / 2) for reach in _reaches(config, max_tokens))
    return 4.0 * config.num_attention_heads * _head_dim(config) * seen


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _reaches(config: Any, max_tokens: int) -> list[int]:
    """How many keys each layer keeps."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None) or max_tokens
    return [min(max_tokens, window) if kind == "sliding_attention" else max_tokens for kind in kinds]
