"""The work that the benchmarks of the model time, on any device: attention with sinks, experts, log-probs.

Every function makes its inputs from a seed and returns what is to be run: named functions without arguments that return
the gradients (or the output, where there is no backward), so that the sides can be compared for more than their speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import SimpleNamespace

import torch
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, eager_attention_forward

import lockstep.model.experts  # noqa: F401  (registers experts_implementation="lockstep")
from lockstep.model.attention import packed_attention
from lockstep.model.logprobs import selected_logprobs

Run = Callable[[], tuple[torch.Tensor, ...]]

EAGER_SCORES = 3.2  # transformers' eager attention: [heads, T, T] tensors alive at its peak, forward and backward
NAIVE_LOGITS = 5.0  # log_softmax and its entropy: [T, vocabulary] tensors alive at the peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Inputs of one attention layer over a pack: q, dout [T, H, D]; k, v [T, Hkv, D]; sinks [H], large and not zero."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sinks: torch.Tensor
    dout: torch.Tensor
    lengths: tuple[int, ...]
    window: int | None

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    @property
    def cu_seqlens(self) -> tuple[int, ...]:
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.k, self.v, self.sinks

    @property
    def eager_bytes(self) -> float:
        """What transformers' eager attention needs for the longest sequence."""
        return EAGER_SCORES * self.q.shape[1] * max(self.lengths) ** 2 * self.q.element_size()


def attention_flops(lengths: Sequence[int], window: int | None, *, heads: int, dim: int, backward: bool) -> float:
    """Two products over the pairs of query and key that see each other; the backward has five."""
    pairs = sum(attended_pairs(length, window) for length in lengths)
    return (14.0 if backward else 4.0) * heads * dim * pairs


