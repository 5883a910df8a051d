"""Opens a sandbox as a program would, tries what every tier must do, and prints what went wrong as JSON.

    python tests/sandbox/smoke.py [tier]

{"tier": ..., "wrong": [...]} or {"refused": text}. Not a test itself: the tests start it in odd surroundings.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(1, str(Path(__file__).parent))

from family import adopt_orphans, comes_true, descendants

from lockstep.sandbox.interface import Limits, Sandbox, SandboxUnavailable
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox

FORKS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        try: os.setsid()
        except OSError: pass
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
print("forked")
"""
FORK_BOMB = """
import os, time
number = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
        number += 1
except OSError:
    print(number)
"""
MEMORIES = """
import os, time
for _ in range(3):
    os.fork()
x = b"x" * (40 << 20)
time.sleep(1000)
"""
SHORT = Limits(time_s=0.3)
SMALL = Limits(memory_bytes=1 << 27)


async def check(sandbox: Sandbox) -> list[str]:
    """The names of the things that did not go as they must, with what was found instead."""
    wrong = []

    async def expect(name: str, code: str, status: str, stdout: str | None = None, **kwargs: object) -> None:
        found = await sandbox.run(code, **kwargs)
        if found.status != status or (stdout is not None and found.stdout != stdout):
            wrong.append(f"{name}: {found}")

    await expect("print", "print(6 * 7)", "ok", "42\n")
    await expect("stdin", "print(input())", "ok", "hello\n", stdin="hello\n")
    await expect("error", "1 / 0", "error")
    await expect("exit", "import sys; sys.exit(3)", "error")
    await expect("numpy", "import numpy; print(numpy.linalg.det(numpy.eye(3)))", "ok", "1.0\n")
    solve = "from sympy import *; x = symbols('x'); print(solve(x**2 - 4))"
    await expect("sympy", solve, "ok", "[-2, 2]\n")
    await expect("files", "print(open('d/a.txt').read())", "ok", "in\n", files={"d/a.txt": b"in"})
    await expect("writing", "open('b', 'w').write('x'); print(open('b').read())", "ok", "x\n")
    await expect("nothing stays", "import os; print(os.path.exists('b'), os.path.exists('d'))", "ok", "False False\n")
    await expect("time", "while True: pass", "timeout", limits=SHORT)
    await expect("sleep", "import time; time.sleep(100)", "timeout", limits=SHORT)
    await expect("memory", "x = bytearray(1 << 30); print('got it')", "error", "", limits=SMALL)
    await expect("memory of several", MEMORIES, "memory", limits=SMALL)
    few = await sandbox.run(FORK_BOMB, limits=Limits(max_processes=4, time_s=5.0))
    if few.status != "killed" and not 0 < int(few.stdout or "0") < 4:  # killed: where the user's own processes count
        wrong.append(f"processes: {few}")
    flood = await sandbox.run("print('x' * 100_000)", limits=Limits(output_bytes=1000))
    if len(flood.stdout) > 1000 or not flood.truncated:
        wrong.append(f"output: {flood.status} {len(flood.stdout)}")
    big = "open('f', 'wb').write(bytes(1 << 22)); print('written')"
    full = await sandbox.run(big, limits=Limits(files_bytes=1 << 20))
    if full.status == "ok":
        wrong.append(f"file size: {full}")
    wrong += await outside(sandbox)
    await expect("forks", FORKS, "ok", "forked\n")
    await expect("kills its parent", "import os\ntry: os.kill(os.getppid() or 1, 9)\nexcept OSError: pass", "ok")
    await expect("and the next one runs", "print(1)", "ok", "1\n")
    return wrong


async def outside(sandbox: Sandbox) -> list[str]:
    """Files, other processes and the network are out of reach."""
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        secret = Path(name) / "secret"
        secret.write_text("secret")
        secret.chmod(0o644)
        Path(name).chmod(0o777)
        reads = await sandbox.run(f"print(open({str(secret)!r}).read())")
        await sandbox.run(f"open({name + '/planted'!r}, 'w').write('x')")
        if "secret" in reads.stdout or reads.status == "ok":
            wrong.append(f"reads a file outside: {reads}")
        if (Path(name) / "planted").exists():
            wrong.append("writes a file outside")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        port = server.getsockname()[1]
        net = await sandbox.run(
            f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('connected')"
        )
        if net.status != "error" or "connected" in net.stdout:
            wrong.append(f"network: {net}")
    return wrong


def main(tier: str = "auto") -> None:
    adopt_orphans()
    try:
        sandbox = open_sandbox(SandboxOptions(tier=tier))
    except SandboxUnavailable as error:
        print(json.dumps({"refused": str(error)}))
        return
    wrong = asyncio.run(check(sandbox))
    standing = len(descendants())
    asyncio.run(sandbox.run("pass"))
    if not comes_true(lambda: len(descendants()) <= standing, deadline_s=5.0):
        wrong.append(f"{len(descendants())} processes at rest, not {standing}")
    sandbox.close()
    if not comes_true(lambda: not descendants(), deadline_s=5.0):
        wrong.append(f"{len(descendants())} processes after close()")
    print(json.dumps({"tier": sandbox.tier, "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
