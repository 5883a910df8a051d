"""Following instructions that a program checks (IFEval, IFBench), by a tiny GPT-OSS or by any model you have.

    lockstep train recipes/verifyif.py --data ../shared/data
    lockstep train recipes/verifyif.py --data ../shared/data --model FOLDER_OR_ID --sft.num-steps 0 \\
        --optimizer.learning-rate 1e-6 --rollout.max-tokens 4096 --rollout.max-action-tokens 2048

A cold start on scripted exercises, then GRPO on four fifths of the rows, one turn each, on policy. The tiny model
learns to write plain sentences and the simplest forms; of the real prompts it follows hardly more than what few words,
no comma and the like ask for. Both sets are test sets: a model trained on them is not to be compared with published
numbers.
"""

from pathlib import Path

from lockstep.config import Evaluation, Run
from lockstep.environments.verifyif import VerifyIf
from lockstep.model.tiny import TinyModel
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer

aliases = {"--data": "--environment.data"}

run = Run(
    name="verifyif",
    environment=VerifyIf(data=Path("../shared/data")),
    tiny=TinyModel(vocab_size=2048, sliding_window=64),
    sft=SFT(
        num_steps=120,
        batch_size=16,
        optimizer=Optimizer(learning_rate=1.5e-3, warmup_steps=20, decay_share=0.4, final_share=0.0),
    ),
    num_steps=20,
    # In the tiny tokenizer the longest prompt has 1404 tokens, the median 238, and a scripted answer at most 76.
    rollout=Rollout(num_prompts=4, group_size=8, max_turns=1, max_tokens=1536, max_action_tokens=128),
    optimizer=Optimizer(learning_rate=3e-4, decay_share=1.0, final_share=0.2),
    evaluation=Evaluation(num_tasks=64),
)
