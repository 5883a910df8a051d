"""The real GSM8K: people's word problems, solved with a calculator tool, by a tiny GPT-OSS or by any model you have.

    lockstep train recipes/gsm8k.py --data ../shared/data/gsm8k
    lockstep train recipes/gsm8k.py --data ../shared/data/gsm8k --model FOLDER_OR_ID --sft.num-steps 0 \\
        --optimizer.learning-rate 1e-6 --rollout.max-tokens 4096 --rollout.max-action-tokens 1024

A cold start on the data's own solutions, then GRPO on whole multi-turn trajectories, on policy. In its few minutes the
tiny model learns to reason in form, call and answer, but it is far too small to become good at the problems.
"""

from pathlib import Path

from lockstep.config import Evaluation, Run
from lockstep.environments.gsm8k import GSM8K
from lockstep.model.tiny import TinyModel
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer

aliases = {"--data": "--environment.data"}

run = Run(
    name="gsm8k",
    environment=GSM8K(data=Path("../shared/data/gsm8k")),
    tiny=TinyModel(vocab_size=2048, sliding_window=64),
    sft=SFT(
        num_steps=120,
        batch_size=16,
        optimizer=Optimizer(learning_rate=1.5e-3, warmup_steps=20, decay_share=0.4, final_share=0.0),
    ),
    num_steps=20,
    # In the tiny tokenizer 99% of the solutions, prompt included, have at most 822 tokens, 145 of them in one action,
    # and 7 calls.
    rollout=Rollout(num_prompts=4, group_size=8, max_turns=10, max_tokens=1024, max_action_tokens=160),
    optimizer=Optimizer(learning_rate=3e-4, decay_share=1.0, final_share=0.2),
    evaluation=Evaluation(num_tasks=64),
)
