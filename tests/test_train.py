"""The whole: the real loop end to end, and resume that cannot be told from never having stopped."""

import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstep import cli
from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.kl import KLPenalty
from lockstep.cli import main
from lockstep.config import ConfigError
from lockstep.environments.ledger import Ledger
from lockstep.observe.alarms import Alarms
from lockstep.observe.recorder import read_config, read_metrics, read_trajectories
from lockstep.options import load_recipe
from lockstep.session import Session
from lockstep.setup import make_learner
from lockstep.train import train
from lockstep.trainer.critic import OwnCritic, SharedCritic
from lockstep.trainer.optimizer import Optimizer
from lockstep.types import InvariantError, UserError

RECIPE = Path(__file__).with_name("quick_recipe.py")
TIMED = ("time/", "tokens_per_s/")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return dataclasses.replace(load_recipe(RECIPE)["run"], runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def finished(run):
    """An uninterrupted run."""
    return train(run)


def timeless(directory):
    """A run's metrics without what a clock decides."""
    return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in read_metrics(directory)]


def weights(directory, name="rl-000004"):
    return load_file(directory / "checkpoints" / name / "model.safetensors")


def assert_same_run(directory, finished):
    expected = weights(finished)
    assert all(torch.equal(value, expected[name]) for name, value in weights(directory).items())
    assert timeless(directory) == timeless(finished)
    ours, theirs = ([r.trajectory.turns for r in read_trajectories(d)] for d in (directory, finished))
    assert ours == theirs


def test_a_run_leaves_everything_that_is_promised(finished, run):
    assert read_config(finished)["num_steps"] == run.num_steps
    lines = read_metrics(finished)
    assert [(line["phase"], line["step"]) for line in lines] == (
        [("sft", i) for i in (1, 2, 3, 4)] + [("eval", 0)] + [("rl", i) for i in (1, 2, 3, 4)] + [("eval", 4)]
    )
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"rl-000002", "rl-000004"}
    assert list((finished / "tensorboard").iterdir())
    recorded = read_trajectories(finished, split="train")
    assert len(recorded) == run.num_steps * run.rollout.num_prompts * run.rollout.group_size


def test_on_policy_the_ratio_is_exactly_one_and_the_engine_agrees(finished):
    for line in read_metrics(finished):
        if line["phase"] == "rl":
            assert line["ratio/min"] == line["ratio/max"] == 1.0
            assert line["clip_fraction"] == 0.0
            assert line["grad_norm"] > 0
            assert 0 <= line["mismatch/kl"] < 1e-8
            assert line["mismatch/max_abs"] < 1e-4


def test_recorded_tokens_are_versioned_by_the_step_that_sampled_them(finished):
    for recorded in read_trajectories(finished, split="train"):
        assert {turn.weights_version for turn in recorded.trajectory.turns} == {recorded.step - 1}


def test_a_checkpoint_is_a_plain_hugging_face_folder(finished):
    folder = finished / "checkpoints" / "rl-000004"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    saved = weights(finished)
    assert all(torch.equal(p, saved[name]) for name, p in model.state_dict().items())
    assert tokenizer.decode(tokenizer("Ann has 12 apples.").input_ids) == "Ann has 12 apples."


def test_training_moves_every_parameter(finished):
    before = load_file(finished / "initial" / "model.safetensors")
    after = weights(finished)
    assert not [name for name, value in after.items() if torch.equal(value, before[name])]


def test_another_seed_is_another_run(run, finished):
    other = train(dataclasses.replace(run, seed=1, name="other"))
    assert timeless(other) != timeless(finished)


