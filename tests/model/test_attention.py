"""Sink attention against a float64 softmax that has the sink as a column of its own."""

from functools import cache

import pytest
import torch
from torch.autograd import gradcheck

from lockstep.model.attention import attention_forward, packed_attention

ROUGH = (1, 700, 2, 64, 65, 127, 31)  # 990 tokens: no multiple of a block, sequences shorter and longer than one
SHORT = (1, 33, 130, 257, 5)


def boundaries(lengths):
    return (0, *torch.tensor(lengths).cumsum(0).tolist())


def inputs(lengths, num_heads, num_kv_heads, dim=16, seed=0, dtype=torch.float64):
    """q, k, v, sinks and dout with values that float32 holds exactly; sinks run evenly from -8 to 8."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    shapes = [(total, num_heads, dim), (total, num_kv_heads, dim), (total, num_kv_heads, dim), (total, num_heads, dim)]
    q, k, v, dout = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v, torch.linspace(-8, 8, num_heads).to(dtype), dout


def oracle_attention(q, k, v, sinks, lengths, window, scale):
    """The definition: for each sequence a [T, T] softmax with one more column, whose value is dropped."""
    group = q.shape[1] // k.shape[1]
    outputs = []
    for qs, ks, vs in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        keys, values = (x.repeat_interleave(group, dim=1) for x in (ks, vs))
        behind = torch.arange(len(qs))[:, None] - torch.arange(len(qs))[None]
        seen = (behind >= 0) & (behind < (window or len(qs)))
        scores = (torch.einsum("ihd,jhd->hij", qs, keys) * scale).masked_fill(~seen, float("-inf"))
        column = sinks[:, None, None].expand(-1, len(qs), 1)
        probabilities = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
        outputs.append(torch.einsum("hij,jhd->ihd", probabilities, values))
    return torch.cat(outputs)


def with_gradients(attention, leaves, dout):
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@cache
def expected(lengths, num_heads, num_kv_heads, window):
    q, k, v, sinks, dout = inputs(lengths, num_heads, num_kv_heads)
    return with_gradients(lambda *x: oracle_attention(*x, lengths, window, 0.25), (q, k, v, sinks), dout)


def found(lengths, num_heads, num_kv_heads, window, dtype):
    q, k, v, sinks, dout = inputs(lengths, num_heads, num_kv_heads, dtype=dtype)
    cu_seqlens = boundaries(lengths)
    return with_gradients(
        lambda *x: packed_attention(*x, cu_seqlens, window=window, scale=0.25), (q, k, v, sinks), dout
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("window", [None, 1, 16, 128])
@pytest.mark.parametrize(("lengths", "heads"), [(ROUGH, (8, 2)), (SHORT, (64, 8))])
def test_output_and_every_gradient_equal_the_oracle(lengths, heads, window, dtype, tolerance):
    names = ("out", "dq", "dk", "dv", "dsinks")
    pairs = zip(names, expected(lengths, *heads, window), found(lengths, *heads, window, dtype), strict=True)
    errors = {name: (theirs - ours.double()).abs().max().item() for name, theirs, ours in pairs}
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.parametrize("window", [15, 16, 17, 18])
def test_a_window_about_as_long_as_the_longest_sequence(window):
    lengths = (17, 3)
    for theirs, ours in zip(expected(lengths, 8, 2, window), found(lengths, 8, 2, window, torch.float64), strict=True):
        assert (theirs - ours).abs().max() <= 1e-12


@pytest.mark.parametrize("window", [None, 16])
def test_bfloat16_is_as_near_as_its_rounding(window):
    """Half a unit in the last place of bfloat16 is 2^-9 of a value; inputs are rounded too."""
    for theirs, ours in zip(expected(SHORT, 8, 2, window), found(SHORT, 8, 2, window, torch.bfloat16), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (theirs - ours.double()).abs().max() <= 2**-6 * theirs.abs().max()


@pytest.mark.parametrize("window", [None, 1, 3])
def test_gradcheck(window):
    lengths = (1, 5, 3)
    q, k, v, sinks, _ = inputs(lengths, 4, 2, dim=4)
    leaves = [x.requires_grad_() for x in (q, k, v, sinks)]
    assert gradcheck(lambda *x: packed_attention(*x, boundaries(lengths), window=window, scale=0.5), leaves)


@pytest.mark.parametrize("window", [None, 1, 17])
def test_gradcheck_over_several_blocks(window):
    lengths = (3, 150, 40)
    q, k, v, sinks, _ = inputs(lengths, 4, 2, dim=4)
    leaves = [x.requires_grad_() for x in (q, k, v, sinks)]
    attention = lambda *x: packed_attention(*x, boundaries(lengths), window=window, scale=0.5)  # noqa: E731
    assert gradcheck(attention, leaves, fast_mode=True)


def test_without_sinks_it_is_plain_causal_attention():
    q, k, v, _, dout = inputs((40,), 8, 2)
    ours = with_gradients(lambda *x: packed_attention(*x, None, (0, 40), window=None, scale=0.25), (q, k, v), dout)

    def plain(q, k, v):
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            *heads_first, is_causal=True, scale=0.25, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    for a, b in zip(ours, with_gradients(plain, (q, k, v), dout), strict=True):
        assert (a - b).abs().max() <= 1e-12


@pytest.mark.parametrize("window", [None, 1, 16, 128])
def test_nothing_leaks_between_sequences_of_a_pack(window):
    """Change every input of the middle sequence: not a bit of the others' outputs and gradients moves."""
    lengths = (30, 75, 200)
    q, k, v, sinks, dout = inputs(lengths, 8, 2, dtype=torch.float32)
    other = [x.clone() for x in (q, k, v, dout)]
    for x in other:
        x[30:105] = 10 * x[30:105] + 1

    def run(q, k, v, dout):
        attention = lambda *x: packed_attention(*x, sinks, boundaries(lengths), window=window, scale=0.25)  # noqa: E731
        return with_gradients(attention, (q, k, v), dout)

    for before, after in zip(run(q, k, v, dout), run(*other), strict=True):
        assert torch.equal(before[:30], after[:30])
        assert torch.equal(before[105:], after[105:])
        assert not torch.equal(before[30:105], after[30:105])


