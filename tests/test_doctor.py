"""`lockstep doctor sandbox`: every probe, a first call in each tier, and a way out where none works."""

import io
import sys

import pytest
from rich.console import Console

from lockstep import doctor
from lockstep.cli import main
from lockstep.sandbox.interface import SandboxFailure, SandboxUnavailable
from lockstep.sandbox.probes import Probe
from lockstep.types import UserError


def probes(**answers):
    """A probe for each tier, and one for both, all fine but those that `answers` says are not."""
    return [
        Probe(name=name, ok=answers.get(name, True), detail=f"{name} [found]", fix=f"mend {name}", tiers=tiers)
        for name, tiers in (("own", ("namespaces",)), ("rules", ("landlock",)), ("filter", ("namespaces", "landlock")))
    ]


class Opened:
    def __init__(self, outcome):
        self.outcome, self.closed = outcome, False

    async def run(self, code):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def close(self):
        self.closed = True


class Ran:
    def __init__(self, stdout="42\n"):
        self.status, self.stdout, self.time_s = "ok", stdout, 0.0061

    def __repr__(self):
        return f"Ran({self.stdout!r})"


def examined(monkeypatch, found, opened=None):
    """What is said; `opened` has each tier's first outcome, or why it cannot be opened."""
    made = {}

    def open_(options):
        outcome = (opened or {}).get(options.tier, Ran())
        if isinstance(outcome, SandboxUnavailable):
            raise outcome
        made[options.tier] = Opened(outcome)
        return made[options.tier]

    monkeypatch.setattr(doctor, "probe", lambda: found)
    monkeypatch.setattr(doctor, "open_sandbox", open_)
    said = io.StringIO()
    try:
        doctor.sandbox(Console(file=said, width=200))
    finally:
        assert all(each.closed for each in made.values())
    return said.getvalue(), list(made)


def test_the_strongest_tier_that_works(monkeypatch):
    said, tried = examined(monkeypatch, probes())
    assert tried == ["namespaces", "landlock"]
    assert "own [found]" in said and "tier landlock: ran a call in 6 ms" in said and "to have" not in said
    assert said.endswith("models' code runs in tier namespaces\n")


def test_what_is_missing_and_how_to_mend_it(monkeypatch):
    said, tried = examined(monkeypatch, probes(own=False))
    assert tried == ["landlock"]
    assert "to have own: mend own" in said
    assert "tier namespaces: lacks own" in said
    assert said.endswith("models' code runs in tier landlock\n")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (SandboxUnavailable("no memory"), "tier namespaces: no memory"),
        (SandboxFailure("it died"), "tier namespaces: it died"),
        (Ran("41\n"), "tier namespaces: a first call ended wrongly: Ran('41\\n')"),
    ],
)
def test_a_tier_whose_first_call_fails_is_not_taken(monkeypatch, outcome, words):
    said, _ = examined(monkeypatch, probes(), {"namespaces": outcome})
    assert words in said
    assert said.endswith("models' code runs in tier landlock\n")


def test_where_no_tier_works_there_is_a_way_out(monkeypatch):
    with pytest.raises(UserError, match=r"no sandbox tier works here: .*tier='remote'"):
        examined(monkeypatch, probes(filter=False))


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox runs on Linux")
def test_the_command(capsys):
    assert main(["doctor", "sandbox"]) == 0
    assert "models' code runs in tier " in capsys.readouterr().out
    assert main(["doctor", "engine"]) == 2
    assert "Expected one of ('sandbox',)" in capsys.readouterr().err
