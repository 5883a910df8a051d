"""The whole loop under each option of the model: exact, bfloat16, several updates a batch, frozen, checkpointed."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lockstep import evaluate_checkpoint
from lockstep.algorithm.algorithm import Algorithm
from lockstep.cli import main
from lockstep.config import ConfigError
from lockstep.model.precision import Precision
from lockstep.observe.recorder import read_metrics
from lockstep.options import load_recipe
from lockstep.train import train
from lockstep.trainer import trainer as trainer_module
from lockstep.trainer.trainer import Trainer
from lockstep.types import InvariantError

RECIPE = Path(__file__).with_name("quick_recipe.py")


@pytest.fixture
def run(tmp_path):
    quick = load_recipe(RECIPE)["run"]
    return dataclasses.replace(
        quick,
        runs=tmp_path,
        sft=dataclasses.replace(quick.sft, num_steps=2),
        num_steps=2,
        checkpoint_every=1,
        keep_checkpoints=10,
        tensorboard=False,
    )


def steps(directory):
    """The metrics of reinforcement learning, without what a clock decides."""
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "tokens_per_s/"))}
        for line in read_metrics(directory)
        if line["phase"] == "rl"
    ]


def weights(directory, name="rl-000002"):
    return load_file(directory / "checkpoints" / name / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_engine_and_trainer_agree_in_every_bit(run, dtype):
    run = dataclasses.replace(run, precision=Precision(dtype=dtype, deterministic=True))
    first, second = train(run), train(run)
    for line in steps(first):
        assert line["mismatch/kl"] == line["mismatch/max_abs"] == 0.0
        assert line["grad_norm"] > 0
        assert line["routes/agreement"] == 1.0
    assert steps(first) == steps(second)
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_a_processor_on_which_exact_mode_does_not_hold_is_found_out(run, monkeypatch):
    monkeypatch.setattr(
        "lockstep.engine.embedded.EmbeddedEngine._exact_logprobs",
        lambda self, hidden, tokens, requests: [-1.0 - 1e-7] * len(tokens),
    )
    with pytest.raises(InvariantError, match=r"precision\.deterministic: engine and trainer differ by up to"):
        train(dataclasses.replace(run, precision=Precision(deterministic=True)))


def test_bfloat16_trains_resumes_exactly_and_evaluates(run, tmp_path, monkeypatch):
    """Weights in bfloat16 alone would lose the masters' lower digits at the resume."""
    run = dataclasses.replace(run, precision=Precision(dtype="bfloat16"))
    finished, cut = train(run), train(run)
    shutil.rmtree(cut / "checkpoints" / "rl-000002")
    train(run, resume=cut)
    saved = weights(finished)
    assert saved["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert all(torch.equal(value, saved[name]) for name, value in weights(cut).items())
    assert steps(cut) == steps(finished)
    assert all(0 < line["mismatch/max_abs"] < 0.5 for line in steps(finished))
    dtypes, load = [], evaluate_checkpoint.load_model
    monkeypatch.setattr(
        evaluate_checkpoint, "load_model", lambda source, dtype: dtypes.append(dtype) or load(source, dtype=dtype)
    )
    main(["eval", str(finished / "checkpoints" / "rl-000002"), "--threads", "1", "--out", str(tmp_path / "again")])
    (again,), (*_, last) = read_metrics(tmp_path / "again"), (m for m in read_metrics(finished) if m["phase"] == "eval")
    assert all(again[key] == value for key, value in last.items() if key.startswith("eval/"))
    assert dtypes == [torch.bfloat16]


@pytest.mark.parametrize("replay", [True, False])
def test_several_updates_a_batch(run, replay, monkeypatch):
    """The first is on policy, ratio exactly 1; the last is not, and has the routes of the first."""
    passes, pass_ = [], Trainer.forward_backward
    known, losses = [], Algorithm.token_losses
    norms, step = [], Trainer.optim_step
    monkeypatch.setattr(
        Trainer,
        "forward_backward",
        lambda self, batch, loss: passes.append((batch, pass_(self, batch, loss))) or passes[-1][1],
    )
    monkeypatch.setattr(
        Algorithm,
        "token_losses",
        lambda self, logprobs, entropies, tokens, kl: (
            known.append(tokens) or losses(self, logprobs, entropies, tokens, kl)
        ),
    )
    monkeypatch.setattr(Trainer, "optim_step", lambda self, rate: norms.append(step(self, rate)) or norms[-1])
    found = steps(train(dataclasses.replace(run, algorithm=Algorithm(epochs=3), replay_routes=replay)))
    updates = norms[run.sft.num_steps :]
    assert len(updates) == 3 * len(found)
    assert min(updates) > 0
    for i, line in enumerate(found):
        assert line["first_epoch/ratio/min"] == line["first_epoch/ratio/max"] == 1.0
        assert line["first_epoch/clip_fraction"] == 0.0
        assert line["ratio/min"] < 1 < line["ratio/max"]
        assert line["grad_norm"] == max(updates[3 * i : 3 * i + 3])
        assert line["update/epochs_done"] == 3
        assert ("routes/agreement" in line) == replay
    (sampled, first), *later = passes[run.sft.num_steps :][:3]
    assert (sampled.routed_experts is not None, sampled.own_routes) == (replay, False)
    assert torch.equal(known[0].old_logprobs, first.logprobs)
    for (microbatch, again), tokens in zip(later, known[1:3], strict=True):
        assert torch.equal(tokens.old_logprobs, first.logprobs)
        assert not torch.equal(again.logprobs, first.logprobs)
        assert microbatch.own_routes == replay
        if replay:
            assert torch.equal(again.routes, first.routes)
            assert torch.equal(microbatch.routed_experts, first.routes)
        else:
            assert microbatch.routed_experts is None
            assert again.routes is None


def test_frozen_parameters_stay(run):
    directory = train(dataclasses.replace(run, freeze=("*.router.*", "*embed_tokens*")))
    before = load_file(directory / "initial" / "model.safetensors")
    moved = {name for name, value in weights(directory).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if ".router." not in name and "embed_tokens" not in name}


def test_gradient_checkpointing_is_the_same_run(run, monkeypatch):
    prepared, prepare = [], trainer_module.checkpoint_layers
    monkeypatch.setattr(trainer_module, "checkpoint_layers", lambda m: prepared.append(prepare(m)) or prepared[-1])
    plain, checkpointed = train(run), train(dataclasses.replace(run, gradient_checkpointing=True))
    assert [len(layers) for layers in prepared] == [run.tiny.num_layers] * 2  # the cold start's trainer and RL's
    assert steps(plain) == steps(checkpointed)
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(checkpointed).items())


def test_a_run_of_an_older_version_is_not_resumed(run):
    directory = train(run)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    del config["precision"]
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="another version of Lockstep wrote it, without precision; start a new run"):
        train(run, resume=directory)


def test_eval_of_a_deterministic_run_wants_one_thread(run, capsys):
    directory = train(dataclasses.replace(run, num_steps=1, precision=Precision(deterministic=True)))
    checkpoint = str(directory / "checkpoints" / "rl-000001")
    assert main(["eval", checkpoint, "--threads", "2"]) == 2
    assert "set threads to 1" in capsys.readouterr().err
    assert main(["eval", checkpoint]) == 0  # the run's own
