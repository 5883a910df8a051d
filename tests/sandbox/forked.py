"""A trainer that forks, as multiprocessing does; prints what came of it as JSON. Linux.

    python forked.py TIER

The child first tries to use the sandbox, then closes it and lives on while the parent uses and closes it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))

from lockstep.sandbox.interface import Sandbox, Session
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox

PATIENCE_S = 10.0


async def answer(run) -> str:
    """What a run printed, or what it raised."""
    try:
        return (await asyncio.wait_for(run, PATIENCE_S)).stdout
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def be_child(sandbox: Sandbox, session: Session, told: int) -> NoReturn:
    try:
        found = {"call": asyncio.run(answer(sandbox.run("print('child')")))}
        found["run"] = asyncio.run(answer(session.run("print('child')")))
        asyncio.run(session.close())
        sandbox.close()
        os.write(told, json.dumps(found).encode())
        signal.pause()  # it holds on to all that it was forked with
    finally:
        os._exit(0)


def main(tier: str) -> None:
    sandbox = open_sandbox(SandboxOptions(tier=tier, warm=(), max_concurrency=1))  # type: ignore[arg-type]
    session = asyncio.run(sandbox.session())
    asyncio.run(session.run("x = 'kept'"))
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        be_child(sandbox, session, told)
    found = {"child": json.loads(os.read(heard, 1 << 16)), "parent": str(os.getpid())}
    found["call"] = asyncio.run(answer(sandbox.run("print('parent')")))
    found["run"] = asyncio.run(answer(session.run("print(x)")))
    launcher = sandbox._calls._connection._process  # type: ignore[attr-defined]
    sandbox.close()
    found["launcher"] = launcher.returncode  # -9: it did not end and was killed
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
