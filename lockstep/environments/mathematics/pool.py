"""A few processes that compare mathematics symbolically, each killed and replaced when it is late.

math-verify and sympy hang, or take all memory, on hostile text, and math-verify's own time limit works on the main
thread alone. So comparisons run in `worker.py`, a fresh interpreter with limits; this file starts, asks, ends and
replaces it.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lockstep.rollout.tool import InfrastructureError

PROGRAM = Path(__file__).with_name("worker.py")
MAX_LINE_BYTES = 1 << 16

Verdict = Literal["equal", "different", "late", "crashed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """What comparisons may use."""

    num_workers: int = min(4, os.cpu_count() or 1)
    """Processes; they are started when they are first needed."""
    cpu_s: float = 2.0
    """Processor seconds of one comparison; beyond them it is late. Not wall clock: a busy machine judges no harder."""
    wall_s: float = 60.0
    """Seconds after which a worker that has neither answered nor used its processor time counts as broken."""
    memory_bytes: int = 1 << 30
    """Address space of a worker."""
    comparisons_per_worker: int = 2000
    """A worker is replaced after so many, since sympy's caches only grow."""
    program: tuple[str, ...] = (sys.executable, "-P", str(PROGRAM))
    """The command of a worker, before its two arguments (see worker.py)."""


class _Died(Exception):
    """The worker ended while it compared. returncode: as subprocess gives it."""

    def __init__(self, returncode: int) -> None:
        super().__init__(returncode)
        self.returncode = returncode


class _Worker:
    """One process. Not for several threads at once."""

    def __init__(self, options: PoolOptions) -> None:
        self.options = options
        self.num_compared = 0
        self._unread = b""
        environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}  # the same verdict every time
        command = [*options.program, str(options.cpu_s), str(options.memory_bytes)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise InfrastructureError(f"the mathematics worker cannot start ({error}): {command[0]}") from error
        try:
            said = self._read()
        except _Died as died:
            said = {"failed": f"it ended with {died.returncode}"}
        if "ready" not in said:
            self.end()
            raise InfrastructureError(
                f"the mathematics worker does not start: {said.get('failed', 'no answer')}; "
                "install it: pip install 'math-verify[antlr4_13_2]'"
            )

    def compare(self, answer: str, reference: str) -> bool:
        """Raises _Died when the process ended over it, and InfrastructureError when it is stuck."""
        self.num_compared += 1
        line = json.dumps({"answer": answer, "reference": reference}) + "\n"
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and _read says how
            self.process.stdin.write(line.encode())
        return self._read().get("equal") is True

    def _read(self) -> dict[str, object]:
        """The next line that the worker says."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poll = select.poll()  # not select: it cannot watch descriptors above 1023
        poll.register(descriptor, select.POLLIN)
        end = time.monotonic() + self.options.wall_s
        while b"\n" not in self._unread:
            left = end - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                self.end()
                raise InfrastructureError(
                    f"a mathematics worker has not answered within {self.options.wall_s:g} s: the machine is overloaded"
                )
            said = os.read(descriptor, MAX_LINE_BYTES)
            if not said:
                raise _Died(self.end())
            self._unread += said
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def end(self) -> int:
        """Kill and reap it, and close its pipes. Ending twice is allowed."""
        returncode = self.process.poll()
        if returncode is None:
            with suppress(subprocess.TimeoutExpired):  # a process whose output has ended is about to end by itself
                returncode = self.process.wait(0.05)
        self.process.kill()
        final = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return final if returncode is None else returncode


class MathPool:
    """Compares from any thread and any event loop. Close it to end the processes; it also ends them at exit."""

    def __init__(self, options: PoolOptions | None = None) -> None:
        self.options = options or PoolOptions()
        self._workers: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.options.num_workers):
            self._workers.put(None)
        self._threads = ThreadPoolExecutor(self.options.num_workers, thread_name_prefix="lockstep mathematics")
        self._closed = False
        atexit.register(self.close)

    def submit(self, answer: str, reference: str) -> Future[Verdict]:
        """`compare` in one of the pool's own threads, for `asyncio.wrap_future`."""
        return self._threads.submit(self.compare, answer, reference)

    def compare(self, answer: str, reference: str) -> Verdict:
        """Whether math-verify finds them equal; 'late' beyond the processor time, 'crashed' when the process died.

        Raises InfrastructureError when no worker can be started, or one is stuck.
        """
        worker, kept = self._workers.get(), None
        try:
            if self._closed:
                raise InfrastructureError("the mathematics workers are closed")
            worker = worker or _Worker(self.options)
            verdict: Verdict = "equal" if worker.compare(answer, reference) else "different"
            kept = worker if worker.num_compared < self.options.comparisons_per_worker else None
            return verdict
        except _Died as died:
            return "late" if died.returncode == -signal.SIGPROF else "crashed"
        finally:  # also when interrupted: a worker whose answer was not read is of no more use
            if worker is not None and (kept is None or self._closed):
                worker.end()
                kept = None
            self._workers.put(kept)

    def close(self) -> None:
        """End all processes, also those that are comparing once they have; later comparisons raise."""
        self._closed = True
        atexit.unregister(self.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        idle: list[_Worker | None] = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._workers.get_nowait())
        for worker in idle:
            if worker is not None:
                worker.end()
            self._workers.put(None)
