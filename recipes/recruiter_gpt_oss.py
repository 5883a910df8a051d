"""Recruiter: finding people for a user who changes their mind, by GPT-OSS-20B or 120B. Configured and planned, not
run; see real_sizes.py.

    lockstep plan recipes/recruiter_gpt_oss.py
"""

from real_sizes import gpt_oss

from lockstep.config import Evaluation
from lockstep.environments.recruiter import Recruiter

run = gpt_oss(
    Recruiter(),
    name="recruiter-gpt-oss",
    max_turns=40,
    evaluation=Evaluation(num_tasks=256, every=20, success_reward=0.9),
)
