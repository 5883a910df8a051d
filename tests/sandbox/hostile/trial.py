"""Runs one case, on a sandbox or without one, and judges it by what the host sees."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lockstep.sandbox.interface import Outcome, Sandbox, SandboxFailure
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox
from tests.sandbox.hostile.case import MARK, Case, Plain, script, survives
from tests.sandbox.hostile.stage import (
    ENVIRONMENT,
    Stage,
    Table,
    descendants,
    gone,
    new_token,
    processes,
    status_of,
    survivors,
    wait_until,
)

SIBLING_NAME = "hostile-other"
SIBLING = f"call_itself({SIBLING_NAME!r})\ntime.sleep(30)"
MOST_ADDRESS_SPACE = 12 << 30
MOST_FILE = 2 << 30
MOST_LATE_S = 5.0


@asynccontextmanager
async def running(sandbox: Sandbox) -> AsyncIterator[list[int]]:
    """Another call, that sleeps; gives the processes that the host sees for it. It is cancelled at the end."""
    before = descendants(os.getpid())
    call = asyncio.ensure_future(sandbox.run(script(SIBLING, {})))
    try:
        for _ in range(500):
            await asyncio.sleep(0.02)
            table = processes()
            pids = descendants(os.getpid(), table) - before
            if any(table[pid][1] == SIBLING_NAME for pid in pids):  # its own code runs
                break
        else:
            raise RuntimeError("no process of the other call was seen within 10 s")
        yield sorted(pids)
    finally:
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call


@contextmanager
def staged(tier: str) -> Iterator[Trial]:
    """A sandbox of the tier with the stage around it, opened by a process whose environment holds the stage's secret.

    Raises SandboxUnavailable.
    """
    base = Path(tempfile.mkdtemp(prefix="hostile-stage-"))
    base.chmod(0o755)
    scratch = base / "scratch"
    scratch.mkdir()
    os.environ[ENVIRONMENT] = token = new_token()
    usual, tempfile.tempdir = tempfile.tempdir, str(scratch)
    try:
        sandbox = open_sandbox(SandboxOptions(tier=tier))
    finally:
        tempfile.tempdir = usual
    try:
        stage = Stage(guest_user(sandbox), token=token, base=base)
        try:
            yield Trial(sandbox, stage)
        finally:
            stage.close()
    finally:
        sandbox.close()
        del os.environ[ENVIRONMENT]


def guest_user(sandbox: Sandbox) -> int:
    """The user under which the host sees a guest."""

    async def look() -> int:
        async with running(sandbox) as pids:
            return int(status_of(pids[-1])["Uid"].split()[0])

    return asyncio.run(look())


class Trial:
    """A sandbox, the stage around it, and what was there before the first case."""

    def __init__(self, sandbox: Sandbox, stage: Stage) -> None:
        self._sandbox = sandbox
        self._stage = stage
        self.tier = sandbox.tier
        asyncio.run(sandbox.run("print('warm')"))
        self._settled = descendants(os.getpid())
        self._parents = self._children()

    def _new_processes(self) -> set[int]:
        return descendants(os.getpid()) - self._settled

    def _children(self, table: Table | None = None) -> set[tuple[int, int]]:
        """This process's own children: the sandbox's interpreters among them. Dead ones count as gone."""
        table = processes() if table is None else table
        own = os.getpid()
        return {(pid, start) for pid, (parent, _, state, start) in table.items() if parent == own and state not in "ZX"}

    def _left_files(self) -> list[Path]:
        """What calls have left below the folder in which the sandbox makes its own."""
        return sorted((self._stage.base / "scratch").glob("*/*"))

    def problems(self, case: Case) -> list[str]:
        """What did not hold: an empty list is what a case must give."""
        try:
            found = asyncio.run(asyncio.wait_for(self._attack(case), 60))
        except SandboxFailure as error:
            found = [f"the guest made the sandbox fail: {error}"]
        except TimeoutError:
            found = ["no answer within 60 s"]
        return found + self._aftermath()

    async def _attack(self, case: Case) -> list[str]:
        if case.play is not None:
            return await case.play(self._sandbox)
        if case.before:
            await self._sandbox.run(script(case.before, self._stage.host()), limits=case.limits)
        if not case.sibling:
            began = time.monotonic()
            wrong = judge(case, await self._run(case, []))
            took = time.monotonic() - began
            return [*wrong, f"answered after {took:.1f} s"] if took > case.limits.time_s + MOST_LATE_S else wrong
        async with running(self._sandbox) as pids:
            end = await self._run(case, pids)
            table = processes()
            lost = [pid for pid in pids if pid not in table or table[pid][2] not in "RSD"]
        return judge(case, end) + ([f"host: of the other call, {lost} are stopped or gone"] if lost else [])

    async def _run(self, case: Case, pids: list[int]) -> Outcome:
        whole = script(case.code, {**self._stage.host(), "sibling": pids})
        return await self._sandbox.run(whole, stdin=case.stdin, files=case.files, limits=case.limits)

    def _aftermath(self) -> list[str]:
        """What every case must leave: the host untouched, no process of its own, the sandbox at work."""
        found = self._stage.problems()
        table = processes()
        if survivors(table) and not gone(survivors):
            found.append(f"host: survivors {survivors()}")
            kill_marked()
        if descendants(os.getpid(), table) - self._settled and not gone(self._new_processes):
            found.append(f"host: new processes {sorted(self._new_processes())}")
        if not gone(self._left_files):
            found.append(f"host: files left in scratch: {self._left_files()}")
        if self._children(table) != self._parents:
            found.append("host: the sandbox's own processes are not those of before")
            self._parents = self._children()
        try:
            end = asyncio.run(self._sandbox.run("print(6 * 7)"))
        except SandboxFailure as error:
            return [*found, f"the next call failed: {error}"]
        return found if (end.status, end.stdout) == ("ok", "42\n") else [*found, f"the next call: {end}"]


def judge(case: Case, end: Outcome) -> list[str]:
    """What the outcome itself shows to be wrong."""
    found = []
    if "BREACH" in end.stdout:
        found.append(f"breach: {end.stdout[end.stdout.index('BREACH') :].splitlines()[0][:200]}")
    if end.status not in case.expect or (
        end.status == "killed" and case.family == "kernel" and end.signal != signal.SIGSYS
    ):
        found.append(
            f"ended {end.status!r} (exit code {end.exit_code}, signal {end.signal}), not {case.expect}: "
            f"{end.stderr[-300:]}"
        )
    if end.status == "ok" and case.speaks and "ok" in case.expect and "HELD" not in end.stdout:
        found.append(f"it was not refused, nor did it succeed: {end.stdout[-200:]!r} {end.stderr[-300:]!r}")
    if case.check is not None and (wrong := case.check(end)):
        found.append(wrong)
    return found


def plainly(case: Case, stage: Stage) -> Plain:
    """Run the case's script without a sandbox, under an outer guard: what the attack does where nothing holds it."""
    host = {**stage.host(), "sibling": [stage.victim.pid], "plain": True}
    environment = {**os.environ, stage_variable(host): stage.token}
    with _folder() as folder:
        if case.before and not case.together:
            _plain_run(script(case.before, host), folder, environment, case)
        code = script(f"{case.before}\n{case.code}" if case.together else case.code, host)
        found = _plain_run(code, folder, environment, case)
    return replace(found, harm=tuple(stage.problems()))


