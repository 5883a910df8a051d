"""The system calls a guest may make: an allow-list, compiled to the kernel's filter language (classic BPF).

Everything not named here fails with EPERM. Conditions look at the low 32 bits of an argument where the kernel itself
takes an int. Source of the format: the kernel's Documentation/userspace-api/seccomp_filter.rst and
linux/audit.h (architecture numbers).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lockstep.sandbox.syscalls import Machine, number_of

AUDIT_ARCH: Mapping[Machine, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _AND, _JEQ, _JGE, _JA, _RET = 0x20, 0x54, 0x15, 0x35, 0x05, 0x06
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16
_X32_BIT = 0x40000000

OWN_PID = 0x7FFFFF01  # stands in a compiled program for the guest's process id, known only after its fork

FILES = """
    access chdir close copy_file_range creat dup dup2 dup3 faccessat faccessat2 fallocate
    fchdir fdatasync flock fstat fstatfs fsync ftruncate getcwd getdents getdents64 lseek lstat mkdir mkdirat newfstatat
    pipe pipe2 pread64 preadv pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat
    renameat2 rmdir sendfile stat statfs statx symlink symlinkat umask unlink unlinkat write writev link linkat
"""
WAITING = """
    clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait
    eventfd eventfd2 futex getitimer gettimeofday nanosleep pause poll ppoll pselect6 restart_syscall sched_yield select
    setitimer signalfd signalfd4 time timerfd_create timerfd_gettime timerfd_settime alarm
"""
MEMORY = "brk mlock mlock2 mprotect mremap msync munlock munmap"
PROCESS = """
    arch_prctl capget execve exit exit_group fork getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid
    getpriority getrandom getresgid getresuid getrlimit getrusage getsid gettid getuid kill membarrier rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getparam sched_getscheduler set_robust_list set_tid_address setrlimit
    sigaltstack sysinfo tgkill times tkill uname vfork wait4 waitid
"""
SOCKETS = "getpeername getsockname shutdown"
METADATA = "chmod fchmod fchmodat utime utimes utimensat futimesat"


@dataclass(frozen=True, slots=True)
class OneOf:
    """Allowed when the low 32 bits of `argument`, masked, are one of `values`."""

    argument: int
    values: Sequence[int]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class NoneOf:
    """Allowed when the low 32 bits of `argument`, masked, are none of `values`."""

    argument: int
    values: Sequence[int]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class NullPointer:
    """Allowed when all 64 bits of `argument` are 0."""

    argument: int


Condition = OneOf | NoneOf | NullPointer

_NEW_NAMESPACES_AND_PARENT = 0x7E020000 | 0x00008000 | 0x00002000  # CLONE_NEW*, CLONE_PARENT, CLONE_PTRACE
_MAP_SHARED_ANONYMOUS = (0x21, 0x23)  # hidden from every process's resident size once unmapped by it
_MAP_HUGETLB = 0x40000
_O_TRUNC, _O_ACCMODE, _O_NEITHER = 0x200, 0x3, 0x3
_SIGCHLD = 17

CONDITIONS: Mapping[str, Sequence[Condition]] = {
    # a thread with descriptors of its own (CLONE_THREAD, 0x10000, without CLONE_FILES, 0x400) could hide files there
    # an end told by another signal than SIGCHLD is SIGCONT's way into a session that stands still between runs
    "clone": [OneOf(0, [0], _NEW_NAMESPACES_AND_PARENT), NoneOf(0, [0x10000], 0x10400), OneOf(0, [0, _SIGCHLD], 0xFF)],
    # no RWF_NOWAIT, no POSIX_FADV_DONTNEED, no MADV_COLD or MADV_PAGEOUT (and no mincore): which pages of the runtime
    # are in memory carries bits to later calls. The time that a read takes, and getrusage's count of reads, still do.
    "preadv2": [NoneOf(5, [8], 8)],
    "fadvise64": [NoneOf(3, [4])],
    "madvise": [NoneOf(2, [20, 21])],
    "close_range": [OneOf(2, [0, 4])],  # not CLOSE_RANGE_UNSHARE
    # A read-only open that truncates escapes old Landlock. One for neither reading nor writing (access mode 3, made for
    # drivers) escapes every Landlock: it opens any file and device, and truncates under an old one.
    "open": [NoneOf(1, [_O_TRUNC], _O_TRUNC | _O_ACCMODE), NoneOf(1, [_O_NEITHER], _O_ACCMODE)],
    "openat": [NoneOf(2, [_O_TRUNC], _O_TRUNC | _O_ACCMODE), NoneOf(2, [_O_NEITHER], _O_ACCMODE)],
    # nor huge pages that the host keeps for others: no process's resident size shows them
    "mmap": [NoneOf(3, _MAP_SHARED_ANONYMOUS, 0x2F), NoneOf(3, [_MAP_HUGETLB], _MAP_HUGETLB)],
    # AF_UNIX and SOCK_STREAM: a datagram pair could send to any named socket
    "socketpair": [OneOf(0, [1]), OneOf(1, [1], 0xF)],
    # no MSG_OOB: a reader is woken for it and then waits; its kernel code has been broken out of before
    "sendto": [NullPointer(4), OneOf(3, [0], 1)],
    "recvfrom": [OneOf(3, [0], 1)],
    # SO_TYPE, SO_ERROR, SO_SNDBUF, SO_RCVBUF, SO_ACCEPTCONN, SO_PROTOCOL, SO_DOMAIN; not who the other side is, nor a
    # descriptor of its process. No setsockopt: it makes buffers of gigabytes, which are no process's memory, and loads
    # filter programs.
    "getsockopt": [OneOf(1, [1]), OneOf(2, [3, 4, 7, 8, 30, 38, 39])],
    # FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ; not TIOCSTI
    "ioctl": [OneOf(1, [0x541B, 0x5421, 0x5451, 0x5450, 0x5401, 0x5413])],
    # duplicates, flags and locks; not owners and signals, leases, or the size of pipes
    "fcntl": [OneOf(1, [0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034])],
    # names, and reading what is set: dumpable, seccomp, bounding set, no_new_privs
    "prctl": [OneOf(0, [15, 16, 3, 21, 23, 38, 39])],
    "prlimit64": [OneOf(0, [0])],
}

# A library that meets ENOSYS takes the older way, which is on the list; ENOTSUP says that a file system lacks it.
ABSENT = "clone3 openat2 futex_waitv memfd_create execveat pidfd_open io_uring_setup"
UNSUPPORTED = "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What differs between tiers.

    metadata: chmod and utime are really done (a read-only view protects what is outside); otherwise they do nothing and
    say that they did, and scratch is on the host's own disk. truncate: truncate(path) is safe. signals: any process may
    be signalled because the kernel keeps signals inside; otherwise only the guest itself and its process group.
    """

    metadata: bool
    truncate: bool
    signals: bool