@pytest.mark.parametrize("newest", ["sft-000002", "sft-000004", "rl-000002"])
def test_resume_from_any_checkpoint_is_exact(run, finished, newest, tmp_path):
    """A run that stopped right after a checkpoint: rerun with every checkpoint kept, then cut off what came later."""
    kept = dataclasses.replace(run, runs=tmp_path, keep_checkpoints=10)
    directory = train(kept)
    phase = newest.split("-")[0]
    for path in (directory / "checkpoints").iterdir():
        if (path.name.startswith("rl"), path.name) > (phase == "rl", newest):
            shutil.rmtree(path)
    assert train(kept, resume=directory) == directory
    assert_same_run(directory, finished)


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(run, finished, tmp_path):
    """Beginning anew would write over what the run came to."""
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory)
    for path in (directory / "checkpoints").iterdir():
        (path / "optimizer.pt").unlink()
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    with pytest.raises(ConfigError, match=r"no checkpoint is whole: .*rl-000004 is torn \(optimizer.pt is missing\)"):
        train(run, resume=directory)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_a_finished_run_that_is_resumed_says_its_numbers_once(run, finished, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory)
    assert train(run, resume=directory) == directory
    assert timeless(directory) == timeless(finished)


def test_who_interrupts_is_told_how_to_go_on(run, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "save", interrupt)
    monkeypatch.setattr(cli, "_train", lambda _: train(dataclasses.replace(run, runs=tmp_path)))
    assert cli.main(["train", str(RECIPE)]) == 130
    said = capsys.readouterr().err
    assert said == f"lockstep: interrupted; go on with the same recipe and options and --resume {tmp_path / 'quick'}\n"


def test_a_full_disk_is_one_line_and_the_run_goes_on(run, finished, tmp_path, monkeypatch):
    full, made = dataclasses.replace(run, runs=tmp_path), []

    def fill(state, path):
        made.append(path)
        if len(made) == 2:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        save(state, path)

    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(UserError, match=r"could not be written \(.*unexpected pos.*\); free space .* --resume"):
            train(full)
    assert_same_run(train(full, resume=tmp_path / "quick"), finished)


