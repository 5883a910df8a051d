"""ReTool: competition mathematics with sandboxed Python, by GPT-OSS-20B or 120B. Configured and planned, not run; see
real_sizes.py.

    lockstep plan recipes/retool_gpt_oss.py --data ../shared/data/math_train

PPO as the published runs have it: gamma and lambda 1, clipping at 0.2 and 0.28 with a dual clip of 10, 20 steps in
which only the critic learns, the critic at twice the policy's rate, no KL penalty; wrong answers score better for
having used the tool. Held out is MATH-500.
"""

from pathlib import Path

from real_sizes import gpt_oss

from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.losses.ppo import PPO
from lockstep.environments.retool import ReTool
from lockstep.trainer.critic import OwnCritic
from lockstep.trainer.optimizer import Optimizer

aliases = {"--data": "--environment.data"}

run = gpt_oss(
    ReTool(data=Path("../shared/data/math_train"), heldout=Path("../shared/data/math500"), scoring="retool"),
    name="retool-gpt-oss",
    max_turns=8,
    algorithm=Algorithm(
        advantages=GAE(gamma=1.0, gae_lambda=1.0),
        loss=PPO(clip_low=0.2, clip_high=0.28, dual_clip=10.0),
    ),
    critic=OwnCritic(optimizer=Optimizer(learning_rate=2e-6, warmup_steps=5), warmup_steps=20),
)
