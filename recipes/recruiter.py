"""Recruiter on a laptop: a tiny GPT-OSS is trained to search people, to ask, and to follow a user's changing mind.

    lockstep train recipes/recruiter.py

The easy variant: 240 people, short profiles, one person wanted. A cold start on the scripted expert, then GRPO on whole
conversations of about ten calls and 900 tokens, on policy. About eight minutes on one quiet core, half of them the cold
start, which is what makes the model search, ask, read and quote.
"""

from lockstep.config import Evaluation, Run
from lockstep.environments.recruiter import Recruiter
from lockstep.model.tiny import TinyModel
from lockstep.rollout.harmony import HarmonyOptions
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer

run = Run(
    name="recruiter",
    environment=Recruiter(
        difficulty="easy",
        num_people=240,
        page_size=4,
        instructions="",
        num_train=512,
        num_heldout=64,
        num_demonstrations=3072,
    ),
    tiny=TinyModel(vocab_size=1024, sliding_window=128),
    # A model trained from nothing on these tools learns no more from reading about them.
    harmony=HarmonyOptions(system=False, tool_definitions=False),
    sft=SFT(
        num_steps=560,
        batch_size=8,
        optimizer=Optimizer(learning_rate=1.5e-3, warmup_steps=20, decay_share=0.4, final_share=0.0),
    ),
    num_steps=6,
    rollout=Rollout(num_prompts=8, group_size=4, max_turns=24, max_tokens=1536, max_action_tokens=64),
    optimizer=Optimizer(learning_rate=1e-4, decay_share=1.0, final_share=0.2),
    evaluation=Evaluation(num_tasks=32, success_reward=0.9),
    threads=1,
)
