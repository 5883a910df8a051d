"""A bandit: one action of one token, a reward for each token of the vocabulary, and everything between them real."""

import asyncio
import copy

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from lockstep.algorithm.algorithm import Algorithm
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.learner.learner import Learner
from lockstep.model.loading import load_model
from lockstep.model.precision import Precision
from lockstep.rollout.collector import Collector
from lockstep.rollout.environment import Start, Step
from lockstep.rollout.renderer import Extension, Parsed
from lockstep.rollout.trajectory import Policy, Rollout
from lockstep.trainer.critic import Critic, OwnCritic, SharedCritic
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.trainer.value_head import ValueHead
from lockstep.types import Message, Task
from tests.learner.made import SIZES

ARMS = 8
REWARDS = (0.5, 0.3, 0.2, 0.0, 0.4, -0.5, 0.3, 1.0)  # of each arm; at first the worst is the likeliest, the best rare
BEST, WORST = REWARDS.index(max(REWARDS)), REWARDS.index(min(REWARDS))
PROMPT = (3, 1)
CONFIG = GptOssConfig(vocab_size=ARMS, sliding_window=4, initializer_range=0.1, **SIZES)


def write_model(folder, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        GptOssForCausalLM(CONFIG).save_pretrained(folder)


class Renderer:
    """Tokens as they are: an action is its token's number. Every token ends an action."""

    stop_token_ids = tuple(range(ARMS))

    def start(self, messages, tools):
        return PROMPT

    def extend(self, messages, new, tools, *, last_action):
        return Extension(tokens=(0,))

    def parse(self, action):
        return Parsed(messages=(Message(role="assistant", content=str(action[0])),))


class Bandit:
    """num_turns pulls; the reward is their mean reward. After each pull the arms' rewards move on by one arm, so that
    the best one is another."""

    def __init__(self, rewards=REWARDS, num_turns=1):
        self.rewards, self.num_turns = rewards, num_turns

    async def start(self, task):
        return Start(messages=task.messages, state=[])

    async def step(self, state, action):
        state.append(int(action[0].content))
        answer = Message(role="tool", name="bandit", content="again")
        return Step(done=len(state) == self.num_turns, messages=(answer,))

    async def reward(self, state, messages, truncated):
        return {"arms": sum(self.rewards[arm - turn] for turn, arm in enumerate(state)) / self.num_turns}

    async def close(self, state):
        pass


class Play:
    """Collector, engine and learner on one bandit."""

    def __init__(
        self,
        folder,
        algorithm: Algorithm,
        *,
        rewards=REWARDS,
        num_turns=1,
        num_steps=12,
        num_prompts=1,
        group_size=16,
        learning_rate=0.02,
        decay_share=0.0,
        critic=None,
        engine_temperature=1.0,
        seed=0,
    ):
        self.model = load_model(folder)
        self.num_steps, self.num_turns = num_steps, num_turns
        settings = Rollout(num_prompts=num_prompts, group_size=group_size, max_turns=num_turns, max_action_tokens=1)
        self.engine = EmbeddedEngine(self.model, max_length=16, record_routes=True)
        policy = Policy(engine=self.engine, renderer=Renderer(), settings=settings, temperature=engine_temperature)
        tasks = [Task(id=f"t{i}", messages=(Message(role="user", content="pull"),)) for i in range(num_prompts)]
        greedy = "greedy" in algorithm.advantages.needs
        self.collector = Collector(policy, Bandit(rewards, num_turns), tasks, seed=seed, greedy=greedy)
        optimizer = Optimizer(learning_rate=learning_rate, beta2=0.95, decay_share=decay_share)
        head = own = reference = None
        if isinstance(critic, SharedCritic):
            head = ValueHead(CONFIG.hidden_size)
        if isinstance(critic, OwnCritic):
            own = Critic(copy.deepcopy(self.model), critic, precision=Precision())
        if algorithm.kl is not None:
            reference = Trainer(copy.deepcopy(self.model), None, replay_routes=False)
        self.trainer = Trainer(self.model, optimizer, value_head=head)
        self.learner = Learner(
            algorithm,
            self.trainer,
            microbatch_tokens=1024,
            max_tokens=num_turns,
            num_steps=num_steps,
            seed=seed,
            critic=own,
            value_loss=critic.loss if isinstance(critic, SharedCritic) else None,
            reference=reference,
        )
        self.reports = []

    def run(self):
        async def steps():
            for step in range(self.num_steps):
                await self.engine.update_weights(step)
                collected = await self.collector.collect(step, self.num_steps)
                self.reports.append(self.learner.update(collected.groups, step=step))

        asyncio.run(steps())
        return self

    def success(self, arm=BEST):
        """The probability of pulling `arm`, then the next one, ..., in all turns."""
        context, found = PROMPT, 1.0
        for turn in range(self.num_turns):
            pulled = (arm + turn) % ARMS
            found *= self.probabilities(context)[pulled].item()
            context = (*context, pulled, 0)
        return found

    def probabilities(self, context=PROMPT):
        """float64 [ARMS]: what the model gives each arm after the context, by its softmax."""
        mask = [False] * len(context) + [True]
        samples = [supervised_sample(str(arm), [*context, arm], mask) for arm in range(ARMS)]
        (microbatch,) = pack(samples, max_tokens=1024).microbatches
        return self.trainer.logprobs(microbatch).logprobs.double().exp()
