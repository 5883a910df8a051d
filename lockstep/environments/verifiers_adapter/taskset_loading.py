"""A `verifiers` environment (0.4) from its id and its config, or why Lockstep cannot use it, in one line.

The config is what verifiers' own command takes as --env.*. Where it and the package leave an agent's runtime as it is
by default, a rented sandbox, the agent runs as a process of this machine instead.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from lockstep.types import UserError

TOKEN_LIMITS = ("max_input_tokens", "max_output_tokens", "max_total_tokens")


@cache
def loaded(taskset_id: str, args: str) -> Any:
    """The environment; the same object for the same id and arguments (JSON). Raises UserError when it cannot be
    loaded."""
    from verifiers.v1.utils import loaders  # pyright: ignore[reportMissingImports]

    given = json.loads(args)
    try:
        given["taskset"] = {**given.get("taskset", {}), "id": taskset_id}
        kind = loaders.env_config_type(taskset_id, given.get("id", ""))
        for name in _roles(kind):
            given[name] = dict(given.get(name, {}))
            if _says_no_runtime(kind, name):
                given[name].setdefault("runtime", {"type": "subprocess"})
        given.setdefault("interception", {"type": "server"})  # one server holds them all
        return loaders.load_environment(loaders.resolve_env_config(given))
    except Exception as error:  # the environment boundary: importing and making it runs a package's own code
        raise UserError(
            f"environment.id={taskset_id!r} with environment.args={args}: {in_line(error)}{_older(taskset_id)}"
        ) from error


def _older(taskset_id: str) -> str:
    """What to add to the error of a package that was written for the first interface."""
    from verifiers.v1.utils import loaders  # pyright: ignore[reportMissingImports]

    try:
        module = loaders.import_taskset(taskset_id)
    except Exception:  # the environment boundary, again: it was said already
        return ""
    written_for_it = hasattr(module, "load_environment") and not hasattr(module, "__all__")
    return "; it was written for verifiers below 0.4: pip install 'verifiers<0.4'" if written_for_it else ""


def _roles(kind: Any) -> list[str]:
    from verifiers.v1 import AgentConfig  # pyright: ignore[reportMissingImports]

    return [name for name, field in kind.model_fields.items() if isinstance(field.default, AgentConfig)]


def _says_no_runtime(kind: Any, role: str) -> bool:
    from verifiers.v1 import AgentConfig  # pyright: ignore[reportMissingImports]

    return kind.model_fields[role].default.runtime == AgentConfig().runtime


def unmet(environment: Any, allow_unsafe: bool) -> str | None:
    """What the environment needs and Lockstep cannot give, and what to do."""
    roles = {name: getattr(environment.config, name) for name in _roles(type(environment.config))}
    policies = [name for name, role in roles.items() if role.client is None]
    if len(policies) != 1:
        return (
            f"{len(policies)} of its agents ({', '.join(policies or roles)}) are Lockstep's model, which has one "
            "conversation; give each other one a `client` of its own in environment.args"
        )
    if environment.config.interception.type != "server":
        return f"interception {environment.config.interception.type!r} is not Lockstep's; leave it out"
    if environment.config.retries.max_retries or environment.config.retries.rules:
        return "its retries would begin a trajectory again in the middle; leave them out"
    for name, role in roles.items():
        harness = environment._harnesses[name]
        own = name in policies
        if why := _unmet_by(role, harness, environment, allow_unsafe, own):
            return f"agent {name!r} {why}"
    return None


def _unmet_by(role: Any, harness: Any, environment: Any, allow_unsafe: bool, is_policy: bool) -> str | None:
    name = harness.config.id
    if role.runtime.type != "subprocess":
        return (
            f"runs in a {role.runtime.type} sandbox, and Lockstep runs agents as processes of this machine: give it "
            "'runtime': {'type': 'subprocess'}, or use another environment"
        )
    if harness.NEEDS_CONTAINER or type(environment.taskset).task_type().NEEDS_CONTAINER:
        return "needs a container (docker or a rented sandbox), and Lockstep gives none; use another environment"
    if harness.EXECUTES_CODE and not allow_unsafe:
        return (
            f"lets the model run commands on this machine (harness {name!r}), where nothing confines it: give it "
            "'harness': {'id': 'null'}, or set environment.allow_unsafe=True"
        )
    if role.retries.max_retries or role.retries.rules:
        return "has retries, which would begin a trajectory again in the middle; leave them out"
    if is_policy and (limits := [limit for limit in TOKEN_LIMITS if getattr(role, limit) is not None]):
        return f"has {limits[0]}, and Lockstep keeps tokens from environments; use rollout.max_tokens"
    return None


def in_line(error: BaseException) -> str:
    """An error's type and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
