"""`lockstep plan`: the published sizes of GPT-OSS, the tiny model's own, and every byte by hand."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.kl import KLPenalty
from lockstep.algorithm.named import named
from lockstep.cli import main
from lockstep.config import ConfigError, Run
from lockstep.environments.ledger import Ledger
from lockstep.model.tiny import TinyModel, build_model, build_tokenizer
from lockstep.plan import plan, show
from lockstep.rollout.trajectory import Rollout
from lockstep.trainer.critic import OwnCritic


def run(**changes) -> Run:
    return dataclasses.replace(Run(name="p", environment=Ledger()), **changes)


def real(model: str, **changes) -> Run:
    from lockstep.model.precision import Precision

    return run(model=model, precision=Precision(dtype="bfloat16"), **changes)


@pytest.mark.parametrize(
    ("model", "parameters", "active"), [("openai/gpt-oss-20b", 20.91, 3.61), ("openai/gpt-oss-120b", 116.83, 5.13)]
)
def test_gpt_oss_has_the_parameters_of_its_model_card(model, parameters, active):
    """arXiv:2508.10925, table 1: billions in total, and active without the embedding."""
    planned = plan(real(model))
    assert round(planned.parameters / 1e9, 2) == parameters
    assert round(planned.active / 1e9, 2) == active


def test_the_tiny_model_is_planned_as_it_is_built():
    sizes = TinyModel(num_layers=2, num_experts=4)
    built = build_model(sizes, build_tokenizer(["a b c"], sizes.vocab_size), seed=0)
    planned = plan(run(tiny=sizes))
    assert planned.parameters == planned.trained == sum(p.numel() for p in built.parameters())
    experts = sum(p.numel() for name, p in built.named_parameters() if ".experts." in name)
    assert planned.active == planned.parameters - sizes.vocab_size * sizes.hidden_size - experts // 2
    assert planned.weights_bytes == 4 * planned.parameters
    assert planned.optimizer_bytes == 12 * planned.parameters


def test_bfloat16_keeps_masters():
    planned = plan(real("openai/gpt-oss-20b"))
    assert planned.weights_bytes == 2 * planned.parameters
    assert planned.optimizer_bytes == 16 * planned.parameters
    assert planned.others_bytes == 0


def test_what_is_frozen_is_not_learned():
    planned = plan(real("openai/gpt-oss-20b", freeze=("*.experts.*",)))
    attention = (
        2880 * (4096 + 2 * 512) + (4096 + 2 * 512) + 4096 * 2880 + 2880 + 64
    )  # q, k, v, output, their biases, sinks
    layer = attention + 2880 * 32 + 32 + 2 * 2880  # router, norms
    assert planned.trained == 24 * layer + 2880 + 2 * 201088 * 2880  # last norm, embedding, head
    assert planned.optimizer_bytes == 16 * planned.trained


def test_a_reference_and_a_critic_are_counted():
    planned = plan(real("openai/gpt-oss-20b", algorithm=Algorithm(kl=KLPenalty(coefficient=0.001))))
    assert planned.others_bytes == 2 * planned.parameters
    planned = plan(real("openai/gpt-oss-20b", algorithm=named("ppo"), critic=OwnCritic(warmup_steps=0)))
    assert planned.others_bytes == (2 + 16) * planned.parameters


def test_keys_and_values_are_those_of_full_layers_and_of_windows():
    """12 layers of each kind, 8 heads of 64, key and value, 2 bytes."""
    planned = plan(real("openai/gpt-oss-20b", rollout=Rollout(max_tokens=1000)))
    assert planned.cache_bytes == 12 * (1000 + 128) * 8 * 64 * 2 * 2
    planned = plan(real("openai/gpt-oss-20b", rollout=Rollout(max_tokens=100)))
    assert planned.cache_bytes == 24 * 100 * 8 * 64 * 2 * 2


def test_a_step_is_counted_at_its_longest():
    rollout = Rollout(num_prompts=3, group_size=5, max_tokens=100)
    planned = plan(real("openai/gpt-oss-20b", rollout=rollout, algorithm=Algorithm(epochs=2)))
    assert (planned.trajectories, planned.tokens) == (15, 1500)
    attention = 4 * 64 * 64 * 24 * 50  # 24 layers, windows and full ones alike see 50 keys on average
    forward = 2 * planned.active + attention
    assert planned.sample_flops == forward * 1500
    assert planned.train_flops == 3 * forward * 1500 * 2
    again = plan(real("openai/gpt-oss-20b", rollout=rollout, gradient_checkpointing=True))
    assert again.train_flops == 4 * forward * 1500


def test_windows_see_no_more_than_they_are_wide():
    planned = plan(real("openai/gpt-oss-20b", rollout=Rollout(num_prompts=1, group_size=2, max_tokens=1000)))
    attention = 4 * 64 * 64 * (12 * 500 + 12 * 128)
    assert planned.sample_flops == (2 * planned.active + attention) * 2000


def test_refills_baselines_critics_and_references_take_their_passes():
    rollout = Rollout(num_prompts=3, group_size=5, max_tokens=100)
    plain = plan(real("openai/gpt-oss-20b", rollout=rollout))
    refilled = plan(real("openai/gpt-oss-20b", rollout=dataclasses.replace(rollout, max_refills=2)))
    assert (refilled.trajectories, refilled.sampled_trajectories) == (15, 45)
    assert refilled.sample_flops == 3 * plain.sample_flops and refilled.train_flops == plain.train_flops
    assert plan(real("openai/gpt-oss-20b", rollout=rollout, algorithm=named("remax"))).sampled_trajectories == 18
    penalised = plan(real("openai/gpt-oss-20b", rollout=rollout, algorithm=Algorithm(kl=KLPenalty(coefficient=1e-3))))
    assert penalised.train_flops == pytest.approx(plain.train_flops * 4 / 3)
    critic = OwnCritic(warmup_steps=0)
    judged = plan(real("openai/gpt-oss-20b", rollout=rollout, algorithm=named("ppo"), critic=critic))
    assert judged.train_flops == pytest.approx(plain.train_flops * 7 / 3)


def test_a_folder_is_planned_by_its_config_alone(tmp_path):
    sizes = TinyModel(num_layers=2)
    build_model(sizes, build_tokenizer(["a b c"], sizes.vocab_size), seed=0).config.save_pretrained(tmp_path)
    assert plan(run(model=str(tmp_path))).parameters == plan(run(tiny=sizes)).parameters


def test_a_model_whose_shape_is_not_known(tmp_path):
    with pytest.raises(ConfigError, match="model='openai/gpt-oss': no folder, and its shape is not known; give its"):
        plan(run(model="openai/gpt-oss"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(ConfigError, match=r"its config.json cannot be read .*; give another folder") as caught:
        plan(run(model=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_the_table_names_the_run():
    said = io.StringIO()
    show(real("openai/gpt-oss-120b"), Console(file=said, width=100))
    assert "plan of p: openai/gpt-oss-120b, Ledger" in said.getvalue()
    assert "116,829,156,672" in said.getvalue()
    assert "0.0 MiB" not in said.getvalue()  # there is neither critic nor reference


def test_the_command(capsys):
    assert main(["plan", "recipes/ledger.py", "--rollout.group-size", "4"]) == 0
    assert "1,137,328" in capsys.readouterr().out
    assert main(["plan", "recipes/gsm8k.py", "--data", "no-such-folder"]) == 2
    assert "no file no-such-folder/train.jsonl" in capsys.readouterr().err
    assert main(["plan", "recipes/ledger.py", "--resume", "runs/x"]) == 2
    assert "nothing is run; leave it out" in capsys.readouterr().err
