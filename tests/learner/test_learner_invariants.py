"""The parts composed: a token's loss through advantages, correction, clip and denominator, worked by hand; and what
stops a run."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from lockstep.algorithm.advantages.grpo import GRPO
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction import Correction
from lockstep.algorithm.losses.supervised import supervised_loss
from lockstep.algorithm.tokens import ActionTokens, Outcomes
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.learner.learner import Learner
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import Group, InvariantError, Task, Trajectory, Turn, UserError

OFF = Correction(weights=None)


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def tokens_of(old, engine, advantages, *, denominator, sequence=None):
    """The whole step's tokens, or all but `denominator` - A of them, in one sequence each where not said."""
    sequence = torch.arange(len(old)) if sequence is None else torch.tensor(sequence)
    return ActionTokens(
        engine_logprobs=engine,
        old_logprobs=old.detach(),
        advantages=torch.as_tensor(advantages, dtype=old.dtype),
        sequence=sequence,
        trajectory=sequence,
        turn=torch.zeros_like(sequence),
        num_sequences=len(old),
        num_trajectories=len(old),
        loss_weights=torch.full_like(old, 1 / denominator, requires_grad=False),
    )


def loss_of(algorithm, logprobs, tokens):
    return algorithm.token_losses(logprobs, torch.zeros_like(logprobs), tokens, algorithm.kl).sum()


# The loss of a batch


def test_the_loss_of_a_batch_golden():
    """Trainer 0.5, 0.4, 0.3 over engine 0.5, 0.2, 0.1: weights 1, 2, 2 (3 is cut); 4 tokens in all."""
    logprobs, engine = logs(0.5, 0.4, 0.3).requires_grad_(), logs(0.5, 0.2, 0.1)
    tokens = tokens_of(logprobs, engine, [1.0, -1.0, 2.0], denominator=4)
    loss = loss_of(Algorithm(), logprobs, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(-(1 - 2 + 4) / 4, abs=1e-14)
    assert logprobs.grad.tolist() == pytest.approx([-0.25, 0.5, -1.0], abs=1e-14)
    assert loss_of(Algorithm(correction=OFF), logprobs, tokens).item() == pytest.approx(-0.5, abs=1e-14)


def test_the_loss_of_a_later_update_golden():
    """Old 0.4, 0.5, 0.2 under new 0.5, 0.4, 0.3: ratios 1.25, 0.8, 1.5; A = 1, -1, 2. The last is clipped to 1.28; the
    correction weighs old against engine, 0.8 and 2.5 (cut at 2) and 2."""
    logprobs = logs(0.5, 0.4, 0.3).requires_grad_()
    tokens = tokens_of(logs(0.4, 0.5, 0.2), logs(0.5, 0.2, 0.1), [1.0, -1.0, 2.0], denominator=4)
    loss = loss_of(Algorithm(), logprobs, tokens)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.8 * 1.25 - 2 * 0.8 + 2 * 2 * 1.28) / 4, abs=1e-12)
    assert logprobs.grad.tolist() == pytest.approx([-0.25, 0.4, 0.0], abs=1e-12)


def test_on_policy_the_gradient_is_minus_advantage_times_weight_over_the_denominator():
    """To the last bit, through the whole composition: exp(0) is 1, and nothing else may be in the way."""
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(50, generator=generator).requires_grad_()
    engine = logprobs.detach() + 0.5 * torch.randn(50, generator=generator)
    advantages = torch.randn(50, generator=generator)
    tokens = tokens_of(logprobs, engine, advantages, denominator=64)
    weights = Algorithm().correct(logprobs, tokens).weights
    assert weights.min() < 0.5 and weights.max() == 2
    loss_of(Algorithm(), logprobs, tokens).backward()
    assert torch.equal(logprobs.grad, -(advantages * weights) / 64)


