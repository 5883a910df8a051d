"""VerifyIf: instructions that a program checks, by GPT-OSS-20B or 120B. Configured and planned, not run; see
real_sizes.py.

    lockstep plan recipes/verifyif_gpt_oss.py --data ../shared/data
"""

from pathlib import Path

from real_sizes import gpt_oss

from lockstep.environments.verifyif import VerifyIf

aliases = {"--data": "--environment.data"}

run = gpt_oss(VerifyIf(data=Path("../shared/data")), name="verifyif-gpt-oss", max_turns=1)
