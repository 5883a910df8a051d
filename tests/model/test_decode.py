"""One token a row against a cache of keys and values equals the whole sequence, whatever the cache went through."""

import pytest
import torch

from lockstep.engine.cache import CacheShape, PrefillCapture, SlotCache
from lockstep.model.decode import decode_attention


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
