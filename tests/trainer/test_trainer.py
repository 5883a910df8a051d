"""One trainer, one process: log-probs, accumulated gradients, and the invariants that stop an update."""

import pytest
import torch

from lockstep.algorithm.losses import supervised_loss
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import InvariantError


def microbatch(lengths=(30, 20)):
    generator = torch.Generator().manual_seed(0)
    samples = [
        supervised_sample(
            f"s{n}", torch.randint(2, 97, (n,), generator=generator).tolist(), [i % 3 > 0 for i in range(n)]
        )
        for n in lengths
    ]
    (found,) = pack(samples, max_tokens=10**6).microbatches
    return found


def likelihood(logprobs, microbatch):
    return supervised_loss(logprobs, denominator=len(logprobs))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_tokens_given_what_precedes_them(model, eager, temperature):
    """Against log_softmax of transformers' eager logits, sequence by sequence."""
    batch = microbatch()
    logprobs, entropies = Trainer(model, Optimizer(), temperature=temperature).logprobs(batch)
    expected, expected_entropies = [], []
    for tokens in batch.tokens.split([30, 20]):
        logp = (eager(tokens[None]).logits[0] / temperature).log_softmax(-1)
        actions = torch.tensor([i for i in range(len(tokens)) if i % 3 > 0])
        expected.append(logp[actions - 1, tokens[actions]])
        expected_entropies.append(-(logp.exp() * logp).sum(-1)[actions - 1])
    assert (logprobs - torch.cat(expected)).abs().max() <= 1e-5
    assert (entropies - torch.cat(expected_entropies)).abs().max() <= 1e-5


def test_a_step_updates_every_parameter_and_clears_the_gradients(gpt_oss):
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    value, logprobs, entropies = trainer.forward_backward(microbatch(), likelihood)
    assert not value.requires_grad
    assert not logprobs.requires_grad
    assert not entropies.requires_grad
    norm = trainer.optim_step(1e-2)
    assert norm > 0
    assert all(group["lr"] == 1e-2 for group in trainer.optimizer.param_groups)
    assert not [name for name, p in gpt_oss.named_parameters() if torch.equal(p, before[name])]
    assert all(p.grad is None for p in gpt_oss.parameters())


def test_gradients_of_microbatches_add(gpt_oss):
    trainer = Trainer(gpt_oss, Optimizer())
    trainer.forward_backward(microbatch(), likelihood)
    once = {name: p.grad.clone() for name, p in gpt_oss.named_parameters()}
    trainer.forward_backward(microbatch(), likelihood)
    for name, p in gpt_oss.named_parameters():
        assert (p.grad - 2 * once[name]).abs().max() <= 1e-6


def test_a_large_gradient_is_scaled_down_to_the_clip(gpt_oss, monkeypatch):
    """The norm that is returned is the one before."""
    trainer = Trainer(gpt_oss, Optimizer(gradient_clip=0.125))
    norms = []
    monkeypatch.setattr(
        trainer.optimizer, "step", lambda: norms.append(sum(p.grad.square().sum() for p in gpt_oss.parameters()) ** 0.5)
    )
    trainer.forward_backward(microbatch(), lambda *arguments: 10 * likelihood(*arguments))
    expected = sum(p.grad.square().sum() for p in gpt_oss.parameters()) ** 0.5
    assert trainer.optim_step(1e-2) == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 1
    assert norms[0].item() == pytest.approx(0.125, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_nothing_and_raises(gpt_oss, value):
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    trainer.forward_backward(microbatch(), likelihood)
    gpt_oss.model.norm.weight.grad[3] = value
    with pytest.raises(InvariantError, match=f"gradient norm is {value}: nothing was updated"):
        trainer.optim_step(1e-2)
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())


@pytest.mark.parametrize("gradient", [None, 0.0])
def test_a_sink_without_a_gradient_changes_nothing_and_raises(gpt_oss, gradient):
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    trainer.forward_backward(microbatch(), likelihood)
    sinks = gpt_oss.model.layers[2].self_attn.sinks
    sinks.grad = None if gradient is None else torch.zeros_like(sinks)
    with pytest.raises(InvariantError, match=r"model\.layers\.2\.self_attn\.sinks has no gradient"):
        trainer.optim_step(1e-2)
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())


def test_frozen_sinks_need_no_gradient(gpt_oss):
    for name, parameter in gpt_oss.named_parameters():
        parameter.requires_grad_(not name.endswith(".sinks"))
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    trainer.forward_backward(microbatch(), likelihood)
    trainer.optim_step(1e-2)
    moved = {name for name, p in gpt_oss.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.endswith(".sinks")}


def test_a_loss_without_signal_is_no_fault(gpt_oss):
    """A group whose rewards are all equal: every gradient is zero, the sinks' too."""
    trainer = Trainer(gpt_oss, Optimizer())
    trainer.forward_backward(microbatch(), lambda *arguments: 0 * likelihood(*arguments))
    assert trainer.optim_step(1e-2) == 0
