"""Checkpoints: whole or not at all, the newest whole one is used, and they are plain Hugging Face folders."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstep.model.loading import load_model
from lockstep.model.tiny import TinyModel, build_tiny, build_tokenizer
from lockstep.trainer import checkpoint as module
from lockstep.trainer.checkpoint import Progress, find_fault, newest_checkpoint, read_state, save_checkpoint
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer

SIZES = TinyModel(vocab_size=380, hidden_size=16, intermediate_size=8, num_layers=1, num_heads=2, num_experts=2)
CONFIG = {"seed": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["Ann has 12 apples."], SIZES.vocab_size)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder, ["Ann has 12 apples."], SIZES, seed=0)
    return folder


@pytest.fixture
def trainer(tiny_folder):
    return Trainer(load_model(tiny_folder), Optimizer(learning_rate=1e-2))


def save_as(directory, trainer, tokenizer, progress, keep):
    return save_checkpoint(
        directory, trainer.model, trainer.state_dict(), tokenizer, progress, config=CONFIG, keep=keep
    )


@pytest.fixture
def save(tmp_path, trainer, tokenizer):
    """save(step): take a step of the optimiser, then write the checkpoint."""

    def save(step, phase="rl", keep=10):
        for parameter in trainer.model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5 + step)
        trainer.updater.optimizer.step()
        return save_as(tmp_path, trainer, tokenizer, Progress(phase=phase, step=step), keep)

    return save


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_is_a_plain_hugging_face_folder(save, trainer, tokenizer):
    folder = save(7)
    assert folder.name == "rl-000007"
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in trainer.model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder).encode("Ann has 7") == tokenizer.encode("Ann has 7")
    assert json.loads((folder / "lockstep.json").read_text()) == CONFIG


def test_the_optimiser_comes_back_exactly(save, trainer, tmp_path):
    save(1)
    (path, _), _ = newest_checkpoint(tmp_path)
    resumed = Trainer(load_model(path), Optimizer(learning_rate=1e-2))
    resumed.load_state_dict(read_state(path))
    for one in (trainer, resumed):
        for parameter in one.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        one.optim_step(1e-3)
    expected = trainer.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_none_where_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / "missing") == (None, [])


def test_the_newest_is_the_latest_of_reinforcement_learning(save, tmp_path):
    for phase, step in (("rl", 2), ("sft", 400), ("rl", 10)):
        save(step, phase)
    (path, progress), passed_over = newest_checkpoint(tmp_path)
    assert (path.name, progress, passed_over) == ("rl-000010", Progress(phase="rl", step=10), [])
    shutil.rmtree(tmp_path / "rl-000010")
    shutil.rmtree(tmp_path / "rl-000002")
    assert newest_checkpoint(tmp_path)[0][1] == Progress(phase="sft", step=400)


def damage_truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def damage_one_bit(folder):
    path = folder / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def damage_state_missing(folder):
    (folder / "state.json").unlink()


def damage_state_cut(folder):
    path = folder / "state.json"
    path.write_bytes(path.read_bytes()[:-20])


def damage_state_emptied(folder):
    (folder / "state.json").write_text("{}")


def damage_state_of_another_kind(folder):
    (folder / "state.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (damage_truncated, "model.safetensors was changed or cut short"),
        (damage_one_bit, "optimizer.pt was changed or cut short"),
        (damage_tokenizer, "tokenizer.json is missing"),
        (damage_state_missing, "no readable state.json"),
        (damage_state_cut, "no readable state.json"),
        (damage_state_emptied, "no readable state.json"),
        (damage_state_of_another_kind, "no readable state.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(save, tmp_path, damage, fault):
    save(1)
    save(2)
    assert find_fault(tmp_path / "rl-000002") is None
    damage(tmp_path / "rl-000002")
    (path, progress), (remark,) = newest_checkpoint(tmp_path)
    assert (path.name, progress.step) == ("rl-000001", 1)
    assert fault in remark
    assert "rl-000002" in remark
    damage(tmp_path / "rl-000001")
    found, remarks = newest_checkpoint(tmp_path)
    assert found is None and len(remarks) == 2


def test_only_the_newest_are_kept(save, tmp_path):
    for phase, step in (("sft", 5), ("rl", 1), ("rl", 2)):
        save(step, phase, keep=2)
    assert names(tmp_path) == ["rl-000001", "rl-000002"]
    save(3, keep=1)
    assert names(tmp_path) == ["rl-000003"]


@pytest.mark.parametrize("at", ["write", "rename"])
def test_a_save_that_is_cut_short_leaves_the_one_before(save, tmp_path, monkeypatch, at):
    """The half-written folder has another name; the next save of that step replaces it."""
    save(1)

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((module, "_write_synced") if at == "write" else (module.os, "replace")), dies)
        with pytest.raises(KeyboardInterrupt):
            save(2)
    assert names(tmp_path) == [".rl-000002.tmp", "rl-000001"]
    assert newest_checkpoint(tmp_path)[0][1].step == 1
    save(2)
    assert names(tmp_path) == ["rl-000001", "rl-000002"]
    assert newest_checkpoint(tmp_path)[0][1].step == 2


def test_a_step_saved_again_replaces_the_first(save, tmp_path, trainer):
    save(1)
    save(1)
    assert names(tmp_path) == ["rl-000001"]
    loaded = load_model(newest_checkpoint(tmp_path)[0][0]).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in trainer.model.state_dict().items())


def test_a_tokenizer_with_several_chat_templates_is_saved_whole(trainer, tokenizer, tmp_path):
    """transformers writes all but the default into a folder of their own."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    named = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, chat_template={"default": template, "rag": template}
    )
    path = save_as(tmp_path, trainer, named, Progress(phase="rl", step=1), 1)
    assert find_fault(path) is None
    (extra,) = path.glob("*/*.jinja")
    extra.unlink()
    assert find_fault(path) == f"{extra.relative_to(path)} is missing"