def compile_filter(policy: Policy, machine: Machine) -> bytes:
    """The filter as packed sock_filter instructions. Where `policy.signals` is False it contains OWN_PID: replace it
    with `for_process`."""
    actions = {
        number: _action(name, rule) for name, rule in _rules(policy).items() for number in number_of(name, machine)
    }
    segments: list[tuple[int, tuple[bytes, ...]]] = [(0, _fail(errno.EPERM))]
    for number in sorted(actions):
        if segments[-1][0] == number:
            segments.pop()
        if not segments or segments[-1][1] != actions[number]:
            segments.append((number, actions[number]))
        segments.append((number + 1, _fail(errno.EPERM)))
    merged = [segments[0]]
    for segment in segments[1:]:
        if segment[1] != merged[-1][1]:
            merged.append(segment)
    head = [
        _instruction(_LOAD, _OFFSET_ARCH),
        _instruction(_JEQ, AUDIT_ARCH[machine], 1, 0),
        _instruction(_RET, RET_KILL_PROCESS),
        _instruction(_LOAD, _OFFSET_NR),
        _instruction(_JGE, _X32_BIT, 0, 1),
        _instruction(_RET, RET_ERRNO | errno.ENOSYS),
    ]
    return b"".join((*head, *_search(merged)))


def for_process(program: bytes, pid: int) -> bytes:
    """The program with the guest's own process id in place of OWN_PID."""
    return program.replace(struct.pack("I", OWN_PID), struct.pack("I", pid))


def _rules(policy: Policy) -> dict[str, int | Sequence[Condition]]:
    """Every named call with its conditions (none: allowed), or with the errno it fails with (0: pretends success)."""
    rules: dict[str, int | Sequence[Condition]] = {}
    for names in (FILES, WAITING, MEMORY, PROCESS, SOCKETS):
        rules.update(dict.fromkeys(names.split(), ()))
    rules.update(CONDITIONS)
    rules.update(dict.fromkeys(ABSENT.split(), errno.ENOSYS))
    rules.update(dict.fromkeys(UNSUPPORTED.split(), errno.ENOTSUP))
    rules.update(dict.fromkeys(METADATA.split(), () if policy.metadata else 0))
    if not policy.metadata:
        rules["fallocate"] = errno.ENOTSUP  # takes a disk's space at once, before anyone can look
    if policy.truncate:
        rules["truncate"] = ()
    if not policy.signals:
        rules["kill"] = [OneOf(0, [0, OWN_PID])]
        rules["tgkill"] = [OneOf(0, [OWN_PID])]
        del rules["tkill"]
    return rules


def _action(name: str, rule: int | Sequence[Condition]) -> tuple[bytes, ...]:
    if isinstance(rule, int):
        return _fail(rule)
    refusal = errno.ENOTTY if name == "ioctl" else errno.EPERM
    return (*(word for condition in rule for word in _test(condition, refusal)), _instruction(_RET, RET_ALLOW))


def _test(condition: Condition, refusal: int) -> list[bytes]:
    """Instructions that fall through when the condition holds and return the refusal otherwise."""
    low = _OFFSET_ARGUMENTS + 8 * condition.argument
    refuse = _instruction(_RET, RET_ERRNO | refusal)
    if isinstance(condition, NullPointer):
        half = [[_instruction(_LOAD, low + part), _instruction(_JEQ, 0, 1, 0), refuse] for part in (0, 4)]
        return half[0] + half[1]
    words = [_instruction(_LOAD, low), _instruction(_AND, condition.mask)]
    left = len(condition.values)
    for value in condition.values:
        left -= 1
        # to the instruction after the refusal, or to the refusal itself
        jump = left + 1 if isinstance(condition, OneOf) else left
        past = 0 if left or isinstance(condition, OneOf) else 1
        words.append(_instruction(_JEQ, value, jump, past))
    return [*words, refuse]


def _search(segments: Sequence[tuple[int, tuple[bytes, ...]]]) -> list[bytes]:
    """Binary search over segments (first number, action): the kernel emulates this once for every number there is."""
    if len(segments) == 1:
        return list(segments[0][1])
    middle = len(segments) // 2
    left, right = _search(segments[:middle]), _search(segments[middle:])
    return [_instruction(_JGE, segments[middle][0], 0, 1), _instruction(_JA, len(left)), *left, *right]


def _fail(number: int) -> tuple[bytes, ...]:
    return (_instruction(_RET, RET_ERRNO | number),)


def _instruction(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, constant)
