"""A small GPT-OSS checkpoint as the hub has the real ones: MXFP4 experts, everything else bfloat16.

Tensor names, layout and config.json's keys are those of the public gpt-oss-20b folder; only the sizes and the values
are small. The dequantised values are worked out here from the bits, by another way than any library's table.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCABULARY, HIDDEN, INTERMEDIATE, EXPERTS, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 61, 64, 96, 4, 2, 4, 2, 16

CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 1,
    "experts_per_token": 2,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": INTERMEDIATE,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": HEADS,
    "num_experts_per_tok": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "num_local_experts": EXPERTS,
    "output_router_logits": False,
    "pad_token_id": 0,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 8,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def dequantised(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float64 [E, in, out] from blocks uint8 [E, out, in / 32, 16] and scales uint8 [E, out, in / 32].

    A code is sign, two exponent bits, one mantissa bit (OCP Microscaling, e2m1): +-(1 + m/2) 2^(e-1), and +-m/2 where
    e = 0; the low nibble comes first. A block's 32 numbers share the factor 2^(scale - 127).
    """
    codes = torch.stack([blocks % 16, blocks // 16], dim=-1).flatten(-2).long()  # [E, out, in / 32, 32]
    mantissa, exponent, sign = codes % 2, codes // 2 % 4, codes // 8
    normal = (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    magnitude = torch.where(exponent == 0, mantissa / 2, normal).double()
    values = magnitude * (1 - 2 * sign) * torch.pow(2.0, scales.double() - 127)[..., None]
    return values.flatten(-2).transpose(1, 2)


def checkpoint_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors under the real checkpoint's names: the experts as blocks and scales, the others bfloat16."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, mean: float = 0.0) -> torch.Tensor:
        return (mean + 0.15 * torch.randn(shape, generator=generator)).bfloat16()

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator).to(torch.uint8)

    tensors = {"model.embed_tokens.weight": normal(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part, width in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            tensors[f"{name}.self_attn.{part}_proj.weight"] = normal(width * HEAD_DIM, HIDDEN)
            tensors[f"{name}.self_attn.{part}_proj.bias"] = normal(width * HEAD_DIM)
        tensors[f"{name}.self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * HEAD_DIM)
        tensors[f"{name}.self_attn.o_proj.bias"] = normal(HIDDEN)
        tensors[f"{name}.self_attn.sinks"] = normal(HEADS, mean=3.0)
        tensors[f"{name}.mlp.router.weight"] = normal(EXPERTS, HIDDEN)
        tensors[f"{name}.mlp.router.bias"] = normal(EXPERTS)
        for part, width, inner in (("gate_up", 2 * INTERMEDIATE, HIDDEN), ("down", HIDDEN, INTERMEDIATE)):
            tensors[f"{name}.mlp.experts.{part}_proj_blocks"] = integers(0, 256, EXPERTS, width, inner // 32, 16)
            tensors[f"{name}.mlp.experts.{part}_proj_scales"] = integers(119, 125, EXPERTS, width, inner // 32)
            tensors[f"{name}.mlp.experts.{part}_proj_bias"] = normal(EXPERTS, width)
        tensors[f"{name}.input_layernorm.weight"] = normal(HIDDEN, mean=1.0)
        tensors[f"{name}.post_attention_layernorm.weight"] = normal(HIDDEN, mean=1.0)
    return tensors | {"model.norm.weight": normal(HIDDEN, mean=1.0), "lm_head.weight": normal(VOCABULARY, HIDDEN)}


def plain_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as an unquantised GPT-OSS has them: experts float64 [E, in, out], the others as they are."""
    plain = {name: value for name, value in tensors.items() if not name.endswith(("_blocks", "_scales"))}
    for name in tensors:
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            plain[stem] = dequantised(tensors[name], tensors[f"{stem}_scales"])
    return plain


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], *, config: dict | None = None) -> Path:
    """Write the folder, in two shards with an index as the real one is. Returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + (i >= len(names) // 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
