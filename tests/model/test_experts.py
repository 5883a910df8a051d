"""The recomputing experts against transformers' own loop, for both layouts that its registry knows: values, gradients,
bits, memory, and which way a pass takes."""

import types

import pytest
import torch
from allocations import peak_bytes
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GptOssConfig, Qwen3MoeConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from lockstep.model import experts as experts_module
from lockstep.model import experts_grouped, mode
from lockstep.model.experts import Experts, experts_forward
from lockstep.model.experts_grouped import grouped_mm_serves
from lockstep.model.logprobs import selected_logprobs
from lockstep.types import InvariantError


@pytest.fixture
def experts(model):
    """The first layer's experts in float64, and transformers' own forward of them."""
    module = model.get_decoder().layers[0].mlp.experts.double()
    return module, type(module).forward.__wrapped__


@pytest.fixture(params=["usual pieces", "tiny pieces"])
def pieces(request, monkeypatch):
    """An expert's tokens at once, and four at a time."""
    if request.param == "tiny pieces":
        monkeypatch.setattr(experts_module, "PIECE_ROWS", 4)
        monkeypatch.setattr(experts_module, "PIECE_ELEMENTS", 1)


def routed(module, num_tokens, top_k, scale=1.0, seed=0, dtype=torch.float64):
    """Hidden states, distinct experts a token, and weights that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    width = module.gate_up_proj.shape[1 if module.is_transposed else 2]
    hidden = scale * torch.randn(num_tokens, width, generator=generator)
    index = torch.rand(num_tokens, len(module.gate_up_proj), generator=generator).topk(top_k).indices
    weights = torch.rand(num_tokens, top_k, generator=generator).softmax(-1)
    return hidden.to(dtype).requires_grad_(), index, weights.to(dtype).requires_grad_()


def with_gradients(forward, module, hidden, index, weights, **options):
    out = forward(module, hidden, index, weights, **options)
    generator = torch.Generator().manual_seed(9)
    dout = torch.randn(out.shape, generator=generator).to(out.dtype)
    names = [name for name, _ in module.named_parameters()]
    grads = torch.autograd.grad(out, [hidden, weights, *module.parameters()], dout)
    return dict(zip(["out", "dhidden", "dweights", *names], [out.detach(), *grads], strict=True))


def assert_close(ours, theirs, tolerance):
    for name, value in theirs.items():
        assert (ours[name].to(value.dtype) - value).abs().max() <= tolerance * value.abs().max().clamp(min=1), name


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["usual", "clamped"])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 50])
def test_output_and_every_gradient_equal_transformers(experts, pieces, num_tokens, top_k, scale):
    module, eager = experts
    if scale > 1 and hasattr(module, "limit"):
        up = routed(module, 50, 1, scale)[0] @ module.gate_up_proj[0]
        assert (up[:, ::2] > module.limit).any()
        assert (up[:, 1::2].abs() > module.limit).any()
    arguments = routed(module, num_tokens, top_k, scale)
    ours = with_gradients(experts_forward, module, *arguments)
    assert_close(ours, with_gradients(eager, module, *arguments), 1e-12)


@pytest.mark.parametrize("num_tokens", [1, 50])
def test_decoding_gives_the_same_output(experts, num_tokens):
    module, eager = experts
    hidden, index, weights = routed(module, num_tokens, 3)
    with torch.inference_mode(), mode.decoding():
        found = experts_forward(module, hidden, index, weights)
    expected = eager(module, hidden, index, weights)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1)


# Which way a pass takes


def refused(*_, **__):
    raise AssertionError("this way is not for a pass over sequences")


@pytest.fixture
def other_ways_refused(model, monkeypatch):
    """Every implementation but Lockstep's raises: transformers' registered ones, its loop, and the decoding one."""
    monkeypatch.setattr(experts_module, "decode_experts", refused)
    for name in ("batched_mm", "grouped_mm"):
        monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, name, refused)
    forward = type(model.get_decoder().layers[0].mlp.experts).forward
    loop = next(cell for cell in forward.__closure__ if cell.cell_contents is forward.__wrapped__)
    monkeypatch.setattr(loop, "cell_contents", refused)
    module = model.get_decoder().layers[0].mlp.experts
    for name in ("eager", "batched_mm", "grouped_mm"):
        monkeypatch.setattr(module.config, "_experts_implementation_internal", name)
        with pytest.raises(AssertionError, match="not for a pass over sequences"):
            module(*routed(module, 3, 2, dtype=torch.float32))
    monkeypatch.setattr(module.config, "_experts_implementation_internal", "lockstep")


@pytest.mark.parametrize("num_tokens", [1, 5, 200])
def test_log_prob_pass_and_training_pass_take_one_way_to_the_same_bits(model, other_ways_refused, num_tokens):
    tokens = torch.arange(num_tokens + 1)[None] % 97

    def logprobs():
        hidden = model.get_decoder()(tokens[:, :-1]).last_hidden_state[0]
        return torch.stack(selected_logprobs(hidden, model.get_output_embeddings().weight, tokens[0, 1:]))

    with torch.no_grad():
        without = logprobs()
    with torch.inference_mode():
        inferred = logprobs()
    trained = logprobs()
    trained[0].sum().backward()
    assert torch.equal(without, trained)
    assert torch.equal(inferred, trained)
    assert all(p.grad is not None for p in model.parameters())


def test_every_layer_of_a_loaded_model_uses_it(model, monkeypatch):
    calls, original = [], Experts.apply
    monkeypatch.setattr(Experts, "apply", lambda *arguments: (calls.append(1), original(*arguments))[1])
    model(torch.arange(5)[None])
    assert len(calls) == model.config.num_hidden_layers


def test_only_decoding_takes_the_way_made_for_it(experts, monkeypatch):
    module, _ = experts
    arguments = routed(module, 3, 2)
    calls = []
    monkeypatch.setattr(experts_module, "decode_experts", lambda *_: calls.append(1))
    with torch.no_grad():
        experts_forward(module, *arguments)
        assert not calls
        with mode.decoding():
            experts_forward(module, *arguments)
            assert len(calls) == 1
            with mode.exact():
                experts_forward(module, *arguments)
            experts_forward(module, *routed(module, experts_module.DECODE_ROWS // 2 + 1, 2))
        assert len(calls) == 1
    with mode.decoding(), pytest.raises(InvariantError, match="decoding"):
        experts_forward(module, *arguments)


def test_grouped_products_are_for_bfloat16_on_cuda(model):
    module = model.get_decoder().layers[0].mlp.experts
    assert not grouped_mm_serves(module, torch.zeros(2, 64))
    half = module.bfloat16()
    hidden = types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        assert grouped_mm_serves(half, hidden)
        patch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        assert not grouped_mm_serves(half, hidden)
        patch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
        assert not grouped_mm_serves(half.float(), hidden)
        half.bfloat16()
        half.gate_up_proj.data = half.gate_up_proj[:, :, :12].contiguous()
        assert not grouped_mm_serves(half, hidden)


# Grouped products, which CUDA takes, on a CPU


def assert_grouped_equals_loop(module, arguments, tolerance):
    given = [x.detach().to(module.gate_up_proj.dtype).requires_grad_(x.is_floating_point()) for x in arguments]
    given[1] = arguments[1]
    found = with_gradients(experts_forward, module, *given, grouped=True)
    exact = [x if x is arguments[1] else x.detach().double().requires_grad_() for x in given]
    assert_close(found, with_gradients(experts_forward, module.double(), *exact, grouped=False), tolerance)


@pytest.mark.parametrize("chunk", [8, 7, 4096])
@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [(torch.float32, 1.0, 1e-5), (torch.float32, 30.0, 1e-5), (torch.bfloat16, 1.0, 0.03)],  # 30: some are clamped
)
def test_grouped_products_give_the_loop_s_output_and_gradients(model, monkeypatch, dtype, tolerance, chunk, scale):
    monkeypatch.setattr(experts_grouped, "CHUNK_TOKENS", chunk)
    module = model.get_decoder().layers[0].mlp.experts.to(dtype)
    assert_grouped_equals_loop(module, routed(module, 50, 3, scale), tolerance)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("top_k", [1, 2])
def test_grouped_products_of_every_layout(monkeypatch, transposed, has_bias, top_k):
    monkeypatch.setattr(experts_grouped, "CHUNK_TOKENS", 5)
    module = TinyExperts(transposed, has_bias, num_experts=6, hidden_size=8, width=4).float()
    assert_grouped_equals_loop(module, routed(module, 12, top_k), 1e-5)


def test_grouped_products_write_zeros_for_an_expert_that_nobody_chose(monkeypatch):
    """Some devices leave such a gradient unwritten."""

    def forgetful(a, b, offs):
        out = torch.nn.functional.grouped_mm(a, b, offs=offs)
        if out.dim() == 3:
            out[torch.diff(offs, prepend=torch.zeros(1, dtype=torch.int32)) == 0] = torch.nan
        return out

    monkeypatch.setattr(experts_grouped, "grouped_mm", forgetful)
    monkeypatch.setattr(experts_grouped, "CHUNK_TOKENS", 2)
    module = TinyExperts(True, True, num_experts=6, hidden_size=8, width=4).float()
    assert_grouped_equals_loop(module, routed(module, 5, 2), 1e-5)


def test_grouped_products_wait_for_no_number_of_the_device(model):
    """Tensors without values: whoever asks for one raises, as the loop does for its experts' counts."""
    module = model.get_decoder().layers[0].mlp.experts.bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for name, parameter in module.named_parameters():
            setattr(module, name, torch.nn.Parameter(fake.from_tensor(parameter.detach())))
        hidden, index, weights = (fake.from_tensor(x.detach()) for x in routed(module, 12, 2, dtype=torch.bfloat16))
        arguments = hidden.requires_grad_(), index, weights.requires_grad_()
        found = with_gradients(experts_forward, module, *arguments, grouped=True)
        assert found["dhidden"].shape == hidden.shape
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            experts_forward(module, *arguments, grouped=False)


