"""Which verifiers Lockstep takes, said in one line, and which of its interfaces; the adapter loads nothing of it."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lockstep.environments import verifiers as adapter
from lockstep.environments.verifiers_adapter.loaded import LoadedEnvironment
from lockstep.environments.verifiers_adapter.tasksets import TasksetEnvironment
from lockstep.types import UserError


def test_importing_the_adapter_loads_neither_verifiers_nor_datasets():
    heavy = {"verifiers", "datasets", "openai", "torch"}
    code = f"import sys, lockstep.environments.verifiers; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "[]\n", done.stderr


def test_without_verifiers_it_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(adapter, "version", missing)
    with pytest.raises(UserError) as raised:
        adapter.VerifiersEnvironment(id="not-asked-for-elsewhere")
    needs = "VerifiersEnvironment needs the package verifiers: pip install 'verifiers>=0.1.14,<0.5'"
    assert str(raised.value) == needs


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("0.1.9.post3", "verifiers 0.1.9.post3 is too old"),
        ("0.1.13", "is too old"),
        ("0.5.0", "verifiers 0.5.0 is newer than what Lockstep was tried with"),
        ("0.5", "is newer than"),
        ("0.10", "is newer than"),
        ("1.0.0rc1", "is newer than"),
    ],
)
def test_another_version_is_refused_by_name(monkeypatch, found, said):
    monkeypatch.setattr(adapter, "version", lambda name: found)
    with pytest.raises(UserError, match=said) as raised:
        adapter.check_version()
    assert "pip install" in str(raised.value) and "\n" not in str(raised.value)


INTERFACES = {
    LoadedEnvironment: ["0.1.14", "0.1.14.dev2", "0.2", "0.2.1", "0.3.1", "0.3.99"],
    TasksetEnvironment: ["0.4", "0.4.0", "0.4.0.dev3", "0.4.17"],
}


@pytest.mark.parametrize(("kind", "found"), [(kind, found) for kind, all in INTERFACES.items() for found in all])
def test_a_version_in_range_will_do_and_nothing_is_loaded_yet(monkeypatch, kind, found):
    monkeypatch.setattr(adapter, "version", lambda name: found)
    environment = adapter.VerifiersEnvironment(id="not-installed", num_heldout=3)
    assert environment.args == {} and environment.demonstrations(0) == ()
    assert type(environment._inner) is kind and environment._inner.num_heldout == 3


@pytest.mark.parametrize("option", [{"num_tasks": 5}, {"allow_unsafe": True}])
def test_an_option_without_effect_is_refused(monkeypatch, option):
    monkeypatch.setattr(adapter, "version", lambda name: "0.3.1")
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=rf"environment\.{name}={value}: has no effect on .* below 0\.4; leave it out"):
        adapter.VerifiersEnvironment(id="x", **option)
    monkeypatch.setattr(adapter, "version", lambda name: "0.4.0")
    assert getattr(adapter.VerifiersEnvironment(id="x", **option)._inner, name) == value


@pytest.mark.parametrize("name", ["num_heldout", "num_tasks"])
@pytest.mark.parametrize("number", [0, -3])
def test_a_number_of_tasks_is_above_0(name, number):
    with pytest.raises(UserError, match=f"environment.{name}={number}"):
        adapter.VerifiersEnvironment(id="x", **{name: number})
