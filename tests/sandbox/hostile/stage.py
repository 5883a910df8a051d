"""The host as the attacks find it: secrets to read, files to change, sockets to reach, a process to kill.

The stage sees for itself what an attack did to it; no guest is asked.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.sandbox.hostile.case import MARK

ENVIRONMENT = "LOCKSTEP_HOSTILE_TOKEN"
PROBE = f"lockstep-hostile-probe-{os.getpid()}"  # suites side by side must not take the other's for a guest's
PROJECT = Path(__file__).resolve().parents[3]


class Stage:
    """Set up for guests that the host sees under `uid` (None: the same user as this process's)."""

    def __init__(self, uid: int | None, *, token: str | None = None, base: Path | None = None) -> None:
        self.token = token or new_token()
        self.uid = os.getuid() if uid is None else uid
        self.base = base or Path(tempfile.mkdtemp(prefix="hostile-stage-"))
        self._set_files()
        self._listeners = Listeners(self.base / "socket")
        self.victim = self._start_victim()
        self._shm_key = int.from_bytes(os.urandom(3), "big") + 1
        self._shm = self._share_memory()
        self._state = self._look()

    def _set_files(self) -> None:
        self.base.chmod(0o755)
        readable, home, everyones = self.base / "readable", self.base / "home" / ".ssh", self.base / "everyones"
        home.mkdir(parents=True)
        everyones.mkdir()
        everyones.chmod(0o777)
        for path in (readable, home / "id_ed25519", self.base / "owned", everyones / "writable"):
            path.write_text(self.token)
            path.chmod(0o644)
        (everyones / "writable").chmod(0o666)
        (everyones / "link").symlink_to(readable)
        if os.getuid() == 0:
            os.chown(self.base / "owned", self.uid, -1)
        self._dev_shm = Path("/dev/shm") / f"{PROBE}-{self.base.name}"
        self._dev_shm.write_text(self.token)
        self._dev_shm.chmod(0o666)

    def _start_victim(self) -> subprocess.Popen[bytes]:
        """A process of the guests' own user, with a secret in its environment: as a trainer of that user would be."""
        user = self.uid if os.getuid() == 0 else None
        return subprocess.Popen(["sleep", "1000"], env={ENVIRONMENT: self.token}, user=user, cwd="/")

    def _share_memory(self) -> int:
        libc = ctypes.CDLL(None)
        libc.shmat.restype = ctypes.c_void_p
        number = libc.shmget(self._shm_key, 4096, 0o1666)
        where = libc.shmat(number, None, 0)
        ctypes.memmove(where, self.token.encode(), len(self.token))
        libc.shmdt(ctypes.c_void_p(where))
        return number

    def host(self) -> dict[str, object]:
        """What the scripts are told."""
        return {
            "token": [self.token[:9], self.token[9:]],  # in two parts: a script that searches must not find its own
            "dir": str(self.base),
            "readable": str(self.base / "readable"),
            "home": str(self.base / "home"),
            "owned": str(self.base / "owned"),
            "everyones": str(self.base / "everyones"),
            "writable": str(self.base / "everyones" / "writable"),
            "link": str(self.base / "everyones" / "link"),
            "dev_shm": str(self._dev_shm),
            "shm_key": self._shm_key,
            "probe": PROBE,
            "project": str(PROJECT),
            "victim": self.victim.pid,
            "trainer": os.getpid(),
            "environment": ENVIRONMENT,
            **self._listeners.where,
        }

    def _look(self) -> dict[str, object]:
        """Everything that an attack might change, as it is now."""
        found: dict[str, object] = {}
        for path in sorted(path for path in self.base.rglob("*") if "scratch" not in path.parts):
            about = path.lstat()
            text = path.read_text() if path.is_file() and not path.is_symlink() else ""
            found[str(path)] = (about.st_mode, about.st_uid, about.st_mtime_ns if text else 0, text, _xattrs(path))
        found["/dev/shm"] = self._dev_shm.read_text() if self._dev_shm.exists() else None
        found["probes"] = [str(where / PROBE) for where in _planted() if (where / PROBE).exists()]
        found["victim"] = (
            self.victim.poll(),
            _state_of(self.victim.pid),
            _priority_of(self.victim.pid),
        )
        found["affinity"] = os.sched_getaffinity(self.victim.pid) if self.victim.poll() is None else None
        return found

    def problems(self) -> list[str]:
        """What has changed since the stage was set, or has been reached."""
        now = self._look()
        changed = sorted(name for name in {*now, *self._state} if now.get(name) != self._state.get(name))
        found = [f"host: {name} is {now.get(name)!r}, was {self._state.get(name)!r}" for name in changed]
        return found + [f"host: {name} was reached" for name in self._listeners.take_reached()]

    def close(self) -> None:
        self._listeners.close()
        self.victim.kill()
        self.victim.wait()
        ctypes.CDLL(None).shmctl(self._shm, 0, None)
        self._dev_shm.unlink(missing_ok=True)
        for where in _planted():
            (where / PROBE).unlink(missing_ok=True)
        shutil.rmtree(self.base, ignore_errors=True)


def new_token() -> str:
    return f"token-{os.urandom(12).hex()}"


class Listeners:
    """Sockets of every kind that a guest of this machine could reach; they note who came."""

    def __init__(self, path: Path) -> None:
        self._sockets: dict[str, socket.socket] = {}
        self.where: dict[str, object] = {}
        for name, kind, family, address in (
            ("tcp4", socket.SOCK_STREAM, socket.AF_INET, ("127.0.0.1", 0)),
            ("tcp6", socket.SOCK_STREAM, socket.AF_INET6, ("::1", 0)),
            ("udp4", socket.SOCK_DGRAM, socket.AF_INET, ("127.0.0.1", 0)),
            ("udp6", socket.SOCK_DGRAM, socket.AF_INET6, ("::1", 0)),
            ("unix", socket.SOCK_STREAM, socket.AF_UNIX, str(path)),
            ("unix_dgram", socket.SOCK_DGRAM, socket.AF_UNIX, f"{path}-dgram"),
            ("abstract", socket.SOCK_STREAM, socket.AF_UNIX, f"\0{PROBE}-{path.parent.name}"),
        ):
            own = socket.socket(family, kind)
            own.bind(address)
            if family == socket.AF_UNIX and isinstance(address, str) and not address.startswith("\0"):
                os.chmod(address, 0o777)
            if kind == socket.SOCK_STREAM:
                own.listen(16)
            own.setblocking(False)
            bound = own.getsockname()
            self.where[name] = (
                bound.decode() if isinstance(bound, bytes) else bound if isinstance(bound, str) else bound[1]
            )
            self._sockets[name] = own
        self._reached: list[str] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for name, own in self._sockets.items():
                selector.register(own, selectors.EVENT_READ, name)
            while not self._over.is_set():
                for key, _ in selector.select(0.05):
                    self._take(key.data)

    def _take(self, name: str) -> None:
        own = self._sockets[name]
        try:
            if own.type == socket.SOCK_STREAM:
                own.accept()[0].close()
            else:
                own.recv(4096)
        except BlockingIOError:
            return
        with self._lock:
            self._reached.append(name)

    def take_reached(self) -> list[str]:
        with self._lock:
            found, self._reached = self._reached, []
        return found

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for own in self._sockets.values():
            own.close()


Table = Mapping[int, tuple[int, str, str, int]]


def processes() -> Table:
    """pid: (parent, name, state, start time) of every process of the machine."""
    found = {int(entry): one for entry in os.listdir("/proc") if entry.isdecimal() and (one := process(int(entry)))}
    return found


def process(pid: int) -> tuple[int, str, str, int] | None:
    """(parent, name, state, start time); None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return int(fields[1]), name, fields[0], int(fields[19])


def descendants(of: int, table: Table | None = None) -> set[int]:
    """The living processes below `of`."""
    table = processes() if table is None else table
    found, edge = set(), {of}
    while edge := {pid for pid, (parent, _, state, _) in table.items() if parent in edge and state not in "ZX"} - found:
        found |= edge
    return found


def cpu_s(pid: int) -> float:
    """Processor time that a process has used; 0 when it is gone."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def survivors(table: Table | None = None, mark: str = MARK) -> list[int]:
    """Processes that carry the mark of those which should be gone."""
    table = processes() if table is None else table
    return [pid for pid, (_, name, state, _) in table.items() if name == mark and state not in "ZX"]


def gone(pids, *, within_s: float = 3.0) -> bool:
    """Whether `pids()` becomes empty; waits for it."""
    return wait_until(lambda: not pids(), within_s=within_s)


def wait_until(so: Callable[[], object], *, within_s: float) -> bool:
    """Whether `so()` becomes true; waits for it."""
    end = time.monotonic() + within_s
    while not so():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/<pid>/status."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _state_of(pid: int) -> str:
    state = (process(pid) or (0, "", "gone", 0))[2]
    return "alive" if state in "RSD" else state


def _priority_of(pid: int) -> int | None:
    try:
        return os.getpriority(os.PRIO_PROCESS, pid)
    except ProcessLookupError:
        return None


def _xattrs(path: Path) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []


def _planted() -> list[Path]:
    """Where scripts try to leave a file."""
    import numpy

    places = [
        "/tmp",
        "/var/tmp",
        "/dev",
        "/dev/shm",
        "/etc",
        "/",
        "/usr",
        "/home",
        Path(os.__file__).parent,
        Path(numpy.__file__).parents[1],
    ]
    return [Path(place) for place in (*places, Path.home(), PROJECT, PROJECT / "lockstep" / "sandbox")]