# Precision


class Constant(torch.nn.Module):
    """Experts whose output is a constant of their own, 256 or 1, and whose gate and inputs count for nothing."""

    has_gate, has_bias, is_transposed, _is_expert_parallel = True, True, True, False

    def __init__(self, values):
        super().__init__()
        num_experts = len(values)
        self.gate_up_proj = torch.nn.Parameter(torch.zeros(num_experts, 8, 16, dtype=torch.bfloat16))
        self.gate_up_proj_bias = torch.nn.Parameter(torch.zeros(num_experts, 16, dtype=torch.bfloat16))
        self.down_proj = torch.nn.Parameter(torch.zeros(num_experts, 8, 8, dtype=torch.bfloat16))
        self.down_proj_bias = torch.nn.Parameter(torch.tensor(values).bfloat16()[:, None].repeat(1, 8))

    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, -1)
        return gate * up


@pytest.mark.parametrize("way", ["loop", "grouped", "decode"])
def test_bfloat16_sums_over_the_experts_in_float32(way):
    """256 + 1 is 256 in bfloat16, but 256 + 1 + 1 = 258."""
    module = Constant([256.0, 1.0, 1.0])
    hidden, index = torch.ones(2, 8, dtype=torch.bfloat16), torch.tensor([[0, 1, 2], [1, 2, 0]])
    weights = torch.ones(2, 3, dtype=torch.bfloat16)
    with torch.no_grad(), mode.decoding(way == "decode"):
        out = experts_forward(module, hidden, index, weights, grouped=way == "grouped")
    assert out.dtype == torch.bfloat16
    assert (out == 258).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_bfloat16_gradients_of_pieces_are_summed_in_float32(monkeypatch, grouped):
    monkeypatch.setattr(experts_module, "PIECE_ROWS", 1)
    monkeypatch.setattr(experts_module, "PIECE_ELEMENTS", 1)
    monkeypatch.setattr(experts_grouped, "CHUNK_TOKENS", 1)
    module = Constant([1.0])
    with torch.no_grad():
        module.gate_up_proj_bias.fill_(1)
    hidden, weights = torch.ones(3, 8, dtype=torch.bfloat16), torch.ones(3, 1, dtype=torch.bfloat16)
    out = experts_forward(module, hidden, torch.zeros(3, 1, dtype=torch.int64), weights, grouped=grouped)
    out.backward(torch.tensor([256.0, 1.0, 1.0]).bfloat16()[:, None].expand(3, 8))
    assert (module.down_proj_bias.grad == 258).all()
    assert (module.down_proj.grad == 258).all()


