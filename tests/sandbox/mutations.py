"""The mutations: one change of text for each protection of the sandbox, and the hostile cases that it lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Edit = tuple[str, str, str]  # file of lockstep/sandbox, its text, what takes its place


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """name: the protection taken away. fails: the cases that must fail then (none: the sandbox must refuse to open).

    held_by: the cases must hold nevertheless, because of this other layer.
    """

    name: str
    tier: str
    edits: Sequence[Edit]
    fails: Sequence[str]
    held_by: str = ""


def mutate(name: str, tiers: str, edits: Sequence[Edit], *fails: str, held_by: str = "") -> list[Mutation]:
    chosen = {"n": ["namespaces"], "l": ["landlock"], "nl": ["namespaces", "landlock"]}[tiers]
    return [Mutation(name=name, tier=tier, edits=edits, fails=fails, held_by=held_by) for tier in chosen]


def allow(*calls: str) -> Edit:
    """The filter lets these system calls through."""
    return "seccomp.py", 'MEMORY = "brk ', f'MEMORY = "{" ".join(calls)} brk '


def no_condition(call: str) -> Sequence[Edit]:
    """The filter lets a call through whatever its arguments are."""
    return [("seccomp.py", "    rules.update(CONDITIONS)\n", f'    rules.update({{**CONDITIONS, "{call}": ()}})\n')]


def number(name: str, x86_64: int, aarch64: int) -> Edit:
    """A call that the table of numbers does not have yet."""
    return "syscalls.py", '_TABLE = """', f'_TABLE = """\n    {name} {x86_64} {aarch64};'


ABSENT = 'ABSENT = "clone3 openat2 futex_waitv memfd_create execveat pidfd_open io_uring_setup"'


def present(name: str) -> Edit:
    return "seccomp.py", ABSENT, ABSENT.replace(f"{name} ", "").replace(f" {name}", "")


SOCKETS = allow("socket", "connect", "bind", "listen", "sendmsg")
UNFILTERED = ("guest.py", "    native.load_filter(seccomp.for_process(cell.program, os.getpid()))\n", "")
UNCONFINED = (
    "guest.py",
    "        landlock.confine(cell.landlock_abi, cell.grants, here)\n",
    "        os.close(here)\n",
)
NO_CPU = ("guest.py", "        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),\n", "")
NO_AS = (
    "guest.py",
    "        (resource.RLIMIT_AS, base_bytes + limits.memory_bytes, base_bytes + limits.memory_bytes),\n",
    "",
)
NO_NPROC = ("guest.py", "        (resource.RLIMIT_NPROC, tasks, tasks),\n", "")
NO_FSIZE = (
    "guest.py",
    "        (resource.RLIMIT_FSIZE, *[max(limits.files_bytes, limits.output_bytes + resource.getpagesize())] * 2),\n",
    "",
)
NO_MEMORY_LOOK = ("looks.py", "        if private > call.limits.memory_bytes:", "        if private < 0:")
NO_TASKS_LOOK = (
    "looks.py",
    "watch.num_tasks(self._proc, pids) > call.limits.max_processes",
    "watch.num_tasks(self._proc, pids) < 0",
)
NO_OWN_USER = (
    "guest.py",
    "        os.setresgid(uid, uid, uid)\n        os.setresuid(uid, uid, uid)\n",
    "",
)
NO_GROUP_KILL = ("supervisor.py", "        kill_group(call.pid)\n        call.status,", "        call.status,")
NO_SWEEP = (
    "keeper.py",
    "            _signal_all(signal.SIGKILL)\n            _reap(0)\n",
    "            _reap(os.WNOHANG)\n",
)
NO_NAMESPACE = ("keeper.py", "        native.unshare(native.CLONE_NEWPID)\n", "")
READ_ONLY_ROOT = (
    '    native.mount("none", "/", None, native.MS_REMOUNT | native.MS_RDONLY | native.MS_NOSUID | native.MS_NODEV)\n'
)
HEARD = (
    "                if descriptor == self._line.descriptor:\n"
    "                    if not self._listen():\n"
    "                        "
)
NO_SIGNAL_SCOPE = ("landlock.py", 'scopes = struct.pack("Q", 0b11)', 'scopes = struct.pack("Q", 0b01)')
OUT_OF_BAND = ("seccomp.py", '"sendto": [NullPointer(4), OneOf(3, [0], 1)]', '"sendto": [NullPointer(4)]')
BLOCKING = ("session.py", "        ours.setblocking(False)", "        ours.setblocking(True)")
NO_SOCKET_SCOPE = ("landlock.py", 'scopes = struct.pack("Q", 0b11)', 'scopes = struct.pack("Q", 0b10)')

MUTATIONS: Sequence[Mutation] = (
    # the filter of system calls
    *mutate(
        "the whole filter",
        "nl",
        [UNFILTERED],
        "seen_unfiltered",
        "call_userfaultfd",
        "unshare_files",
        "make_any_family",
    ),
    *mutate("the whole filter: user namespaces", "l", [UNFILTERED], "unshare_user", "clone3_user"),
    *mutate(
        "the whole filter: user namespaces",
        "n",
        [UNFILTERED],
        "unshare_user",
        "clone3_user",
        "clone_user",
        held_by="a user without a name in its namespace may make no other",
    ),
    *mutate(
        "the filter's check of the machine",
        "nl",
        [
            (
                "seccomp.py",
                "_instruction(_JEQ, AUDIT_ARCH[machine], 1, 0)",
                "_instruction(_JEQ, AUDIT_ARCH[machine], 1, 1)",
            )
        ],
        "call_32_bit",
    ),
    *mutate("filter: unshare (which the start-up probe calls)", "nl", [allow("unshare")]),
    *mutate("filter: setns", "nl", [allow("setns")], "call_setns"),
    *mutate("filter: flags of clone", "l", no_condition("clone"), "clone_user"),
    *mutate("filter: how the end of a child is told", "nl", no_condition("clone"), "session_is_woken"),
    *mutate("filter: opening for neither reading nor writing", "l", no_condition("openat"), "open_for_neither"),
    *mutate("filter: options of sockets", "nl", [allow("setsockopt")], "enlarge_sockets"),
    *mutate("filter: who made a socket", "nl", no_condition("getsockopt"), "ask_for_the_other_side"),
    *mutate("filter: huge pages", "nl", no_condition("mmap"), "take_huge_pages"),
    *mutate(
        "filter: flags of clone",
        "l",
        no_condition("clone"),
        "child_of_the_parent",
        held_by="the process group is killed",
    ),
    *mutate("filter: clone3", "l", [present("clone3"), allow("clone3")], "clone3_user"),
    *mutate("filter: mounts and roots", "nl", [allow("mount", "umount2", "open_tree", "chroot")], "call_open_tree"),
    *mutate("filter: sockets", "nl", [SOCKETS], "make_any_family"),
    *mutate("filter: AF_VSOCK", "nl", [allow("socket")], "make_vsock", "make_netlink"),
    *mutate(
        "filter: tracing",
        "nl",
        [allow("ptrace", "process_vm_readv", "process_vm_writev", "kcmp")],
        "call_ptrace",
        "call_process_vm_readv",
    ),
    *mutate("filter: keys", "nl", [allow("add_key", "request_key", "keyctl")], "call_keyctl", "call_add_key"),
    *mutate("filter: keys of the user", "l", [allow("add_key", "request_key", "keyctl")], "leave_key"),
    *mutate(
        "filter: keys of the user",
        "n",
        [allow("add_key", "request_key", "keyctl")],
        "leave_key",
        held_by="a user namespace for each call",
    ),
    *mutate("filter: bpf", "nl", [allow("bpf")], "call_bpf"),
    *mutate("filter: performance events", "nl", [allow("perf_event_open")], "call_perf_event_open"),
    *mutate("filter: io_uring", "nl", [present("io_uring_setup"), allow("io_uring_setup")], "call_io_uring_setup"),
    *mutate("filter: userfaultfd", "nl", [allow("userfaultfd")], "call_userfaultfd"),
    *mutate(
        "filter: files in memory", "nl", [present("memfd_create"), allow("memfd_create")], "fill_many_nameless_files"
    ),
    *mutate(
        "filter: openat2",
        "nl",
        [present("openat2"), allow("openat2")],
        "read_through_openat2",
        held_by="the file system's view, and Landlock",
    ),
    *mutate(
        "filter: System V and POSIX shared objects",
        "n",
        [allow("shmget", "semget", "msgget", "mq_open")],
        "leave_segment",
        "leave_semaphore",
        "leave_queue",
    ),
    *mutate(
        "filter: System V and POSIX shared objects",
        "l",
        [allow("shmget", "semget", "msgget", "mq_open", "shmat")],
        "leave_segment",
        "host_segment",
    ),
    *mutate("filter: kernel's log", "nl", [allow("syslog")], "call_syslog", held_by="it needs CAP_SYSLOG"),
    *mutate("filter: personality", "nl", [allow("personality")], "call_personality"),
    *mutate("filter: file system watches", "nl", [allow("inotify_init1", "fanotify_init")], "call_fanotify_init"),
    *mutate("filter: ports and segments", "nl", [allow("ioperm", "iopl", "modify_ldt")], "call_modify_ldt"),
    *mutate("filter: seccomp itself", "nl", [allow("seccomp")], "call_seccomp"),
    *mutate("filter: options of prctl", "nl", no_condition("prctl"), "set_memory_layout"),
    *mutate(
        "filter: commands of fcntl",
        "nl",
        no_condition("fcntl"),
        "fill_pipes",
        held_by="the kernel's share of pipe pages for a user",
    ),
    *mutate(
        "filter: commands of fcntl",
        "l",
        no_condition("fcntl"),
        "signal_by_input",
        held_by="Landlock keeps signals inside",
    ),
    *mutate(
        "filter: commands of fcntl, and Landlock's signals",
        "l",
        [NO_SIGNAL_SCOPE, *no_condition("fcntl")],
        "signal_by_input",
    ),
    *mutate(
        "filter: chmod and utime",
        "l",
        [("seccomp.py", "() if policy.metadata else 0", "()")],
        "change_mode",
        "change_date",
    ),
    *mutate(
        "filter: chown and xattr",
        "l",
        [
            allow("chown"),
            ("seccomp.py", 'UNSUPPORTED = "getxattr', 'UNSUPPORTED = "flistxattr"\n_OLD = "getxattr'),
            (
                "seccomp.py",
                "    rules.update(CONDITIONS)\n",
                '    rules.update(CONDITIONS)\n    rules["setxattr"] = ()\n',
            ),
        ],
        "change_attribute",
        "change_owner",
    ),
    *mutate("filter: process groups and sessions", "l", [allow("setsid", "setpgid")], "daemon"),
    *mutate(
        "filter: priorities", "nl", [allow("setpriority")], "leave_priority", held_by="priorities are a process's own"
    ),
    *mutate(
        "filter: threads with descriptors of their own",
        "l",
        [("seccomp.py", ", NoneOf(0, [0x10000], 0x10400), OneOf", ", OneOf")],
        "hide_files_in_raw_threads",
    ),
    *mutate("filter: flags of close_range", "l", no_condition("close_range"), "hide_files_in_another_table"),
    *mutate("filter: timers with signals", "nl", [allow("timer_create", "timer_settime")], "session_wakes_itself"),
    *mutate("filter: flags of preadv2", "nl", no_condition("preadv2"), "see_cached_page"),
    *mutate("filter: advice of fadvise", "nl", no_condition("fadvise64"), "drop_cached_page"),
    *mutate(
        "filter: bytes out of band",
        "nl",
        [OUT_OF_BAND],
        "session_sends_out_of_band",
        held_by="the trainer never waits for a channel",
    ),
    *mutate(
        "filter: bytes out of band, and a channel that the trainer never waits for",
        "nl",
        [OUT_OF_BAND, BLOCKING],
        "session_sends_out_of_band",
    ),
    # files
    *mutate(
        "Landlock as a whole",
        "l",
        [UNCONFINED],
        "read_world_readable",
        "overwrite_writable",
        "write_open_folder",
        "kill_victim",
    ),
    *mutate(
        "Landlock: writing",
        "l",
        [("landlock.py", "    return (1 << bits) - 1\n", "    return (1 << bits) - 1 & ~WRITE_FILE\n")],
        "append_to_writable",
    ),
    *mutate(
        "Landlock: reading",
        "l",
        [
            (
                "landlock.py",
                "(_RUNTIME_FOLDER, grants.folders)",
                '(_RUNTIME_FOLDER, [*grants.folders, __import__("os").open("/", 0x200000)])',
            )
        ],
        "read_world_readable",
        "list_host_folder",
        "read_after_chdir",
        "read_through_path_descriptor",
    ),
    *mutate(
        "Landlock: truncation",
        "l",
        [("landlock.py", "    return (1 << bits) - 1\n", "    return (1 << bits) - 1 & ~TRUNCATE\n")],
        "truncate_by_path",
    ),
    *mutate(
        "Landlock: making and removing",
        "l",
        [
            ("landlock.py", "    return (1 << bits) - 1\n", "    return 0b1111 | TRUNCATE | REFER\n"),
            ("landlock.py", "    everything = handled(abi)\n", "    everything = handled(abi)\n"),
        ],
        "remove_host_file",
        "make_host_folder",
        "make_host_symlink",
    ),
    *mutate("Landlock: signals", "l", [NO_SIGNAL_SCOPE], "kill_victim"),
    *mutate(
        "Landlock: abstract sockets", "l", [NO_SOCKET_SCOPE], "connect_abstract", held_by="the filter has no sockets"
    ),
    *mutate(
        "Landlock's abstract sockets and the filter's sockets", "l", [NO_SOCKET_SCOPE, SOCKETS], "connect_abstract"
    ),
    *mutate(
        "Landlock's TCP and the filter's sockets",
        "l",
        [("landlock.py", 'network = struct.pack("Q", 0b11)', 'network = struct.pack("Q", 0)'), SOCKETS],
        "connect_tcp",
    ),
    *mutate("filter: sockets, with Landlock's TCP", "l", [SOCKETS], "connect_tcp", held_by="Landlock refuses TCP"),
    *mutate("filter: sockets: UDP and sockets by path", "l", [SOCKETS], "send_udp", "send_udp6", "connect_unix"),
    *mutate(
        "namespaces: the old root is let go of",
        "n",
        [
            ("namespaces.py", '    native.umount(".")\n    os.chdir("/")\n', '    os.chdir("/")\n'),
            (
                "namespaces.py",
                READ_ONLY_ROOT,
                "",
            ),
        ],
    ),
    *mutate(
        "namespaces: a root that cannot be written",
        "n",
        [
            (
                "namespaces.py",
                READ_ONLY_ROOT,
                "",
            )
        ],
        "leave_file_anywhere",
    ),
    *mutate(
        "namespaces: mounts for each call",
        "n",
        [
            (
                "namespaces.py",
                "    native.unshare(native.CLONE_NEWNS)\n    flags",
                "    if os.listdir(SCRATCH):\n        return\n    flags",
            )
        ],
        "leave_file",
    ),
    *mutate(
        "namespaces: size of scratch",
        "n",
        [("namespaces.py", "size={files_bytes},", "")],
        "fill_scratch_with_many",
        "fill_scratch_unseen",
    ),
    *mutate(
        "namespaces: number of files in scratch",
        "n",
        [("namespaces.py", ",nr_inodes={max_files + 3}", "")],
        "too_many_files",
        "too_many_folders",
    ),
    *mutate(
        "scratch is removed",
        "l",
        [("supervisor.py", "        remove_folder(call.scratch)\n        self._tell_end", "        self._tell_end")],
        "leave_file",
        "folder_that_resists",
    ),
    *mutate(
        "watching the size of scratch",
        "l",
        [
            (
                "looks.py",
                "            if held > call.limits.files_bytes or files > call.limits.max_files:",
                "            if held < 0:",
            )
        ],
        "fill_scratch_with_many",
        "fill_scratch_unseen",
        "too_many_files",
    ),
    # processes
    *mutate(
        "namespaces: process ids",
        "n",
        [
            NO_NAMESPACE,
            ("keeper.py", "        if os.getpid() != 1:", "        if os.getpid() < 1:"),
            ("keeper.py", "            _signal_all(signal.SIGKILL)\n", ""),
        ],
        "kill_any_number",
    ),
    *mutate(
        "what a guest leaves in its keeper's namespace is killed",
        "n",
        [NO_SWEEP],
        "orphan",
        held_by="an idle keeper ends, and its namespace with it",
    ),
    *mutate(
        "what a guest leaves is killed, and idle keepers end",
        "n",
        [NO_SWEEP, ("keeper.py", "IDLE_S = 1.0", "IDLE_S = 1000.0")],
        "orphan",
        "forking_runner",
    ),
    *mutate(
        "namespaces: network",
        "n",
        [("namespaces.py", "    | native.CLONE_NEWNET\n", "")],
        "connect_tcp",
        held_by="the filter has no sockets",
    ),
    *mutate(
        "namespaces' network and the filter's sockets",
        "n",
        [("namespaces.py", "    | native.CLONE_NEWNET\n", ""), SOCKETS],
        "connect_tcp",
        "send_udp",
        "connect_abstract",
    ),
    *mutate(
        "filter: sockets, with a network namespace",
        "n",
        [SOCKETS],
        "connect_tcp",
        "send_udp",
        "connect_abstract",
        "connect_unix",
        held_by="the network and mount namespaces",
    ),
    *mutate(
        "namespaces: System V objects",
        "n",
        [("namespaces.py", "    | native.CLONE_NEWIPC\n", "")],
        "host_segment",
        held_by="the filter has no System V calls",
    ),
    *mutate(
        "namespaces' System V objects and the filter's",
        "n",
        [("namespaces.py", "    | native.CLONE_NEWIPC\n", ""), allow("shmget", "shmat")],
        "host_segment",
    ),
    *mutate("number of processes (kernel)", "nl", [NO_NPROC], "thread_bomb"),
    *mutate(
        "number of processes (supervisor)",
        "nl",
        [NO_TASKS_LOOK],
        "fork_bomb",
        "thread_bomb",
        held_by="RLIMIT_NPROC, where the guest's user is its own",
    ),
    *mutate(
        "a call's process group is killed",
        "l",
        [NO_GROUP_KILL],
        "orphan",
        "forking_runner",
    ),
    *mutate(
        "a process group of its own",
        "l",
        [
            ("guest.py", "    os.setpgid(0, 0)\n", ""),
            ("supervisor.py", "            os.setpgid(pid, pid)", "            pass"),
        ],
        "orphan",
    ),
    *mutate(
        "the kernel kills guests with the supervisor, and the supervisor ends with the trainer",
        "nl",
        [
            (
                "supervisor.py",
                HEARD + "return self._end_all()\n",
                HEARD + "self._poll.unregister(descriptor)\n",
            ),
            (
                "supervisor.py",
                "        for descriptor in ends:",
                "        for descriptor in ():",
            ),
        ],
        "outlive_the_trainer",
    ),
    *mutate(
        "the supervisor watches the trainer's process",
        "nl",
        [
            (
                "supervisor.py",
                "        for descriptor in ends:",
                "        for descriptor in ():",
            )
        ],
        "outlive_the_trainer",
        held_by="the end of its connection",
    ),
    # the supervisor's looks
    *mutate(
        "names need not be text",
        "n",
        [("watch.py", ', errors="surrogateescape"', "")],
        "odd_name",
    ),
    *mutate(
        "names need not be text",
        "l",
        [("watch.py", ', errors="surrogateescape"', "")],
        "odd_name",
        "odd_name_of_mapping",
    ),
    *mutate(
        "a name is no line of its own: a process's",
        "nl",
        [("watch.py", '_text(proc, path).split("\\n")', "_text(proc, path).splitlines()")],
        "odd_name",
        "hide_memory_by_name",
    ),
    *mutate(
        "a name is no line of its own: a mapped file's",
        "l",
        [("watch.py", 'maps.split("\\n")', "maps.splitlines()")],
        "odd_line_of_mapping",
    ),
    *mutate(
        "memory of a process whose first thread has ended",
        "nl",
        [("watch.py", "for task in _tasks(proc, pid))\n    return next(", "for task in ())\n    return next(")],
        "hide_memory_behind_first_thread",
    ),
    *mutate(
        "files of a process whose first thread has ended",
        "l",
        [("watch.py", '(f"{pid}/task/{task}" for task in _tasks(proc, pid)):', "[str(pid)]:")],
        "hide_files_behind_first_thread",
    ),
    *mutate(
        "how much of a process's mappings is read",
        "l",
        [("watch.py", "_MOST_MAPS_BYTES = 1 << 20", "_MOST_MAPS_BYTES = 1 << 40")],
        "stall_by_long_mappings",
    ),
    # privilege
    *mutate("no new privileges", "nl", [("guest.py", "    native.prctl(native.PR_SET_NO_NEW_PRIVS, 1)\n", "")]),
    *mutate(
        "capabilities dropped",
        "n",
        [("guest.py", "    native.drop_bounding_set(0)\n    native.set_capabilities(0)\n", "")],
        "seen_with_capabilities",
    ),
    *mutate(
        "capabilities dropped",
        "l",
        [("guest.py", "    native.set_capabilities(kept_capability)\n", ""), NO_OWN_USER],
        "seen_with_capabilities",
    ),
    *mutate("a user of its own", "l", [NO_OWN_USER], "seen_as_root"),
    *mutate(
        "a user that nobody has", "n", [("namespaces.py", "for unused in ids:", "for unused in (0,):")], "seen_as_root"
    ),
    *mutate(
        "the first to go when memory is short",
        "nl",
        [("guest.py", '    os.write(score, b"1000")\n', "")],
        "seen_spared_when_short",
    ),
    *mutate("descriptors closed", "nl", [("guest.py", "    close_others(session)\n", "")], "scan_descriptors"),
    *mutate(
        "the setup pipe is closed before the guest's code",
        "nl",
        [("supervisor.py", "        os.close(guest.REPORT)\n", "")],
        "scan_descriptors",
        "write_to_every_number",
    ),
    *mutate(
        "the trainer's environment stays out",
        "nl",
        [("connection.py", "    return fixed | {", "    return dict(os.environ) | fixed | {")],
        "read_own_environment",
    ),
    # memory, time, output
    *mutate(
        "address space", "nl", [NO_AS], "allocate", "numpy_array", held_by="the supervisor's look at resident memory"
    ),
    *mutate("memory of all processes together", "nl", [NO_MEMORY_LOOK], "children_below_the_limit"),
    *mutate(
        "address space and the look at memory",
        "nl",
        [NO_AS, NO_MEMORY_LOOK],
        "allocate",
        "numpy_array",
        "map_anonymous",
    ),
    *mutate("size of a file", "nl", [NO_FSIZE], "fill_scratch", held_by="tmpfs's own size, or the look at scratch"),
    *mutate(
        "open files",
        "nl",
        [("guest.py", "        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),\n", "")],
        "hold_descriptors",
    ),
    *mutate("locked memory", "nl", [("guest.py", "        (resource.RLIMIT_MEMLOCK, 0, 0),\n", "")], "lock_memory"),
    *mutate(
        "core files",
        "nl",
        [("guest.py", "        (resource.RLIMIT_CORE, 0, 0),\n", "")],
        "dump_core",
        held_by="the machine's own limit of 0",
    ),
    *mutate(
        "wall clock",
        "nl",
        [("supervisor.py", "            if call.deadline <= now:", "            if call.deadline <= 0:")],
        "end_late",
    ),
    *mutate("processor time", "nl", [NO_CPU], "busy_loop", "sleep_by_processor", held_by="the supervisor's clock"),
    *mutate(
        "output cannot grow",
        "nl",
        [("sealed.py", "_ADD_SEALS, _SEAL | _SHRINK | _GROW)", "_ADD_SEALS, _SEAL | _SHRINK)")],
        "grow_output",
    ),
    *mutate(
        "output cannot shrink",
        "nl",
        [("sealed.py", "_ADD_SEALS, _SEAL | _SHRINK | _GROW)", "_ADD_SEALS, _SEAL | _GROW)")],
        "shrink_output",
    ),
    *mutate(
        "output's seals are final",
        "nl",
        [("sealed.py", "_ADD_SEALS, _SEAL | _SHRINK | _GROW)", "_ADD_SEALS, _SHRINK | _GROW)")],
        "seal_output",
        held_by="the filter refuses new seals (fcntl)",
    ),
    *mutate(
        "output's seals are final, and the filter of fcntl",
        "nl",
        [("sealed.py", "_ADD_SEALS, _SEAL | _SHRINK | _GROW)", "_ADD_SEALS, _SHRINK | _GROW)"), *no_condition("fcntl")],
        "seal_output",
    ),
    *mutate(
        "output is read up to its limit",
        "nl",
        [("sealed.py", "os.pread(descriptor, min(length, most_bytes), 0)", "os.pread(descriptor, most_bytes * 9, 0)")],
        "flood_stdout",
    ),
    # from call to call
    *mutate(
        "an open file of /dev/null for each guest",
        "nl",
        [
            ("supervisor.py", 'os.open("/dev/null", os.O_RDONLY),', "self._null,"),
            (
                "supervisor.py",
                "        self._max_guests, ",
                '        self._null = guest.high(os.open("/dev/null", os.O_RDONLY))\n        self._max_guests, ',
            ),
        ],
        "leave_lock",
        "leave_flag",
    ),
    *mutate(
        "a session's code cannot be opened again",
        "l",
        [("sealed.py", "    os.fchmod(descriptor, 0)", "    os.fchmod(descriptor, 0o777)")],
        "session_writes_its_code",
    ),
    *mutate("the trainer never waits for a session's channel", "nl", [BLOCKING], "session_answers_beforehand"),
    *mutate(
        "random numbers differ",
        "nl",
        [("script.py", '        random.seed(int.from_bytes(os.urandom(4), "little"))\n', "        pass\n")],
        "draw_alike",
    ),
    *mutate(
        "the supervisor never reads code",
        "nl",
        [
            (
                "supervisor.py",
                "        number, limits, slot =",
                "        code = os.pread(descriptors[0], 1 << 20, 0)\n"
                "        os.seen = [*getattr(os, 'seen', []), code]\n        number, limits, slot =",
            )
        ],
        "scan_for_previous_code",
    ),
)
