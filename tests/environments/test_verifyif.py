"""VerifyIf on the real rows: every row is understood, what follows is rewarded, every malformed row is named."""

import asyncio
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from lockstep.environments.held_out import is_held_out
from lockstep.environments.verifyif import FILES, VerifyIf, find_files, read_rows
from lockstep.options import recipe_and_options
from lockstep.types import Message
from tests.environments.instructions.responses import written

DATA = Path(os.environ.get("LOCKSTEP_DATA", Path(__file__).parents[3] / "shared" / "data"))
RECIPE = Path(__file__).parents[2] / "recipes" / "verifyif.py"
GOOD = '{"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}'
TWO = {
    "key": 7,
    "prompt": "Say it.",
    "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
    "kwargs": [{}, {"N": None}],
}


@pytest.fixture(scope="module")
def data():
    if not all((DATA / name / file).is_file() for name, file in FILES.items()):
        pytest.skip(f"no IFEval and IFBench in {DATA}: set LOCKSTEP_DATA to the folder that holds ifeval and ifbench")
    return DATA


@pytest.fixture(scope="module")
def raw(data):
    return {
        f"{name}/{row['key']}": row
        for name, file in FILES.items()
        for row in (json.loads(line) for line in (data / name / file).open(encoding="utf-8"))
    }


@pytest.fixture(scope="module")
def tasks(data):
    environment = VerifyIf(data=data)
    return {split: list(environment.tasks(split)) for split in ("train", "heldout")}


def final(text, channel="final"):
    return Message(role="assistant", channel=channel, content=text)


def score(environment, task, *messages, truncated=False):
    async def graded():
        start = await environment.start(task)
        given = await environment.reward(start.state, [*start.messages, *messages], truncated)
        await environment.close(start.state)
        return given

    return asyncio.run(graded())


def one_file(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def two(tmp_path):
    """The task with two instructions, and a maker of environments on it."""
    path = one_file(tmp_path, TWO)
    make = lambda **options: VerifyIf(data=path, **options)  # noqa: E731
    every = [*make().tasks("train"), *make().tasks("heldout")]
    assert len(every) == 1
    return every[0], make


def test_every_row_is_a_task_of_one_split(tasks, raw):
    by_id = {task.id: task for split in tasks.values() for task in split}
    assert len(by_id) == sum(map(len, tasks.values())) == 541 + 300
    assert by_id.keys() == raw.keys()
    for id, row in raw.items():
        assert by_id[id].messages == (Message(role="user", content=row["prompt"]),)
        assert [i.id for i in by_id[id].data["instructions"]] == row["instruction_id_list"]
    sizes = Counter((split, task.id.partition("/")[0]) for split, some in tasks.items() for task in some)
    assert sizes == {
        ("train", "ifeval"): 423,
        ("heldout", "ifeval"): 118,
        ("train", "ifbench"): 252,
        ("heldout", "ifbench"): 48,
    }


def test_no_argument_of_a_row_is_lost(tasks, raw):
    for task in [*tasks["train"], *tasks["heldout"]]:
        for instruction, given in zip(task.data["instructions"], raw[task.id]["kwargs"], strict=True):
            known = {name: value for name, value in instruction.arguments.items() if name != "prompt"}
            expected = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if v is not None}
            assert known == expected


def test_each_instruction_of_the_data_passes_what_follows_and_fails_what_does_not(tasks, raw):
    checked = Counter()
    for task in [*tasks["train"], *tasks["heldout"]]:
        for instruction, given in zip(task.data["instructions"], raw[task.id]["kwargs"], strict=True):
            good, bad = written(instruction.id, given, raw[task.id]["prompt"])
            assert instruction.followed(good) and instruction.followed_loosely(good), (task.id, instruction, good)
            assert not instruction.followed(bad), (task.id, instruction, bad)
            checked[instruction.id] += 1
    assert len(checked) == 83 and checked.total() == 1178


# Whole responses by hand to real rows with several instructions, and the least that spoils each.
BY_HAND = {
    "ifeval/1107": ("why did the rocket nap\n******\nit was out of fuel", [("nap", "nap,"), ("******", "****")]),
    "ifeval/1219": (
        f"{'SNEAKER ' * 10}IS THE WORD OF THE DAY.\n\nP.S. I LIKE BOTH.",
        [("SNEAKER ", "SHOE "), ("P.S.", "PS"), ("LIKE", "like")],
    ),
    "ifeval/2736": (
        "A ROCK FELL AND THAT WAS IT. WHAT WOULD HAPPEN TO HUMAN NEXT?",
        [("FELL", "fell"), ("NEXT", "THEN")],
    ),
    "ifeval/2216": (
        "call often and be kind.\n\np.p.s smile",
        [("call", "Call"), ("kind", "kind, too"), ("p.p.s", "ps")],
    ),
    "ifeval/3069": (
        "three days in the alps:\n* walk\n* swim\n* rest\n\np.s. it is cold",
        [("* walk\n", ""), ("p.s.", "oh"), ("in", "In")],
    ),
    "ifeval/1242": ('{"name": "Staff"}', [("Staff", "a nickname"), ("}", "")]),
    "ifeval/1127": (
        "SECTION 1\nOh\nSECTION 2\nmy\nSECTION 3\nclass\nSECTION 4\nCan I get my money back for the classes I missed?",
        [("SECTION 4\n", ""), ("missed?", "missed? Now?")],
    ),
}


