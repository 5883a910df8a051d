"""Every recipe is one that can run: it loads, its parts agree, and it can be planned."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

from lockstep.config import check
from lockstep.options import load_recipe
from lockstep.plan import plan

RECIPES = sorted(path for path in Path("recipes").glob("*.py") if "\nrun = " in path.read_text())


def test_each_task_has_a_recipe_for_the_tiny_model_and_one_for_gpt_oss():
    names = {path.stem for path in RECIPES}
    for task in ("gsm8k", "retool", "verifyif", "recruiter"):
        assert {task, f"{task}_gpt_oss"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_run(path):
    if path.stem == "from_verifiers" and not any(each.metadata["Name"] == "verifiers" for each in distributions()):
        pytest.skip("needs the package verifiers")
    run = load_recipe(path)["run"]
    check(run)
    if path.stem.endswith("_gpt_oss"):
        assert (run.model, run.rollout.max_tokens, run.rollout.max_action_tokens) == (
            "openai/gpt-oss-20b",
            24576,
            16384,
        )
        assert run.rollout.group_size == 16
        assert round(plan(run).parameters / 1e9, 2) == 20.91
    else:
        assert run.model == "tiny"
