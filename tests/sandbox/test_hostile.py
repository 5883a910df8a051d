"""Guests that attack: every case must hold in both tiers, and every attack must work where nothing holds it."""

from __future__ import annotations

import pytest

from lockstep.sandbox.interface import SandboxUnavailable
from tests.sandbox.hostile.case import BOTH
from tests.sandbox.hostile.cases import CASES
from tests.sandbox.hostile.stage import Stage
from tests.sandbox.hostile.trial import plainly, staged

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BOTH)
def trial(request):
    try:
        with staged(request.param) as trial:
            yield trial
    except SandboxUnavailable as error:
        pytest.skip(f"tier {request.param!r} cannot be opened here: {error}")


@pytest.mark.parametrize("name", CASES)
def test_held(trial, name):
    if trial.tier not in CASES[name].tiers:
        pytest.skip(f"documented: the tier {trial.tier!r} does not promise this")
    assert trial.problems(CASES[name]) == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.control is not None])
def test_works_where_nothing_holds_it(name):
    stage = Stage(None)
    try:
        plain = plainly(CASES[name], stage)
    finally:
        stage.close()
    if "ENOSYS" in plain.output and "BREACH" not in plain.output:
        pytest.skip("this kernel does not have the call")
    assert CASES[name].control(plain), plain


def test_there_are_enough():
    assert len([case for case in CASES.values() if case.tiers == BOTH]) >= 130
