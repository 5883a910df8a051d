"""The CUDA kernels' arguments, by stand-ins that do in float64 what the kernels' documentation says; the choice among
them; and, where there is a GPU, the kernels themselves against the definition."""

import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lockstep.model import attention, kernels_cuda, kernels_flash3, kernels_flash4
from lockstep.model.attention import SinkAttention, packed_attention, select_kernel, set_backend
from lockstep.model.kernels_cpu import CpuFlash
from lockstep.model.kernels_cuda import BackendError, CudaFlash, device_boundaries
from lockstep.model.kernels_flash3 import Flash3
from lockstep.model.kernels_flash4 import Flash4
from tests.model.test_attention import boundaries, expected, inputs, oracle_attention, with_gradients

LENGTHS = (1, 40, 17, 130, 2)
CUDA = torch.device("cuda", 0)


# --- the stand-in of a flash kernel -----------------------------------------------------------------------------------


def seen_by(length, is_causal, left, right):
    """[length, length]: which keys a query sees. left, right: how far to either side, inclusive; negative: no limit."""
    ahead = torch.arange(length)[None] - torch.arange(length)[:, None]
    seen = torch.ones(length, length, dtype=torch.bool)
    if is_causal:
        seen &= ahead <= 0
    if left >= 0:
        seen &= ahead >= -left
    if right >= 0:
        seen &= ahead <= right
    return seen


def check_pack(q, k, v, ends_q, ends_k, longest_q, longest_k, left, right):
    for ends in (ends_q, ends_k):
        assert ends.dtype == torch.int32 and ends.is_contiguous() and ends.device == q.device
    assert ends_q.tolist() == ends_k.tolist() and ends_q[-1] == len(q) == len(k)
    assert longest_q == longest_k == int(ends_q.diff().max())
    assert isinstance(longest_q, int)
    assert all(x.stride(-1) == 1 and x.dtype == q.dtype for x in (k, v))
    # PyTorch's kernel lays lse out in another way for this one, which its own callers never read.
    assert not (longest_q == 1 and q.shape[1] > k.shape[1] and left < 0 and right < 0)


