"""A very small mixture of experts for the learner's tests."""

import pytest

from lockstep.model.loading import load_model
from tests.learner.made import made_groups, write_model


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Never changed: who trains takes a copy."""
    folder = tmp_path_factory.mktemp("small")
    write_model(folder)
    return load_model(folder)


@pytest.fixture(scope="session")
def groups(small):
    """Two groups of four, with rewritten histories and an engine that disagrees on some of them."""
    return made_groups(small)


@pytest.fixture(scope="session")
def on_policy(small):
    """The same, but the engine agrees with the trainer."""
    return made_groups(small, mismatch=None)
