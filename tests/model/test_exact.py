"""Exact mode: a token's bits are a function of its own history, whatever is computed beside it."""

from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.model.exact import ExactCpu, ExactFunctions, ExactLinear, attend_rows, decode_rows, tiled_mm
from lockstep.model.forward import head_logits, token_logprobs
from lockstep.model.kernels_cpu import CpuFlash
from lockstep.model.loading import load_model
from lockstep.model.precision import Precision, PrecisionError
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer

EXACT = Precision(deterministic=True)
DTYPES = [torch.float32, torch.bfloat16]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Products


@settings(max_examples=60)
@given(
    st.integers(1, 100),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(0, 90),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_a_row_of_a_product_does_not_know_its_neighbours(rows, inner, width, before, transposed, dtype):
    """The rows alone, and somewhere in a larger batch; odd sizes, weights as linear layers and as experts hold them."""
    weight = normal(width, inner, seed=1, dtype=dtype).T if transposed else normal(inner, width, seed=1, dtype=dtype)
    x, bias = normal(rows, inner, seed=2, dtype=dtype), normal(width, seed=3, dtype=dtype)
    together = torch.cat([normal(before, inner, seed=4, dtype=dtype), x, normal(5, inner, seed=5, dtype=dtype)])
    found = tiled_mm(together, weight, bias)[before : before + rows]
    assert torch.equal(found, tiled_mm(x, weight, bias))
    assert torch.equal(found[-1:], tiled_mm(x[-1:], weight, bias))
    expected = x.double() @ weight.double() + bias.double()
    assert (found - expected).abs().max() <= (1e-4 if dtype == torch.float32 else 0.02 * expected.abs().max())


def test_the_linear_layers_gradient():
    shapes = ((2, 5, 7), (4, 7), (4,))
    x, weight, bias = (normal(*shape, seed=i).double().requires_grad_() for i, shape in enumerate(shapes))
    assert torch.autograd.gradcheck(ExactLinear.apply, (x, weight, bias))
    assert torch.autograd.gradcheck(lambda x, weight: ExactLinear.apply(x, weight, None), (x, weight))


@pytest.mark.parametrize("function", [torch.sigmoid, functional.silu, functional.gelu])
@pytest.mark.parametrize("length", [1, 15, 31, 33, 63])
def test_gates_round_an_element_alike_wherever_it_stands(function, length):
    x = normal(200) * 3
    with ExactFunctions():
        assert torch.equal(function(x[:length]), function(x)[:length])
        strided = torch.stack([x, x], 1)[:, 0]
        assert torch.equal(function(strided[:length]), function(x)[:length])
    assert torch.allclose(function(x), function(x.double()).float(), atol=1e-6)


# Attention

SHAPES = [(1, 1, 16), (4, 2, 32), (8, 1, 64), (2, 2, 16), (3, 3, 10), (6, 2, 8)]


@pytest.mark.parametrize("window", [None, 1, 16, 40])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_packed_alone_cut_short_and_from_a_cache_is_the_same(num_heads, num_kv_heads, dim, window, dtype):
    boundaries = (0, 1, 38, 150, 214, 219)
    q, k, v = (normal(219, h, dim, seed=h, dtype=dtype) for h in (num_heads, num_kv_heads, num_kv_heads))
    out, lse = ExactCpu.forward(q, k, v, boundaries, window, 0.3)
    for start, stop in pairwise(boundaries):
        for length in {stop - start, (stop - start + 1) // 2}:
            own = slice(start, start + length)
            found = ExactCpu.forward(q[own], k[own], v[own], (0, length), window, 0.3)
            assert torch.equal(found[0], out[own])
            assert torch.equal(found[1], lse[own])
    cache = [normal(3, num_kv_heads, 160, dim, seed=9, dtype=dtype) for _ in range(2)]  # what is not seen is no zero
    for part, whole in zip(cache, (k, v), strict=True):
        part[1, :, :112] = whole[38:150].transpose(0, 1)
    query = normal(3, num_heads, 1, dim, seed=8, dtype=dtype)
    query[1, :, 0] = q[149]
    decoded = decode_rows(query, *cache, None, torch.tensor([7, 111, 150]), window, 0.3)
    assert torch.equal(decoded[1, 0], out[149])


@pytest.mark.parametrize("window", [None, 16])
def test_exact_attention_is_attention(window):
    q, k, v = (normal(100, h, 16, seed=h) for h in (8, 2, 2))
    expected = CpuFlash.forward(*(x.double() for x in (q, k, v)), (0, 40, 100), window, 0.25)
    for found, oracle in zip(ExactCpu.forward(q, k, v, (0, 40, 100), window, 0.25), expected, strict=True):
        assert (found - oracle).abs().max() <= 2e-6


def test_keys_that_no_query_sees_add_nothing():
    q, keys = normal(2, 4, 16), normal(2, 2, 96, 16, seed=1)
    positions = torch.tensor([40, 50])
    few = attend_rows(q, keys[:, :, :64], keys[:, :, :64], positions, 8, 1.0)
    assert all(map(torch.equal, attend_rows(q, keys, keys, positions, 8, 1.0), few))


# Whole models


def samples(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        supervised_sample(
            f"s{i}", torch.randint(2, 97, (n,), generator=generator).tolist(), [j % 4 > 0 for j in range(n)]
        )
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gpt_oss", "qwen3_moe"])
def test_packed_and_one_by_one_have_the_same_bits(kind, dtype, request):
    precision = Precision(dtype=dtype, deterministic=True)
    model = load_model(request.getfixturevalue(f"{kind}_folder"), dtype=precision.torch_dtype)
    trainer = Trainer(model, Optimizer(), temperature=0.7, precision=precision)
    batch = samples([2, 37, 64, 5, 130, 31])
    (together,) = pack(batch, max_tokens=10**6).microbatches
    found = trainer.logprobs(together)
    ends = accumulate((int(sample.action_mask.sum()) for sample in batch), initial=0)
    for sample, (start, stop) in zip(batch, pairwise(ends), strict=True):
        (alone,) = pack([sample], max_tokens=10**6).microbatches
        expected = trainer.logprobs(alone)
        own = (start <= together.action_place) & (together.action_place < stop)
        assert torch.equal(found.logprobs[own], expected.logprobs)
        assert torch.equal(found.entropies[own], expected.entropies)


def test_without_exact_mode_the_bits_do_depend_on_the_packing(gpt_oss):
    """Otherwise the test above shows nothing."""
    batch = samples([2, 37, 64, 5, 130, 31])
    (together,) = pack(batch, max_tokens=10**6).microbatches
    trainer = Trainer(gpt_oss, Optimizer())
    found = trainer.logprobs(together).logprobs
    alone = [trainer.logprobs(pack([sample], max_tokens=10**6).microbatches[0]).logprobs for sample in batch]
    assert not torch.equal(found, torch.cat(alone))
    assert torch.allclose(found, torch.cat(alone), atol=1e-4)


def test_two_runs_have_the_same_bits_gradients_too(gpt_oss_folder):
    def run():
        model = load_model(gpt_oss_folder)
        trainer = Trainer(model, Optimizer(), precision=EXACT)
        (microbatch,) = pack(samples([40, 70]), max_tokens=10**6).microbatches
        found = trainer.forward_backward(microbatch, lambda outputs, _: outputs.logprobs.sum())
        return found.logprobs, {name: p.grad for name, p in model.named_parameters()}

    (logprobs, gradients), (again, gradients_again) = run(), run()
    assert torch.equal(logprobs, again)
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())


def test_exact_gradients_are_the_gradients(gpt_oss_folder):
    def gradients(precision):
        model = load_model(gpt_oss_folder)
        (microbatch,) = pack(samples([40, 70]), max_tokens=10**6).microbatches
        Trainer(model, Optimizer(), precision=precision).forward_backward(
            microbatch, lambda outputs, _: outputs.logprobs.mean()
        )
        return {name: p.grad for name, p in model.named_parameters()}

    fast = gradients(Precision())
    for name, gradient in gradients(EXACT).items():
        assert (gradient - fast[name]).abs().max() <= 1e-5, name


def test_log_probs_of_a_row_do_not_know_their_neighbours():
    """A head of the size at which libraries change their order of summation with the number of rows."""
    head, hidden = normal(3000, 640, seed=1) / 25, normal(200, 640, seed=2)
    model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=head))
    targets = torch.arange(200) * 7
    together = token_logprobs(model, hidden, targets, 0.7, EXACT)
    for own in (slice(0, 1), slice(33, 70), slice(40, 200)):
        alone = token_logprobs(model, hidden[own], targets[own], 0.7, EXACT)
        assert all(torch.equal(a[own], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_head_in_float32_is_worth_digits(gpt_oss_folder, deterministic):
    """The same bfloat16 hidden states, against a float64 head; and the engine samples from the logits of its switch."""
    model = load_model(gpt_oss_folder, dtype=torch.bfloat16)
    hidden, targets = normal(50, 64, dtype=torch.bfloat16), torch.arange(50)
    logits = hidden.double() @ model.lm_head.weight.double().T
    expected = logits.log_softmax(-1)[targets, targets]
    errors = {}
    for fp32_head in (True, False):
        precision = Precision(dtype="bfloat16", fp32_head=fp32_head, deterministic=deterministic)
        found, _ = token_logprobs(model, hidden, targets, 1.0, precision)
        sampled = head_logits(model, hidden, precision)
        assert sampled.dtype == torch.float32
        assert (sampled.log_softmax(-1)[targets, targets] - found).abs().max() <= 2e-6
        errors[fp32_head] = (found - expected).abs().max()
    assert errors[True] <= 1e-5
    assert errors[False] > 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "precision.dtype='float16': must be float32 or bfloat16"),
        ({"fp32_head": False}, "precision.fp32_head=False: has no effect with dtype float32"),
    ],
)
def test_contradicting_switches_are_refused(options, words):
    with pytest.raises(PrecisionError, match=words):
        Precision(**options)
