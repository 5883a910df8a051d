"""A tiny GPT-OSS and its tokenizer, made from nothing but a seed and some text: the laptop's stand-in for the real
ones.

The architecture is transformers' `GptOssForCausalLM` (sinks, sliding and full layers, grouped-query attention, top-k
experts); the tokenizer is a byte-level BPE with Harmony's control tokens. Both are written as one plain Hugging Face
folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CONTROL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)

# Numbers in chunks of one to three digits, as in o200k; words with the space before them; the opening of a JSON object
# and dotted names whole, so that a tool call's fixed parts can become few tokens.
SPLIT = r"""\p{N}{1,3}|\{"\p{L}+":"?| ?\p{L}+(?:[=._]\p{L}+)*|[^\s\p{L}\p{N}]+|\s"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """Sizes of the tiny GPT-OSS. The defaults have 1.1 million parameters and learn Ledger in minutes on two cores."""

    vocab_size: int = 544
    """Tokens in the vocabulary: 256 bytes, the control tokens, and merges learned from the environment's texts."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 64
    """Width inside one expert."""
    num_layers: int = 4
    """Decoder layers; sliding and full attention alternate, sliding first."""
    num_heads: int = 4
    """Query heads of 32 dimensions each."""
    num_kv_heads: int = 2
    """Key and value heads."""
    num_experts: int = 8
    """Experts a layer."""
    experts_per_token: int = 2
    """How many experts the router picks for a token."""
    sliding_window: int = 32
    """Tokens that a sliding layer sees, itself included."""
    max_length: int = 4096
    """Positions the model is declared for."""
    initializer_range: float = 0.06
    """Standard deviation of the initial weights; 0.02 learns far slower at this size."""
    sinks: float | None = None
    """What every attention sink begins as; None draws them near 0, where even a model without any does almost as well.
    At 3 they matter."""


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `texts`, with Harmony's control tokens. The numbers 0-99 are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = list(texts)
    numbers = [" ".join(str(n) for n in range(100))] * (1 + len(texts) // 4)  # often enough that each becomes a token
    tokenizer.train_from_iterator([*texts, *numbers], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|return|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def build_model(sizes: TinyModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> GptOssForCausalLM:
    """The model with weights drawn from `seed`, without touching the global random state."""
    ids = tokenizer.get_vocab()
    config = shape(sizes)
    config.bos_token_id = ids["<|startoftext|>"]
    config.eos_token_id = [ids["<|return|>"], ids["<|call|>"]]
    config.pad_token_id = ids["<|endoftext|>"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GptOssForCausalLM(config)
    if sizes.sinks is not None:
        for name, parameter in model.named_parameters():
            if name.endswith(".sinks"):
                torch.nn.init.constant_(parameter, sizes.sinks)
    return model


def shape(sizes: TinyModel) -> GptOssConfig:
    """The model's configuration, but for the ids of its control tokens."""
    return GptOssConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        head_dim=32,
        num_local_experts=sizes.num_experts,
        num_experts_per_tok=sizes.experts_per_token,
        sliding_window=sizes.sliding_window,
        max_position_embeddings=sizes.max_length,
        initializer_range=sizes.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def build_tiny(directory: Path, texts: Iterable[str], sizes: TinyModel, seed: int) -> None:
    """Write tokenizer and model to `directory` as a Hugging Face folder."""
    tokenizer = build_tokenizer(texts, sizes.vocab_size)
    tokenizer.save_pretrained(directory)
    build_model(sizes, tokenizer, seed).save_pretrained(directory)