def parts(ends, *tensors):
    """For each sequence of the pack, float64 [H, L, D] of each tensor, KV heads repeated."""
    num_heads = tensors[0].shape[1]
    for start, stop in pairwise(ends.tolist()):
        yield (
            start,
            stop,
            [x[start:stop].double().transpose(0, 1).repeat_interleave(num_heads // x.shape[1], 0) for x in tensors],
        )


def flash_forward(q, k, v, ends, is_causal, left, right, scale):
    """out [T, H, D] and lse [H, T] contiguous."""
    assert is_causal
    out, lse = torch.empty_like(q, memory_format=torch.contiguous_format), torch.empty(q.shape[1], q.shape[0]).double()
    for start, stop, (qs, ks, vs) in parts(ends, q, k, v):
        scores = (qs @ ks.transpose(1, 2) * scale).masked_fill_(
            ~seen_by(stop - start, is_causal, left, right), float("-inf")
        )
        out[start:stop] = (scores.softmax(-1) @ vs).transpose(0, 1).to(q.dtype)
        lse[:, start:stop] = scores.logsumexp(-1)
    return out, lse


def flash_backward(dout, q, k, v, out, lse, ends, is_causal, left, right, scale):
    """From the out and lse it is given, as flash kernels do: P = exp(scores - lse), delta = <dout, out>."""
    assert (
        is_causal
        and lse.shape == (q.shape[1], q.shape[0])
        and lse.is_contiguous()
        and lse.dtype in (torch.float32, torch.float64)
    )
    assert dout.dtype == out.dtype == q.dtype and dout.stride(-1) == out.stride(-1) == 1
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    for start, stop, (douts, qs, ks, vs, outs) in parts(ends, dout, q, k, v, out):
        scores = (qs @ ks.transpose(1, 2) * scale).masked_fill_(
            ~seen_by(stop - start, is_causal, left, right), float("-inf")
        )
        p = torch.exp(scores - lse[:, start:stop, None].double())
        ds = p * (douts @ vs.transpose(1, 2) - (douts * outs).sum(-1, keepdim=True)) * scale
        dq[start:stop] = (ds @ ks).transpose(0, 1)
        for whole, heads in ((dk, ds.transpose(1, 2) @ qs), (dv, p.transpose(1, 2) @ douts)):
            whole[start:stop] = heads.unflatten(0, (-1, group)).sum(1).transpose(0, 1)
    return tuple(x.to(q.dtype) for x in (dq, dk, dv))


def aten_forward(
    query,
    key,
    value,
    cum_seq_q,
    cum_seq_k,
    max_q,
    max_k,
    dropout_p,
    is_causal,
    return_debug_mask,
    *,
    scale,
    window_size_left,
    window_size_right,
):
    assert dropout_p == 0.0 and return_debug_mask is False
    check_pack(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, window_size_left, window_size_right)
    out, lse = flash_forward(query, key, value, cum_seq_q, is_causal, window_size_left, window_size_right, scale)
    return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros(()), torch.empty(0)


def aten_backward(
    grad_out,
    query,
    key,
    value,
    out,
    logsumexp,
    cum_seq_q,
    cum_seq_k,
    max_q,
    max_k,
    dropout_p,
    is_causal,
    rng_state,
    unused,
    *,
    scale,
    window_size_left,
    window_size_right,
):
    assert dropout_p == 0.0 and rng_state.dtype == torch.uint64 and rng_state.shape == (2,)
    check_pack(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, window_size_left, window_size_right)
    windows = (is_causal, window_size_left, window_size_right)
    return flash_backward(grad_out, query, key, value, out, logsumexp, cum_seq_q, *windows, scale)


def flash3_forward(
    q,
    k,
    v,
    k_new,
    v_new,
    q_v,
    out,
    cu_seqlens_q,
    cu_seqlens_k,
    cu_seqlens_k_new,
    seqused_q,
    seqused_k,
    max_seqlen_q,
    max_seqlen_k,
    page_table,
    kv_batch_idx,
    leftpad_k,
    rotary_cos,
    rotary_sin,
    seqlens_rotary,
    q_descale,
    k_descale,
    v_descale,
    softmax_scale,
    is_causal,
    window_size_left=-1,
    window_size_right=-1,
    attention_chunk=0,
    softcap=0.0,
    is_rotary_interleaved=False,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
):
    """Named and ordered as `torch.ops.flash_attn_3.fwd`, with the defaults of its early builds."""
    unused = (k_new, v_new, q_v, out, cu_seqlens_k_new, seqused_q, seqused_k, page_table, kv_batch_idx, leftpad_k)
    assert not any(x is not None for x in (*unused, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale))
    windows = (window_size_left, window_size_right)
    check_pack(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *windows)
    out, lse = flash_forward(q, k, v, cu_seqlens_q, is_causal, *windows, softmax_scale)
    return out, lse, torch.empty(0), torch.empty(0)


def flash3_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    cu_seqlens_q,
    cu_seqlens_k,
    seqused_q,
    seqused_k,
    max_seqlen_q,
    max_seqlen_k,
    softmax_scale,
    is_causal,
    window_size_left=-1,
    window_size_right=-1,
    softcap=0.0,
    deterministic=False,
    sm_margin=0,
):
    assert seqused_q is None and seqused_k is None
    windows = (window_size_left, window_size_right)
    check_pack(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *windows)
    grads = flash_backward(dout, q, k, v, out, softmax_lse, cu_seqlens_q, is_causal, *windows, softmax_scale)
    for written, grad in zip((dq, dk, dv), grads, strict=True):
        assert written.is_contiguous()
        written.copy_(grad)
    return dq, dk, dv, *([torch.empty(0)] * 5)


def flash4_varlen(
    q,
    k,
    v,
    *,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    softmax_scale,
    causal,
    window_size,
    learnable_sink,
    deterministic,
):
    """With autograd of its own, as flash-attn-4's `flash_attn_varlen_func`: a window side of None has no limit."""
    assert causal and window_size[1] == (None if window_size[0] is None else 0)
    left = -1 if window_size[0] is None else window_size[0]
    check_pack(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, 0)
    if learnable_sink is not None:
        assert learnable_sink.dtype == torch.float32 and learnable_sink.shape == (q.shape[1],)
    sinks = torch.full((q.shape[1],), float("-inf")) if learnable_sink is None else learnable_sink
    lengths = cu_seqlens_q.diff().tolist()
    window = None if left < 0 else left + 1
    return oracle_attention(q, k, v, sinks.to(q.dtype), lengths, window, softmax_scale), torch.empty(0)


@pytest.fixture
def stand_ins(monkeypatch):
    """Kernels on the CPU and in float64, on what calls itself a Hopper GPU."""
    monkeypatch.setattr(kernels_cuda, "FORWARD", aten_forward)
    monkeypatch.setattr(kernels_cuda, "BACKWARD", aten_backward)
    monkeypatch.setattr(kernels_cuda, "DTYPES", (torch.float64,))
    monkeypatch.setattr(kernels_flash3, "operators", lambda: SimpleNamespace(fwd=flash3_forward, bwd=flash3_backward))
    monkeypatch.setattr(kernels_flash4, "package", lambda: SimpleNamespace(flash_attn_varlen_func=flash4_varlen))
    on_gpu(monkeypatch)


def on_gpu(monkeypatch, capability=(9, 0)):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)