def test_microbatches_add_to_the_whole():
    """Cut between sequences: 3 tokens, none, and the other 17."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old, engine, advantages = torch.randn(4, 20, generator=generator).double()
    sequence = [0] * 3 + [1] * 9 + [2] * 8
    tokens = tokens_of(old, engine, advantages, denominator=20, sequence=sequence)
    whole = loss_of(Algorithm(), logprobs, tokens)
    parts = [torch.arange(*bounds) for bounds in ((0, 3), (3, 3), (3, 20))]
    found = [loss_of(Algorithm(), logprobs[part], tokens.at(part)) for part in parts]
    assert sum(found).item() == pytest.approx(whole.item(), abs=1e-14)
    assert found[1] == 0


def test_gradcheck_of_the_loss_of_a_later_update():
    generator = torch.Generator().manual_seed(0)
    logprobs, old, engine, advantages = torch.randn(4, 30, generator=generator).double()
    tokens = tokens_of(old, engine, advantages, denominator=7)
    assert gradcheck(lambda x: loss_of(Algorithm(), x, tokens), logprobs.requires_grad_())
    assert gradcheck(lambda x: supervised_loss(x, denominator=7), logprobs)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=16), st.booleans())
def test_advantages_keep_the_order_of_the_rewards(rewards, normalize):
    """Exactly: a better trajectory never has the smaller advantage, however close they are."""
    place = torch.arange(len(rewards))
    outcomes = Outcomes(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.zeros_like(place),
        num_groups=1,
        trajectory=place,
        token_rewards=torch.zeros(len(rewards), dtype=torch.float64),
        weights=torch.ones(len(rewards), dtype=torch.float64),
    )
    advantages = GRPO(normalize=normalize)(outcomes).advantages.tolist()
    by_reward = [advantage for _, advantage in sorted(zip(rewards, advantages, strict=True))]
    assert by_reward == sorted(by_reward)


# A learner of a real model


def groups_of(trainer, gaps, rewards=(1.0, 0.0)):
    """A group of two one-turn trajectories of three sampled tokens each; the engine's log-probs are the trainer's less
    `gaps` [6]."""
    prompt, actions = [5, 6, 7, 8], ([9, 10, 11], [12, 13, 14])
    samples = [
        supervised_sample(str(i), [*prompt, *action], [False] * 4 + [True] * 3) for i, action in enumerate(actions)
    ]
    (microbatch,) = pack(samples, max_tokens=100).microbatches
    engine = (trainer.logprobs(microbatch).logprobs - torch.tensor(gaps)).tolist()
    task = Task(id="t", messages=())
    trajectories = tuple(
        Trajectory(
            id=f"0/{i}",
            task=task,
            turns=(
                Turn(
                    context=tuple(prompt),
                    action=tuple(actions[i]),
                    engine_logprobs=tuple(engine[3 * i : 3 * i + 3]),
                    weights_version=0,
                ),
            ),
            messages=(),
            reward=rewards[i],
            reward_parts={},
            stop_reason="done",
            events={},
        )
        for i in range(2)
    )
    return [Group(task=task, trajectories=trajectories)]


def learner_of(model, algorithm, **options):
    trainer = Trainer(model, Optimizer(learning_rate=1e-3))
    return Learner(algorithm, trainer, **{"microbatch_tokens": 100, "max_tokens": 100, "num_steps": 1} | options)


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


GAPS = [0.0, 1.5, 0.0, 0.0, -0.5, 0.0]


def test_metrics_on_policy(gpt_oss):
    learner = learner_of(gpt_oss, Algorithm())
    found = learner.update(groups_of(learner.trainer, GAPS), step=0).metrics
    assert (found["ratio/min"], found["ratio/max"], found["clip_fraction"]) == (1.0, 1.0, 0.0)
    assert found["correction/weight_max"] == 2.0
    assert found["correction/weight_min"] == pytest.approx(math.exp(-0.5), abs=1e-5)
    assert found["mismatch/max_abs"] == pytest.approx(1.5, abs=1e-5)
    assert not [name for name in found if name.startswith("first_epoch/")]


def test_without_correction_every_token_weighs_one(gpt_oss):
    learner = learner_of(gpt_oss, Algorithm(correction=OFF))
    found = learner.update(groups_of(learner.trainer, GAPS), step=0).metrics
    assert found["correction/weight_min"] == found["correction/weight_max"] == found["correction/ess"] == 1.0
    assert found["correction/rejected_tokens"] == found["correction/rejected_sequences"] == 0.0
    assert found["mismatch/max_abs"] == pytest.approx(1.5, abs=1e-5)


def test_metrics_of_the_last_epoch_and_of_the_first(gpt_oss):
    learner = learner_of(gpt_oss, Algorithm(epochs=3))
    found = learner.update(groups_of(learner.trainer, GAPS), step=0).metrics
    assert found["first_epoch/ratio/min"] == found["first_epoch/ratio/max"] == 1.0
    assert found["first_epoch/clip_fraction"] == 0.0
    assert found["ratio/min"] < 1 < found["ratio/max"]
    assert found["update/epochs_done"] == 3.0


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("microbatch_tokens", [100, 7])
@pytest.mark.parametrize(
    "algorithm", [Algorithm(), Algorithm(old_logprobs="recomputed")], ids=["current", "recomputed"]
)
def test_a_log_prob_that_is_no_number_stops_the_run_with_the_evidence(
    gpt_oss, monkeypatch, value, microbatch_tokens, algorithm
):
    """The last of six, in a microbatch with all or of its own sequence: named by its place in the step, and nothing is
    updated."""
    learner = learner_of(gpt_oss, algorithm, microbatch_tokens=microbatch_tokens)
    groups, before = groups_of(learner.trainer, GAPS), weights_of(gpt_oss)
    outputs_of = Trainer._outputs

    def broken(self, hidden, microbatch):
        outputs = outputs_of(self, hidden, microbatch)
        logprobs = torch.where(microbatch.action_place == 5, outputs.logprobs + value, outputs.logprobs)
        return dataclasses.replace(outputs, logprobs=logprobs)

    monkeypatch.setattr(Trainer, "_outputs", broken)
    num = {100: 6, 7: 3}[microbatch_tokens]
    with pytest.raises(InvariantError, match=rf"1 of {num} log-probs are not finite \(first at action token 5 of the"):
        learner.update(groups, step=0)
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_engines_log_prob_that_is_no_number_names_the_trajectory(gpt_oss, value):
    learner = learner_of(gpt_oss, Algorithm())
    groups, before = groups_of(learner.trainer, [0, 0, 0, 0, value, 0]), weights_of(gpt_oss)
    with pytest.raises(InvariantError, match="trajectory 0/1: the engine returned a log-prob that is not finite"):
        learner.update(groups, step=0)
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())


def masked(groups, count):
    """The first `count` trajectories of the one group masked."""
    (group,) = groups
    trajectories = [
        dataclasses.replace(t, error=f"reason {i}") if i < count else t for i, t in enumerate(group.trajectories)
    ]
    return [dataclasses.replace(group, trajectories=tuple(trajectories))]


def test_nothing_to_train_on_stops_the_run_when_all_is_masked(gpt_oss):
    learner = learner_of(gpt_oss, Algorithm())
    groups = masked(groups_of(learner.trainer, GAPS), 2)
    with pytest.raises(UserError, match=r"all 2 trajectories are masked; .* --resume: reason 0"):
        learner.update(groups, step=0)


def test_a_group_that_is_left_with_one_is_skipped(gpt_oss):
    """It has no baseline. With nothing else the step has no update, and says so."""
    learner, before = learner_of(gpt_oss, Algorithm()), weights_of(gpt_oss)
    report = learner.update(masked(groups_of(learner.trainer, GAPS), 1), step=0)
    assert report.metrics == {"update/epochs_done": 0.0, "update/stopped_early": 0.0}
    assert report.scores == {}
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())
