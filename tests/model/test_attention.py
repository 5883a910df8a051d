"""Sink attention against a float64 softmax that has the sink as a column of its own."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from lockstep.model.attention import attention_forward, packed_attention
from lockstep.model.attention_mask import AttentionError, Layout, attention_layout

ROUGH = (1, 700, 2, 64, 65, 127, 32)  # 991 tokens, a prime; sequences shorter and longer than a block and a window
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
    """out, dq, dk, dv, dsinks of the definition, one KV head at a time to spare memory."""
    q, k, v, sinks, dout = inputs(lengths, num_heads, num_kv_heads)
    group = num_heads // num_kv_heads
    by_kv_head = []
    for kv in range(num_kv_heads):
        heads, kv_head = slice(kv * group, (kv + 1) * group), slice(kv, kv + 1)
        leaves = q[:, heads], k[:, kv_head], v[:, kv_head], sinks[heads]
        attention = lambda *x: oracle_attention(*x, lengths, window, 0.25)  # noqa: E731
        by_kv_head.append(with_gradients(attention, leaves, dout[:, heads]))
    *per_token, dsinks = zip(*by_kv_head, strict=True)
    return [*(torch.cat(x, dim=1) for x in per_token), torch.cat(dsinks)]


def found(lengths, num_heads, num_kv_heads, window, dtype):
    q, k, v, sinks, dout = inputs(lengths, num_heads, num_kv_heads, dtype=dtype)
    cu_seqlens = boundaries(lengths)
    return with_gradients(
        lambda *x: packed_attention(*x, cu_seqlens, window=window, scale=0.25), (q, k, v, sinks), dout
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("window", [None, 1, 16, 128])
@pytest.mark.parametrize("lengths", [ROUGH, SHORT])
@pytest.mark.parametrize("heads", [(8, 2), (64, 8)])
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


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6).map(tuple),
    heads=st.sampled_from([(8, 2), (64, 8), (3, 3), (4, 1)]),
    window=st.none() | st.integers(1, 100),
)
def test_any_pack_equals_the_oracle(lengths, heads, window):
    pairs = zip(expected(lengths, *heads, window), found(lengths, *heads, window, torch.float64), strict=True)
    assert max((theirs - ours).abs().max().item() for theirs, ours in pairs) <= 1e-12


def test_a_second_derivative_is_refused():
    q, k, v, sinks, dout = (x.requires_grad_() for x in inputs((6,), 4, 2))
    out = packed_attention(q, k, v, sinks, (0, 6), window=None, scale=1.0)
    (dq,) = torch.autograd.grad(out, q, dout, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@pytest.mark.parametrize("changed", [{"v": torch.float32}, {"k": torch.float32}, {"v": slice(8)}])
def test_tensors_of_different_dtypes_or_head_sizes_are_refused(changed):
    q, k, v, sinks, _ = inputs((6,), 4, 2)
    tensors = {"q": q, "k": k, "v": v}
    for name, change in changed.items():
        x = tensors[name]
        tensors[name] = x[..., change] if isinstance(change, slice) else x.to(change)
    with pytest.raises(AttentionError, match=r"torch\.float64 of head size 16, .*one dtype and one head size"):
        packed_attention(**tensors, sinks=sinks, cu_seqlens=(0, 6), window=None, scale=1.0)


# --- batches of rows, as transformers calls it ------------------------------------------------------------------------

PADDED = {  # real tokens of each row: where they begin and end among 40
    "left": ((0, 40), (27, 40), (39, 40), (11, 40)),
    "right": ((0, 40), (0, 13), (0, 1), (0, 29)),
    "both ends": ((3, 40), (10, 13), (0, 39), (20, 20)),  # the last row is all padding
}


def batch_of(q, k, v):
    """Four rows of forty tokens [4, H, 40, D] from packed tensors of 160 tokens."""
    return [x.unflatten(0, (4, 40)).transpose(1, 2) for x in (q, k, v)]


def real_tokens(spans):
    real = torch.zeros(4, 40, dtype=torch.bool)
    for row, (start, stop) in enumerate(spans):
        real[row, start:stop] = True
    return real


@pytest.mark.parametrize("window", [None, 1, 16])
@pytest.mark.parametrize("padding", PADDED)
def test_a_padded_batch_equals_its_real_tokens_packed(padding, window):
    q, k, v, sinks, dout = inputs((160,), 8, 2)
    real = real_tokens(PADDED[padding])
    layout, tokens = Layout(real=real, starts=None, window=window), real.flatten()

    def padded(q, k, v, sinks):
        out, _ = attention_forward(None, *batch_of(q, k, v), layout, 0.25, sliding_window=window, s_aux=sinks)
        return out.flatten(0, 1)

    lengths = tuple(stop - start for start, stop in PADDED[padding] if stop > start)
    ours = with_gradients(padded, (q, k, v, sinks), dout)
    packed = lambda *x: packed_attention(*x, boundaries(lengths), window=window, scale=0.25)  # noqa: E731
    theirs = with_gradients(packed, [*(x[tokens] for x in (q, k, v)), sinks], dout[tokens])
    for a, b in zip(ours[:4], theirs[:4], strict=True):
        assert torch.equal(a[tokens], b)
        assert not a[~tokens].any()
    assert torch.equal(ours[4], theirs[4])


def test_a_batch_of_nothing_but_padding_is_zeros():
    layout = Layout(real=torch.zeros(4, 40, dtype=torch.bool), starts=None, window=None)
    q, k, v, sinks, _ = inputs((160,), 8, 2)
    out, _ = attention_forward(None, *batch_of(q, k, v), layout, 0.25, s_aux=sinks)
    assert out.shape == (4, 40, 8, 16) and not out.any()


def test_padding_between_real_tokens():
    """Without a window its place does not matter; a window would count it."""
    real = real_tokens(PADDED["left"])
    real[0, 10:15] = False
    q, k, v, sinks, _ = inputs((160,), 8, 2)
    run = lambda window: attention_forward(  # noqa: E731
        None, *batch_of(q, k, v), Layout(real=real, starts=None, window=window), 0.25, s_aux=sinks
    )
    row = [x[:40][real[0]] for x in (q, k, v)]
    assert torch.equal(run(None)[0][0, real[0]], packed_attention(*row, sinks, (0, 35), window=None, scale=0.25))
    with pytest.raises(AttentionError, match=r"padding between real tokens.*window of 16"):
        run(16)


def test_positions_that_begin_again_are_a_pack():
    q, k, v, sinks, _ = inputs((160,), 8, 2)
    positions = torch.cat([torch.arange(n) for n in (40, 13, 27, 1, 39, 40)]).view(4, 40)
    out, _ = attention_forward(None, *batch_of(q, k, v), None, 0.25, s_aux=sinks, position_ids=positions)
    pack = boundaries((40, 13, 27, 1, 39, 40))
    assert torch.equal(out.flatten(0, 1), packed_attention(q, k, v, sinks, pack, window=None, scale=0.25))


def test_positions_that_go_on_from_elsewhere_are_one_sequence():
    """Positions of all rows at once, and positions that do not begin at 0: no boundary within a row."""
    q, k, v, sinks, _ = inputs((160,), 8, 2)
    for positions in (torch.arange(40)[None], torch.arange(7, 47)[None], torch.arange(5, 45).expand(4, -1)):
        out, _ = attention_forward(None, *batch_of(q, k, v), None, 0.25, s_aux=sinks, position_ids=positions)
        rows = packed_attention(q, k, v, sinks, (0, 40, 80, 120, 160), window=None, scale=0.25)
        assert torch.equal(out.flatten(0, 1), rows)


@pytest.mark.parametrize(
    ("positions", "real", "words"),
    [
        ([[0, 1, 2, 7, 8, 9]], None, "go from 2 to 7 in row 0: they must rise by 1"),
        ([[0, 1, 2, 2, 3, 4]], None, "go from 2 to 2 in row 0"),
        ([[3, 4, 5, 0, 1, 3]], None, "go from 1 to 3"),
        ([[0, 0, 1, 0, 1, 2]], [[False, True, True, True, True, True]], "from 1 to 0 in row 0"),
        ([[[0, 1, 2, 3, 4, 5]]], None, r"shape \(1, 1, 6\).*cu_seq_lens_q"),
        ([[0, 1, 2]], None, r"shape \(1, 3\).*rows of 6"),
    ],
)
def test_positions_that_leave_the_sequences_in_doubt_are_refused(positions, real, words):
    x = torch.zeros(1, 4, 6, 16)
    layout = None if real is None else Layout(real=torch.tensor(real), starts=None, window=None)
    with pytest.raises(AttentionError, match=words):
        attention_forward(None, x, x, x, layout, 1.0, position_ids=torch.tensor(positions))


def test_positions_of_padding_say_nothing():
    """As `generate` makes them: 0 wherever there is padding."""
    x = torch.zeros(1, 4, 6, 16)
    layout = Layout(real=torch.tensor([[False, False, True, True, True, False]]), starts=None, window=None)
    attention_forward(None, x, x, x, layout, 1.0, position_ids=torch.tensor([[0, 0, 0, 1, 2, 0]]))


NOT_CAUSAL = SimpleNamespace(is_causal=False)
A_LAYOUT = Layout(real=torch.tensor([[False, True, True, True, True, True]]), starts=None, window=None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 0.1}, "attention_dropout=0.1"),
        ({"attention_mask": torch.zeros(1, 1, 6, 6)}, r"mask of shape \(1, 1, 6, 6\) for 6 queries and 6 keys"),
        ({"attention_mask": torch.ones(1, 6)}, r"mask of shape \(1, 6\)"),
        ({"attention_mask": torch.zeros(1, 1, 6, 6), "num_keys": 7}, "6 queries and 7 keys"),
        ({"num_keys": 7}, "6 queries against 7 keys"),
        ({"module": NOT_CAUSAL}, "not causal"),
        ({"is_causal": False}, "not causal"),
        ({"softcap": 50.0}, "softcap"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"output_attentions": True}, "output_attentions"),
        (
            {"cu_seq_lens_q": torch.tensor([0, 6]), "attention_mask": A_LAYOUT},
            "both cu_seq_lens_q",
        ),
        ({"cu_seq_lens_q": torch.tensor([0, 6]), "cu_seq_lens_k": torch.tensor([0, 3, 6])}, "cu_seq_lens_k differs"),
        (
            {"attention_mask": Layout(real=None, starts=None, window=4), "sliding_window": 5},
            "is 4, the layer's 5",
        ),
        ({"attention_mask": Layout(real=None, starts=None, window=None), "sliding_window": 5}, "None, the layer's 5"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(options, words):
    options = {"module": None, "attention_mask": None, "scaling": 1.0, **options}
    keys = torch.zeros(1, 2, options.pop("num_keys", 6), 16)
    with pytest.raises(AttentionError, match=words) as error:
        attention_forward(query=torch.zeros(1, 4, 6, 16), key=keys, value=keys, **options)
    assert "\n" not in str(error.value)


def test_the_masks_window_holds_where_a_layer_names_none():
    """As in Qwen2-MoE and Llama 4, whose eager attention knows the mask alone."""
    q, k, v, sinks, _ = inputs((160,), 8, 2)
    layout = Layout(real=None, starts=None, window=16)
    out, _ = attention_forward(None, *batch_of(q, k, v), layout, 0.25, s_aux=sinks)
    assert torch.equal(
        out.flatten(0, 1), packed_attention(q, k, v, sinks, (0, 40, 80, 120, 160), window=16, scale=0.25)
    )


def test_what_changes_nothing_is_not_refused():
    x = torch.zeros(1, 4, 6, 16)
    harmless = {"softcap": None, "output_attentions": False, "is_causal": True, "use_cache": True}
    attention_forward(NOT_CAUSAL, x, x, x, None, 1.0, sliding_window=6, **harmless)
    attention_forward(None, x, x, x, Layout(real=None, starts=None, window=9), 1.0, sliding_window=6)


# --- the mask function ------------------------------------------------------------------------------------------------


def test_a_mask_that_hides_nothing():
    for mask in (None, torch.ones(2, 9, dtype=torch.bool)):
        layout = attention_layout(2, 9, 9, attention_mask=mask)
        assert layout == Layout(real=None, starts=None, window=None)


def test_a_layout_moves_with_its_layer():
    real = torch.tensor([[False, True, True]])
    moved = Layout(real=real, starts=None, window=4).to("meta")
    assert moved.real.device.type == "meta" and moved.starts is None and moved.window == 4


def test_a_padding_mask_over_whole_sequences():
    mask = torch.tensor([[False, True, True], [True, True, True]])
    layout = attention_layout(2, 3, 3, attention_mask=mask, mask_function=causal_mask_function)
    assert layout.real is not None and torch.equal(layout.real, mask)
    with pytest.raises(AttentionError, match=r"attention_mask of shape \(2, 3\) for tokens \[2, 4\]"):
        attention_layout(2, 4, 4, attention_mask=mask)


@pytest.mark.parametrize("window", [1, 2, 8, 9, 20])
def test_a_sliding_mask_is_one_sequence_with_a_window(window):
    function = sliding_window_causal_mask_function(window)
    assert attention_layout(2, 9, 9, mask_function=function, local_size=window) == Layout(
        real=None, starts=None, window=window
    )


def test_a_mask_that_keeps_packed_sequences_apart_says_where_they_begin():
    """As transformers makes it from positions that begin again, and chunked attention from its chunks."""
    pack = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    within = lambda b, h, q, k: (k <= q) & (pack[b, q] == pack[b, k])  # noqa: E731
    layout = attention_layout(2, 6, 6, mask_function=within)
    assert layout.starts.int().tolist() == [[0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_vmap": True}, "custom mask"),
        ({"mask_function": lambda b, h, q, k: q >= 0}, "shows a token its successor"),
        ({"mask_function": lambda b, h, q, k: (k <= q) | ((q < 3) & (k < 3))}, "shows a token its successor"),
    ],
)
def test_a_mask_that_is_not_causal_is_refused(options, words):
    with pytest.raises(AttentionError, match=words):
        attention_layout(2, 9, 9, **options)


def test_against_a_cache_the_mask_is_written_out():
    """Two queries at positions 5 and 6 against the keys 3..6 that a sliding cache of 3 returned; row 1 began at 4."""
    padding = torch.ones(2, 7, dtype=torch.bool)
    padding[1, :4] = False
    mask = attention_layout(
        2,
        2,
        4,
        q_offset=5,
        kv_offset=3,
        mask_function=sliding_window_causal_mask_function(3),
        attention_mask=padding,
        local_size=3,
    )
    assert mask.int().tolist() == [[[[1, 1, 1, 0], [0, 1, 1, 1]]], [[[0, 1, 1, 0], [0, 1, 1, 1]]]]


# --- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["packed", "padded", "cached"])
def test_every_sink_of_every_layer_and_head_gets_a_gradient(gpt_oss, form):
    tokens = torch.randint(2, 97, (3, 30), generator=torch.Generator().manual_seed(0))
    if form == "packed":
        pack = torch.tensor([0, 30, 60, 90], dtype=torch.int32)
        options = {"cu_seq_lens_q": pack, "cu_seq_lens_k": pack, "position_ids": torch.arange(30).repeat(3)[None]}
        logits = gpt_oss(tokens.view(1, 90), **options).logits
    elif form == "padded":
        mask = torch.ones(3, 30, dtype=torch.int64)
        mask[1, :20] = 0
        logits = gpt_oss(tokens, attention_mask=mask).logits
    else:
        with torch.no_grad():
            cache = gpt_oss(tokens[:, :20], use_cache=True).past_key_values
        logits = gpt_oss(tokens[:, 20:], past_key_values=cache).logits
    generator = torch.Generator().manual_seed(1)
    (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
    grads = {name: p.grad for name, p in gpt_oss.named_parameters() if name.endswith(".sinks")}
    assert len(grads) == 4 and all(len(grad) == 8 for grad in grads.values())
    assert not [name for name, grad in grads.items() if (grad == 0).any()]