@pytest.fixture(autouse=True)
def backend_as_before(monkeypatch):
    monkeypatch.setattr(attention, "_backend", "auto")


def found_by(kernel, lengths, heads, window):
    q, k, v, sinks, dout = inputs(lengths, *heads)
    arguments = (boundaries(lengths), window, 0.25)
    if kernel is Flash4:
        return with_gradients(lambda *x: Flash4.attention(*x, *arguments), (q, k, v, sinks), dout)
    return with_gradients(lambda *x: SinkAttention.apply(*x, kernel, *arguments), (q, k, v, sinks), dout)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("window", [None, 1, 16, 128, 129, 130, 131])
@pytest.mark.parametrize("kernel", [CudaFlash, Flash3, Flash4])
@pytest.mark.parametrize("heads", [(8, 2), (3, 3)])
def test_what_the_kernels_are_told_gives_output_and_gradients_of_the_definition(kernel, heads, window):
    pairs = zip(expected(LENGTHS, *heads, window), found_by(kernel, LENGTHS, heads, window), strict=True)
    tolerance = 1e-6 if kernel is Flash4 else 1e-12  # Flash4's sinks are float32
    assert max((theirs - ours).abs().max().item() for theirs, ours in pairs) <= tolerance


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", [CudaFlash, Flash3, Flash4])
def test_a_pack_of_single_tokens(kernel):
    """What PyTorch's kernel would answer with an lse of another layout, were the window's right side left open."""
    pairs = zip(expected((1, 1, 1), 8, 2, None), found_by(kernel, (1, 1, 1), (8, 2), None), strict=True)
    assert max((theirs - ours).abs().max().item() for theirs, ours in pairs) <= 1e-6


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", [CudaFlash, Flash3, Flash4])
def test_without_sinks(kernel):
    q, k, v, _, dout = inputs(LENGTHS, 8, 2)
    arguments = (None, boundaries(LENGTHS), 16, 0.25)
    cpu = with_gradients(lambda *x: packed_attention(*x, *arguments[:2], window=16, scale=0.25), (q, k, v), dout)
    if kernel is Flash4:
        ours = with_gradients(lambda *x: Flash4.attention(*x, *arguments), (q, k, v), dout)
    else:
        rest = (kernel, *arguments[1:])
        ours = with_gradients(lambda *x: SinkAttention.apply(*x, None, *rest), (q, k, v), dout)
    assert max((a - b).abs().max().item() for a, b in zip(cpu, ours, strict=True)) <= 1e-12


@pytest.mark.usefixtures("stand_ins")
def test_keys_that_are_views_of_a_batch_are_taken_as_they_are():
    """As a model hands them over: [1, H, T, D], transposed."""
    q, k, v, sinks, dout = inputs((40,), 8, 2)
    views = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    for kernel in (CudaFlash, Flash3):
        run = lambda *x: SinkAttention.apply(*x, kernel, (0, 40), 16, 0.25)  # noqa: B023, E731
        pairs = zip(expected((40,), 8, 2, 16), with_gradients(run, (*views, sinks), dout), strict=True)
        assert max((theirs - ours).abs().max().item() for theirs, ours in pairs) <= 1e-12


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", [CudaFlash, Flash3])
def test_the_backward_takes_an_lse_of_any_layout(kernel):
    """The kernels read it as raw memory [H, T]; the stand-ins refuse another."""
    q, k, v, _, dout = inputs(LENGTHS, 8, 2)
    arguments = (boundaries(LENGTHS), 16, 0.25)
    out, lse = kernel.forward(q, k, v, *arguments)
    assert lse.shape == (sum(LENGTHS), 8)
    row_major, head_major = lse.contiguous(), lse.T.contiguous().T
    first, second = (kernel.backward(dout, q, k, v, out, x, *arguments) for x in (row_major, head_major))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_this_pytorch_takes_the_call(monkeypatch):
    """The operators themselves, where they compute nothing but shapes."""
    on_gpu(monkeypatch)
    q, k, v, sinks, dout = (x.to("meta", torch.bfloat16).requires_grad_() for x in inputs(LENGTHS, 8, 2))
    out, lse = CudaFlash.forward(q, k, v, boundaries(LENGTHS), 16, 0.25)
    assert out.shape == q.shape and lse.shape == q.shape[:2] and lse.dtype == torch.float32
    out = SinkAttention.apply(q, k, v, sinks, CudaFlash, boundaries(LENGTHS), 16, 0.25)
    grads = torch.autograd.grad(out, (q, k, v, sinks), dout)
    assert [(x.shape, x.dtype) for x in grads] == [(x.shape, torch.bfloat16) for x in (q, k, v, sinks)]


