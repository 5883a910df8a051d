"""The filter, read instruction by instruction as the kernel would, on both machines."""

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.sandbox import seccomp
from lockstep.sandbox.seccomp import AUDIT_ARCH, OWN_PID, RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, Policy
from lockstep.sandbox.syscalls import _NUMBERS, number_of

MACHINES = ("x86_64", "aarch64")
CLOSED = Policy(metadata=False, truncate=False, signals=False)
OPEN = Policy(metadata=True, truncate=True, signals=True)
PROGRAMS = {(m, p): seccomp.compile_filter(p, m) for m in MACHINES for p in (CLOSED, OPEN)}
MASK = (1 << 32) - 1
ALLOWED = "allowed"

FORBIDDEN = """
    mincore socket connect bind listen accept accept4 sendmsg recvmsg sendmmsg recvmmsg ptrace process_vm_readv
    process_vm_writev unshare setns mount umount2 pivot_root chroot bpf perf_event_open userfaultfd keyctl add_key
    request_key io_uring_setup io_uring_enter io_uring_register setsid setpgid setuid setgid setresuid setresgid
    setgroups capset seccomp personality mknod mknodat chown fchown lchown fchownat shmget shmat shmctl semget
    msgget mq_open memfd_create memfd_secret execveat open_by_handle_at name_to_handle_at splice tee vmsplice sync
    syncfs pidfd_open pidfd_getfd pidfd_send_signal process_madvise kcmp sched_setaffinity sched_setscheduler
    setpriority ioprio_set reboot init_module finit_module kexec_load swapon sethostname settimeofday clock_settime
    syslog move_pages migrate_pages mbind clone3 landlock_create_ruleset landlock_restrict_self open_tree move_mount
    fsopen mount_setattr inotify_init1 fanotify_init quotactl acct iopl ioperm modify_ldt vhangup rt_sigqueueinfo
    rt_tgsigqueueinfo setxattr openat2 timer_create timer_settime setsockopt
"""


def decide(program, number, arguments=(), arch=None, machine="x86_64"):
    """What the filter returns: classic BPF, with only the instructions that it may hold."""
    arguments = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, AUDIT_ARCH[machine] if arch is None else arch, 0, *arguments)
    words = [struct.unpack("HBBI", program[place : place + 8]) for place in range(0, len(program), 8)]
    place, value = 0, 0
    for _ in range(len(words)):
        code, if_true, if_false, constant = words[place]
        place += 1
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif code == 0x54:
            value &= constant
        elif code == 0x15:
            place += if_true if value == constant else if_false
        elif code == 0x35:
            place += if_true if value >= constant else if_false
        elif code == 0x05:
            place += constant
        else:
            assert code == 0x06
            return constant
    raise AssertionError("the program does not end")


def said(name, *arguments, policy=CLOSED, machine="x86_64"):
    """None where the machine lacks the call, ALLOWED, otherwise the errno (True would equal EPERM)."""
    numbers = number_of(name, machine)
    if not numbers:
        return None
    answer = decide(PROGRAMS[machine, policy], numbers[0], arguments, machine=machine)
    return ALLOWED if answer == RET_ALLOW else answer - RET_ERRNO


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("policy", [CLOSED, OPEN], ids=["closed", "open"])
def test_what_is_not_needed_is_refused(machine, policy):
    refused = {name: said(name, policy=policy, machine=machine) for name in FORBIDDEN.split()}
    assert {name for name, answer in refused.items() if answer in (ALLOWED, 0)} == set()


@pytest.mark.parametrize("machine", MACHINES)
def test_the_plain_calls_are_allowed(machine):
    for names in (seccomp.FILES, seccomp.WAITING, seccomp.MEMORY, seccomp.SOCKETS):
        assert {said(name, policy=OPEN, machine=machine) for name in names.split()} <= {ALLOWED, None}


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_machines_own(machine):
    """Read, write, execve and clone, from the kernel's tables."""
    expected = {"x86_64": [0, 1, 59, 56], "aarch64": [63, 64, 221, 220]}[machine]
    assert [number_of(name, machine)[0] for name in ("read", "write", "execve", "clone")] == expected
    assert number_of("fork", "aarch64") == ()


HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_is_that_of_the_kernels_header(machine):
    """aarch64 takes the generic table, whose names for calls of old 32-bit machines begin otherwise."""
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]} (linux-libc-dev)")
    lines = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", HEADERS[machine].read_text(), re.MULTILINE)
    known = dict(reversed(lines))  # the first definition of a name counts
    if machine == "aarch64":
        known["newfstatat"] = known.pop("fstatat")
    assert {name: number_of(name, machine) for name in _NUMBERS} == {
        name: (int(known[name]),) if name in known else () for name in _NUMBERS
    }


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_kills(machine):
    other = next(arch for name, arch in AUDIT_ARCH.items() if name != machine)
    assert decide(PROGRAMS[machine, OPEN], 0, arch=other) == RET_KILL_PROCESS
    assert decide(PROGRAMS[machine, OPEN], 0, arch=0x40000003) == RET_KILL_PROCESS  # i386's table


def test_the_x32_table_is_absent():
    assert decide(PROGRAMS["x86_64", OPEN], 0x40000000 | number_of("getpid", "x86_64")[0]) == RET_ERRNO | errno.ENOSYS


@given(st.integers(463, (1 << 32) - 1))
def test_unknown_numbers_fail(number):
    for program in PROGRAMS.values():
        answer = decide(program, number, machine="x86_64")
        assert answer in (RET_ERRNO | errno.EPERM, RET_ERRNO | errno.ENOSYS, RET_KILL_PROCESS)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (("clone", 0x11), ALLOWED),  # SIGCHLD: fork
        (("clone", 0x003D0F00), ALLOWED),  # a thread, as the C library makes it
        (("clone", 0x10000011), errno.EPERM),  # CLONE_NEWUSER
        (("clone", 0x00020011), errno.EPERM),  # CLONE_NEWNS
        (("clone", 0x02000011), errno.EPERM),  # CLONE_NEWCGROUP
        (("clone", 0x8011), errno.EPERM),  # CLONE_PARENT
        (("clone", (1 << 32) | 0x10000011), errno.EPERM),
        (("clone", 0x00010900), errno.EPERM),  # CLONE_THREAD without CLONE_FILES
        (("clone", 0x4111), ALLOWED),  # vfork with CLONE_VM, no thread
        (("clone", 0x01200000), ALLOWED),  # a child whose end nobody is told
        (("clone", 0x01200012), errno.EPERM),  # its end is told by SIGCONT
        (("clone", 0x4109), errno.EPERM),  # by SIGKILL
        (("clone3",), errno.ENOSYS),
        (("memfd_create",), errno.ENOSYS),
        (("socketpair", 1, 1), ALLOWED),
        (("socketpair", 1, 1 | 0o4000 | 0o2000000), ALLOWED),
        (("socketpair", 1, 2), errno.EPERM),  # datagrams could be sent to any named socket
        (("socketpair", 1, 5), errno.EPERM),
        (("socketpair", 2, 1), errno.EPERM),
        (("sendto", 3, 0, 9, 0, 0), ALLOWED),
        (("sendto", 3, 0, 9, 0, 0x7FFF0000), errno.EPERM),
        (("sendto", 3, 0, 9, 0, 1 << 40), errno.EPERM),
        (("sendto", 3, 0, 9, 0x4040, 0), ALLOWED),  # MSG_NOSIGNAL | MSG_DONTWAIT
        (("sendto", 3, 0, 9, 0x4001, 0), errno.EPERM),  # MSG_OOB
        (("recvfrom", 3, 0, 9, 0x40), ALLOWED),
        (("recvfrom", 3, 0, 9, 1), errno.EPERM),
        (("close_range", 3, 9, 0), ALLOWED),
        (("close_range", 3, 9, 4), ALLOWED),  # CLOSE_RANGE_CLOEXEC
        (("close_range", 3, 9, 2), errno.EPERM),  # CLOSE_RANGE_UNSHARE
        (("close_range", 3, 9, 6), errno.EPERM),
        (("preadv2", 3, 0, 1, 0, 0, 0), ALLOWED),
        (("preadv2", 3, 0, 1, 0, 0, 8), errno.EPERM),  # RWF_NOWAIT
        (("preadv2", 3, 0, 1, 0, 0, 9), errno.EPERM),
        (("fadvise64", 3, 0, 0, 2), ALLOWED),  # POSIX_FADV_SEQUENTIAL
        (("fadvise64", 3, 0, 0, 4), errno.EPERM),  # POSIX_FADV_DONTNEED
        (("madvise", 0, 0, 4), ALLOWED),  # MADV_DONTNEED, which is of the process's own memory
        (("madvise", 0, 0, 21), errno.EPERM),  # MADV_PAGEOUT
        (("ioctl", 1, 0x5401), ALLOWED),
        (("ioctl", 1, 0x5421), ALLOWED),  # FIONBIO: asyncio
        (("ioctl", 1, 0x5412), errno.ENOTTY),  # TIOCSTI
        (("ioctl", 1, (1 << 32) | 0x5412), errno.ENOTTY),
        (("fcntl", 1, 4), ALLOWED),
        (("fcntl", 1, 8), errno.EPERM),  # F_SETOWN
        (("fcntl", 1, 15), errno.EPERM),  # F_SETOWN_EX
        (("fcntl", 1, 1031), errno.EPERM),  # F_SETPIPE_SZ
        (("fcntl", 1, 1033), errno.EPERM),  # F_ADD_SEALS
        (("prctl", 15), ALLOWED),
        (("prctl", 4), errno.EPERM),  # PR_SET_DUMPABLE
        (("prctl", 1), errno.EPERM),  # PR_SET_PDEATHSIG
        (("prctl", 36), errno.EPERM),  # PR_SET_CHILD_SUBREAPER
        (("prctl", 22), errno.EPERM),  # PR_SET_SECCOMP
        (("prlimit64", 0), ALLOWED),
        (("prlimit64", 7), errno.EPERM),
        (("mmap", 0, 4096, 3, 0x22), ALLOWED),  # private, anonymous
        (("mmap", 0, 4096, 3, 0x01), ALLOWED),  # a file, shared
        (("mmap", 0, 4096, 3, 0x21), errno.EPERM),
        (("mmap", 0, 4096, 3, 0x23), errno.EPERM),
        (("mmap", 0, 4096, 3, 0x40022), errno.EPERM),  # MAP_HUGETLB
        (("openat", 0, 0, 0), ALLOWED),
        (("openat", 0, 0, 0x241), ALLOWED),  # O_WRONLY | O_CREAT | O_TRUNC
        (("openat", 0, 0, 0x200), errno.EPERM),  # O_RDONLY | O_TRUNC
        (("open", 0, 0x80200), errno.EPERM),
        (("openat", 0, 0, 2), ALLOWED),
        (("openat", 0, 0, 3), errno.EPERM),  # neither for reading nor for writing
        (("openat", 0, 0, 0x203), errno.EPERM),
        (("openat", 0, 0, (1 << 32) | 0x80003), errno.EPERM),
        (("open", 0, 3), errno.EPERM),
        (("getsockopt", 3, 1, 3), ALLOWED),  # SO_TYPE
        (("getsockopt", 3, 1, 17), errno.EPERM),  # SO_PEERCRED
        (("getsockopt", 3, 1, 77), errno.EPERM),  # SO_PEERPIDFD
        (("getsockopt", 3, 6, 3), errno.EPERM),
        (("setxattr",), errno.ENOTSUP),
    ],
)
@pytest.mark.parametrize("machine", MACHINES)
def test_conditions_on_arguments(machine, call, answer):
    assert said(*call, machine=machine) in (answer, None)


