"""Probes: each named, with its fix where it fails, and what an unavailable sandbox says of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.sandbox import probes
from lockstep.sandbox.connection import StartFailed
from lockstep.sandbox.interface import SandboxUnavailable
from lockstep.sandbox.probes import Probe, probe, unavailable
from lockstep.sandbox.runtime import find_runtime
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the local tiers need Linux")
ROOT = Path(__file__).parents[2]


def tried(actions):
    """The probes of a process whose trials are `actions`: names to Python statements."""
    code = f"""
import json, os
from dataclasses import asdict
from lockstep.sandbox import probes
def trial(name, statements):
    def action():
        scope = {{"os": os}}
        exec(statements, scope)
        return scope["found"]
    return probes._Trial(name, action, "fix it")
print(json.dumps([asdict(probes._tried(trial(*pair))) for pair in {list(actions.items())!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {one["name"]: (one["ok"], one["detail"], one["fix"]) for one in json.loads(done.stdout)}


def test_what_a_trial_finds_is_its_probe():
    assert tried(
        {
            "works": "found = 'all well'",
            "fails": "raise OSError(1, 'not here')",
            "says": "raise OSError('no such thing')",
            "dies": "os.kill(os.getpid(), 9)",
            "exits": "os._exit(3)",
        }
    ) == {
        "works": (True, "all well", ""),
        "fails": (False, "not here", "fix it"),
        "says": (False, "no such thing", "fix it"),
        "dies": (False, "ended with -9", "fix it"),
        "exits": (False, "ended with 3", "fix it"),
    }


def test_every_trial_names_its_tiers_and_its_fix():
    assert len({trial.name for trial in probes._TRIALS}) == len(probes._TRIALS)
    for trial in probes._TRIALS:
        assert trial.fix and set(trial.tiers) <= {"namespaces", "landlock"}
    for tier in ("namespaces", "landlock"):
        assert [trial for trial in probes._TRIALS if trial.tiers == (tier,)]


def test_probing_reports_each_trial_of_this_machine():
    found = probe()
    assert [one.name for one in found] == [trial.name for trial in probes._TRIALS]
    assert all(one.detail and bool(one.fix) != one.ok for one in found)


def test_no_local_tier_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    (only,) = probe()
    assert not only.ok and "darwin" in only.detail and "remote" in only.fix and "allow_unsafe" in only.fix
    with pytest.raises(SandboxUnavailable, match="darwin"):
        open_sandbox()


def failing(*names):
    """Probes of a machine where those fail."""
    return [
        Probe(name=t.name, ok=t.name not in names, detail=f"{t.name}!", fix=f"fix {t.name}", tiers=t.tiers)
        for t in probes._TRIALS
    ]


def test_unavailable_lists_the_failed_probes_of_the_tier_and_their_fixes():
    text = unavailable("auto", failing("seccomp", "landlock", "own root"))
    assert (
        all(f"{name}!. Fix: fix {name}" in text for name in ("seccomp", "landlock", "own root"))
        and "kernel" not in text
    )
    assert "own root" not in unavailable("landlock", failing("own root", "landlock"))


@pytest.mark.parametrize(
    ("failed", "tried_in_turn"),
    [
        ((), ["namespaces", "landlock"]),
        (("own root",), ["landlock"]),
        (("landlock",), ["namespaces"]),
        (("seccomp",), []),
    ],
)
def test_auto_takes_the_strongest_tier_whose_probes_hold(monkeypatch, failed, tried_in_turn):
    """Both refuse to start here, so that all that are tried are seen, and told."""
    seen = []

    def start(options, tier):
        seen.append(tier)
        raise StartFailed(f"{tier} broke")

    monkeypatch.setattr("lockstep.sandbox.sandbox.probe", lambda: failing(*failed))
    monkeypatch.setattr("lockstep.sandbox.sandbox.LocalSandbox", start)
    with pytest.raises(SandboxUnavailable) as refused:
        open_sandbox()
    assert seen == tried_in_turn and all(f"{tier} broke" in str(refused.value) for tier in seen)
    seen.clear()
    with pytest.raises(SandboxUnavailable):
        open_sandbox(SandboxOptions(tier="landlock"))
    assert seen == [tier for tier in tried_in_turn if tier == "landlock"]


def test_the_runtime_is_small_and_shows_no_project():
    """What a guest may read: the interpreter's own prefixes and system libraries, no editable install, no home."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, "/"]
from lockstep.sandbox.runtime import find_runtime
runtime = find_runtime()
print([str(path) for path in (*runtime.folders, *runtime.search)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = eval(done.stdout)
    assert str(ROOT) not in shown and "/" not in shown and "/etc" not in shown
    runtime = find_runtime()
    assert len(runtime.programs) == 2 and all(
        not Path(path).is_symlink() for path in (*runtime.folders, *runtime.files)
    )