def test_the_arguments_are_those_of_this_pytorch():
    """The stand-ins take what the real operators take, under the same names."""
    for operator, stand_in in (
        (torch.ops.aten._flash_attention_forward.default, aten_forward),
        (torch.ops.aten._flash_attention_backward.default, aten_backward),
    ):
        code = stand_in.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        theirs = [argument.name for argument in operator._schema.arguments]
        assert list(names[: code.co_argcount]) == theirs[: code.co_argcount]
        assert set(names) <= set(theirs)
        assert all(
            argument.has_default_value() for argument in operator._schema.arguments if argument.name not in names
        )


# --- boundaries -------------------------------------------------------------------------------------------------------


def test_boundaries_go_to_the_device_once_a_pack():
    first, longest = device_boundaries((0, 3, 10), torch.device("cpu"))
    assert first.tolist() == [0, 3, 10] and first.dtype == torch.int32 and longest == 7
    assert device_boundaries((0, 3, 10), torch.device("cpu"))[0] is first
    assert device_boundaries((0, 4, 10), torch.device("cpu"))[0] is not first


def test_boundaries_of_an_inference_pass_may_be_saved_for_a_later_backward():
    device_boundaries.cache_clear()
    with torch.inference_mode():
        ends, _ = device_boundaries((0, 5), torch.device("cpu"))
    assert not ends.is_inference()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [CudaFlash, Flash3, Flash4])
def test_a_dtype_without_a_kernel_is_refused_by_name(monkeypatch, kernel, dtype):
    on_gpu(monkeypatch)
    q, k, v, sinks, _ = inputs((4,), 4, 2, dtype=dtype)
    with pytest.raises(BackendError, match=rf"{dtype}.*dtype=torch\.bfloat16") as error:
        if kernel is Flash4:
            Flash4.attention(q, k, v, sinks, (0, 4), None, 1.0)
        else:
            SinkAttention.apply(q, k, v, sinks, kernel, (0, 4), None, 1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "capability", "dim", "words"),
    [
        (CudaFlash, (7, 5), 64, "compute capability 7.5.*'torch'"),
        (CudaFlash, (8, 0), 264, "head_dim=264.*'torch'"),
        (CudaFlash, (8, 0), 20, "head_dim=20"),
        (Flash3, (10, 0), 64, "compute capability 10.0.*'flash3'.*set_backend"),
        (Flash3, (9, 0), 264, "head_dim=264"),
        (Flash4, (8, 0), 64, "compute capability 8.0.*'flash4'"),
        (Flash4, (12, 0), 64, "compute capability 12.0.*'flash4'"),
        (Flash4, (10, 0), 256, "head_dim=256.*up to 128"),
    ],
)
def test_a_gpu_or_head_size_without_a_kernel_is_refused(monkeypatch, kernel, capability, dim, words):
    on_gpu(monkeypatch, capability)
    q, k, v, sinks, _ = inputs((4,), 4, 2, dim=dim, dtype=torch.bfloat16)
    with pytest.raises(BackendError, match=words) as error:
        if kernel is Flash4:
            Flash4.attention(q, k, v, sinks, (0, 4), None, 1.0)
        else:
            kernel.forward(q, k, v, (0, 4), None, 1.0)
    assert "\n" not in str(error.value)


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """Packages of these names, without the kernels."""
    for name in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    kernels_flash3.operators.cache_clear()
    kernels_flash4.package.cache_clear()
    yield
    kernels_flash3.operators.cache_clear()
    kernels_flash4.package.cache_clear()


