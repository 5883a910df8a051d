"""Attention against a cache equals its definition; one token a row, the whole sequence, whatever the cache went
through."""

import pytest
import torch

from lockstep.engine.cache import CacheShape, PrefillCapture, SlotCache
from lockstep.model.decode import decode_attention


def definition(query, keys, values, sinks, seen, scale):
    """[B, Q, H, D] of query [B, H, Q, D] by a softmax over the seen keys and the sink; seen [B, H, Q, C] bool."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (keys, values))
    weights = torch.exp(query @ keys.transpose(2, 3) * scale) * seen
    total = weights.sum(-1, keepdim=True)
    total = total + torch.exp(sinks)[:, None, None] if sinks is not None else total
    return (weights @ values / total.clamp(min=1e-300)).transpose(1, 2)


def several_queries(heads=(8, 2), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, heads[0], 5, 16, generator=generator).to(dtype)
    keys, values = torch.randn(2, 3, heads[1], 20, 16, generator=generator).to(dtype)
    seen = torch.rand(3, 1, 5, 20, generator=generator) < 0.4
    return query, keys, values, torch.linspace(-8, 8, heads[0]).to(dtype), seen


@pytest.mark.parametrize("heads", [(8, 2), (64, 8), (3, 3)])
@pytest.mark.parametrize("with_sinks", [True, False])
@pytest.mark.parametrize("form", ["boolean", "additive", "a head its own"])
def test_several_queries_equal_their_definition(heads, with_sinks, form):
    query, keys, values, sinks, seen = several_queries(heads)
    sinks = sinks if with_sinks else None
    seen = seen | (torch.arange(20) == 3)  # an additive mask cannot say "nothing"
    if form == "a head its own":
        seen = seen ^ (torch.arange(20) == torch.arange(heads[0])[:, None, None] % 3)
    mask = torch.zeros(seen.shape).double().masked_fill_(~seen, float("-inf")) if form == "additive" else seen
    out = decode_attention(query, keys, values, sinks, mask, 0.25)
    assert out.shape == (3, 5, heads[0], 16)
    assert (out - definition(query, keys, values, sinks, seen, 0.25)).abs().max() <= 1e-12


@pytest.mark.parametrize("with_sinks", [True, False])
def test_a_query_that_sees_nothing_is_zero_and_so_is_its_gradient(with_sinks):
    """The padding at the left of a prompt that is prefilled in parts: NaN there would reach every later layer."""
    query, keys, values, sinks, seen = several_queries()
    seen[1, :, :3] = False
    leaves = [x.requires_grad_() for x in (query, keys, values, sinks)]
    out = decode_attention(*leaves[:3], sinks if with_sinks else None, seen, 0.25)
    assert not out[1, :3].any() and out[1, 3:].all()
    dq, dk, dv = torch.autograd.grad(out.square().sum(), (query, keys, values))
    assert not dq[1, :, :3].any()
    assert all(grad.isfinite().all() for grad in (dq, dk, dv))


def test_gradients_of_several_queries_are_those_of_the_definition():
    query, keys, values, sinks, seen = several_queries()
    seen = seen | (torch.arange(20) == 3)
    leaves = [x.requires_grad_() for x in (query, keys, values, sinks)]
    dout = torch.randn(3, 5, 8, 16, generator=torch.Generator().manual_seed(1)).double()
    ours = torch.autograd.grad(decode_attention(*leaves, seen, 0.25), leaves, dout)
    theirs = torch.autograd.grad(definition(*leaves, seen, 0.25), leaves, dout)
    assert max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) <= 1e-12


def test_scores_in_bfloat16_are_scaled_and_compared_in_float32():
    """Scores of 40 and 39, scaled by 0.3: in bfloat16, 11.7 is 11.6875, and the answer 20 instead of 19."""
    query = torch.ones(1, 1, 1, 16, dtype=torch.bfloat16)
    keys = torch.tensor([2.5, 2.4375], dtype=torch.bfloat16).view(1, 1, 2, 1).expand(-1, -1, -1, 16)
    values = torch.tensor([128.0, -128.0], dtype=torch.bfloat16).view(1, 1, 2, 1).expand(-1, -1, -1, 16)
    out = decode_attention(query, keys, values, None, torch.ones(1, 1, 1, 2, dtype=torch.bool), 0.3)
    assert out.dtype == torch.bfloat16
    assert (out - 128 * torch.tanh(torch.tensor(0.15))).abs().max() <= 0.2


@pytest.mark.parametrize("heads", [(8, 2), (64, 8), (3, 3)])
@pytest.mark.parametrize("with_sinks", [True, False])
def test_attention_of_one_token_equals_its_definition(heads, with_sinks):
    num_heads, num_kv_heads = heads
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, num_heads, 1, 16, generator=generator).double()
    keys, values = torch.randn(2, 3, num_kv_heads, 20, 16, generator=generator).double()
    sinks = torch.linspace(-8, 8, num_heads).double() if with_sinks else None
    lengths = torch.tensor([1, 20, 7])
    mask = torch.zeros(3, 20).double().masked_fill_(torch.arange(20) >= lengths[:, None], float("-inf"))
    out = decode_attention(query, keys, values, sinks, mask[:, None, None], 0.25)
    for row, length in enumerate(lengths.tolist()):
        for head in range(num_heads):
            kv = head // (num_heads // num_kv_heads)
            weights = torch.exp(0.25 * keys[row, kv, :length] @ query[row, head, 0])
            total = weights.sum() + (torch.exp(sinks[head]) if with_sinks else 0)
            expected = (weights / total) @ values[row, kv, :length]
            assert (out[row, 0, head] - expected).abs().max() <= 1e-12


def hidden_states(model, tokens):
    return model.get_decoder()(input_ids=tokens[None], use_cache=False).last_hidden_state[0]


class Rows:
    """Sequences fed to the model through a SlotCache: a packed prefill first, then a token a row a step."""

    def __init__(self, model, prompts):
        self.model, self.cache = model, SlotCache(CacheShape.of(model))
        capture, cu_seqlens = PrefillCapture(), torch.tensor([0, *map(len, prompts)]).cumsum(0)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])[None]
        layout = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "position_ids": positions}
        model.get_decoder()(input_ids=torch.cat(prompts)[None], past_key_values=capture, use_cache=True, **layout)
        self.cache.reserve(len(prompts), max(map(len, prompts)) + 1)
        for row in range(len(prompts)):
            self.cache.write([row], capture, *cu_seqlens[row : row + 2].tolist())

    def feed(self, tokens):
        """tokens: one for each of the first rows. Returns their hidden states."""
        self.cache.reserve(len(tokens), int(self.cache.lengths[: len(tokens)].max()) + 1)
        positions = self.cache.begin(len(tokens))
        layout = {"position_ids": positions[:, None], "decode": self.cache, "use_cache": True}
        found = self.model.get_decoder()(input_ids=tokens[:, None], past_key_values=self.cache, **layout)
        return found.last_hidden_state[:, 0]


def sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 97, (length,), generator=generator) for length in lengths]


@torch.inference_mode()
def test_decoding_equals_the_whole_sequence(model):
    """Prompts shorter and longer than the window of 16, and 150 tokens more: the cache grows past 128 and past 256."""
    whole = sequences([151, 190, 280])
    starts = [len(s) - 150 for s in whole]
    rows = Rows(model, [s[:start] for s, start in zip(whole, starts, strict=True)])
    expected = [hidden_states(model, s) for s in whole]
    worst = 0.0
    for step in range(150):
        found = rows.feed(torch.stack([s[start + step] for s, start in zip(whole, starts, strict=True)]))
        wanted = torch.stack([e[start + step] for e, start in zip(expected, starts, strict=True)])
        worst = max(worst, (found - wanted).abs().max().item())
    assert rows.cache.capacity == 512
    assert worst <= 2e-5


@torch.inference_mode()
def test_a_window_longer_than_the_cache_at_first(gpt_oss):
    """The ring of a sliding layer grows with the cache from 128 columns to its window of 150, and only then turns."""
    gpt_oss.config.sliding_window = 150
    for layer in gpt_oss.model.layers[::2]:
        layer.self_attn.sliding_window = 150
    (tokens,) = sequences([200])
    rows = Rows(gpt_oss, [tokens[:110]])
    found = torch.cat([rows.feed(tokens[i : i + 1]) for i in range(110, 200)])
    assert rows.cache.keys[0].shape[2] == 150
    assert (found - hidden_states(gpt_oss, tokens)[110:]).abs().max() <= 2e-5


@torch.inference_mode()
def test_rows_may_be_swapped_moved_and_joined_by_others(gpt_oss):
    a, b = sequences([60, 45])
    rows = Rows(gpt_oss, [a[:40], b[:30]])
    rows.cache.swap(0, 1)  # b, a
    rows.cache.reserve(40, 20)  # more rows than it began with
    rows.cache.move(1, 37)  # a waits far away
    for step in range(5):
        found = rows.feed(b[30 + step : 31 + step])
        assert (found[0] - hidden_states(gpt_oss, b)[30 + step]).abs().max() <= 2e-5
    rows.cache.swap(1, 37)
    found = rows.feed(torch.stack([b[35], a[40]]))
    assert (found[0] - hidden_states(gpt_oss, b)[35]).abs().max() <= 2e-5
    assert (found[1] - hidden_states(gpt_oss, a)[40]).abs().max() <= 2e-5


@torch.inference_mode()
def test_one_prompt_may_fill_many_rows(gpt_oss):
    (prompt,) = sequences([50])
    rows = Rows(gpt_oss, [prompt])
    capture = PrefillCapture()
    gpt_oss.get_decoder()(input_ids=prompt[None], past_key_values=capture, use_cache=True)
    rows.cache.write([1, 2], capture, 0, 50)
    found = rows.feed(torch.tensor([7, 7, 7]))
    assert (found - hidden_states(gpt_oss, torch.cat([prompt, torch.tensor([7])]))[-1]).abs().max() <= 2e-5


def test_the_shape_says_which_layers_slide(gpt_oss, qwen3_moe):
    assert CacheShape.of(gpt_oss).windows == (16, None, 16, None)
    assert CacheShape.of(qwen3_moe).windows == (None, None, None)


def test_a_model_whose_every_layer_slides_without_saying_so_layer_by_layer(qwen3_moe):
    """Mistral, and Qwen3-MoE with use_sliding_window: a window, and no layer_types."""
    qwen3_moe.config.sliding_window = 16
    for layer in qwen3_moe.model.layers:
        layer.self_attn.sliding_window = 16
    assert CacheShape.of(qwen3_moe).windows == (16, 16, 16)
    (tokens,) = sequences([60])
    with torch.inference_mode():
        rows = Rows(qwen3_moe, [tokens[:30]])
        found = torch.cat([rows.feed(tokens[i : i + 1]) for i in range(30, 60)])
        assert (found - hidden_states(qwen3_moe, tokens)[30:]).abs().max() <= 2e-5
