"""The sandbox opens by itself wherever training runs: in a container with the default seccomp profile, as an ordinary
user, with odd file systems; and refuses, with the reasons and the fixes, where nothing can shut code in."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="emulating a container needs root"
)

CONTAINER = ("--profile", "--drop-capabilities")
USER_IN_CONTAINER = ("--profile", "--uid", "1000")
EMULATION = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
clone, keyctl, bpf = (220, 219, 280) if os.uname().machine == "aarch64" else (56, 250, 321)
calls = {
    "new user namespace": lambda: libc.unshare(0x10000000),
    "new mount namespace": lambda: libc.unshare(0x20000),
    "clone into a user namespace": lambda: libc.syscall(clone, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": lambda: libc.syscall(435, None, 0),
    "setns": lambda: libc.setns(0, 0),
    "mount": lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None),
    "keyctl": lambda: libc.syscall(keyctl, 0, 0, 0, 0, 0),
    "bpf": lambda: libc.syscall(bpf, 0, 0, 0),
    "vsock": lambda: libc.socket(40, 1, 0),
    "unknown": lambda: libc.syscall(1000),
    "pipe": lambda: libc.pipe((ctypes.c_int * 2)()),
    "landlock": lambda: libc.syscall(444, None, 0, 1),
}
found = {name: "ok" if call() >= 0 else errno.errorcode[ctypes.get_errno()] for name, call in calls.items()}
pid = os.fork()
if pid == 0:
    os._exit(7)
status = {key: value.strip() for key, _, value in (line.partition(":") for line in open("/proc/self/status"))}
print(json.dumps(found | {"fork": os.waitpid(pid, 0)[1] >> 8, "uid": os.getuid(), "shm": os.path.exists("/dev/shm"),
    "tmp": os.access("/tmp", os.W_OK)} | {key: status[key] for key in ("CapEff", "CapBnd", "NoNewPrivs")}))
"""


def confined(*command, environment=None):
    """The last line that the command prints, as JSON."""
    variables = dict(os.environ if environment is None else environment) | {"OMP_NUM_THREADS": "1"}
    whole = [sys.executable, str(HERE / "confined.py"), *command]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=250, env=variables, cwd=HERE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def smoke(*confinement, tier="auto", environment=None):
    """What smoke.py prints in such surroundings."""
    return confined(*confinement, "--", sys.executable, str(HERE / "smoke.py"), tier, environment=environment)


@pytest.mark.parametrize("user", [CONTAINER, USER_IN_CONTAINER], ids=["root", "user"])
def test_the_emulated_container_is_like_one(user):
    found = confined(*user, "--no-new-privs", "--landlock", "ENOSYS", "--", sys.executable, "-I", "-c", EMULATION)
    root = user == CONTAINER
    denied = ("new user namespace", "new mount namespace", "clone into a user namespace", "setns", "mount", "keyctl")
    assert {name: found[name] for name in denied} == dict.fromkeys(denied, "EPERM")
    assert (found["bpf"], found["vsock"]) == ("EPERM", "EPERM")
    assert (found["clone3"], found["unknown"], found["landlock"]) == ("ENOSYS", "ENOSYS", "ENOSYS")
    assert (found["pipe"], found["fork"], found["uid"]) == ("ok", 7, 0 if root else 1000)
    assert found["CapEff"] == ("00000000a80425fb" if root else "0" * 16)
    assert found["NoNewPrivs"] == "1"


def test_the_emulation_of_odd_file_systems():
    odd = ("--read-only-tmp", "--no-shm", "--uid", "1000", "--", sys.executable, "-I", "-c", EMULATION)
    found = confined(*odd)
    assert (found["tmp"], found["shm"], found["landlock"]) == (False, False, "ok")
    assert (found["new user namespace"], found["NoNewPrivs"]) == ("ok", "0")


@pytest.mark.parametrize(
    "confinement",
    [
        pytest.param(CONTAINER, id="root"),
        pytest.param((*CONTAINER, "--no-new-privs"), id="root, no new privileges", marks=pytest.mark.slow),
        pytest.param(USER_IN_CONTAINER, id="user", marks=pytest.mark.slow),
        pytest.param((*USER_IN_CONTAINER, "--no-new-privs"), id="user, no new privileges", marks=pytest.mark.slow),
    ],
)
def test_inside_a_container(confinement):
    """Namespaces are denied: it falls to Landlock by itself, and everything holds."""
    assert smoke(*confinement) == {"tier": "landlock", "wrong": []}


@pytest.mark.parametrize(
    ("user", "code"),
    [
        pytest.param(CONTAINER, "ENOSYS", id="root, ENOSYS"),
        pytest.param(CONTAINER, "EPERM", id="root, EPERM", marks=pytest.mark.slow),
        pytest.param(USER_IN_CONTAINER, "ENOSYS", id="user, ENOSYS", marks=pytest.mark.slow),
        pytest.param(USER_IN_CONTAINER, "EOPNOTSUPP", id="user, EOPNOTSUPP", marks=pytest.mark.slow),
    ],
)
def test_without_landlock_in_a_container_it_refuses(user, code):
    """ENOSYS: an old kernel or profile; EPERM: an old profile; EOPNOTSUPP: switched off at boot."""
    first, *probes = smoke(*user, "--landlock", code)["refused"].split("\n")
    assert "no sandbox can be opened here" in first
    assert [line.strip().partition(" (needed by ")[0] for line in probes] == ["user namespaces", "own root", "landlock"]
    assert all(": " in line and ". Fix: " in line for line in probes)
    assert "Operation not permitted. Fix: " in probes[0] and "seccomp profile" in probes[0]
    assert f"{os.strerror(getattr(errno, code))}. Fix: " in probes[2] and "Linux 5.13" in probes[2]


def test_a_tier_that_was_asked_for_is_not_replaced():
    text = smoke(*CONTAINER, tier="namespaces")["refused"]
    assert text.startswith("sandbox.tier='namespaces'") and "landlock" not in text


@pytest.mark.parametrize("tier", ["namespaces", pytest.param("landlock", marks=pytest.mark.slow)])
def test_an_ordinary_user(tier):
    assert smoke("--uid", "1000", tier="auto" if tier == "namespaces" else tier) == {"tier": tier, "wrong": []}


@pytest.mark.parametrize("tier", ["namespaces", "landlock"])
@pytest.mark.parametrize(
    "confinement",
    [
        pytest.param(("--read-only-tmp",), id="read-only /tmp"),
        pytest.param(("--no-shm",), id="no /dev/shm"),
        pytest.param(("--read-only-tmp", "--no-shm", "--uid", "1000"), id="both, user"),
    ],
)
@pytest.mark.slow
def test_odd_file_systems(confinement, tier):
    assert smoke(*confinement, tier=tier) == {"tier": tier, "wrong": []}


@pytest.mark.parametrize("confinement", [CONTAINER, ("--uid", "1000")], ids=["container", "user"])
@pytest.mark.slow
def test_without_an_environment(confinement):
    """No HOME, no PATH, nothing."""
    tier = "landlock" if confinement == CONTAINER else "namespaces"
    assert smoke(*confinement, environment={}) == {"tier": tier, "wrong": []}