def test_without_packages_cuda_has_pytorchs_own(monkeypatch):
    on_gpu(monkeypatch)
    assert select_kernel(CUDA) is CudaFlash
    assert select_kernel(torch.device("cpu")) is CpuFlash
    set_backend("torch")
    assert select_kernel(CUDA) is CudaFlash
    assert select_kernel(torch.device("cpu")) is CpuFlash


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("capability", "kernel"), [((8, 0), CudaFlash), ((9, 0), Flash3), ((10, 0), CudaFlash)])
def test_auto_takes_flash_attention_3_on_hopper_alone(monkeypatch, capability, kernel):
    on_gpu(monkeypatch, capability)
    assert select_kernel(CUDA) is kernel


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("backend", "kernel"), [("torch", CudaFlash), ("flash3", Flash3), ("flash4", Flash4)])
def test_a_backend_chosen_by_name(monkeypatch, backend, kernel):
    on_gpu(monkeypatch)
    set_backend(backend)
    assert select_kernel(CUDA) is kernel
    if backend != "torch":
        with pytest.raises(BackendError, match=f"{backend!r}.*needs CUDA"):
            select_kernel(torch.device("cpu"))


@pytest.mark.parametrize("backend", ["flash3", "flash4"])
def test_a_package_that_is_not_installed_is_refused_when_chosen(backend):
    if backend == "flash3" and kernels_flash3.is_installed():
        pytest.skip("installed here")
    with pytest.raises(BackendError, match=f"{backend!r}.*install.*set_backend") as error:
        set_backend(backend)
    assert "\n" not in str(error.value)
    assert select_kernel(torch.device("cpu")) is CpuFlash  # as before


def test_an_unknown_backend_is_refused():
    with pytest.raises(BackendError, match=r"'flash5'.*auto, torch, flash3, flash4"):
        set_backend("flash5")


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kernel", [CudaFlash, Flash3, Flash4])
def test_packed_attention_goes_through_the_chosen_kernel(monkeypatch, kernel):
    monkeypatch.setattr(attention, "select_kernel", lambda device: kernel)
    q, k, v, sinks, dout = inputs(LENGTHS, 8, 2)
    run = lambda *x: packed_attention(*x, boundaries(LENGTHS), window=16, scale=0.25)  # noqa: E731
    pairs = zip(expected(LENGTHS, 8, 2, 16), with_gradients(run, (q, k, v, sinks), dout), strict=True)
    assert max((theirs - ours).abs().max().item() for theirs, ours in pairs) <= 1e-6


# --- real GPUs --------------------------------------------------------------------------------------------------------


def choose(backend):
    """Skip where the backend is not there, instead of testing another in its place."""
    try:
        set_backend(backend)
        select_kernel(CUDA)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("window", [None, 1, 16, 128])
@pytest.mark.parametrize("heads", [(8, 2), (64, 8)])
@pytest.mark.parametrize("backend", ["torch", "flash3", "flash4"])
def test_on_a_gpu_output_and_every_gradient_equal_the_definition(backend, heads, window, dtype, tolerance):
    """Relative to each tensor's norm: a wrong sink gradient, or a window off by one, is far outside."""
    choose(backend)
    lengths = (1, 300, 2, 64, 129)
    rounded = [x.to(dtype) for x in inputs(lengths, *heads, dim=64)]
    exact = [x.double() for x in rounded]
    theirs = with_gradients(lambda *x: oracle_attention(*x, lengths, window, 0.125), exact[:4], exact[4])
    run = lambda *x: packed_attention(*x, boundaries(lengths), window=window, scale=0.125)  # noqa: E731
    ours = with_gradients(run, [x.cuda() for x in rounded[:4]], rounded[4].cuda())
    errors = {
        name: ((a - b.double().cpu()).norm() / a.norm()).item()
        for name, a, b in zip(("out", "dq", "dk", "dv", "dsinks"), theirs, ours, strict=True)
    }
    assert max(errors.values()) <= tolerance, errors


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["torch", "flash3", "flash4"])
def test_on_a_gpu_the_sinks_gradient_is_the_same_every_time(backend):
    choose(backend)
    lengths = (700, 33)
    leaves = [x.to("cuda", torch.bfloat16) for x in inputs(lengths, 8, 2, dim=64)]
    run = lambda *x: packed_attention(*x, boundaries(lengths), window=128, scale=0.125)  # noqa: E731
    first, *others = (with_gradients(run, leaves[:4], leaves[4])[4] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_single_precision_is_refused():
    q, k, v, sinks, _ = (x.cuda() for x in inputs((6,), 4, 2, dtype=torch.float32))
    with pytest.raises(BackendError, match=r"torch\.float32"):
        packed_attention(q, k, v, sinks, (0, 6), window=None, scale=1.0)
