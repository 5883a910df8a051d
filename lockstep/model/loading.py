"""Loading: any Hugging Face causal LM, with Lockstep's attention and experts in place of its own."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import lockstep.model.attention
import lockstep.model.experts  # noqa: F401  (both register their implementations)
from lockstep.types import UserError

transformers.utils.logging.disable_progress_bar()  # one display at a time: the run's own


class ModelError(UserError):
    """The model cannot be loaded or is of a kind Lockstep does not serve. One line, with the fix."""


def load_model(source: str | Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal LM from a Hugging Face folder or id, in evaluation mode (no dropout), every parameter trainable.

    Raises ModelError when it cannot be found or read.
    """
    _check_source(source)
    try:
        config = AutoConfig.from_pretrained(source)
        options = {"experts_implementation": "lockstep"} if _has_experts(config) else {}
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="lockstep", **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"model {str(source)!r} cannot be loaded: {_first_line(error)}; give a Hugging Face folder or id"
        ) from error
    if model.get_output_embeddings() is None:
        raise ModelError(f"model {str(source)!r} has no language-model head: give a causal language model")
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


def _check_source(source: str | Path) -> None:
    """Neither a folder nor of an id's shape: no need to ask the hub."""
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise ModelError(f"model {str(source)!r}: there is no such folder; give a Hugging Face folder or id")


def _has_experts(config) -> bool:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return any(getattr(config.get_text_config(), name, None) for name in names)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
