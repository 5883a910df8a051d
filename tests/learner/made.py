"""Trajectories made by hand on a very small mixture of experts, and a learner whose gradients are kept."""

import copy
import dataclasses

import numpy as np
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from lockstep.algorithm.algorithm import Algorithm
from lockstep.data.packing import pack
from lockstep.data.samples import to_samples
from lockstep.learner.learner import Learner
from lockstep.model.precision import Precision
from lockstep.trainer.critic import Critic, OwnCritic, SharedCritic
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.trainer.value_head import ValueHead
from lockstep.types import Group, Message, Task, Trajectory, Turn
from tests.conftest import randomised

VOCABULARY = 24
MAX_TOKENS = 40
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIG = GptOssConfig(vocab_size=VOCABULARY, sliding_window=6, **SIZES)
TASK = Task(id="t", messages=(Message(role="user", content="go"),))

# Of each group its trajectories' turns, as (context tokens, action tokens, restarts).
ONE, TWO, REWRITTEN = [(4, 3, False)], [(3, 2, False), (2, 4, False)], [(3, 4, False), (5, 2, True)]
LONG = [(6, 9, False)]
SHAPES = ([ONE, TWO, REWRITTEN, LONG], [LONG, ONE, [(2, 1, False)], TWO])
REWARDS = ([1.0, 0.0, 0.5, 0.0], [0.0, 1.0, -0.5, 2.0])
# How far the engine's log-probs are off, a standard deviation of each trajectory: some are rejected by narrow bounds.
MISMATCH = ([0.0, 0.3, 0.02, 1e-4], [1e-4, 0.0, 0.8, 0.01])


def write_model(folder):
    randomised(GptOssForCausalLM(CONFIG), 5).save_pretrained(folder)


def trajectory(name, shape, reward, generator, *, stop_reason="done"):
    turns = tuple(
        Turn(
            context=tuple(generator.integers(2, VOCABULARY, context).tolist()),
            action=tuple(generator.integers(2, VOCABULARY, action).tolist()),
            engine_logprobs=(0.0,) * action,
            weights_version=0,
            restarts=restarts,
        )
        for context, action, restarts in shape
    )
    return Trajectory(
        id=name,
        task=TASK,
        turns=turns,
        messages=(),
        reward=reward,
        reward_parts={},
        stop_reason=stop_reason,
        events={},
    )


def said_by(model, found, deviation, generator):
    """The trajectory with the model's own log-probs for the engine's, up to a deviation."""
    trainer = Trainer(model, None)
    logprobs = []
    for sample in to_samples(found):
        (microbatch,) = pack([sample], max_tokens=10**6).microbatches
        logprobs += trainer.logprobs(microbatch).logprobs.tolist()
    logprobs = iter(np.array(logprobs) + deviation * generator.standard_normal(len(logprobs)))
    turns = tuple(
        dataclasses.replace(turn, engine_logprobs=tuple(float(next(logprobs)) for _ in turn.action))
        for turn in found.turns
    )
    return dataclasses.replace(found, turns=turns)


def made_groups(model, *, shapes=SHAPES, rewards=REWARDS, mismatch=MISMATCH, seed=0):
    """Groups with baselines; mismatch None: the engine agrees with the trainer."""
    generator = np.random.default_rng(seed)
    groups = []
    for g, (of_shapes, of_rewards) in enumerate(zip(shapes, rewards, strict=True)):
        found = []
        for i, (shape, reward) in enumerate(zip(of_shapes, of_rewards, strict=True)):
            bare = trajectory(f"0/{g}/{i}", shape, reward, generator)
            found.append(said_by(model, bare, mismatch[g][i] if mismatch else 0.0, generator))
        baseline = trajectory(f"0/{g}/greedy", ONE, 0.25 + g, generator)
        groups.append(Group(task=TASK, trajectories=tuple(found), baseline=baseline))
    return groups


class Probe:
    """A learner on a copy of `model` that keeps what it does.

    gradients, critic_gradients: those of every update. tokens: for every update the gradient of the loss with respect
    to each action token's log-prob, by the token's place. With plain_rate the weights take plain gradient steps of that
    size: Adam's depend on the sign of gradients that are all but 0.
    """

    def __init__(
        self,
        model,
        algorithm: Algorithm,
        *,
        microbatch_tokens=10**6,
        plain_rate=None,
        critic=None,
        seed=0,
        num_steps=8,
        learning_rate=1e-2,
    ):
        self.model = copy.deepcopy(model)
        self.gradients, self.critic_gradients, self.tokens = [], [], []
        self._pending = []
        head = own = None
        if isinstance(critic, SharedCritic):
            head = ValueHead(CONFIG.hidden_size)
        if isinstance(critic, OwnCritic):
            own = Critic(copy.deepcopy(model), critic, precision=Precision())
        self.critic = own
        self.trainer = Trainer(self.model, Optimizer(learning_rate=learning_rate, gradient_clip=1e9), value_head=head)
        self.learner = Learner(
            algorithm,
            self.trainer,
            microbatch_tokens=microbatch_tokens,
            max_tokens=MAX_TOKENS,
            num_steps=num_steps,
            seed=seed,
            critic=own,
            value_loss=critic.loss if isinstance(critic, SharedCritic) else None,
            reference=None if algorithm.kl is None else Trainer(reference_of(model), None, replay_routes=False),
        )
        self._watch_tokens()
        self._watch(self.trainer.updater, self.gradients, plain_rate, self._keep_tokens)
        if own is not None:
            self._watch(own.updater, self.critic_gradients, plain_rate, lambda: None)

    def update(self, groups, step=0):
        return self.learner.update(groups, step=step)

    def weights(self):
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def _watch_tokens(self):
        forward_backward = self.trainer.forward_backward

        def watched(microbatch, loss):
            def keeping(outputs, microbatch):
                outputs.logprobs.retain_grad()
                self._pending.append((microbatch.action_place, outputs.logprobs))
                return loss(outputs, microbatch)

            return forward_backward(microbatch, keeping)

        self.trainer.forward_backward = watched

    def _keep_tokens(self):
        found = {}
        for places, logprobs in self._pending:
            gradient = torch.zeros_like(logprobs) if logprobs.grad is None else logprobs.grad
            found |= dict(zip(places.tolist(), gradient.tolist(), strict=True))
        self.tokens.append(found)
        self._pending.clear()

    def _watch(self, updater, kept, plain_rate, also):
        step, discard = updater.step, updater.discard

        def watched(learning_rate):
            also()
            parameters = updater.masters.parameters
            gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in parameters.items()}
            kept.append(gradients)
            if plain_rate is None:
                return step(learning_rate)
            for name, parameter in parameters.items():
                parameter.data -= plain_rate * gradients[name]
            updater.discard()
            return sum(g.square().sum() for g in gradients.values()).sqrt().item()

        def discarding():
            self._pending.clear()
            discard()

        updater.step, updater.discard = watched, discarding


def reference_of(model):
    """Another policy than the model, not far from it."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return other
