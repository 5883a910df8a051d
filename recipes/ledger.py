"""Ledger on a laptop: a tiny GPT-OSS learns, in minutes, to solve word problems with a calculator tool.

    lockstep train recipes/ledger.py

A supervised cold start on a careless demonstrator's solutions, then GRPO on whole multi-turn trajectories, on policy.
"""

from lockstep.config import Evaluation, Run
from lockstep.environments.ledger import Ledger
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer

run = Run(
    name="ledger",
    environment=Ledger(),
    # A model trained from nothing on one tool learns no more from reading about it: short prompts, faster steps.
    harmony=HarmonyOptions(system=False, tool_definitions=False),
    sft=SFT(
        num_steps=750,
        batch_size=16,
        optimizer=Optimizer(learning_rate=1.5e-3, warmup_steps=20, decay_share=0.4, final_share=0.0),
    ),
    num_steps=60,
    rollout=Rollout(num_prompts=16, group_size=8, max_turns=7, max_tokens=320, max_action_tokens=64),
    optimizer=Optimizer(learning_rate=6e-4, decay_share=1.0, final_share=0.2),
    evaluation=Evaluation(num_tasks=256),
    threads=1,  # for products this small a second one costs more than it brings
)