@pytest.mark.parametrize("cu_seqlens", [(0, 4), (1, 6), (0, 3, 7), (0, 4, 2, 6), (0, 3, 3, 6), (0,)])
def test_boundaries_that_do_not_cut_the_pack_are_refused(cu_seqlens):
    q, k, v, sinks, _ = inputs((6,), 4, 2)
    with pytest.raises(ValueError, match="cu_seqlens"):
        packed_attention(q, k, v, sinks, cu_seqlens, window=None, scale=1.0)


def test_a_device_without_a_kernel_is_refused():
    q, k, v, sinks, _ = (x.to("meta") for x in inputs((6,), 4, 2))
    with pytest.raises(ValueError, match="meta"):
        packed_attention(q, k, v, sinks, (0, 6), window=None, scale=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 0.1}, "attention_dropout=0.1"),
        ({"attention_mask": torch.zeros(1, 1, 6, 6)}, "no padding mask"),
        ({"num_keys": 7}, "6 queries against 7 keys"),
    ],
)
def test_what_it_cannot_do_is_refused(options, words):
    options = {"attention_mask": None, **options}
    keys = torch.zeros(1, 2, options.pop("num_keys", 6), 16)
    with pytest.raises(ValueError, match=words):
        attention_forward(None, torch.zeros(1, 4, 6, 16), keys, keys, scaling=1.0, **options)


def test_a_padding_mask_given_to_the_model_is_refused(gpt_oss):
    tokens = torch.arange(6)[None]
    with pytest.raises(ValueError, match="no padding mask"):
        gpt_oss(tokens, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]))
    gpt_oss(tokens, attention_mask=torch.ones(1, 6))  # hides nothing
