"""Checkpoints: a plain Hugging Face folder, and beside the weights what an exact resume needs.

A checkpoint is written under a temporary name and renamed; `state.json`, with the size and digest of every other file,
is written last. One that does not match its digests is torn, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lockstep.model.saving import save_model
from lockstep.types import UserError

STATE = "state.json"
CONFIG = "lockstep.json"
OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is: `step` steps of `phase` ('sft' or 'rl') are done."""

    phase: Literal["sft", "rl"]
    step: int


def save_checkpoint(
    directory: Path,
    model: PreTrainedModel,
    state: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
    *,
    config: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write checkpoint `directory`/PHASE-STEP and drop all but the newest `keep`. Returns its path.

    state: what an exact resume needs beside the model's weights: tensors and numbers in dictionaries and lists. config:
    the run's resolved configuration, so that the checkpoint can be evaluated the way it was trained.
    """
    target = directory / f"{progress.phase}-{progress.step:06d}"
    temporary = directory / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / CONFIG).write_text(json.dumps(config, indent=1))
    tokenizer.save_pretrained(temporary)
    try:
        save_model(model, temporary)
        torch.save(state, temporary / OPTIMIZER)
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # not torch's words for a file that it could not write
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {target} could not be written ({reason}); free space and go on with --resume "
            f"{directory.parent}"
        ) from error
    written = sorted(path for path in temporary.rglob("*") if path.is_file())
    files = {path.relative_to(temporary).as_posix(): _digest(path) for path in written}
    whole = {"phase": progress.phase, "step": progress.step, "files": files}
    _write_synced(temporary / STATE, json.dumps(whole, indent=1).encode())
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for old in _checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def newest_checkpoint(directory: Path) -> tuple[tuple[Path, Progress] | None, list[str]]:
    """The newest whole checkpoint and its progress, None when there is none; and a line about each torn one passed
    over."""
    passed_over = []
    for path in reversed(_checkpoints(directory)):
        fault = find_fault(path)
        if fault is None:
            state = json.loads((path / STATE).read_text())
            return (path, Progress(phase=state["phase"], step=state["step"])), passed_over
        passed_over.append(f"checkpoint {path} is torn ({fault}) and passed over")
    return None, passed_over


def read_state(path: Path) -> dict[str, Any]:
    """The state that a checkpoint was saved with; the model's own weights are loaded with it."""
    return torch.load(path / OPTIMIZER, weights_only=True)


def find_fault(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None."""
    try:
        files = json.loads((path / STATE).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"no readable {STATE}"
    for name, digest in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _digest(path / name) != digest:
            return f"{name} was changed or cut short"
    return None


def _checkpoints(directory: Path) -> list[Path]:
    """Oldest first: the cold start's come before reinforcement learning's."""
    found = [p for p in directory.glob("*-*") if p.is_dir() and p.name.split("-")[0] in ("sft", "rl")]
    return sorted(found, key=lambda p: (p.name.startswith("rl"), p.name))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
