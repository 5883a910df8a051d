"""Saving: a model as a plain Hugging Face folder, in the hub's names and layouts, without a second copy in memory.

In: a model as `load_model` gives it. Out: config.json, generation_config.json and safetensors under the hub's names,
written a shard at a time.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from lockstep.model.loading import ModelError

DTYPES = (torch.bfloat16, torch.float32)
SHARD_BYTES = 5_000_000_000
METADATA = {"format": "pt"}  # transformers 4 refuses a file without it


def save_model(
    model: PreTrainedModel,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `directory`, made if need be, as a Hugging Face folder; the model stays as it is.

    dtype: of the weights in the files, bfloat16 or float32; None leaves each as it is, which alone is exact for any
    model. What an architecture keeps in float32 (`_keep_in_fp32_modules_strict`) stays so, and integers stay integers.
    shard_bytes: a file holds at most so much, unless a single tensor is larger. Beside the model, memory holds one file
    and one decoder layer.

    Names and layouts are the hub's: experts that transformers fuses are written one by one (Qwen3-MoE), GPT-OSS's as
    [experts, in, out]; a tied weight once. config.json carries dtype and architectures, and nothing of quantisation or
    of Lockstep.

    Raises ModelError for another dtype, and when `directory` is a file or holds weights already.
    """
    if dtype not in (None, *DTYPES):
        raise ModelError(f"dtype={dtype}: weights are saved in bfloat16 or float32, or with None as they are")
    if directory.exists() and not directory.is_dir():
        raise ModelError(f"{str(directory)!r} is a file: a model is saved as a folder; give another path")
    old = sorted(path.name for path in directory.glob("*.safetensors*"))
    if old:
        raise ModelError(f"{str(directory)!r} holds weights already ({old[0]}): give an empty folder, or empty it")
    directory.mkdir(parents=True, exist_ok=True)
    _save_config(model, directory, dtype or model.dtype)
    _write_shards(_hub_tensors(model, dtype), directory, shard_bytes)


def _save_config(model: PreTrainedModel, directory: Path, dtype: torch.dtype) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    vars(config).pop("quantization_config", None)
    config.save_pretrained(directory)
    if model.can_generate():  # as it came: checking it anew could end a run at its first checkpoint
        model.generation_config.to_json_file(directory / "generation_config.json")


def _hub_tensors(model: PreTrainedModel, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight on the CPU, under its name on the hub; a decoder layer at a time, for experts are split by copying.

    transformers' conversions join and split tensors of one layer only.
    """
    weights = remove_tied_weights_from_state_dict(model.state_dict(), model)
    for ignored in model._keys_to_ignore_on_save or ():
        weights.pop(ignored, None)
    kept = [re.compile(name.replace("*", ".*")) for name in model._keep_in_fp32_modules_strict or ()]
    for _, group in groupby(weights.items(), key=lambda item: _layer(item[0])):
        for name, tensor in revert_weight_conversion(model, dict(group)).items():
            cast = tensor.is_floating_point() and not any(pattern.search(name) for pattern in kept)
            yield name, tensor.detach().to("cpu", dtype if cast else None).contiguous()


def _layer(name: str) -> str:
    """'model.layers.7' of 'model.layers.7.mlp.router.weight', '' of 'model.norm.weight'."""
    found = re.match(r"\D*\d+", name)
    return found.group() if found else ""


def _write_shards(tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, shard_bytes: int) -> None:
    """Fill a file, write it, forget it; how many there are, and so what they are called, is known at the end."""
    shard_of: dict[str, int] = {}
    held: dict[str, torch.Tensor] = {}
    number = held_bytes = total_bytes = 0
    for name, tensor in tensors:
        if name in shard_of:
            raise ModelError(f"two weights would be saved as {name!r}: load the model with load_model")
        if held and held_bytes + tensor.nbytes > shard_bytes:
            save_file(held, _part(directory, number), metadata=METADATA)
            held.clear()
            number, held_bytes = number + 1, 0
        held[name], shard_of[name] = tensor, number
        held_bytes, total_bytes = held_bytes + tensor.nbytes, total_bytes + tensor.nbytes
    save_file(held, _part(directory, number), metadata=METADATA)
    _name_shards(directory, shard_of, total_bytes)


def _part(directory: Path, number: int) -> Path:
    return directory / f"part-{number}.safetensors"


def _name_shards(directory: Path, shard_of: dict[str, int], total_bytes: int) -> None:
    count = 1 + max(shard_of.values())
    if count == 1:
        _part(directory, 0).rename(directory / "model.safetensors")
        return
    files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for number, file in enumerate(files):
        _part(directory, number).rename(directory / file)
    weight_map = {name: files[number] for name, number in sorted(shard_of.items())}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
