"""Loading: any Hugging Face causal LM, with Lockstep's attention and experts in place of its own.

In: a folder or id, MXFP4 experts included. Out: a model of plain floats, every one of them from the checkpoint.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils.quantization_config import Mxfp4Config

import lockstep.model.attention
import lockstep.model.experts  # noqa: F401  (both register their implementations)
from lockstep.types import UserError

transformers.utils.logging.disable_progress_bar()  # one display at a time: the run's own

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# What some models do to the product of hidden states and head.
LOGIT_CHANGES = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier", "output_multiplier")
NUM_NAMED = 3  # tensors an error names before it counts the rest
NOISY = ("transformers.modeling_utils", "transformers.quantizers.quantizer_mxfp4")


class ModelError(UserError):
    """The model cannot be loaded or saved, or is of a kind Lockstep does not serve. One line, with the fix."""


def load_model(source: str | Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A causal LM from a Hugging Face folder or id, in evaluation mode (no dropout), every parameter trainable.

    dtype: float32, bfloat16 or float64; None is bfloat16 for an MXFP4 checkpoint and float32 for any other. Every
    parameter has it but those that an architecture keeps in float32 (transformers' `_keep_in_fp32_modules_strict`).
    GPT-OSS and Qwen3-MoE keep none: the norms under GPT-OSS's `_keep_in_fp32_modules` are meant for float16, and norms
    compute in float32 whatever their weights are. Rotary frequencies, which are no parameters, are always float32.

    MXFP4 experts (e2m1 codes in blocks of 32 that share a power of two, OCP Microscaling 1.0) are unpacked, to
    [experts, in, out]; bfloat16 holds every finite value exactly. The config then says nothing of quantisation. At the
    peak there are the model, the packed tensors that wait, and the temporaries of one tensor, about three times its
    bfloat16 size; for float32, the experts are unpacked in bfloat16 first.

    Raises ModelError when the model cannot be found or read, is quantised in any other way, or when its checkpoint
    lacks a weight, has one too many, or has one of another shape.
    """
    _check_source(source)
    config = _load_config(source)
    packed = _is_packed(source, config)
    dtype = _checked_dtype(dtype or (torch.bfloat16 if packed else torch.float32))
    model, found = _load_weights(source, config, dtype, packed)
    misshapen = {name for name, *_ in found["mismatched_keys"]}
    if packed:
        misshapen |= _misshapen(model, config)  # with a quantiser, transformers compares no shapes
        for parameter in model.parameters():
            if parameter.dtype == torch.bfloat16:  # as experts are unpacked, whatever dtype was asked for
                parameter.data = parameter.data.to(dtype)
    _check_complete(source, found["missing_keys"], found["unexpected_keys"], misshapen)
    # Saving is to write the hub's names, not to undo what loading did: MXFP4's undoing loses all layers but the last.
    model._weight_conversions = None  # pyright: ignore[reportArgumentType]
    _check_head(source, model)
    return model.eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The folder's or id's tokenizer. Raises ModelError when there is none."""
    _check_source(source)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"tokenizer of {str(source)!r} cannot be loaded: {_first_line(error)}; give a Hugging Face folder or id"
        ) from error


def _check_head(source: str | Path, model: PreTrainedModel) -> None:
    """Log-probs are taken from hidden @ head.T: a model that does more to its logits would get wrong ones."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if head is None:
        raise ModelError(f"model {str(source)!r} has no language-model head: give a causal language model")
    if getattr(head, "bias", None) is not None:
        raise ModelError(
            f"model {str(source)!r} has a head with a bias, which log-probs would miss: give another model"
        )
    for name in LOGIT_CHANGES:
        if getattr(config, name, None) not in (None, False, 1):
            value = getattr(config, name)
            raise ModelError(
                f"model {str(source)!r} has {name}={value}, which log-probs would miss: give another model"
            )


def _check_source(source: str | Path) -> None:
    """Neither a folder nor of an id's shape: no need to ask the hub."""
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise ModelError(f"model {str(source)!r}: there is no such folder; give a Hugging Face folder or id")


def _checked_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype}: models are loaded in float32 or bfloat16 (or float64); give one of them")
    return dtype


def _load_config(source: str | Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def _is_packed(source: str | Path, config: PreTrainedConfig) -> bool:
    """Whether the experts are MXFP4. Raises ModelError for every other quantisation."""
    names = ("quantization_config", "compression_config")
    settings = [getattr(c, name, None) for c in (config, config.get_text_config()) for name in names]
    for found in filter(None, settings):
        method = found.get("quant_method")
        if method != "mxfp4":
            raise ModelError(
                f"model {str(source)!r} is quantised with {method!r}, which cannot be trained: give the bfloat16 "
                "weights it was made from (of quantised ones, mxfp4 alone is unpacked)"
            )
    return any(settings)


def _load_weights(
    source: str | Path, config: PreTrainedConfig, dtype: torch.dtype, packed: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and what transformers found amiss: missing_keys, unexpected_keys, mismatched_keys."""
    options: dict[str, Any] = {"experts_implementation": "lockstep"} if _has_experts(config) else {}
    if packed:
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    try:
        with _quiet():
            return AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportReturnType]
                source,
                dtype=dtype,
                attn_implementation="lockstep",
                ignore_mismatched_sizes=True,  # to be told of them all
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(source, error) from error
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise ModelError(
            f"model {str(source)!r}: the checkpoint does not fit its config.json (missing or of another shape: "
            f"{_named(_unusable(Path(source), config)) or 'some experts'}); "
            "give the complete folder, with the config.json that belongs to it"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' report on weights is dropped: what it warns of is raised here, and unpacking is what was wanted."""

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    loggers = [logging.getLogger(name) for name in NOISY]
    for logger in loggers:
        logger.addFilter(errors_only)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(errors_only)


def _blank(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without memory: names and shapes alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _misshapen(model: PreTrainedModel, config: PreTrainedConfig) -> set[str]:
    loaded = model.state_dict()
    return {name for name, blank in _blank(config).state_dict().items() if loaded[name].shape != blank.shape}


def _unusable(folder: Path, config: PreTrainedConfig) -> list[str]:
    """Tensors, by their names on disk, that the folder lacks or has in another shape; empty for an id."""
    stored: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    blank = _blank(config)
    wanted: dict[str, list[int]] = {}
    for name, tensor in revert_weight_conversion(blank, blank.state_dict()).items():
        if {f"{name}_blocks", f"{name}_scales"} & stored.keys():
            experts, inner, outer = tensor.shape
            wanted[f"{name}_blocks"] = [experts, outer, inner // 32, 16]
            wanted[f"{name}_scales"] = [experts, outer, inner // 32]
        else:
            wanted[name] = list(tensor.shape)
    return [name for name, shape in wanted.items() if stored.get(name) != shape]


def _check_complete(
    source: str | Path, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]
) -> None:
    """transformers would draw what is missing at random, and drop what it does not know."""
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    told = "; ".join(f"{fault}: {_named(sorted(names))}" for fault, names in faults.items() if names)
    if told:
        raise ModelError(
            f"model {str(source)!r}: the checkpoint does not fit its config.json ({told}); "
            "give the complete folder, with the config.json that belongs to it"
        )


def _named(names: list[str]) -> str:
    rest = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _has_experts(config: PreTrainedConfig) -> bool:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return any(getattr(config.get_text_config(), name, None) for name in names)


def _unreadable(source: str | Path, error: Exception) -> ModelError:
    return ModelError(f"model {str(source)!r} cannot be loaded: {_first_line(error)}; give a Hugging Face folder or id")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
