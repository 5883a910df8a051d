"""GSM8K with the calculator, by GPT-OSS-20B or 120B. Configured and planned, not run; see real_sizes.py.

    lockstep plan recipes/gsm8k_gpt_oss.py --data ../shared/data/gsm8k

GRPO with a KL penalty of 1e-3 to the first policy.
"""

from pathlib import Path

from real_sizes import gpt_oss

from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.kl import KLPenalty
from lockstep.environments.gsm8k import GSM8K

aliases = {"--data": "--environment.data"}

run = gpt_oss(
    GSM8K(data=Path("../shared/data/gsm8k")),
    name="gsm8k-gpt-oss",
    max_turns=10,
    algorithm=Algorithm(kl=KLPenalty(coefficient=1e-3)),
)
