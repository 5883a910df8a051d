"""The critic: values of the states before action tokens, their gradient, and its first step, in which only the head
has one."""

import copy
import io

import pytest
import torch

from lockstep.algorithm.value_loss import ValueLoss
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.model.loading import load_model
from lockstep.model.precision import Precision
from lockstep.model.routing import routers
from lockstep.trainer.critic import Critic, OwnCritic
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.trainer.value_head import ValueHead
from lockstep.types import InvariantError

LENGTHS = (30, 20)
SETTINGS = OwnCritic(optimizer=Optimizer(gradient_clip=1e9))


def microbatch(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    samples = [
        supervised_sample(
            f"s{n}", torch.randint(2, 97, (n,), generator=generator).tolist(), [i % 3 > 0 for i in range(n)]
        )
        for n in lengths
    ]
    (found,) = pack(samples, max_tokens=10**6).microbatches
    return found


def critic_of(model, settings=SETTINGS, **options):
    return Critic(model, settings, **{"precision": Precision()} | options)


def with_a_head(critic, seed=0):
    """The critic, its head no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in critic.head.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return critic


def squares(values):
    """A loss with a target of its own for each token."""
    return ValueLoss(clip=None)(values, values.detach(), torch.linspace(-1, 2, len(values)))[0].sum()


def parameters_of(critic):
    """The trunk's and the head's, by the updater's names; not the model's own output head."""
    trunk = {f"trunk.{name}": p for name, p in critic.model.get_decoder().named_parameters()}
    return trunk | {f"value_head.{name}": p for name, p in critic.head.named_parameters()}


def copies(critic):
    return {name: p.detach().clone() for name, p in parameters_of(critic).items()}


# Values and their gradient


def test_the_head_golden():
    """1 * 2 + 3 * -1 + 0.5 and 0 * 2 + 4 * -1 + 0.5; from bfloat16 too, and in float32 always."""
    head = ValueHead(2)
    hidden = torch.tensor([[1.0, 3.0], [0.0, 4.0]])
    assert head(hidden).tolist() == [0.0, 0.0]
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, -1.0]]))
        head.bias.fill_(0.5)
    for dtype in (torch.float32, torch.bfloat16):
        found = head(hidden.to(dtype))
        assert (found.dtype, found.tolist()) == (torch.float32, [-0.5, -3.5])
    assert head(hidden[:0]).shape == (0,)


def eager_values(eager, critic, batch):
    """From transformers' eager decoder, sequence by sequence."""
    found = []
    for tokens in batch.tokens.split(list(LENGTHS)):
        hidden = eager.get_decoder()(tokens[None]).last_hidden_state[0]
        before = torch.tensor([i - 1 for i in range(len(tokens)) if i % 3 > 0])
        found.append(hidden[before] @ critic.head.weight[0] + critic.head.bias)
    return torch.cat(found)


def test_values_are_of_the_states_before_the_tokens(model, eager):
    critic, batch = with_a_head(critic_of(model)), microbatch()
    found = critic.values(batch)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    assert (found - eager_values(eager, critic, batch)).abs().max() <= 1e-5
    assert found.std() > 0.1


def test_gradients_are_those_of_transformers_eager(model, eager):
    critic, batch = with_a_head(critic_of(model)), microbatch()
    squares(eager_values(eager, critic, batch)).backward()
    theirs = {f"trunk.{name}": p.grad for name, p in eager.get_decoder().named_parameters()}
    theirs |= {f"value_head.{name}": p.grad.clone() for name, p in critic.head.named_parameters()}
    critic.head.zero_grad()
    found = critic.forward_backward(batch, squares)
    assert torch.equal(found, critic.values(batch))
    assert not found.requires_grad
    for name, p in parameters_of(critic).items():
        assert (p.grad - theirs[name]).abs().max() <= 1e-5 * theirs[name].abs().max().clamp(min=1), name


@pytest.mark.parametrize(
    "name",
    [
        "trunk.layers.0.self_attn.sinks",
        "trunk.layers.2.self_attn.o_proj.weight",
        "trunk.layers.1.mlp.experts.down_proj",
        "trunk.norm.weight",
        "value_head.weight",
        "value_head.bias",
    ],
)
def test_gradients_are_finite_differences(gpt_oss, name):
    """In the weight of the largest gradient, central, over a step at which no router flips."""
    critic, batch = with_a_head(critic_of(gpt_oss)), microbatch((20,))
    critic.forward_backward(batch, squares)
    parameter = parameters_of(critic)[name]
    place, step = parameter.grad.abs().argmax(), 4e-3
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.view(-1)[place] += sign * step
            losses.append(squares(critic.values(batch)).double())
            parameter.view(-1)[place] -= sign * step
    difference = (losses[0] - losses[1]).item() / (2 * step)
    assert difference == pytest.approx(parameter.grad.view(-1)[place].item(), rel=1e-2)


def test_gradients_of_microbatches_add(gpt_oss):
    critic = with_a_head(critic_of(gpt_oss))
    critic.forward_backward(microbatch(), squares)
    once = {name: p.grad.clone() for name, p in parameters_of(critic).items()}
    critic.forward_backward(microbatch(), squares)
    assert all((p.grad - 2 * once[name]).abs().max() <= 1e-5 for name, p in parameters_of(critic).items())


def test_gradient_checkpointing_changes_no_bit(model):
    """Every layer runs twice, that is all."""
    found = []
    for checkpointing in (False, True):
        critic, calls = with_a_head(critic_of(copy.deepcopy(model), gradient_checkpointing=checkpointing)), []
        for layer in critic.model.model.layers:
            layer.input_layernorm.register_forward_hook(lambda *arguments, seen=calls: seen.append(1))
        found.append((critic.forward_backward(microbatch(), squares), parameters_of(critic)))
        assert len(calls) == len(model.model.layers) * (1 + checkpointing)
    (values, plain), (values_again, checkpointed) = found
    assert torch.equal(values, values_again)
    assert all(torch.equal(p.grad, checkpointed[name].grad) for name, p in plain.items())


# Updates


def test_in_its_first_step_only_the_head_learns_and_then_everything(gpt_oss):
    """The head is 0, and so is every gradient behind it, the sinks' too: that is no fault of an attention kernel."""
    critic, batch = critic_of(gpt_oss), microbatch()
    before = copies(critic)
    assert not critic.values(batch).any()
    critic.forward_backward(batch, squares)
    assert critic.updater.step(1e-2) > 0
    moved = {name for name, p in parameters_of(critic).items() if not torch.equal(p, before[name])}
    assert moved == {"value_head.weight", "value_head.bias"}
    critic.forward_backward(batch, squares)
    assert critic.updater.step(1e-2) > 0
    still = [name for name, p in parameters_of(critic).items() if torch.equal(p, before[name])]
    assert still == []
    assert all(p.grad is None for p in parameters_of(critic).values())


@pytest.mark.parametrize("gradient", [None, 0.0])
@pytest.mark.parametrize("layers", [[2], [0, 1, 2, 3]])
def test_a_missing_sink_gradient_is_found_out(gpt_oss, layers, gradient):
    """In one layer or in all: the attention's other parameters say that a gradient came through."""
    critic = with_a_head(critic_of(gpt_oss))
    before = copies(critic)
    critic.forward_backward(microbatch(), squares)
    for layer in layers:
        sinks = gpt_oss.model.layers[layer].self_attn.sinks
        sinks.grad = None if gradient is None else torch.zeros_like(sinks)
    words = rf"trunk\.layers\.{layers[0]}\.self_attn\.sinks has no gradient: an attention kernel without"
    with pytest.raises(InvariantError, match=words):
        critic.updater.step(1e-2)
    assert all(torch.equal(p, before[name]) for name, p in parameters_of(critic).items())


def test_values_approach_their_targets(gpt_oss):
    critic, batch = critic_of(gpt_oss, OwnCritic()), microbatch()
    losses = []
    for _ in range(15):
        losses.append(squares(critic.values(batch)).item())
        critic.forward_backward(batch, squares)
        critic.updater.step(1e-2)
    assert losses[-1] < 0.1 * losses[0]


def test_a_copy_of_the_policy_is_a_model_of_its_own(model):
    """As a run makes it, after the policy's routers were prepared: neither reads nor moves the other."""
    trainer = Trainer(model, Optimizer())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    critic, batch = with_a_head(critic_of(copy.deepcopy(model))), microbatch()
    expected = trainer.logprobs(batch)
    critic.forward_backward(batch, squares)
    assert all(p.grad is None for p in model.parameters())
    assert all(router.weight.grad.any() for router in routers(critic.model))
    critic.updater.step(1e-2)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    again, values = trainer.logprobs(batch), critic.values(batch)
    assert torch.equal(again.logprobs, expected.logprobs)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(critic.values(batch), values)


# State


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_state_comes_back_exactly(gpt_oss_folder, dtype):
    """Three steps in one go, and with the state written and read after the second: the same bits."""
    precision = Precision(dtype=dtype)

    def fresh():
        return critic_of(load_model(gpt_oss_folder, dtype=precision.torch_dtype), precision=precision)

    def step(critic):
        critic.forward_backward(microbatch(), squares)
        critic.updater.step(1e-3)

    critic = fresh()
    step(critic)
    step(critic)
    file = io.BytesIO()
    torch.save(critic.state_dict(), file)
    again = fresh()
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(again.values(microbatch()), critic.values(microbatch()))
    step(critic)
    step(again)
    expected = copies(critic)
    assert all(torch.equal(value, expected[name]) for name, value in copies(again).items())
    assert all(map(torch.equal, critic.updater.masters.copies(), again.updater.masters.copies()))
    assert (dtype == "float32") == (critic.updater.masters.copies() == [])
    assert not torch.equal(again.values(microbatch()), fresh().values(microbatch()))
