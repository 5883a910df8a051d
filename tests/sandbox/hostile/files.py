"""Reading what is the host's: secrets, other processes' insides, devices; by name, by link, by handle, by mount."""

from __future__ import annotations

from tests.sandbox.hostile.case import case

CASES = (
    case("read_shadow", "reads the machine's password hashes", """refused(read, "/etc/shadow")"""),
    case(
        "read_world_readable",
        "reads a file of the host's that every user may read",
        """refused(read, HOST["readable"])""",
    ),
    case("read_ssh_key", "reads a private key below a home", """refused(read, HOST["home"] + "/.ssh/id_ed25519")"""),
    case("read_own_users_file", "reads a file whose owner the guest itself is", """refused(read, HOST["owned"])"""),
    case("list_host_folder", "lists a folder of the host's", """refused(os.listdir, HOST["dir"])"""),
    case(
        "list_project",
        "lists the trainer's own checkout",
        """
        def attack():
            if "pyproject.toml" not in (names := os.listdir(HOST["project"])):
                raise OSError(errno.ENOENT, "not the host's", str(names))
        refused(attack)
        """,
    ),
    case("read_project", "reads the trainer's own checkout", """refused(read, HOST["project"] + "/pyproject.toml")"""),
    case(
        "read_through_symlink",
        "reads through a symbolic link of its own in scratch",
        """
        os.symlink(HOST["readable"], "link")
        refused(read, "link")
        """,
    ),
    case("read_through_host_symlink", "reads through a symbolic link of the host's", """refused(read, HOST["link"])"""),
    case(
        "read_through_hard_link",
        "links a file of the host's into scratch and reads the link",
        """
        def attack():
            os.link(HOST["readable"], "hard")
            return read("hard")
        refused(attack)
        """,
    ),
    case(
        "read_through_path_descriptor",
        "opens the file O_PATH and reopens it through its descriptor",
        """
        def attack():
            descriptor = os.open(HOST["readable"], os.O_PATH)
            return read(f"/proc/self/fd/{descriptor}")
        refused(attack)
        """,
    ),
    case(
        "read_through_folder_descriptor",
        "opens a folder of the host's O_PATH and reads below it",
        """
        def attack():
            folder = os.open(HOST["dir"], os.O_PATH | os.O_DIRECTORY)
            return os.read(os.open("readable", os.O_RDONLY, dir_fd=folder), 100)
        refused(attack)
        """,
    ),
    case(
        "read_through_openat2",
        "opens with openat2, which filters that know only openat forget",
        """
        import ctypes
        how = (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, 0)
        result, error = syscall("openat2", -100, HOST["readable"].encode(), how, ctypes.sizeof(how))
        (breach if result >= 0 else held)(result, error)
        """,
    ),
    case(
        "read_by_climbing",
        "climbs out of its working directory with ..",
        """refused(read, "../" * 20 + HOST["readable"])""",
    ),
    case(
        "read_after_chdir",
        "changes into the host's folder and reads there",
        """
        def attack():
            os.chdir(HOST["dir"])
            return read("readable")
        refused(attack)
        """,
    ),
    case(
        "read_by_handle",
        "opens by a file handle, which needs no path",
        """
        import ctypes
        handle, mount = ctypes.create_string_buffer(200), ctypes.c_int()
        ctypes.memmove(handle, (128).to_bytes(4, "little"), 4)
        result, error = syscall("name_to_handle_at", -100, HOST["readable"].encode(), handle, ctypes.byref(mount), 0)
        folder = os.open(".", os.O_RDONLY)
        if result == 0:
            result, error = syscall("open_by_handle_at", folder, handle, 0)
        (breach if result >= 0 else held)(result, error)
        """,
    ),
    case(
        "read_by_guessed_handle",
        "opens the file system's root by the handle that ext4 gives it",
        """
        import ctypes
        handle = (8).to_bytes(4, "little") + (1).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes(4)
        kernel("open_by_handle_at", os.open(".", os.O_RDONLY), ctypes.create_string_buffer(handle, 32), 0)
        """,
    ),
    case(
        "chroot_escape",
        "climbs out of its root through a second one",
        """
        def attack():
            os.makedirs("jail", exist_ok=True)
            os.chroot("jail")
            for _ in range(20):
                os.chdir("..")
            os.chroot(".")
            return os.listdir("/")
        refused(attack)
        """,
    ),
    case(
        "bind_the_host",
        "binds the host's folder into scratch",
        """
        import ctypes
        os.makedirs("there", exist_ok=True)
        result, error = syscall("mount", HOST["dir"].encode(), b"there", 0, 4096, 0)
        (held if result else breach)(result, error)
        syscall("umount2", b"there", 2)
        """,
    ),
    case(
        "read_parent_environment",
        "reads the environment of its parent",
        """
        def attack():
            for pid in {os.getppid(), 1, HOST["trainer"]}:
                try:
                    if secret() in read(f"/proc/{pid}/environ"):
                        return breach("found in", pid)
                except OSError:
                    pass
            held()
        attack()
        """,
        control=None,
        no_control="a plain script's parents do not hold the secret; see read_victim_environment",
    ),
    case(
        "read_own_environment",
        "looks for the trainer's secrets in its own environment",
        """
        found = repr(dict(os.environ)).encode()
        try:
            found += read("/proc/self/environ")
        except OSError:
            pass
        (breach if secret() in found else held)(len(found))
        """,
    ),
    case(
        "read_victim_environment",
        "reads the environment of a process of its own user",
        """
        def attack():
            if secret() not in read(f"/proc/{HOST['victim']}/environ"):
                raise OSError(errno.ENOENT, "another process")
        refused(attack)
        """,
    ),
    case(
        "read_victim_maps",
        "reads the memory map of a process of its own user",
        """refused(read, f"/proc/{HOST['victim']}/maps")""",
    ),
    case(
        "open_victim_memory",
        "opens the memory of a process of its own user",
        """refused(os.open, f"/proc/{HOST['victim']}/mem", os.O_RDWR)""",
    ),
    case(
        "list_victim_descriptors",
        "lists the descriptors of a process of its own user",
        """refused(os.listdir, f"/proc/{HOST['victim']}/fd")""",
    ),
    case(
        "read_through_victim_root",
        "reads the host's files through another process's root",
        """refused(read, f"/proc/{HOST['victim']}/root" + HOST["readable"])""",
    ),
    case(
        "read_through_init_root",
        "reads the host's files through the root of process 1",
        """refused(read, "/proc/1/root" + HOST["readable"])""",
        control=None,
        no_control="not every root may look into process 1",
    ),
    case(
        "read_parent_memory",
        "opens the memory of its parent",
        """
        if os.getppid():
            refused(os.open, f"/proc/{os.getppid()}/mem", os.O_RDONLY)
        else:
            refused(os.open, "/proc/1/mem", os.O_RDONLY)
        """,
    ),
    case(
        "list_parent_descriptors",
        "lists the descriptors of its parent",
        """refused(os.listdir, f"/proc/{os.getppid() or 1}/fd")""",
    ),
    case(
        "read_sibling_memory",
        "opens the memory of another call",
        """
        for pid in HOST["sibling"]:
            refused(os.open, f"/proc/{pid}/mem", os.O_RDONLY)
        """,
        sibling=True,
    ),
    case(
        "read_sibling_files",
        "lists another call's working directory through /proc",
        """
        for pid in HOST["sibling"]:
            refused(os.listdir, f"/proc/{pid}/cwd")
        """,
        sibling=True,
    ),
    case(
        "read_all_processes",
        "reads every process's environment and arguments for the secret",
        """
        found = []
        try:
            names = os.listdir("/proc")
        except OSError:
            names = ["self", str(os.getppid()), str(HOST["victim"])]
        for name in names:
            for what in ("environ", "cmdline"):
                try:
                    if secret() in read(f"/proc/{name}/{what}"):
                        found.append(name)
                except OSError:
                    pass
        (breach if found else held)(found)
        """,
    ),
    case(
        "scan_descriptors",
        "looks for anything but its own streams among the descriptors it inherited",
        """
        import stat
        found = []
        for number in range(3, 4096):
            try:
                about = os.fstat(number)
            except OSError:
                continue
            found.append((number, stat.filemode(about.st_mode)))
        (breach if found else held)(found)
        """,
        control=lambda plain: "HELD" in plain.output,
    ),
    case(
        "climb_from_descriptors",
        "opens the host's file relative to every descriptor it has",
        """
        os.open(".", os.O_RDONLY)  # one that climbs, so that the plain run has something to climb from
        found = []
        for number in range(1024):
            try:
                os.read(os.open("../" * 20 + HOST["readable"][1:], os.O_RDONLY, dir_fd=number), 1)
                found.append(number)
            except OSError:
                pass
        (breach if found else held)(found)
        """,
    ),
    case(
        "read_block_device",
        "reads a disk below its file system",
        """
        for name in ("vda", "sda", "nvme0n1", "xvda", "loop0"):
            refused(os.open, "/dev/" + name, os.O_RDONLY)
        """,
        control=None,
        no_control="a machine's devices may be out of reach even for root",
    ),
    case(
        "open_physical_memory",
        "opens the machine's memory",
        """
        held() if not os.path.exists("/dev/mem") else refused(os.open, "/dev/mem", os.O_RDONLY)
        """,
        control=None,
        no_control="many machines have no /dev/mem",
    ),
    case("open_kernel_log", "opens the kernel's log", """refused(os.open, "/dev/kmsg", os.O_RDONLY)"""),
    case("open_terminal_maker", "makes a terminal, to inject input", """refused(os.open, "/dev/ptmx", os.O_RDWR)"""),
    case(
        "open_network_tunnel",
        "opens the kernel's device for tunnels",
        """refused(os.open, "/dev/net/tun", os.O_RDWR)""",
    ),
    case(
        "open_fuse",
        "opens the device with which users make file systems",
        """refused(os.open, "/dev/fuse", os.O_RDWR)""",
    ),
    case(
        "watch_host_folder",
        "is told of every change in a folder of the host's",
        """
        watcher, error = syscall("inotify_init1", 0)
        if watcher >= 0:
            watcher, error = syscall("inotify_add_watch", watcher, HOST["dir"].encode(), 0xFFF)
        (breach if watcher >= 0 else held)(watcher, error)
        """,
    ),
    case(
        "stat_host_file",
        "learns size and owner of a file of the host's",
        """refused(os.stat, HOST["readable"])""",
        tiers=("namespaces",),
    ),
    case(
        "follow_host_link",
        "reads where a symbolic link of the host's points",
        """refused(os.readlink, HOST["link"])""",
        tiers=("namespaces",),
    ),
    case(
        "see_host_mounts",
        "reads the host's table of mounts",
        """
        def attack():
            if HOST["project"].encode() not in (text := read("/proc/self/mountinfo")) and b" / / " not in text:
                raise OSError(errno.ENOENT, "its own mounts only")
        refused(attack)
        """,
        control=lambda plain: "BREACH" in plain.output,
    ),
    case(
        "see_other_programs",
        "reads which programs other processes run",
        """
        found = []
        for pid in (HOST["trainer"], HOST["victim"], os.getppid(), *range(1, 400)):
            if pid != os.getpid():
                try:
                    found.append(os.readlink(f"/proc/{pid}/exe"))
                except OSError:
                    pass
        (breach if found else held)(found[:3])
        """,
    ),
)
