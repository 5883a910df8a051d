"""One decoder layer of GPT-OSS-20B, forward and backward, for `gpu.py`: Lockstep's way or transformers'."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssDecoderLayer, GptOssRotaryEmbedding

from benchmarks.gpu_setting import Setting
from benchmarks.workloads import Run, gpt_oss_config


def decoder_layer(setting: Setting, full: bool) -> GptOssDecoderLayer:
    sizes = setting.sizes
    config = gpt_oss_config(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=2,  # sliding, full
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.dim,
        num_local_experts=sizes.num_experts,
        num_experts_per_tok=sizes.top_k,
        sliding_window=sizes.window,
    )
    with torch.device(setting.device):
        torch.manual_seed(0)
        layer = GptOssDecoderLayer(config, layer_idx=int(full)).to(setting.dtype)
        for name, parameter in layer.named_parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.02)
    return layer


def run_layer(
    setting: Setting,
    layer: GptOssDecoderLayer,
    lengths: tuple[int, ...],
    *,
    attention_implementation: str,
    experts_implementation: str = "lockstep",
) -> Run:
    """Gradients of the layer's input and parameters."""
    config, packed = layer.self_attn.config, attention_implementation == "lockstep"
    shape = (1, sum(lengths)) if packed else (len(lengths), lengths[0])
    positions = torch.cat([torch.arange(n, device=setting.device) for n in (lengths if packed else lengths[:1])])
    hidden, dout = torch.randn(2, *shape, setting.sizes.hidden, **setting.where)
    hidden.requires_grad_()
    rotary = GptOssRotaryEmbedding(config).to(setting.device)(hidden, positions[None])
    layout = {
        "attention_mask": layer_mask(setting, lengths[0], layer.self_attn.sliding_window, attention_implementation)
    }
    if packed:
        boundaries = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=setting.device)
        layout |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
    inputs = (hidden, *layer.parameters())

    def run():
        config._attn_implementation = attention_implementation
        config._experts_implementation = experts_implementation
        out = layer(hidden, position_embeddings=rotary, **layout)
        return torch.autograd.grad(out, inputs, dout)

    return run


def layer_mask(setting: Setting, length: int, window: int | None, implementation: str) -> Any:
    def seen(batch, head, query, key):
        return (query >= key) & (query - key < (window or length))

    if implementation == "lockstep":
        return None
    if implementation == "flex_attention":
        return create_block_mask(seen, None, None, length, length, device=setting.device)
    places = torch.arange(length, device=setting.device)
    hidden = ~seen(None, None, places[:, None], places[None])
    mask = torch.zeros(length, length, **setting.where)
    return mask.masked_fill_(hidden, torch.finfo(setting.dtype).min)[None, None]