def attended_pairs(length: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees, in one sequence."""
    seen = length if window is None else min(window, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def attention(
    lengths: Sequence[int],
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    window: int | None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Attention:
    generator = torch.Generator(device).manual_seed(0)
    total = sum(lengths)
    draw = [torch.randn(total, h, dim, generator=generator, device=device) for h in (heads, kv_heads, kv_heads, heads)]
    q, k, v, dout = (x.to(dtype) for x in draw)
    sinks = (5 * torch.rand(heads, generator=generator, device=device)).to(dtype)
    for leaf in (q, k, v, sinks):
        leaf.requires_grad_()
    return Attention(q=q, k=k, v=v, sinks=sinks, dout=dout, lengths=tuple(lengths), window=window)


def lockstep_attention(given: Attention, *, backward: bool, sinks: bool = True) -> Run:
    def run():
        chosen = given.sinks if sinks else None
        q, k, v = given.q, given.k, given.v
        out = packed_attention(q, k, v, chosen, given.cu_seqlens, window=given.window, scale=given.scale)
        inputs = given.inputs if sinks else given.inputs[:3]
        return torch.autograd.grad(out, inputs, given.dout) if backward else (out,)

    return _graded(run, backward)


def eager_attention(given: Attention, *, backward: bool) -> Run:
    """transformers' own attention, the sequences one by one. The mask, which a model builds once for all its layers, is
    made beforehand and counts neither as time nor as memory."""
    longest = torch.arange(max(given.lengths), device=given.q.device)
    behind = longest[:, None] - longest[None]
    hidden = (behind < 0) | (behind >= (given.window or len(longest)))
    mask = torch.zeros(hidden.shape, dtype=given.q.dtype, device=given.q.device)
    mask = mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)[None, None]
    del behind, hidden
    sequences = [
        [x[start:stop].detach().transpose(0, 1)[None].contiguous().requires_grad_() for x in given.inputs[:3]]
        for start, stop in pairwise(given.cu_seqlens)
    ]
    douts = [given.dout[start:stop][None] for start, stop in pairwise(given.cu_seqlens)]
    groups = given.q.shape[1] // given.k.shape[1]
    module = SimpleNamespace(sinks=given.sinks, num_key_value_groups=groups, training=False)

    def run():
        results: list[torch.Tensor] = []
        dsinks = torch.zeros_like(given.sinks)
        for inputs, dout in zip(sequences, douts, strict=True):
            length = dout.shape[1]
            out = eager_attention_forward(module, *inputs, mask[..., :length, :length], given.scale)[0]
            if backward:
                *grads, own = torch.autograd.grad(out, (*inputs, given.sinks), dout)
                dsinks += own
                results += [x[0].transpose(0, 1) for x in grads]
            else:
                results.append(out[0])
        return (*(torch.cat(results[i::3]) for i in range(3)), dsinks) if backward else (torch.cat(results),)

    return _graded(run, backward)


COMPILED = torch.compile(flex_attention, dynamic=False, fullgraph=True)
torch._dynamo.config.recompile_limit = 64  # every shape is a compilation; past the limit it would run uncompiled


def flex_sink_attention(given: Attention, *, backward: bool) -> Run:
    """FlexAttention, compiled, over the pack; the sink is applied to its output through its log-sum-exp. The block mask
    is made beforehand. The window is a tensor, so that every window of one length shares a compilation."""
    device, total = given.q.device, given.q.shape[0]
    lengths = torch.tensor(given.lengths, device=device)
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    window = torch.tensor(given.window or total, device=device)

    def seen(batch, head, query, key):
        return (query >= key) & (sequence[query] == sequence[key]) & (query - key < window)

    mask = create_block_mask(seen, None, None, total, total, device=device.type)

    def run():
        q, k, v = (x.transpose(0, 1)[None] for x in given.inputs[:3])
        out, aux = COMPILED(
            q, k, v, block_mask=mask, scale=given.scale, enable_gqa=True, return_aux=AuxRequest(lse=True)
        )
        kept = torch.sigmoid(aux.lse - given.sinks[:, None].float())
        out = (out * kept[..., None]).to(q.dtype)[0].transpose(0, 1)
        return torch.autograd.grad(out, given.inputs, given.dout) if backward else (out,)

    return _graded(run, backward)


def _graded(run: Run, backward: bool) -> Run:
    def graded():
        with torch.set_grad_enabled(backward):
            return run()

    return graded


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """GPT-OSS's experts with hidden, dout [T, H], index int64 [T, K] and weights [T, K]."""

    module: GptOssExperts
    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    dout: torch.Tensor


def experts_flops(num_tokens: int, *, hidden: int, intermediate: int, top_k: int) -> float:
    """Forward and backward, nothing computed twice."""
    return 3 * 6.0 * num_tokens * top_k * hidden * intermediate


def gpt_oss_config(**sizes: float) -> GptOssConfig:
    return GptOssConfig(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **sizes)


def experts(
    num_tokens: int,
    *,
    hidden: int,
    intermediate: int,
    num_experts: int,
    top_k: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Experts:
    config = gpt_oss_config(hidden_size=hidden, intermediate_size=intermediate, num_local_experts=num_experts)
    generator = torch.Generator(device).manual_seed(0)
    with torch.device(device):
        module = GptOssExperts(config).to(dtype)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=hidden**-0.5, generator=generator)
        x, dout = (torch.randn(num_tokens, hidden, generator=generator).to(dtype) for _ in range(2))
        scores, index = torch.randn(num_tokens, num_experts, generator=generator).topk(top_k)
    weights = scores.softmax(-1).to(dtype).requires_grad_()
    return Experts(module=module, hidden=x.requires_grad_(), index=index, weights=weights, dout=dout)


def run_experts(given: Experts, implementation: str) -> Run:
    """implementation: lockstep, or transformers' eager or grouped_mm. Gradients of hidden, weights and parameters."""
    inputs = (given.hidden, given.weights, *given.module.parameters())

    def run():
        given.module.config._experts_implementation = implementation
        out = given.module(given.hidden, given.index, given.weights)
        return torch.autograd.grad(out, inputs, given.dout)

    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """hidden [T, H], head [V, H], targets int64 [T], and the gradients [T] of log-probs and entropies."""

    hidden: torch.Tensor
    head: torch.Tensor
    targets: torch.Tensor
    dlogprobs: torch.Tensor
    dentropies: torch.Tensor


def logprobs(
    num_tokens: int, *, hidden: int, vocabulary: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Logprobs:
    generator = torch.Generator(device).manual_seed(0)
    with torch.device(device):
        x = torch.randn(num_tokens, hidden, generator=generator).to(dtype)
        head = torch.randn(vocabulary, hidden, generator=generator).mul_(2 * hidden**-0.5).to(dtype)
        targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
        gradients = torch.randn(2, num_tokens, generator=generator)
    head.requires_grad_()
    return Logprobs(
        hidden=x.requires_grad_(), head=head, targets=targets, dlogprobs=gradients[0], dentropies=gradients[1]
    )


def run_logprobs(given: Logprobs, op: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Run:
    """op(hidden, head, targets) -> (logprobs, entropies). Gradients of hidden and head."""

    def run():
        found = op(given.hidden, given.head, given.targets)
        return torch.autograd.grad(found, (given.hidden, given.head), (given.dlogprobs, given.dentropies))

    return run


def logprobs_flops(num_tokens: int, *, hidden: int, vocabulary: int) -> float:
    """Forward and backward, nothing computed twice."""
    return 3 * 2.0 * num_tokens * hidden * vocabulary


def lockstep_logprobs(hidden, head, targets):
    return selected_logprobs(hidden, head, targets)


def naive_logprobs(hidden, head, targets):
    """As a model with a head does it: all logits in the model's type, then float32 (or better)."""
    logits = hidden @ head.T
    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def naive_float32_logprobs(hidden, head, targets):
    """The same with the product in float32, which is Lockstep's precision."""
    return naive_logprobs(hidden.float(), head.float(), targets)