@contextmanager
def _folder() -> Iterator[str]:
    """An empty folder; what is in it at the end may be nested deeper than Python's own removal can follow."""
    folder = tempfile.mkdtemp(prefix="hostile-plain-")
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def stage_variable(host: Mapping[str, object]) -> str:
    return str(host["environment"])


def _plain_run(code: str, folder: str, environment: dict[str, str], case: Case) -> Plain:
    path, output = Path(folder) / "script.py", Path(folder) / "output"
    path.write_text(code)
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-X", "faulthandler=0", str(path)]
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_guard,
        )
        assert process.stdin is not None
        process.stdin.write(case.stdin.encode())
        process.stdin.close()
        try:
            code_of_shell, outlived = process.wait(case.control_s), False
        except subprocess.TimeoutExpired:
            code_of_shell, outlived = None, True
        wait_until(survivors if case.control is survives else lambda: True, within_s=MOST_LATE_S)
        left = len(survivors())
        kill_marked()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with output.open("rb") as stream:
        text = stream.read(1 << 20).decode(errors="replace")
    return Plain(output=text, exit_code=_exit_code(code_of_shell), outlived=outlived, survivors=left)


def _exit_code(of_shell: int | None) -> int | None:
    """As subprocess counts; a shell reports a signal as 128 and its number. (124 and 255 are codes.)"""
    return of_shell if of_shell is None or not 128 < of_shell < 193 else 128 - of_shell


def _guard() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESS_SPACE, MOST_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE, MOST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def kill_marked(mark: str = MARK) -> None:
    """End the processes that carry the mark, nobody's but these tests', and those they have made meanwhile."""

    def killed() -> bool:
        left = survivors(mark=mark)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(killed, within_s=MOST_LATE_S)
