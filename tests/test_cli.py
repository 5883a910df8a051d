"""Wrong input: one line that says the fix, exit code 2, nothing written."""

import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.cli import main

RECIPE = str(Path(__file__).with_name("quick_recipe.py"))
RETOOL = str(Path(__file__).parents[1] / "recipes" / "retool.py")


def refused(arguments, capsys, tmp_path, monkeypatch):
    """Run the command, check that it is refused in one line with nothing written, and return the line."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1, said.err
    assert sorted(tmp_path.rglob("*")) == before
    return said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["no command 'trian'", "did you mean train?"]),
        (["train"], ["which recipe?"]),
        (["train", RECIPE.replace("quick", "quik")], ["no recipe", "did you mean", "quick_recipe.py"]),
        (["train", RECIPE, "--rollout.group-siz", "4"], ["--rollout.group-siz", "did you mean --rollout.group-size?"]),
        (["train", RECIPE, "--rollout.group-size", "four"], ["--rollout.group-size", "four"]),
        (["train", RECIPE, "--rollout.group-size", "1"], ["rollout.group_size=1", ">= 2", "raise it"]),
        (["train", RECIPE, "--rollout.max-tokens", "20"], ["rollout.max_tokens=20", "prompt", "raise it above"]),
        (["train", RECIPE, "--rollout.temperature", "0"], ["rollout.temperature=0", "use 1.0"]),
        (["train", RECIPE, "--rollout.temperature", "inf"], ["rollout.temperature=inf", "use 1.0"]),
        (["train", RECIPE, "--rollout.environment-timeout-s", "nan"], ["rollout.environment_timeout_s=nan", "above 0"]),
        (["train", RECIPE, "--sft.batch-size", "0"], ["sft.batch_size=0", "at least 1"]),
        (["train", RECIPE, "--sft.num-steps", "-1"], ["sft.num_steps=-1", "0 or more"]),
        (["train", RECIPE, "--evaluation.every", "-1"], ["evaluation.every=-1", "0 or more"]),
        (["train", RECIPE, "--optimizer.learning-rate", "nan"], [" optimizer.learning_rate=nan", "finite"]),
        (["train", RECIPE, "--sft.optimizer.learning-rate", "inf"], ["sft.optimizer.learning_rate=inf", "finite"]),
        (["train", RECIPE, "--runs", "/dev/null/runs"], ["/dev/null/runs: Not a directory", "can be written"]),
        (["train", RECIPE, "--rollout.max-lag", "1"], ["rollout.max_lag=1", "set it to 0"]),
        (["train", RECIPE, "--num-steps", "0"], ["num_steps=0", "at least 1"]),
        (["train", RECIPE, "--rollout.num-prompts", "65"], ["rollout.num_prompts=65", "64 train tasks", "lower it"]),
        (["train", RECIPE, "--optimizer.beta2", "7"], ["optimizer.beta2=7", "[0, 1)"]),
        (["train", RECIPE, "--sft.optimizer.gradient-clip", "0"], ["sft.optimizer.gradient_clip=0", "above 0"]),
        (["train", RECIPE, "--optimizer.decay-share", "2"], ["optimizer.decay_share=2", "[0, 1]"]),
        (["train", RECIPE, "--optimizer.warmup-steps", "-1"], ["optimizer.warmup_steps=-1", "0 or more"]),
        (["train", RECIPE, "--algorithm.epochs", "0"], ["algorithm.epochs=0", "at least 1"]),
        (["train", RECIPE, "--algorithm", "grop"], ["no algorithm 'grop'", "did you mean grpo?"]),
        (["train", RECIPE, "--algorithm"], ["--algorithm wants a value"]),
        (["train", RECIPE, "--correction", "token-tsi"], ["token-tsi", "did you mean 'token-tis'?"]),
        (["train", RECIPE, "--algorithm", "GSPO"], ["no algorithm 'GSPO'", "did you mean gspo?"]),
        (["train", RECIPE, "--algorithm", "grpo", "--algorithm=rloo"], ["--algorithm is given twice"]),
        (["train", RECIPE, "--correction", "none", "--correction", "none"], ["--correction is given twice"]),
        (["train", RECIPE, "--resume", "a", "--resume", "b"], ["--resume is given twice"]),
        (["train", RECIPE, "--algorithm.loss.clip-low", "1.5"], [": algorithm.loss.clip_low=1.5:", "0.2 is usual"]),
        (
            ["train", RETOOL, "--environment.sandbox.max-sessions", "-1"],
            ["lockstep: environment.sandbox.max_sessions=-1:"],
        ),
        (["train", RETOOL, "--environment.sandbox.limits.time-s", "-1"], [": environment.sandbox.limits.time_s=-1.0:"]),
        (["train", RECIPE, "--alarms.patience", "0"], ["lockstep: alarms.patience=0:", "3 is usual"]),
        (
            ["train", RECIPE, "--algorithm.entropy-coefficient", "nan"],
            [": algorithm.entropy_coefficient=nan:", "finite"],
        ),
        (
            ["train", RECIPE, "--algorithm.entropy-coefficient", "inf"],
            [": algorithm.entropy_coefficient=inf:", "finite"],
        ),
        (["train", RECIPE, "--algorithm.minibatches", "9"], ["algorithm.minibatches=9", "8 trajectories", "lower it"]),
        (["train", RECIPE, "--rollout.group-size", "0"], ["rollout.group_size=0", "at least 1"]),
        (["train", RECIPE, "--algorithm", "ppo", "--rollout.group-size", "0"], ["rollout.group_size=0", "at least 1"]),
        (["train", RECIPE, "--rollout.engine-retries", "-1"], ["rollout.engine_retries=-1", "0 or more"]),
        (
            ["train", RECIPE, "--algorithm", "otb", "--algorithm.filter-truncated"],
            [": algorithm.filter_truncated=True:"],
        ),
        (
            ["train", RECIPE, "--algorithm", "ppo", "--critic.warmup-steps", "4"],
            ["critic.warmup_steps=4", "num_steps=4"],
        ),
        (
            ["train", RECIPE, "--algorithm", "ppo", "--critic.warmup-steps", "-1"],
            ["critic.warmup_steps=-1", "0 or more"],
        ),
        (
            ["train", RECIPE, "--algorithm", "ppo", "--critic.optimizer.learning-rate", "0"],
            ["critic.optimizer.learning_rate=0.0", "above 0"],
        ),
        (["train", RECIPE, "--algorithm.stop-kl", "0.01"], ["algorithm.stop_kl=0.01", "raise epochs or minibatches"]),
        (["train", RECIPE, "--algorithm", "dppo-tv", "--correction", "token-tis"], ["DPPO", "correction.anchor"]),
        (["train", RECIPE, "--precision.no-fp32-head"], ["precision.fp32_head=False", "no effect", "bfloat16"]),
        (["train", RECIPE, "--precision.dtype", "float16"], ["--precision.dtype", "float16", "bfloat16"]),
        (["train", RECIPE, "--precision.deterministic", "--threads", "2"], ["threads=2", "set threads to 1"]),
        (["train", RECIPE, "--freeze", "*.ruoter.*"], ["*.ruoter.*"]),
        (["train", RECIPE, "--model", "no/such-model"], ["no/such-model", "Hugging Face folder or id"]),
        (["train", RECIPE, "--resume", "runs/none"], ["runs/none is no run", "lockstep train"]),
        (["train", RECIPE, "--resume"], ["--resume wants a value"]),
        (["eval"], ["which checkpoint?"]),
        (["eval", "nowhere"], ["nowhere", "--environment"]),
        (["eval", "nowhere", "--environment", "ledgr"], ["no environment 'ledgr'", "did you mean ledger?"]),
        (["eval", "nowhere", "--environment", "ledger"], ["nowhere", "Hugging Face folder or id"]),
        (["eval", "nowhere", "--environment", "ledger", "--data", "x"], ["--data x", "leave it out"]),
        (["eval", "nowhere", "--environment", "gsm8k"], ["GSM8K needs data", "--data"]),
    ],
)
def test_a_mistake_is_one_line_with_the_fix(arguments, words, capsys, tmp_path, monkeypatch):
    line = refused(arguments, capsys, tmp_path, monkeypatch)
    assert not [word for word in words if word not in line], line


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("kl=KLPenalty(target=0.1, horizon=1)", ["horizon=1", "too short for 8 trajectories", "10000 is usual"]),
        ("overlong=OverlongPenalty(max_tokens=260, buffer_tokens=100)", ["overlong.max_tokens=260", "max_tokens=160"]),
        ("advantages=OptimalTokenBaseline(), loss=PolicyGradient()", None),
        ("kl=KLPenalty(target=0.1, horizon=2)", None),
        ("overlong=OverlongPenalty(max_tokens=160, buffer_tokens=1)", None),
    ],
)
def test_what_a_recipe_asks_of_a_step_is_checked_beside_its_size(algorithm, words, capsys, tmp_path, monkeypatch):
    """None: it is let through, and what is wrong is another thing. 8 trajectories of 160 tokens."""
    (tmp_path / "recipe.py").write_text(
        "import dataclasses\n"
        "from lockstep.algorithm.advantages.optimal_token_baseline import OptimalTokenBaseline\n"
        "from lockstep.algorithm.algorithm import Algorithm\n"
        "from lockstep.algorithm.kl import KLPenalty\n"
        "from lockstep.algorithm.losses.policy_gradient import PolicyGradient\n"
        "from lockstep.algorithm.overlong import OverlongPenalty\n"
        "from tests.quick_recipe import run\n"
        f"run = dataclasses.replace(run, algorithm=Algorithm({algorithm}))\n"
    )
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    line = refused(["train", "recipe.py", "--rollout.max-lag", "1"], capsys, tmp_path, monkeypatch)
    assert not [word for word in words or ["rollout.max_lag=1"] if word not in line], line


def test_a_recipe_that_composes_nonsense_is_named(capsys, tmp_path, monkeypatch):
    recipe = tmp_path / "nonsense.py"
    recipe.write_text("from lockstep.algorithm.algorithm import Algorithm\nAlgorithm(stop_kl=0.1)\n")
    line = refused(["train", "nonsense.py"], capsys, tmp_path, monkeypatch)
    assert "nonsense.py: algorithm.stop_kl=0.1" in line


def test_a_class_in_place_of_its_object_is_named(capsys, tmp_path, monkeypatch):
    recipe = tmp_path / "classes.py"
    imports = "from lockstep.algorithm.algorithm import Algorithm\nfrom lockstep.algorithm.losses.gspo import GSPO\n"
    recipe.write_text(f"{imports}Algorithm(loss=GSPO)\n")
    assert "algorithm.loss=GSPO: is a class; write GSPO()" in refused(
        ["train", "classes.py"], capsys, tmp_path, monkeypatch
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('environment=Ledger(), num_steps="3"', "num_steps='3': must be a whole number"),
        ("environment=None", "environment=None: give an environment"),
    ],
)
@pytest.mark.filterwarnings("ignore:The field")  # tyro says so too
def test_values_of_another_type_in_a_recipe_are_named(options, words, capsys, tmp_path, monkeypatch):
    imports = "from lockstep.config import Run\nfrom lockstep.environments.ledger import Ledger\n"
    (tmp_path / "typed.py").write_text(f"{imports}run = Run(name='typed', {options})\n")
    assert words in refused(["train", "typed.py"], capsys, tmp_path, monkeypatch)


def test_a_recipes_own_bug_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("int('four')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="four"):
        main(["train", "broken.py"])


def test_a_recipe_without_a_run(capsys, tmp_path, monkeypatch):
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "has no module-level `run" in refused(["train", "empty.py"], capsys, tmp_path, monkeypatch)


def test_a_model_without_a_chat_format(capsys, tmp_path, monkeypatch):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    tokenizer.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text('{"model_type": "llama"}')
    line = refused(["train", RECIPE, "--model", str(tmp_path / "plain")], capsys, tmp_path, monkeypatch)
    assert "chat_template" in line


@pytest.mark.parametrize(
    ("rows", "words"),
    [(None, ["train.jsonl", "--environment.data"]), ('{"question": "?"}\n', ["train.jsonl:1", "answer"])],
)
def test_data_that_is_missing_or_malformed(rows, words, capsys, tmp_path, monkeypatch):
    if rows is not None:
        (tmp_path / "train.jsonl").write_text(rows)
        (tmp_path / "test.jsonl").write_text(rows)
    recipe = Path(__file__).parent.parent / "recipes" / "gsm8k.py"
    line = refused(["train", str(recipe), "--data", str(tmp_path)], capsys, tmp_path, monkeypatch)
    assert not [word for word in words if word not in line], line


def test_a_bug_of_ours_is_no_mistake_of_the_users(monkeypatch):
    def broken(arguments):
        raise ValueError("a bug")

    monkeypatch.setattr("lockstep.cli._train", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["train"])


def test_resume_with_other_options_names_them(capsys, tmp_path, monkeypatch):
    from lockstep.config import as_dict
    from lockstep.observe.recorder import Recorder
    from lockstep.options import load_recipe

    run = load_recipe(Path(RECIPE))["run"]
    with Recorder(tmp_path / "old", tensorboard=False) as recorder:
        recorder.write_config(as_dict(run))
    line = refused(["train", RECIPE, "--resume", "old", "--seed", "5"], capsys, tmp_path, monkeypatch)
    assert "seed was 0, is 5" in line


def test_help_is_quick_and_needs_no_torch():
    code = "import sys; from lockstep.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(RECIPE).parent.parent)
    assert done.returncode == 0
    assert "train RECIPE" in done.stdout
