"""System calls that a calculation never needs. Arguments are harmless or nonsense: being taken at all is the breach."""

from __future__ import annotations

from tests.sandbox.hostile.case import case


def call(name: str, attempts: str, *arguments: object, called: str = "", **options):
    """A case of one system call, named as the call or as `called`."""
    given = "".join(f", {argument!r}" for argument in arguments)
    return case(called or f"call_{name}", attempts, f'kernel("{name}"{given})', expect=("ok", "killed"), **options)


CASES = (
    call("unshare", "makes a network namespace", 0x40000000),
    call("unshare", "makes a user namespace, in which it would be root", 0x10000000, called="unshare_user"),
    call("unshare", "leaves the shared table of descriptors", 0x400, called="unshare_files"),
    call("setns", "enters another namespace", -1, 0),
    call("mount", "mounts", 0, 0, 0, 0, 0),
    call("umount2", "unmounts", b"/lockstep-hostile-nowhere", 0),
    call("pivot_root", "changes the root for all", 0, 0),
    call("chroot", "changes its root", b"/lockstep-hostile-nowhere"),
    call("fsopen", "makes a file system by the newer calls", b"tmpfs", 0),
    call("fsmount", "mounts by the newer calls", -1, 0, 0),
    call("open_tree", "takes a piece of the tree of mounts", -100, b"/", 0),
    call("move_mount", "moves a mount", -1, b"", -1, b"", 0),
    call("mount_setattr", "changes a mount", -1, 0, 0xDEAD, 0, 0),
    call("bpf", "loads a program into the kernel", 0, 0, 0),
    call("perf_event_open", "counts events of the processor, a side channel", 0, 0, -1, -1, 0),
    call("io_uring_setup", "makes a ring whose operations pass by the filter", 0, 0),
    call("userfaultfd", "handles page faults, which makes races of the kernel's winnable", 1),
    call("add_key", "puts a key into the kernel", b"user", b"hostile", b"x", 1, -2),
    call("request_key", "asks for a key, which starts a program of the host's", 0, 0, 0, 0),
    call("keyctl", "reads a key ring", 0, -2, 1),
    call("kexec_load", "loads another kernel", 0, 0, 0, 0),
    call("kexec_file_load", "loads another kernel from a file", -1, -1, 0, 0, 0),
    call("init_module", "loads a module", 0, 0, 0),
    call("finit_module", "loads a module from a file", -1, 0, 0),
    call("delete_module", "unloads a module", 0, 0),
    call("reboot", "restarts the machine", 0, 0, 0, 0),
    call("swapon", "adds swap", 0, 0),
    call("swapoff", "removes swap", 0),
    call("settimeofday", "sets the clock", 0, 0),
    call("clock_settime", "sets the clock by the newer call", 0, 0),
    call("adjtimex", "bends the clock", 0),
    call("sethostname", "names the machine", 0, -1),
    call("setdomainname", "names the machine's domain", 0, -1),
    call("personality", "switches off the randomised layout", 0x0040000),
    call("ptrace", "asks to be traced", 0),
    call("seccomp", "reads the sizes of the filter's notifications", 3, 0, 0),
    call("fanotify_init", "watches whole file systems", 0x200, 0),
    call("quotactl", "reads quotas", 0, 0, 0, 0),
    call("acct", "writes a log of processes", b"/lockstep-hostile-nowhere"),
    call("syslog", "reads the kernel's log", 10, 0, 0),
    case(
        "call_kcmp",
        "compares kernel objects of two processes",
        """kernel("kcmp", os.getpid(), os.getpid(), 0, 0, 0)""",
        expect=("ok", "killed"),
    ),
    call("move_pages", "moves another process's pages", 0, 0, 0, 0, 0, 0),
    call("migrate_pages", "moves another process's pages to other nodes", 0, 0, 0, 0),
    call("memfd_secret", "takes memory that not even the kernel maps", 0),
    call("process_madvise", "advises on another process's memory", -1, 0, 0, 0, 0),
    call("pidfd_getfd", "takes a descriptor from another process", -1, 0, 0),
    call("process_vm_readv", "reads another process's memory", 0, 0, 0, 0, 0, 1),
    call("process_vm_writev", "writes another process's memory", 0, 0, 0, 0, 0, 1),
    call(
        "clone",
        "makes a child in a user namespace of its own",
        0x10000011,
        called="clone_user",
        control=None,
        no_control="the child would go on with the test's script",
    ),
    case(
        "clone3_user",
        "makes a child in a user namespace by the newer call, whose flags no filter can see",
        """
        import ctypes
        flags = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, signal.SIGCHLD)
        result, error = syscall("clone3", flags, 64)
        if result == 0:
            os._exit(0)
        (breach if result > 0 else held)(result, error)
        """,
        expect=("ok", "killed"),
    ),
    call(
        "iopl",
        "reaches the machine's ports",
        0,
        no_control="",
        control=lambda plain: "BREACH" in plain.output or "ENOSYS" in plain.output,
    ),
    call(
        "ioperm",
        "reaches a range of ports",
        0,
        1,
        0,
        control=lambda plain: "BREACH" in plain.output or "ENOSYS" in plain.output,
    ),
    call(
        "modify_ldt",
        "changes its segments",
        0,
        0,
        0,
        control=lambda plain: "BREACH" in plain.output or "ENOSYS" in plain.output,
    ),
    case(
        "call_32_bit",
        "calls by the 32-bit door, whose numbers the filter does not know",
        """
        import ctypes, mmap, platform
        if platform.machine() != "x86_64":
            held("no such door")
        else:
            room = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
            # push rbx; mov eax, 39 (mkdir); mov ebx, edi; mov ecx, 0o777; int 0x80; pop rbx; ret
            room.write(bytes.fromhex("53b82700000089fbb9ff010000cd805bc3"))
            low = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=3)
            low.write(b"made\\0")
            at = lambda where: ctypes.addressof(ctypes.c_char.from_buffer(where))
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint)(at(room))(at(low))
            (breach if os.path.exists("made") else held)()
        """,
        expect=("ok", "killed"),
    ),
    case(
        "call_x32",
        "calls by the x32 numbers, which a filter that masks nothing takes for unknown ones",
        """
        result, error = syscall(0x40000000 | 39)
        (breach if result == os.getpid() else held)(result, error)
        """,
        expect=("ok", "killed"),
        control=None,
        no_control="few kernels are built with x32",
    ),
    case(
        "inject_terminal_input",
        "types into the terminal that the trainer runs in",
        """
        import fcntl, termios
        found = []
        for number in range(3):
            try:
                fcntl.ioctl(number, termios.TIOCSTI, b"x")
                found.append(number)
            except OSError:
                pass
        (breach if found else held)(found)
        """,
        control=None,
        no_control="the tests have no terminal",
    ),
    case(
        "run_nameless_program",
        "runs a program from memory, which no rule about paths names, to read the host's file",
        """
        import subprocess
        try:
            number = os.memfd_create("program", 0)
            with open("/bin/cat", "rb") as program:
                os.write(number, program.read())
            done = subprocess.run([f"/proc/self/fd/{number}", HOST["readable"]], pass_fds=[number], capture_output=True)
        except OSError as error:
            held(error)
        else:
            (breach if secret() in done.stdout else held)(done.returncode)
        """,
    ),
    case(
        "set_syscall_dispatch",
        "has its own calls handled by itself",
        """kernel("prctl", 59, 0, 0, 0, 0)""",
        expect=("ok", "killed"),
    ),
    case(
        "set_memory_layout",
        "moves its own arguments, by which the host knows it",
        """
        kernel("prctl", 35, 15, -1, 0, 0)""",
        expect=("ok", "killed"),
    ),
)
