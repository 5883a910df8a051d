"""An environment of `verifiers`, as its package is installed, for a tiny GPT-OSS or any model you have.

    lockstep train recipes/from_verifiers.py --data ../shared/data/gsm8k
    lockstep train recipes/from_verifiers.py --data ../shared/data/gsm8k --model FOLDER_OR_ID

Needs torch, verifiers and the environment's package in one Python: `pip install verifiers uv PACKAGE`, or for a package
that has a `load_environment`: `pip install 'verifiers<0.4' PACKAGE`. Here that is the example of Lockstep's own tests,
GSM8K's problems with two tools: `pip install --no-deps tests/environments/verifiers/example_next`, or `.../example` for
verifiers below 0.4. For another, write its id and its arguments in a copy of this file.

A verifiers environment has no demonstrations, so there is no cold start. All that the tiny model, which speaks no
format yet, is rewarded for is to be brief: it shows that everything runs. To learn, give a model that can speak.
"""

from lockstep.config import Evaluation, Run
from lockstep.environments.verifiers import TASKSETS, VerifiersEnvironment, check_version
from lockstep.model.tiny import TinyModel
from lockstep.rollout.trajectory import Rollout
from lockstep.sft import SFT
from lockstep.trainer.optimizer import Optimizer

DATA = "../shared/data/gsm8k"

if check_version() < TASKSETS:
    environment = VerifiersEnvironment(
        id="lockstep-example", args={"data": DATA, "kind": "tools", "num_train": 256, "num_eval": 32}
    )
    aliases = {"--data": "--environment.args.data"}
else:
    environment = VerifiersEnvironment(
        id="lockstep-example-next",
        args={
            "taskset": {"data": DATA, "num_tasks": 288, "task": {"kind": "tools"}},
            "agent": {"harness": {"id": "null"}},
        },
        num_heldout=32,
    )
    aliases = {"--data": "--environment.args.taskset.data"}

run = Run(
    name="from_verifiers",
    environment=environment,
    tiny=TinyModel(),
    sft=SFT(num_steps=0),
    num_steps=4,
    rollout=Rollout(num_prompts=2, group_size=4, max_turns=6, max_tokens=1024, max_action_tokens=64),
    optimizer=Optimizer(learning_rate=3e-4, decay_share=1.0, final_share=0.2),
    evaluation=Evaluation(num_tasks=8),
)
