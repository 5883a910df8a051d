"""What every hostile script begins with: pasted in front of it as text, with what it may know of the host in `HOST`.

A script says BREACH when its attack worked and HELD when it was refused; one that says neither did not come so far.
"""

import errno
import os
import signal
import sys  # noqa: F401 (the scripts use it)
import time

NUMBERS = {  # name: (x86-64, aarch64), of the kernel's syscall tables
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "execveat": (322, 281),
    "exit": (60, 93),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "inotify_add_watch": (254, 27),
    "inotify_init1": (294, 26),
    "io_uring_setup": (425, 425),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mlockall": (151, 230),
    "modify_ldt": (154, -1),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "openat2": (437, 437),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "seccomp": (317, 277),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vmsplice": (278, 75),
}
HOST = {}
MARK = "hostile-mark"  # the name that processes which should not survive give themselves


def breach(*what):
    os.write(1, f"BREACH {' '.join(map(str, what))}\n".encode())


def held(*what):
    os.write(1, f"HELD {' '.join(map(str, what))}\n".encode())


def refused(function, *arguments, **keywords):
    """Call it: an OSError (or what derives from it) is a refusal, anything else it gives back is a breach."""
    try:
        result = function(*arguments, **keywords)
    except OSError as error:
        held(type(error).__name__, errno.errorcode.get(error.errno, error.errno))
    else:
        breach(repr(result)[:80])


def syscall(name, *arguments):
    """(result, errno) of a raw system call; `name` may be a number."""
    import ctypes
    import platform

    if isinstance(name, str):
        name = NUMBERS[name][platform.machine() == "aarch64"]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    ctypes.set_errno(0)
    given = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    given += [ctypes.c_long(0)] * (6 - len(given))
    return libc.syscall(ctypes.c_long(name), *given), ctypes.get_errno()


def kernel(name, *arguments):
    """Any answer but a refusal means that the kernel took the call: a breach, even where its arguments are nonsense."""
    result, error = syscall(name, *arguments)
    if result == -1 and error in (errno.EPERM, errno.ENOSYS, errno.EACCES):
        held(errno.errorcode[error])
    else:
        breach(name, result, errno.errorcode.get(error, error))


def tried(function, *arguments, **keywords):
    """Call it, whatever comes of it: the host is looked at afterwards."""
    try:
        function(*arguments, **keywords)
    except OSError as error:
        held(type(error).__name__, error.errno)
    else:
        held("was not refused; the host will tell")


def secret():
    return "".join(HOST["token"]).encode()


def call_itself(name):
    """Take a name that the host can find in the process table."""
    syscall("prctl", 15, name.encode())


def leave_group():
    """Out of the reach of who kills by process group, by whichever call is not refused."""
    for leave in (os.setsid, lambda: os.setpgid(0, 0), lambda: os.setpgid(0, os.getppid())):
        try:
            return leave()
        except OSError:
            continue


def linger(seconds=20):
    """What a child does that means to survive: leaves the group, ignores what it can, and sleeps."""
    leave_group()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    call_itself(MARK)
    time.sleep(seconds)
    os._exit(0)


def read(path):
    with open(path, "rb") as file:
        return file.read(1 << 16)
