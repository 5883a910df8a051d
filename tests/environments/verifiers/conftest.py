"""The environments under test, where verifiers and the example package are installed; elsewhere these tests skip."""

from importlib.metadata import PackageNotFoundError, version

import pytest


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


@pytest.fixture
def verifiers_environment():
    """The class, where verifiers and the example environment are installed."""
    if not (installed("verifiers") and installed("lockstep-example")):
        pytest.skip("verifiers and the example environment are not installed here: make test-verifiers")
    from lockstep.environments.verifiers import VerifiersEnvironment

    return VerifiersEnvironment


@pytest.fixture
def example(verifiers_environment, gsm8k_folder):
    """Makes the example environment of a kind."""

    def make(kind, **args):
        return verifiers_environment(id="lockstep-example", args={"data": str(gsm8k_folder), "kind": kind} | args)

    return make


@pytest.fixture
def tasksets(monkeypatch):
    """The class, where verifiers 0.4 and the example for it are installed."""
    if not (installed("verifiers") and installed("lockstep-example-next")):
        pytest.skip("verifiers 0.4 and the example for it are not installed here: make test-verifiers")
    from lockstep.environments.verifiers import VerifiersEnvironment

    return VerifiersEnvironment


@pytest.fixture
def own(tasksets):
    """Makes the environment of own_tasksets, with its log empty."""
    import own_tasksets

    own_tasksets.LOG.clear()
    own_tasksets.TRACES.clear()

    def make(args=None, num_heldout=1, **options):
        return tasksets(id="own_tasksets", args=args or {}, num_heldout=num_heldout, **options)

    make.log, make.traces = own_tasksets.LOG, own_tasksets.TRACES
    return make
