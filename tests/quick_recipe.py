"""A whole run in seconds: a very small GPT-OSS on a short Ledger. For tests."""

from dataclasses import dataclass

from lockstep.config import Evaluation, Run
from lockstep.environments.ledger import Ledger
from lockstep.model.tiny import TinyModel
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer


@dataclass(frozen=True, kw_only=True)
class Dense(Ledger):
    """Ledger with a reward that differs between trajectories: without it an untrained model's gradients are all
    zero, and a test of resuming would not notice a lost optimiser."""

    async def grade(self, ending):
        said = "".join(message.content for message in ending.messages[1:])
        return await super().grade(ending) | {"dense": sum(said.encode()) % 8 / 16}


run = Run(
    name="quick",
    environment=Dense(num_train=64, num_heldout=8, num_demonstrations=128),
    tiny=TinyModel(hidden_size=32, intermediate_size=16, num_layers=2, num_experts=4),
    harmony=HarmonyOptions(system=False, tool_definitions=False),
    sft=SFT(num_steps=4, batch_size=8, optimizer=Optimizer(learning_rate=3e-3)),
    num_steps=4,
    rollout=Rollout(num_prompts=2, group_size=4, max_turns=3, max_tokens=160, max_action_tokens=24),
    optimizer=Optimizer(learning_rate=1e-3),
    evaluation=Evaluation(num_tasks=8),
    checkpoint_every=2,
    threads=1,
)
