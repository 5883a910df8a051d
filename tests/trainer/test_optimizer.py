"""The learning rate's schedule by hand, and which parameters decay."""

import pytest
import torch

from lockstep.trainer.optimizer import Optimizer


def schedule(num_steps, **settings):
    optimizer = Optimizer(learning_rate=2.0, **settings)
    return pytest.approx([optimizer.learning_rate_at(step, num_steps) for step in range(num_steps)], abs=1e-15)


def test_constant():
    assert schedule(3) == [2.0, 2.0, 2.0]


def test_warm_up_rises_to_the_plateau():
    assert schedule(6, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_decay_falls_over_the_last_share():
    assert schedule(10, decay_share=0.5) == [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4]


def test_decay_stops_at_the_final_share():
    """Half of it is left when the decay is complete, one step after the last."""
    assert schedule(4, decay_share=1.0, final_share=0.5) == [2.0, 1.75, 1.5, 1.25]


def test_warm_up_and_decay_multiply():
    assert schedule(4, warmup_steps=2, decay_share=0.75) == [1.0, 2.0, 4 / 3, 2 / 3]


def test_only_matrices_decay():
    model = torch.nn.Linear(3, 2)
    optimizer = Optimizer(learning_rate=0.5, weight_decay=0.1, beta1=0.7, beta2=0.9).build(
        dict(model.named_parameters())
    )
    matrices, vectors = optimizer.param_groups
    assert [p is model.weight for p in matrices["params"]] == [True]
    assert [p is model.bias for p in vectors["params"]] == [True]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert matrices["betas"] == (0.7, 0.9)


def test_experts_biases_are_biases(gpt_oss):
    """[experts, width], but no matrices."""
    parameters = dict(gpt_oss.named_parameters())
    matrices, _ = Optimizer(weight_decay=0.1).build(parameters).param_groups
    decayed = {name for name, p in parameters.items() if any(p is m for m in matrices["params"])}
    assert decayed == {name for name in parameters if not name.endswith(("bias", "sinks")) and "norm" not in name}


def test_a_step_golden():
    """AdamW's first step is lr * sign(gradient), after the decay of lr * weight_decay."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 2.0)
    torch.nn.init.constant_(model.bias, 2.0)
    optimizer = Optimizer(learning_rate=0.5, weight_decay=0.1).build(dict(model.named_parameters()))
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([-7.0])
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.05) - 0.5, abs=1e-6)
    assert model.bias.item() == pytest.approx(2.5, abs=1e-6)
