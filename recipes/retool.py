"""ReTool on a laptop: a tiny GPT-OSS learns to let sandboxed Python compute, on generated problems; or any model you
have, on competition mathematics.

    lockstep train recipes/retool.py
    lockstep train recipes/retool.py --data ../shared/data/math_train --heldout ../shared/data/math500 \\
        --model FOLDER_OR_ID --sft.num-steps 0 --optimizer.learning-rate 1e-6 --rollout.max-tokens 16384 \\
        --rollout.max-action-tokens 4096

A cold start on generated solutions with a call each, then GRPO on whole multi-turn trajectories, on policy. Needs the
extra `math` and a Linux that allows the sandbox (`lockstep doctor sandbox`).
"""

from lockstep.config import Evaluation, Run
from lockstep.environments.retool import ReTool
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer

aliases = {"--data": "--environment.data", "--heldout": "--environment.heldout"}

run = Run(
    name="retool",
    environment=ReTool(instructions="", carelessness=0.4),
    # A model trained from nothing on one tool learns no more from reading about it: short prompts, faster steps.
    harmony=HarmonyOptions(system=False, tool_definitions=False),
    sft=SFT(
        num_steps=700,
        batch_size=16,
        optimizer=Optimizer(learning_rate=1.5e-3, warmup_steps=20, decay_share=0.4, final_share=0.0),
    ),
    num_steps=40,
    rollout=Rollout(num_prompts=16, group_size=8, max_turns=8, max_tokens=320, max_action_tokens=64),
    optimizer=Optimizer(learning_rate=3e-4, decay_share=1.0, final_share=0.2),
    evaluation=Evaluation(num_tasks=128),
    threads=1,  # for products this small a second one costs more than it brings
)
