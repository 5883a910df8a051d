"""`lockstep eval` on other environments than the checkpoint's own, and what it says when it cannot."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from lockstep import evaluate_checkpoint
from lockstep.cli import main
from lockstep.observe.recorder import read_metrics, read_trajectories
from lockstep.options import load_recipe
from lockstep.train import train

RECIPE = Path(__file__).with_name("quick_recipe.py")
DATA = Path(os.environ.get("LOCKSTEP_DATA", Path(__file__).parents[2] / "shared" / "data"))
SHORT = ["--num-tasks", "2", "--rollout.max-tokens", "4000", "--rollout.max-turns", "2"]
ROOM = ["--rollout.max-tokens", "400"]  # the checkpoint's own prompts are shorter
EASY = ["--environment.difficulty=easy", "--environment.num-people=240", "--environment.num-heldout=2"]
SHOP = """
import asyncio
from dataclasses import dataclass

from lockstep.config import Evaluation, Run
from lockstep.rollout.environment import ToolEnvironment
from lockstep.rollout.tool import InfrastructureError
from lockstep.types import Message, Task, UserError


@dataclass(frozen=True, kw_only=True)
class Shop(ToolEnvironment):
    kind: str = "plain"
    count: int = 3

    def tasks(self, split):
        opening = (Message(role="user", content="tea or ink?"),)
        return [Task(id=f"{split}/{i}", messages=opening, data={}) for i in range(self.count)]

    async def open(self, task):
        match self.kind:
            case "down":
                raise InfrastructureError("no server at 127.0.0.1:9")
            case "broken":
                raise KeyError("price")
            case "unset":
                raise UserError("environment.kind=unset: set it")
            case "partly" if task.id.endswith("/1"):
                raise KeyError("price")
            case "late":
                await asyncio.Event().wait()

    async def release(self, state):
        if self.kind == "unclosable":
            await asyncio.Event().wait()

    async def grade(self, ending):
        if self.kind == "ungraded":
            raise InfrastructureError("the judge is gone")
        return {"right": 0.5}


@dataclass(frozen=True, kw_only=True)
class Bazaar(Shop):
    pass


