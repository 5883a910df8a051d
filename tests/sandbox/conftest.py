"""One sandbox for each local tier, shared by the tests of ordinary behaviour."""

import asyncio
import sys

import pytest

from lockstep.sandbox.interface import SandboxUnavailable
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox


def open_or_skip(tier, **options):
    try:
        return open_sandbox(SandboxOptions(tier=tier, **options))
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["namespaces", "landlock"])
def sandbox(request):
    if not sys.platform.startswith("linux"):
        pytest.skip("the local tiers need Linux")
    sandbox = open_or_skip(request.param, max_concurrency=2, max_sessions=2)
    yield sandbox
    sandbox.close()


@pytest.fixture
def opened():
    """Opens a sandbox of the test's own, or skips it where the tier does not work."""
    return open_or_skip


@pytest.fixture
def run(sandbox):
    """Runs one script to its outcome, each time in an event loop of its own."""
    return lambda code, **given: asyncio.run(sandbox.run(code, **given))
