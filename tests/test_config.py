"""A configuration goes to JSON and comes back as it was: what `lockstep eval` rebuilds an environment from."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lockstep.config import Run, as_dict, from_dict
from lockstep.environments.ledger import Ledger
from lockstep.environments.retool import ReTool
from lockstep.rollout.mcp.environment import WithTools
from lockstep.rollout.mcp.server import McpServer
from lockstep.sandbox.interface import Limits as SandboxLimits
from lockstep.sandbox.sandbox import SandboxOptions


@dataclass(frozen=True, kw_only=True)
class Limits:
    seconds: float = 10.0
    warm: tuple[str, ...] = ("numpy", "sympy")


@dataclass(frozen=True, kw_only=True)
class Server:
    command: tuple[str, ...] = ()
    folder: Path | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Workshop(Ledger):
    data: Path = Path(".")
    servers: tuple[Server, ...] = ()
    limits: Limits | None = None
    either: int | str = 0
    pairs: tuple[tuple[str, int], ...] = ()


@pytest.mark.parametrize(
    "environment",
    [
        Workshop(),
        Workshop(
            data=Path("a/b"),
            servers=(Server(command=("x", "y"), folder=Path("c")), Server(limits=Limits(seconds=1, warm=()))),
            limits=Limits(seconds=2.5),
            either="three",
            num_train=7,
        ),
        Workshop(either=3),
    ],
)
def test_an_environment_comes_back_from_json_as_it_was(environment):
    written = json.loads(json.dumps(as_dict(Run(name="w", environment=environment))["environment"]))
    assert from_dict(Workshop, written) == environment


def test_an_environment_around_another_comes_back():
    server = McpServer(command=("a", "b"), env={"KEY": "$KEY"}, cwd=Path("c"), allow=("x_*",))
    environment = WithTools(environment=Workshop(limits=Limits(seconds=3)), servers=(server,))
    written = json.loads(json.dumps(as_dict(Run(name="w", environment=environment))["environment"]))
    assert from_dict(WithTools, written) == environment


def test_retool_comes_back_with_its_sandbox():
    environment = ReTool(data=Path("a"), sandbox=SandboxOptions(tier="landlock", limits=SandboxLimits(time_s=3.0)))
    written = json.loads(json.dumps(as_dict(Run(name="w", environment=environment))["environment"]))
    assert from_dict(ReTool, written) == environment


def test_a_field_that_is_gone_is_an_error():
    with pytest.raises(TypeError, match="colour"):
        from_dict(Limits, {"seconds": 1.0, "colour": "red"})