def test_bfloat16_is_as_good_as_its_products(model, pieces):
    module = model.get_decoder().layers[0].mlp.experts
    half = module.bfloat16()
    arguments = routed(half, 50, 3, dtype=torch.bfloat16)
    found = with_gradients(experts_forward, half, *arguments)
    hidden, index, weights = arguments
    exact = hidden.detach().double().requires_grad_(), index, weights.detach().double().requires_grad_()
    assert_close(found, with_gradients(experts_forward, half.double(), *exact), 0.03)


# Gradients


def test_an_expert_that_nobody_chose_gets_zero_and_no_other(experts):
    module, _ = experts
    hidden, _, weights = routed(module, 20, 2)
    index = torch.tensor([[1, 4]]).expand(20, 2)
    grads = with_gradients(experts_forward, module, hidden, index, weights)
    for name in dict(module.named_parameters()):
        chosen = [expert for expert in range(module.num_experts) if grads[name][expert].any()]
        assert chosen == [1, 4], name


class TinyExperts(torch.nn.Module):
    """Like GPT-OSS's or Qwen3-MoE's, with the few features that a full gradcheck can afford."""

    has_gate, _is_expert_parallel = True, False

    def __init__(self, transposed, has_bias, num_experts=3, hidden_size=4, width=3):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.is_transposed, self.has_bias = transposed, has_bias
        shapes = [(hidden_size, 2 * width), (2 * width,), (width, hidden_size), (hidden_size,)]
        if not transposed:
            shapes = [tuple(reversed(shape)) for shape in shapes]
        names = ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"]
        for name, shape in zip(names, shapes, strict=True):
            if has_bias or "bias" not in name:
                values = torch.randn(num_experts, *shape, generator=generator).double()
                setattr(self, name, torch.nn.Parameter(values))

    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradcheck(pieces, transposed, has_bias):
    module = TinyExperts(transposed, has_bias)
    hidden, index, weights = routed(module, 9, 2)
    names = ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"]
    parameters = [getattr(module, name, None) for name in names]
    differentiated = [p for p in parameters if p is not None]

    def forward(hidden, weights, *values):
        given = iter(values)
        filled = [None if p is None else next(given) for p in parameters]
        return Experts.apply(module, hidden, index, weights, *filled)

    assert gradcheck(forward, (hidden, weights, *differentiated))