@pytest.mark.parametrize("id", BY_HAND)
def test_responses_by_hand(id, data, tasks):
    task = next(task for task in [*tasks["train"], *tasks["heldout"]] if task.id == id)
    response, spoils = BY_HAND[id]
    all_of_them = VerifyIf(data=data, partial=False)
    assert score(all_of_them, task, final(response)).parts == {"followed": 1.0}
    for old, new in spoils:
        assert old in response
        spoiled = score(all_of_them, task, final(response.replace(old, new)))
        assert spoiled.parts == {"followed": 0.0}
        assert 0 <= spoiled.measures["strict_share"] < 1


@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        ("all small", (1, 1), (1, 1)),
        ("all small and one more", (1, 1), (1, 1)),
        ("all four small words", (1, 1), (1, 1)),
        ("all small, with a comma", (0, 0.5), (0, 0.5)),
        ("Sure, here:\nall small", (0, 0), (1, 1)),
        ("All, big", (0, 0), (0, 0)),
        ("", (0, 0), (0, 0)),
        (" \n", (0, 0), (0, 0)),
    ],
)
def test_reward_and_measures(two, response, strict, loose):
    task, make = two
    for mode, (whole, share) in (("strict", strict), ("loose", loose)):
        for partial in (True, False):
            given = score(make(mode=mode, partial=partial), task, final(response))
            assert given.parts == {"followed": share if partial else whole}
            assert given.measures == {
                "strict_all": strict[0],
                "strict_share": strict[1],
                "loose_all": loose[0],
                "loose_share": loose[1],
                "degenerate": len(response.split()) < 5,
            }


def test_only_a_final_message_is_graded(two):
    task, make = two
    good = "all small"
    tool = Message(role="tool", name="functions.x", content=good)
    assert score(make(), task, final(good, None)).parts == {"followed": 1.0}
    assert score(make(), task, final(good, "analysis"), final("All, big")).parts == {"followed": 0.0}
    for messages, truncated in (
        ([final(good, "analysis")], False),
        ([final(good, "commentary")], False),
        ([final(good)], True),
        ([tool], False),
    ):
        given = score(make(), task, *messages, truncated=truncated)
        assert given.parts == {"followed": 0.0}
        assert {name for name, measure in given.measures.items() if measure} == {"degenerate"}


def test_the_splits_are_those_of_the_keys(tasks):
    for split, some in tasks.items():
        assert all(is_held_out(task.id.partition("/")[2], one_in=5) == (split == "heldout") for task in some)


def test_files_are_found_by_file_or_folder(data, tmp_path):
    both = find_files(data)
    assert list(both) == ["ifeval", "ifbench"]
    for name, file in FILES.items():
        assert find_files(data / name) == find_files(data / name / file) == {name: both[name]}
    assert find_files(one_file(tmp_path, GOOD)) == {"rows": tmp_path / "rows.jsonl"}
    with pytest.raises(
        FileNotFoundError, match=r"no input_data.jsonl or IFBench_test.jsonl in .*--environment.data PATH"
    ):
        find_files(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "as many kwargs as instructions"),
        (GOOD.replace("[{}]", "[]"), "as many kwargs as instructions"),
        (GOOD.replace("[{}]", "[3]"), "as many kwargs as instructions"),
        (GOOD.replace('["punctuation:no_comma"]', "[3]"), "as many kwargs as instructions"),
        (GOOD.replace('["punctuation:no_comma"]', "[]").replace("[{}]", "[]"), "as many kwargs as instructions"),
        (GOOD.replace("Say it.", " "), "as many kwargs as instructions"),
        (GOOD.replace('"key": 1', '"key": null'), "as many kwargs as instructions"),
        (GOOD.replace("no_comma", "no_coma"), "did you mean 'punctuation:no_comma'?"),
        (GOOD.replace("{}", '{"N": 1}'), "punctuation:no_comma takes no 'N'"),
        (GOOD.replace("punctuation:no_comma", "count:numbers"), "count:numbers has no 'N' in its kwargs: add it"),
        (GOOD.replace("Say it.", "Again."), "has key 1 a second time"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, line, said):
    path = one_file(tmp_path, GOOD, line, GOOD.replace('"key": 1', '"key": 2'))
    with pytest.raises(ValueError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}:2") and said in str(error.value) and "\n" not in str(error.value)


def test_an_empty_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="is empty: give IFEval's or IFBench's own file"):
        read_rows(one_file(tmp_path))


def test_demonstrations_follow_and_are_no_rows_of_the_data(data, raw):
    environment = VerifyIf(data=data, num_demonstrations=200, partial=False)
    shown = environment.demonstrations(3)
    assert len(shown) == len({demonstration.task.id for demonstration in shown}) == 200
    assert not {row["prompt"] for row in raw.values()} & {d.task.messages[0].content for d in shown}
    for demonstration in shown:
        assert score(environment, demonstration.task, *demonstration.messages).parts == {"followed": 1.0}
    assert [d.messages for d in environment.demonstrations(3)] == [d.messages for d in shown]
    with pytest.raises(ValueError, match=r"environment\.num_demonstrations=-1: give 0 or more"):
        VerifyIf(data=data, num_demonstrations=-1)


def test_the_recipe_reads_its_data_option(tmp_path):
    run, resume = recipe_and_options("train", [str(RECIPE), "--data", str(tmp_path), "--environment.mode", "loose"])
    assert (run.environment, resume) == (VerifyIf(data=tmp_path, mode="loose"), None)
