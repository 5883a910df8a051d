"""Nothing is left: of many calls of every kind, of a trainer that was killed with kill -9, of a killed supervisor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIERS = ("namespaces", "landlock")
slow = pytest.mark.slow
EXPECTED = {
    "ok": {"ok"},
    "error": {"error"},
    "exit": {"error"},
    "loop": {"timeout"},
    "sleep": {"timeout"},
    "memory": {"error"},
    "memories": {"memory"},
    "killed": {"killed"},
    "forks": {"ok"},
    "threads": {"ok"},
    "litter": {"ok"},
    "cancelled": {"cancelled"},
    "session": {"ok"},
}


def leftovers(*arguments, timeout_s=250):
    """What leftovers.py prints. As root it has a /tmp and a /dev/shm of its own, so that others' files do not count."""
    confinement = [str(HERE / "confined.py"), "--fresh-tmp", "--", sys.executable] if os.geteuid() == 0 else []
    command = [sys.executable, *confinement, str(HERE / "leftovers.py"), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=HERE
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("number", [120, pytest.param(10_000, marks=slow)])
def test_nothing_is_left_of_many_calls(tier, number):
    """No process, not even an ended one; no descriptor, of ours or of the supervisor's; no file and no mount."""
    found = leftovers("many", tier, number, timeout_s=280 if number < 1000 else 3000)
    assert {kind: set(statuses) for kind, statuses in found["statuses"].items()} == EXPECTED
    assert sum(sum(statuses.values()) for statuses in found["statuses"].values()) == number
    assert found["before"]["processes"] == 2 and len(found["before"]["theirs"]) == 2
    assert found["after"] == found["before"]
    assert found["at_the_end"] == found["closed"]
    assert found["closed"]["processes"] == 0


@pytest.mark.parametrize("tier", TIERS)
def test_nothing_survives_the_kill_of_the_trainer(tier):
    """kill -9 with sessions and calls in flight whose code has forked daemons in sessions of their own."""
    found = leftovers("killed", tier, "-")
    assert found["in_flight"] >= 17, found  # there was something to survive
    assert (found["left"], found["files"]) == (0, [])


@slow
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("delay_s", [0.05 * n for n in range(1, 40, 2)])
def test_nothing_survives_a_kill_at_any_moment(tier, delay_s):
    """While it starts, probes, warms up, and in the midst of its first calls."""
    found = leftovers("killed", tier, delay_s)
    assert (found["left"], found["files"]) == (0, [])


@pytest.mark.parametrize("victim", ["supervisor", pytest.param("launcher", marks=slow)])
@pytest.mark.parametrize("tier", TIERS)
def test_the_kill_of_the_sandboxs_own_processes(tier, victim):
    """A call whose supervisor dies is tried once more, with a new one; when that dies too the call fails."""
    found = leftovers("supervisor", tier, victim)
    assert found["once"] == "forked\n"
    assert found["twice"].startswith("SandboxFailure: ") and "\n" not in found["twice"]
    assert found["after"] == "1\n"
    assert (found["survivors"], found["left"]) == (0, 0)


@pytest.mark.parametrize("tier", ["namespaces", pytest.param("landlock", marks=slow)])
def test_a_supervisor_that_cannot_start_again(tier):
    found = leftovers("unstartable", tier)
    assert found["during"].startswith("SandboxFailure: ") and "\n" not in found["during"]
    assert found["after"].startswith("SandboxFailure: ")
    assert (found["same"], found["left"]) == (True, 0)


@pytest.mark.parametrize("tier", ["landlock", pytest.param("namespaces", marks=slow)])
def test_a_trainer_with_many_open_descriptors(tier):
    """Its own are above 1024, more than select() can take."""
    assert leftovers("crowded", tier) == {"stdout": "1\n", "descriptors": 1100}


@slow
@pytest.mark.parametrize("tier", TIERS)
def test_64_calls_and_64_sessions_at_once(tier):
    assert leftovers("full", tier) == {"together": 64, "left": 0}