class Sums(TorchDispatchMode):
    """How many products and sums over rows are computed within."""

    counted = ("mm", "addmm", "addmm_", "_grouped_mm", "sum")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.counted
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("grouped", "each"), [(False, 3), (True, 1)])  # once for each of three experts, or for all
@pytest.mark.parametrize(
    "frozen", [["down_proj"], ["gate_up_proj_bias", "gate_up_proj"], ["down_proj", "down_proj_bias"], "all"]
)
def test_frozen_parameters_cost_no_gradient(grouped, each, frozen):
    module = TinyExperts(True, True, hidden_size=8, width=8).float()
    parameters = dict(module.named_parameters())
    frozen = list(parameters) if frozen == "all" else frozen
    counts, found = [], []
    for names in ([], frozen):
        for name in names:
            parameters[name].requires_grad_(False)
            parameters[name].grad = None
        hidden, index, weights = routed(module, 20, 2, dtype=torch.float32)
        out = experts_forward(module, hidden, index, weights, grouped=grouped)
        with Sums() as sums:
            out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)))
        counts.append(sums.count)
        found.append([hidden.grad, weights.grad])
    assert counts[1] == counts[0] - each * len(frozen)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert [name for name, p in parameters.items() if p.grad is None] == sorted(frozen, key=list(parameters).index)