run = Run(name="shop", environment=Shop(count=5), evaluation=Evaluation(success_reward=0.4))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One of a Ledger whose model is shown no tools."""
    quick = load_recipe(RECIPE)["run"]
    runs = tmp_path_factory.mktemp("runs")
    small = {"num_steps": 1, "checkpoint_every": 1, "tensorboard": False, "runs": runs}
    small["evaluation"] = dataclasses.replace(quick.evaluation, num_tasks=1)
    directory = train(dataclasses.replace(quick, sft=dataclasses.replace(quick.sft, num_steps=1), **small))
    return directory / "checkpoints" / "rl-000001"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory of its own, with a recipe; what is imported from there is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "shop.py").write_text(SHOP)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def evaluated(checkpoint, *options):
    """The numbers, which went to the folder `numbers`."""
    shutil.rmtree("numbers", ignore_errors=True)
    assert main(["eval", str(checkpoint), *options, "--threads", "1", "--out", "numbers"]) == 0
    (line,) = read_metrics(Path("numbers"))
    return line


def refused(capsys, checkpoint, *options):
    """The one line that is said."""
    assert main(["eval", str(checkpoint), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gsm8k", ["--data", "DATA/gsm8k"]),
        ("gsm8k", ["--data=DATA/gsm8k", "--environment.no-calculator"]),
        ("retool", ["--environment.num-heldout", "4"]),
        ("verifyif", ["--data", "DATA"]),
        ("recruiter", EASY),
    ],
)
def test_any_checkpoint_on_any_environment(checkpoint, name, options):
    if any("DATA" in option for option in options) and not (DATA / "gsm8k").is_dir():
        pytest.skip(f"no data at {DATA}: set LOCKSTEP_DATA to its folder")
    options = [option.replace("DATA", str(DATA)) for option in options]
    numbers = evaluated(checkpoint, "--environment", name, *options, *SHORT)
    assert numbers["eval/num_turns"] > 0
    assert numbers["eval/masked"] == 0
    assert len(read_trajectories(Path("numbers"), split="heldout_sampled")) == 2


def test_a_prompt_without_room_is_refused(checkpoint, capsys):
    line = refused(capsys, checkpoint, "--environment", "recruiter", *EASY)
    assert "rollout.max_tokens=160: the prompt of task recruiter/heldout/" in line


def test_no_more_tokens_than_the_model_has_positions(checkpoint, capsys):
    assert "the model has" in refused(capsys, checkpoint, "--rollout.max-tokens", "100000")


def settings(checkpoint, *options):
    return evaluate_checkpoint._settings(str(checkpoint), evaluate_checkpoint._known(checkpoint), list(options))[1]


def test_what_the_checkpoint_says_is_for_its_own_environment(checkpoint):
    own, other = settings(checkpoint), settings(checkpoint, "--environment", "ledger")
    assert (own.harmony.tool_definitions, other.harmony.tool_definitions) == (False, True)
    assert (own.environment.num_train, other.environment.num_train) == (64, type(other.environment)().num_train)
    assert own.rollout == other.rollout
    assert own.rollout.max_tokens == 160
    assert (own.threads, own.seed) == (1, 0)
    changed = settings(checkpoint, "--rollout.max-turns", "7", "--harmony.tool-definitions", "--environment.seed", "5")
    assert changed.rollout == dataclasses.replace(own.rollout, max_turns=7)
    assert (changed.harmony.tool_definitions, changed.harmony.system) == (True, False)
    assert (changed.environment.seed, changed.environment.num_train) == (5, 64)


def test_success_is_what_the_environments_own_run_calls_so(checkpoint):
    changed = json.loads((checkpoint / "lockstep.json").read_text())
    changed["evaluation"]["success_reward"] = 0.25
    found = {
        name: evaluate_checkpoint._settings("x", changed, options)[1].success_reward
        for name, options in {
            "own": [],
            "other": ["--environment", "ledger"],
            "recipe": ["--environment", "recipes/shop.py"],
            "option": ["--success-reward", "0.75"],
        }.items()
    }
    assert found == {"own": 0.25, "other": 1.0, "recipe": 0.4, "option": 0.75}


@pytest.mark.parametrize(
    ("options", "title", "count"),
    [
        ([], "on Shop, split heldout: 1 of 5 tasks", 1),  # as many as the checkpoint's run took
        (["--num-tasks", "9"], "on Shop, split heldout: 5 tasks", 5),
        (["--num-tasks", "2"], "on Shop, split heldout: 2 of 5 tasks", 2),
        (["--split", "all"], "on Shop, split all: 10 tasks", 10),
        (["--split", "all", "--environment.count", "2", "--num-tasks", "3"], "on Shop, split all: 3 of 4 tasks", 3),
    ],
)
def test_splits(checkpoint, capsys, options, title, count):
    numbers = evaluated(checkpoint, "--environment", "recipes/shop.py", *options, *ROOM)
    assert f"{checkpoint} {title}" in capsys.readouterr().out.splitlines()
    split = "all" if "all" in options else "heldout"
    assert len(read_trajectories(Path("numbers"), split=f"{split}_greedy")) == count
    assert numbers["eval/success_greedy"] == 1


def test_all_is_the_training_tasks_and_then_the_heldout_ones():
    shop = load_recipe(Path("recipes/shop.py"))["Shop"](count=2)
    assert [task.id for task in evaluate_checkpoint.all_tasks(shop)] == ["train/0", "train/1", "heldout/0", "heldout/1"]


def test_all_of_math500_is_500(checkpoint):
    if not (DATA / "math500").is_dir():
        pytest.skip(f"no data at {DATA}: set LOCKSTEP_DATA to its folder")
    chosen = settings(checkpoint, "--environment", "retool", "--data", str(DATA / "math500"))
    assert len(evaluate_checkpoint.all_tasks(chosen.environment)) == 500


@pytest.mark.parametrize("name", ["recipes/shop.py:Bazaar", "shop:Bazaar", "recipes/shop.py:Shop"])
def test_environments_of_ones_own(checkpoint, name):
    if name == "shop:Bazaar":
        shutil.copy("recipes/shop.py", "shop.py")  # a module in the working directory
    count = 5 if name == "recipes/shop.py:Shop" else 3  # as the recipe has it, or as the class has it
    assert settings(checkpoint, "--environment", name).environment.count == count
    assert evaluated(checkpoint, "--environment", name, *ROOM)["eval/num_turns"] > 0


def test_a_checkpoint_of_a_recipe_wants_its_recipe(checkpoint, capsys, place):
    own = place / "own"
    shutil.copytree(checkpoint, own)
    known = json.loads((own / "lockstep.json").read_text())
    known |= {"environment_class": "recipe_shop.Shop", "environment": {"kind": "plain", "count": 4}}
    (own / "lockstep.json").write_text(json.dumps(known))
    assert "--environment recipes/shop.py" in refused(capsys, own)
    assert settings(own, "--environment", "recipes/shop.py").environment.count == 4  # as it was trained
    known["environment"]["gone"] = 1
    (own / "lockstep.json").write_text(json.dumps(known))
    line = refused(capsys, own, "--environment", "recipes/shop.py")
    assert "environment recipe_shop.Shop cannot be made again" in line
    assert "'gone'" in line
    (own / "lockstep.json").write_text("{")
    assert "lockstep.json is not JSON" in refused(capsys, own)


def test_an_environment_around_one_of_a_recipe_wants_that_recipe():
    inner = {"class": "recipe_gone.Shop"}
    with pytest.raises(evaluate_checkpoint.ConfigError, match=r"--environment recipes/gone\.py"):
        evaluate_checkpoint._rebuilt(_Around, {"inner": inner}, "environment")


@dataclasses.dataclass
class _Around:
    inner: "evaluate_checkpoint.Any"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--environment", "json:loads"], ["'json:loads'", "it is a function"]),
        (["--environment", "json:JSONDecoder"], ["JSONDecoder has no method tasks"]),
        (["--environment", "json:Nothing"], ["'json:Nothing'", "no such class"]),
        (["--environment", "plain:Plain"], ["Plain is no dataclass", "@dataclass"]),
        (["--environment", "torn:Shop"], ["torn cannot be loaded: SyntaxError", "torn.py, line 1"]),
        (["--environment", "needy:Shop"], ["needy cannot be loaded: ModuleNotFoundError", "'nobody_has_this'"]),
        (["--environment", "recipes/torn.py"], ["recipes/torn.py cannot be loaded: SyntaxError"]),
        (["--environment", "recipes/needy.py"], ["cannot be loaded: ModuleNotFoundError", "'nobody_has_this'"]),
        (["--environment", "recipes/shpo.py"], ["no recipe recipes/shpo.py", "did you mean recipes/shop.py?"]),
        (["--environment", "recipes/shop.py:Gone"], ["no such class"]),
        (["--environment", "recipe_gone.Gone"], ["--environment recipes/gone.py"]),
        (["--environment", ":Shop"], ["no environment ':Shop'"]),
        (["--environment", "..Shop"], ["no environment '..Shop'"]),
        (["--environment", "ledgr"], ["did you mean ledger?"]),
        (["--environment", ""], ["--environment ''"]),
        (["--environment"], ["--environment", "expected one argument"]),
        (["--num-tasks", "0"], ["num_tasks=0: must be at least 1"]),
        (["--num-tasks", "-1"], ["num_tasks=-1: must be at least 1"]),
        (["--threads", "0"], ["threads=0: must be at least 1"]),
        (["--rollout.max-turns", "0"], ["rollout.max_turns=0: must be at least 1"]),
        (["--rollout.engine-retries", "-1"], ["engine_retries=-1: must be 0 or more"]),
        (["--rollout.temperature", "0.5"], ["rollout.temperature=0.5", "leave it out"]),
        (["--rollout.group-size", "3"], ["rollout.group_size=3", "leave it out"]),
        (["--split", "train"], ["--split", "all"]),
        (["--environment", "gsm8k"], ["GSM8K needs data; add --data PATH"]),
        (["--environment", "gsm8k", "--data", "nowhere"], ["no file nowhere/test.jsonl"]),
        (["--environment", "verifiers"], ["needs id; add --environment.id VALUE", "recipe"]),
        (["--environment", "recipes/shop.py", "--environment.count", "0"], ["Shop has no heldout tasks"]),
        (["--environment", "recipes/shop.py", "--environment.cuont", "0"], ["unknown option --environment.cuont"]),
    ],
)
def test_a_mistake_is_one_line(checkpoint, capsys, options, words):
    for folder in (Path(), Path("recipes")):
        (folder / "torn.py").write_text("class Shop(:\n")
        (folder / "needy.py").write_text("import nobody_has_this\n")
    Path("plain.py").write_text(
        "from lockstep.rollout.environment import ToolEnvironment\nclass Plain(ToolEnvironment):\n    pass\n"
    )
    line = refused(capsys, checkpoint, *options)
    assert not [word for word in words if word not in line], line


def test_a_folder_that_cannot_be_made_is_told_before_the_work(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("lockstep.evaluate_checkpoint.evaluate_both", None)
    assert "/dev/null" in refused(capsys, checkpoint, "--out", "/dev/null/x")


def test_a_run_in_place_of_its_checkpoint_and_a_name_misspelt(checkpoint, capsys):
    run = Path(checkpoint).parents[1]
    assert f"give one of its checkpoints: lockstep eval {checkpoint}" in refused(capsys, run)
    assert f"is not there; {Path(checkpoint).parent} has" in refused(capsys, Path(checkpoint).with_name("nope"))


def test_verifiers_takes_its_id(checkpoint, capsys):
    line = refused(capsys, checkpoint, "--environment", "verifiers", "--environment.id", "nobody-has-this")
    assert "needs id" not in line  # the package is missing, or else the environment is


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("down", ["no server at 127.0.0.1:9"]),
        ("broken", ["Shop.start raised KeyError: 'price'"]),
        ("unset", ["lockstep: environment.kind=unset: set it"]),
        ("late", ["Shop.start did not finish within 0.05 s"]),
        ("unclosable", ["Shop.close did not finish within 0.05 s"]),
        ("ungraded", ["all 6 trajectories failed; the first says:", "the judge is gone"]),
    ],
)
def test_nothing_measured_is_no_number(checkpoint, capsys, kind, words):
    options = ["--environment.kind", kind, "--environment.count", "3", "--rollout.environment-timeout-s", "0.05"]
    line = refused(capsys, checkpoint, "--environment", "recipes/shop.py", *options, *ROOM, "--num-tasks", "3")
    assert not [word for word in words if word not in line], line


def test_what_was_measured_of_some_is_a_number(checkpoint):
    options = ["--environment.kind", "partly", "--num-tasks", "2", *ROOM]
    assert evaluated(checkpoint, "--environment", "recipes/shop.py", *options)["eval/masked"] == 0.5


@pytest.mark.parametrize("kind", ["down", "late", "unclosable"])
def test_train_says_so_too(capsys, kind, place):
    options = ["--environment.kind", kind, "--rollout.environment-timeout-s", "0.05", "--sft.num-steps", "0"]
    assert main(["train", "recipes/shop.py", *options, "--rollout.num-prompts", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ("no server" if kind == "down" else "did not finish within 0.05 s") in line
    assert not (place / "runs").exists()


def test_help(capsys):
    for arguments in (["--help"], ["-h"]):
        with pytest.raises(SystemExit):
            main(["eval", *arguments])
        shown = capsys.readouterr().out
        assert "--rollout.max-tokens" in shown
        assert "--environment" in shown
