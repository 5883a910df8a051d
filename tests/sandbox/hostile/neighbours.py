"""What a guest does to processes that are not its own: its parent, another call, a process of its own user."""

from __future__ import annotations

from tests.sandbox.hostile.case import case, harms, outlives

ENDS = ("ok", "killed", "error")


def at_sibling(name: str, attempts: str, attack: str, **options):
    """A case whose `attack` (statements that use `pid`) is aimed at each process of another call."""
    lines = "\n".join(f"    {line}" for line in attack.strip("\n").splitlines())
    return case(name, attempts, f"for pid in HOST['sibling']:\n{lines}", sibling=True, **options)


CASES = (
    case(
        "kill_parent",
        "kills its parent",
        """
        tried(os.kill, os.getppid() or 1, signal.SIGKILL)
        time.sleep(0.2)
        """,
        control=lambda plain: plain.exit_code == -9,
    ),
    case(
        "stop_parent",
        "stops its parent",
        """
        tried(os.kill, os.getppid() or 1, signal.SIGSTOP)
        time.sleep(0.2)
        """,
        control=outlives,
        control_s=1.0,
    ),
    case(
        "interrupt_parent",
        "sends its parent every signal but those two",
        """
        for number in sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP}):
            tried(os.kill, os.getppid() or 1, number)
        time.sleep(0.2)
        """,
        control=lambda plain: plain.exit_code not in (0, 1),
    ),
    case(
        "kill_group",
        "kills its process group, which may be its parent's too",
        """
        held()
        os.killpg(0, signal.SIGKILL)
        """,
        expect=ENDS,
        control=lambda plain: plain.exit_code == -9,
    ),
    case("kill_trainer", "asks whether it may signal the trainer", """refused(os.kill, HOST["trainer"], 0)"""),
    case("kill_victim", "ends a process of its own user", """refused(os.kill, HOST["victim"], signal.SIGTERM)"""),
    case(
        "kill_any_number",
        "ends whatever answers to a process number near its own",
        """
        found = []
        for pid in range(2, os.getpid() + 50):
            if pid not in (os.getpid(), os.getppid()):
                try:
                    os.kill(pid, 0)
                    found.append(pid)
                except OSError:
                    pass
        (breach if found else held)(found[:5])
        """,
        sibling=True,
    ),
    case(
        "kill_by_thread",
        "kills by thread number",
        """
        result, error = syscall("tgkill", HOST["victim"], HOST["victim"], signal.SIGTERM)
        (held if result else breach)(result, error)
        """,
        control=harms,
    ),
    case(
        "queue_signal",
        "kills by a queued signal",
        """
        import ctypes
        about = (ctypes.c_int * 32)(signal.SIGTERM, 0, -1)
        result, error = syscall("rt_sigqueueinfo", HOST["victim"], signal.SIGTERM, about)
        (held if result else breach)(result, error)
        """,
    ),
    case(
        "signal_by_descriptor",
        "kills through a process descriptor",
        """
        number, error = syscall("pidfd_open", HOST["victim"], 0)
        if number >= 0:
            number, error = syscall("pidfd_send_signal", number, signal.SIGTERM, 0, 0)
        (breach if number >= 0 else held)(number, error)
        """,
    ),
    case(
        "signal_by_input",
        "has the kernel send SIGKILL to another process when a pipe is ready",
        """
        import fcntl
        def attack():
            reading, writing = os.pipe()
            fcntl.fcntl(reading, 8, HOST["victim"])
            fcntl.fcntl(reading, 10, signal.SIGKILL)
            fcntl.fcntl(reading, fcntl.F_SETFL, fcntl.fcntl(reading, fcntl.F_GETFL) | os.O_ASYNC)
            os.write(writing, b"x")
        tried(attack)
        """,
        control=harms,
    ),
    at_sibling("kill_sibling", "kills another call", "refused(os.kill, pid, signal.SIGKILL)"),
    at_sibling("stop_sibling", "stops another call", "refused(os.kill, pid, signal.SIGSTOP)"),
    at_sibling("trace_sibling", "traces another call", 'kernel("ptrace", 16, pid, 0, 0)'),
    at_sibling("seize_sibling", "seizes another call", 'kernel("ptrace", 0x4206, pid, 0, 0)'),
    at_sibling(
        "read_sibling_by_call",
        "reads another call's memory by a system call",
        """
import ctypes
room, want = ctypes.create_string_buffer(8), (ctypes.c_uint64 * 2)(0x400000, 8)
here = (ctypes.c_uint64 * 2)(ctypes.addressof(room), 8)
kernel("process_vm_readv", pid, here, 1, want, 1, 0)
""",
    ),
    at_sibling(
        "write_sibling_by_call",
        "writes another call's memory by a system call",
        """
import ctypes
room, want = ctypes.create_string_buffer(8), (ctypes.c_uint64 * 2)(0x10, 8)
here = (ctypes.c_uint64 * 2)(ctypes.addressof(room), 8)
kernel("process_vm_writev", pid, here, 1, want, 1, 0)
""",
    ),
    at_sibling(
        "steal_sibling_descriptor",
        "takes another call's standard output",
        """
number, error = syscall("pidfd_open", pid, 0)
if number >= 0:
    number, error = syscall("pidfd_getfd", number, 1, 0)
(breach if number >= 0 else held)(number, error)
""",
    ),
    at_sibling(
        "limit_sibling",
        "lowers another call's limits",
        """
import resource
refused(resource.prlimit, pid, resource.RLIMIT_NOFILE, (0, 0))
""",
    ),
    at_sibling("slow_sibling", "lowers another call's priority", "refused(os.setpriority, os.PRIO_PROCESS, pid, 19)"),
    at_sibling("pin_sibling", "pins another call to one processor", "refused(os.sched_setaffinity, pid, {0})"),
    at_sibling(
        "reschedule_sibling",
        "changes another call's scheduling",
        "refused(os.sched_setscheduler, pid, os.SCHED_BATCH, os.sched_param(0))",
    ),
    at_sibling(
        "starve_sibling_of_input", "lowers another call's disk priority", 'kernel("ioprio_set", 1, pid, 3 << 13)'
    ),
    case(
        "slow_victim",
        "lowers the priority of a process of its own user",
        """
        refused(os.setpriority, os.PRIO_PROCESS, HOST["victim"], 19)
        """,
    ),
    case(
        "limit_victim",
        "lowers the limits of a process of its own user",
        """
        import resource
        refused(resource.prlimit, HOST["victim"], resource.RLIMIT_CPU, (1, 1))
        """,
    ),
    case(
        "pin_victim",
        "pins a process of its own user to one processor",
        """
        refused(os.sched_setaffinity, HOST["victim"], {0})
        """,
        control=lambda plain: "BREACH" in plain.output,
    ),
    case(
        "slow_all_of_user",
        "lowers the priority of all processes of its user",
        """
        refused(os.setpriority, os.PRIO_USER, os.getuid(), os.getpriority(os.PRIO_PROCESS, 0))
        """,
    ),
)
