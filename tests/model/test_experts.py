"""The recomputing experts against transformers' own loop, for both layouts that its registry knows."""

import types

import pytest
import torch
from torch.autograd import gradcheck

from lockstep.model.experts import Experts, experts_forward


@pytest.fixture
def experts(model):
    """The first layer's experts in float64, and transformers' own forward of them."""
    module = model.get_decoder().layers[0].mlp.experts.double()
    return module, type(module).forward.__wrapped__


def routed(module, num_tokens, top_k, scale=1.0, seed=0):
    """Hidden states, distinct experts a token, and weights that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(num_tokens, 64, generator=generator).double()
    index = torch.rand(num_tokens, module.num_experts, generator=generator).topk(top_k).indices
    weights = torch.rand(num_tokens, top_k, generator=generator).double().softmax(-1)
    return hidden.requires_grad_(), index, weights.requires_grad_()


def with_gradients(forward, module, hidden, index, weights):
    out = forward(module, hidden, index, weights)
    generator = torch.Generator().manual_seed(9)
    dout = torch.randn(out.shape, generator=generator).double()
    names = [name for name, _ in module.named_parameters()]
    grads = torch.autograd.grad(out, [hidden, weights, *module.parameters()], dout)
    return dict(zip(["out", "dhidden", "dweights", *names], [out.detach(), *grads], strict=True))


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["usual", "clamped"])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 50])
def test_output_and_every_gradient_equal_transformers(experts, num_tokens, top_k, scale):
    module, eager = experts
    if scale > 1 and hasattr(module, "limit"):
        up = routed(module, 50, 1, scale)[0] @ module.gate_up_proj[0]
        assert (up[:, ::2] > module.limit).any()
        assert (up[:, 1::2].abs() > module.limit).any()
    arguments = routed(module, num_tokens, top_k, scale)
    ours = with_gradients(experts_forward, module, *arguments)
    theirs = with_gradients(eager, module, *arguments)
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 1e-12 * value.abs().max().clamp(min=1), name


@pytest.mark.parametrize("num_tokens", [1, 50])
def test_without_gradients_the_output_is_the_same(experts, num_tokens):
    module, eager = experts
    hidden, index, weights = routed(module, num_tokens, 3)
    with torch.inference_mode():
        found, expected = (forward(module, hidden, index, weights) for forward in (experts_forward, eager))
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1)


def test_every_layer_of_a_loaded_model_uses_it(model, monkeypatch):
    calls, original = [], Experts.apply
    monkeypatch.setattr(Experts, "apply", lambda *arguments: (calls.append(1), original(*arguments))[1])
    model(torch.arange(5)[None])
    assert len(calls) == model.config.num_hidden_layers


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

    def __init__(self, transposed, has_bias):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.is_transposed, self.has_bias = transposed, has_bias
        shapes = [(3, 4, 6), (3, 6), (3, 3, 4), (3, 4)]
        if not transposed:
            shapes = [(e, *reversed(rest)) for e, *rest in shapes]
        parameters = [torch.nn.Parameter(torch.randn(s, generator=generator).double()) for s in shapes]
        self.gate_up_proj, self.gate_up_proj_bias, self.down_proj, self.down_proj_bias = parameters

    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_gradcheck(transposed, has_bias):
    module = TinyExperts(transposed, has_bias)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, generator=generator).double().requires_grad_()
    weights = torch.rand(5, 2, generator=generator).double().requires_grad_()
    index = torch.rand(5, 3, generator=generator).topk(2).indices
    parameters = [module.gate_up_proj, module.gate_up_proj_bias, module.down_proj, module.down_proj_bias]
    if not has_bias:
        parameters[1] = parameters[3] = None
    differentiated = [p for p in parameters if p is not None]

    def forward(hidden, weights, *values):
        given = iter(values)
        filled = [None if p is None else next(given) for p in parameters]
        return Experts.apply(module, hidden, index, weights, *filled)

    assert gradcheck(forward, (hidden, weights, *differentiated))


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


@pytest.mark.parametrize("fault", [{"has_gate": False}, {"_is_expert_parallel": True}])
def test_a_kind_of_experts_it_does_not_serve_is_refused(fault):
    module = types.SimpleNamespace(**{"has_gate": True, "_is_expert_parallel": False, **fault})
    with pytest.raises(ValueError, match="experts_implementation"):
        experts_forward(module, torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
