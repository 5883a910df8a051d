"""What the recipes for GPT-OSS at its real sizes share; no recipe itself. Each of them trains the 20B model, and the
120B with `--model openai/gpt-oss-120b`.

The settings are the published ones of runs on these models and tasks: 8k tokens of prompt and 16k of answers, groups of
16, one update a batch at a learning rate of 1e-6, on policy, with the sinks trained. `lockstep plan RECIPE` says what a
run needs. They are configured and planned, and have not been run: that takes GPUs, and an engine and a trainer that are
spread over them.
"""

from dataclasses import replace

from lockstep.config import Evaluation, Run
from lockstep.model.precision import Precision
from lockstep.rollout.environment import Environment
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer

PROMPT_TOKENS, ANSWER_TOKENS = 8192, 16384


def gpt_oss(environment: Environment, *, name: str, max_turns: int, **changes: object) -> Run:
    """The shared settings with an environment; `changes` are fields of Run."""
    shared = Run(
        name=name,
        environment=environment,
        model="openai/gpt-oss-20b",
        precision=Precision(dtype="bfloat16"),  # logits, log-probs and master weights stay float32
        gradient_checkpointing=True,
        sft=SFT(num_steps=0),
        num_steps=200,
        rollout=Rollout(
            num_prompts=32,
            group_size=16,
            max_turns=max_turns,
            max_tokens=PROMPT_TOKENS + ANSWER_TOKENS,
            max_action_tokens=ANSWER_TOKENS,
            max_result_tokens=2048,
            engine_timeout_s=3600.0,
        ),
        optimizer=Optimizer(learning_rate=1e-6, warmup_steps=5),
        microbatch_tokens=2 * (PROMPT_TOKENS + ANSWER_TOKENS),
        evaluation=Evaluation(num_tasks=256, every=20),
    )
    return replace(shared, **changes)  # pyright: ignore[reportArgumentType]