def test_a_spoilt_line_of_metrics_is_named(run, finished, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(finished, directory)
    path = directory / "metrics.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(UserError, match=r"metrics.jsonl:1: not a line of metrics .*; delete it"):
        train(run, resume=directory)


RICH = {
    "own critic and adaptive KL": {
        "algorithm": Algorithm(
            advantages=GAE(), kl=KLPenalty(coefficient=0.1, target=1e-3, horizon=100), epochs=2, minibatches=2
        ),
        "critic": OwnCritic(optimizer=Optimizer(learning_rate=2e-3), warmup_steps=1),
    },
    "shared critic": {"algorithm": Algorithm(advantages=GAE()), "critic": SharedCritic()},
}


@pytest.mark.parametrize("name", RICH)
def test_resume_is_exact_with_all_that_a_learner_remembers(run, name, tmp_path):
    """Critic, value head, the adapted coefficient of the KL penalty, and its reference, which is read again."""
    rich = dataclasses.replace(run, runs=tmp_path, keep_checkpoints=10, **RICH[name])
    whole, cut = train(rich), train(rich)
    shutil.rmtree(cut / "checkpoints" / "rl-000004")
    assert train(rich, resume=cut) == cut
    assert_same_run(cut, whole)
    lines = [line for line in read_metrics(whole) if line["phase"] == "rl"]
    assert all(line["critic/error"] > 0 for line in lines)
    if rich.algorithm.kl is not None:
        # The critic warms up first: the policy does not move, and neither does the coefficient.
        assert len({line["reference/coefficient"] for line in lines}) == len(lines) - 1
        assert ["grad_norm" in line for line in lines] == [False, True, True, True]


def test_a_torn_checkpoint_is_passed_over(run, finished, tmp_path, capsys):
    kept = dataclasses.replace(run, runs=tmp_path)
    directory = train(kept)
    path = directory / "checkpoints" / "rl-000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    train(kept, resume=directory)
    assert "rl-000004 is torn (model.safetensors was changed or cut short)" in capsys.readouterr().out.replace(
        "\n", " "
    )
    assert_same_run(directory, finished)


def test_killed_and_resumed_is_exact(finished, tmp_path):
    """SIGKILL in the middle of reinforcement learning, then --resume, against the run that was never stopped."""
    command = [sys.executable, "-m", "lockstep.cli", "train", str(RECIPE), "--runs", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(RECIPE.parent.parent)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("reinforcement learning 3/4"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(60) == -signal.SIGKILL
    process.stdout.close()
    directory = tmp_path / "quick"
    assert not (directory / "checkpoints" / "rl-000004").exists()
    assert main(["train", str(RECIPE), "--runs", str(tmp_path), "--resume", str(directory)]) == 0
    assert_same_run(directory, finished)


def test_eval_repeats_the_number(finished, capsys):
    assert (
        main(["eval", str(finished / "checkpoints" / "rl-000004"), "--environment", str(RECIPE), "--threads", "1"]) == 0
    )
    shown = capsys.readouterr().out
    last = read_metrics(finished)[-1]
    for key in ("success_sampled", "success_greedy", "num_tokens"):
        row = next(line for line in shown.splitlines() if f" {key} " in line)
        assert f"{last['eval/' + key]:.4g}" in row


def test_sft_alone(run, tmp_path):
    directory = train(dataclasses.replace(run, runs=tmp_path), sft_only=True)
    assert [line["phase"] for line in read_metrics(directory)] == ["sft"] * 4 + ["eval"]
    AutoModelForCausalLM.from_pretrained(directory / "checkpoints" / "sft-000004")


def test_a_used_name_is_not_overwritten(run, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    again = train(run, sft_only=True)
    assert again.name == "quick-2"
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


@dataclass(frozen=True, kw_only=True)
class Hard(Ledger):
    """Of four tasks one's grader is down, and `num_equal` are worth as much whatever is said."""

    num_down: int = 1
    num_equal: int = 2

    async def grade(self, ending):
        kind = int(ending.task.id.split("/")[-1]) % 4
        if kind < self.num_down:
            raise RuntimeError("the grader is down")
        if kind < self.num_down + self.num_equal:
            return {"said": 0.25}
        return {"said": sum("".join(message.content for message in ending.messages[1:]).encode()) % 8 / 16}


def short(run, tmp_path, **options):
    """Without a cold start, and with few words."""
    return dataclasses.replace(
        run,
        runs=tmp_path,
        sft=dataclasses.replace(run.sft, num_steps=0),
        evaluation=dataclasses.replace(run.evaluation, num_tasks=1),
        tensorboard=False,
        **{"rollout": dataclasses.replace(run.rollout, max_turns=1, max_action_tokens=6), **options},
    )


def hard(run, tmp_path, *, num_down=2, num_equal=1, **options):
    """A step, with two rounds of other tasks for those that have no signal."""
    brief = short(run, tmp_path, num_steps=1, **options)
    environment = Hard(num_train=16, num_heldout=1, num_down=num_down, num_equal=num_equal)
    return dataclasses.replace(
        brief, environment=environment, rollout=dataclasses.replace(brief.rollout, max_refills=2)
    )


def test_groups_that_were_rejected_count_in_the_metrics(run, tmp_path):
    """Else a policy would look as good as the groups that it learns from."""
    directory = train(hard(run, tmp_path))
    (line,) = (line for line in read_metrics(directory) if line["phase"] == "rl")
    assert line["groups/rejected"] > 1
    kept, rejected = (
        [r.trajectory for r in read_trajectories(directory, split=split)] for split in ("train", "rejected")
    )
    recorded = kept + rejected
    graded = [t for t in recorded if t.error is None]
    assert len(kept) and len(kept) < len(graded) < len(recorded)  # some failed, others were all equal
    assert line["masked"] == pytest.approx(1 - len(graded) / len(recorded))
    assert line["reward"] == pytest.approx(sum(t.reward for t in graded) / len(graded))
    by_group = itertools.groupby(recorded, key=lambda t: t.id.rpartition("/")[0])
    rewards = [{t.reward for t in siblings if t.error is None} for _, siblings in by_group]
    assert line["groups/all_equal"] == pytest.approx(sum(len(each) < 2 for each in rewards) / len(rewards))
    num_sampled = line["tokens_per_s/rollout"] * line["time/rollout_s"]
    assert num_sampled == pytest.approx(sum(t.num_action_tokens for t in recorded))
    assert line["tokens_per_s/train"] * line["time/train_s"] == pytest.approx(sum(t.num_tokens for t in recorded))


def test_without_any_signal_there_is_no_update(run, tmp_path, capsys):
    """Not even by what pulls without a reward, such as a bonus for entropy."""
    starved = hard(run, tmp_path, num_down=1, num_equal=3, algorithm=Algorithm(entropy_coefficient=0.1))
    directory = train(starved)
    before = load_file(directory / "initial" / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in weights(directory, "rl-000001").items())
    said = capsys.readouterr().out.replace("\n", " ")
    assert "step 1: no update: no trajectory to train on: none has a signal" in said
    assert re.search(r"step 1: \d+ of \d+ trajectories are masked; the first says: Hard.reward raised .*down", said)
    (line,) = (line for line in read_metrics(directory) if line["phase"] == "rl")
    assert (line["update/epochs_done"], line["update/stopped_early"]) == (0, 0)
    assert "grad_norm" not in line and "ratio/max" not in line
    assert line["groups/all_equal"] == 1


def test_a_step_whose_every_trajectory_is_masked_stops_the_run_with_refills_too(run, tmp_path):
    with pytest.raises(UserError, match=r"trajectories are masked; .* --resume: .*the grader is down"):
        train(hard(run, tmp_path, num_down=4))


def test_a_run_that_an_alarm_stopped_goes_on_with_other_thresholds(run, tmp_path):
    """And only with the reference that its KL penalty measured from."""
    strict = short(
        run,
        tmp_path,
        num_steps=2,
        checkpoint_every=1,
        algorithm=Algorithm(epochs=2, kl=KLPenalty()),
        alarms=Alarms(update_kl_warn=None, update_kl_stop=1e-12, patience=2),
    )
    with pytest.raises(InvariantError, match=r"step 2: update/kl is .*split 'alarm'"):
        train(strict)
    directory, loose = tmp_path / "quick", dataclasses.replace(strict, alarms=Alarms(update_kl_stop=None))
    reference = directory / "reference"
    reference.rename(directory / "elsewhere")
    with pytest.raises(ConfigError, match="reference is gone, and the KL penalty measures from it"):
        train(loose, resume=directory)
    (directory / "elsewhere").rename(reference)
    assert train(loose, resume=directory) == directory
    assert [line["step"] for line in read_metrics(directory) if line["phase"] == "rl"] == [1, 2]
    assert read_config(directory)["alarms"]["update_kl_stop"] is None


def test_the_reference_is_the_model_that_reinforcement_learning_begins_with(run, gpt_oss, tmp_path):
    """Not what a run that died before its first checkpoint left there."""
    penalised = dataclasses.replace(run, algorithm=Algorithm(kl=KLPenalty()))
    with pytest.raises(ConfigError, match="reference is gone"):
        make_learner(penalised, gpt_oss, tmp_path, begun=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "left").write_text("behind")
    reference = make_learner(penalised, gpt_oss, tmp_path, begun=False).reference
    expected = dict(gpt_oss.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in reference.model.named_parameters())
    assert not (tmp_path / "reference" / "left").exists()
    with torch.no_grad():
        gpt_oss.lm_head.weight.zero_()
    again = make_learner(penalised, gpt_oss, tmp_path, begun=True).reference
    assert again.model.lm_head.weight.abs().sum() > 0