# Memory


def test_nothing_of_the_size_of_the_activations_is_kept_for_the_backward(experts):
    """Between forward and backward only the layer's input and routing stay, beside the weights themselves."""
    module, _ = experts
    hidden, index, weights = routed(module, 200, 3)
    own = {p.data_ptr() for p in module.parameters()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        experts_forward(module, hidden, index, weights)
    elements = sum(x.numel() for x in kept if x.data_ptr() not in own)
    assert elements == hidden.numel() + index.numel() + weights.numel()


def sized(kind, num_experts, hidden_size, width):
    """Experts of the given sizes with random weights."""
    if kind == "gpt_oss":
        config = GptOssConfig(hidden_size=hidden_size, intermediate_size=width, num_local_experts=num_experts)
        module = GptOssExperts(config)
    else:
        config = Qwen3MoeConfig(hidden_size=hidden_size, moe_intermediate_size=width, num_experts=num_experts)
        module = Qwen3MoeExperts(config)
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.1, generator=generator)
    return module


def activation_peak(forward, module, hidden, index, weights, **options):
    """Bytes that forward and backward hold at most beside their inputs, without the parameters' gradients, which no one
    can avoid."""
    dout = torch.ones_like(hidden)

    def both():
        out = forward(module, hidden, index, weights, **options)
        return out, torch.autograd.grad(out, [hidden, weights, *module.parameters()], dout)

    return peak_bytes(both)[0] - sum(p.numel() * p.itemsize for p in module.parameters())


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize(
    ("kind", "num_experts", "top_k", "hidden_size", "width"),
    [("gpt_oss", 16, 4, 64, 64), ("qwen3_moe", 16, 4, 64, 64), ("gpt_oss", 8, 2, 128, 64)],
)
def test_peak_memory_is_less_than_a_quarter_of_transformers(kind, num_experts, top_k, hidden_size, width, collapsed):
    """Also when the router has collapsed and sends every token to the same experts. The last is the tiny model."""
    module = sized(kind, num_experts, hidden_size, width)
    hidden, index, weights = routed(module, 8192, top_k, dtype=torch.float32)
    if collapsed:
        index = torch.arange(top_k).expand_as(index).contiguous()
    ours = activation_peak(experts_forward, module, hidden, index, weights)
    assert ours <= activation_peak(grouped_mm_experts_forward, module, hidden, index, weights) / 4


@pytest.mark.parametrize("grouped", [False, True])
def test_peak_memory_does_not_know_the_routing(monkeypatch, grouped):
    """Beyond the tokens' own rows, which are held once for each pass, what a pass needs is bounded by its pieces."""
    monkeypatch.setattr(experts_grouped, "CHUNK_TOKENS", 256)
    module = sized("gpt_oss", 8, 64, 64)
    peaks = []
    for num_tokens in (4096, 8192):
        hidden, index, weights = routed(module, num_tokens, 2, dtype=torch.float32)
        for collapsed in (index, torch.tensor([[2, 5]]).expand_as(index).contiguous()):
            peak = activation_peak(experts_forward, module, hidden, collapsed, weights, grouped=grouped)
            peaks.append(peak - 2 * hidden.numel() * 4)  # the output and the input's gradient
    assert max(peaks) <= 1.35 * min(peaks)


# Refusals


@pytest.mark.parametrize("fault", [{"has_gate": False}, {"_is_expert_parallel": True}])
def test_a_kind_of_experts_it_does_not_serve_is_refused(fault):
    module = types.SimpleNamespace(**{"has_gate": True, "_is_expert_parallel": False, **fault})
    with pytest.raises(ValueError, match="experts_implementation"):
        experts_forward(module, torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