@pytest.mark.parametrize("machine", MACHINES)
def test_policies_differ_where_they_should(machine):
    assert [said("fchmod", policy=p, machine=machine) for p in (CLOSED, OPEN)] == [0, ALLOWED]  # 0: pretends
    assert [said("utimensat", policy=p, machine=machine) for p in (CLOSED, OPEN)] == [0, ALLOWED]
    assert [said("truncate", policy=p, machine=machine) for p in (CLOSED, OPEN)] == [errno.EPERM, ALLOWED]
    assert [said("tkill", 1, policy=p, machine=machine) for p in (CLOSED, OPEN)] == [errno.EPERM, ALLOWED]
    assert [said("kill", 1, policy=p, machine=machine) for p in (CLOSED, OPEN)] == [errno.EPERM, ALLOWED]


@pytest.mark.parametrize("machine", MACHINES)
def test_without_scoped_signals_only_the_own_process_is_signalled(machine):
    program = seccomp.for_process(PROGRAMS[machine, CLOSED], 4321)
    assert struct.pack("I", OWN_PID) not in program
    kill, tgkill = (number_of(name, machine)[0] for name in ("kill", "tgkill"))
    allowed = [
        decide(program, call, [MASK & target], machine=machine) == RET_ALLOW
        for call in (kill, tgkill)
        for target in (4321, 0, 1, -1, -4321, 4322)
    ]
    assert allowed == [True, True, False, False, False, False, True, False, False, False, False, False]
