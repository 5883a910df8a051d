"""Which verifiers Lockstep takes, said in one line; the adapter itself loads nothing of it."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from lockstep.environments import verifiers as adapter
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
    needs = "VerifiersEnvironment needs the package verifiers: pip install 'verifiers>=0.1.14,<0.4'"
    assert str(raised.value) == needs


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("0.1.9.post3", "verifiers 0.1.9.post3 is too old"),
        ("0.1.13", "is too old"),
        ("0.4.0", "verifiers 0.4.0 has no load_environment any more"),
        ("0.4", "has no load_environment any more"),
        ("0.10", "has no load_environment any more"),
        ("1.0.0rc1", "has no load_environment any more"),
    ],
)
def test_another_version_is_refused_by_name(monkeypatch, found, said):
    monkeypatch.setattr(adapter, "version", lambda name: found)
    with pytest.raises(UserError, match=said) as raised:
        adapter.check_version()
    assert "pip install" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("found", ["0.1.14", "0.1.14.dev2", "0.2", "0.2.1", "0.3.1", "0.3.99"])
def test_a_version_in_range_will_do_and_nothing_is_loaded_yet(monkeypatch, found):
    monkeypatch.setattr(adapter, "version", lambda name: found)
    monkeypatch.setattr(adapter, "loaded", None)
    assert adapter.VerifiersEnvironment(id="not-installed").args == {}


@pytest.mark.parametrize("number", [0, -3])
def test_a_split_needs_rows_held_out(number):
    with pytest.raises(UserError, match=f"environment.num_heldout={number}"):
        adapter.VerifiersEnvironment(id="x", num_heldout=number)
