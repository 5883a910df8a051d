"""Changing what is the host's: files, their owners and dates, the interpreter's own modules, the kernel's switches."""

from __future__ import annotations

from tests.sandbox.hostile.case import case, harms


def plant(name: str, attempts: str, folder: str):
    """A case that leaves a file in `folder` (an expression)."""
    code = f"""
        def attack():
            with open(os.path.join({folder}, HOST["probe"]), "w") as file:
                file.write("import os")
        tried(attack)
        """
    return case(name, attempts, code, control=harms)


CASES = (
    plant("write_tmp", "leaves a file in /tmp", '"/tmp"'),
    plant("write_var_tmp", "leaves a file in /var/tmp", '"/var/tmp"'),
    plant("write_dev_shm", "leaves a file in /dev/shm", '"/dev/shm"'),
    plant("write_etc", "leaves a file in /etc", '"/etc"'),
    plant("write_root", "leaves a file in /", '"/"'),
    plant("write_standard_library", "leaves a module in the standard library", "os.path.dirname(os.__file__)"),
    plant(
        "write_site_packages",
        "leaves a file where start-up files are read",
        'os.path.dirname(os.path.dirname(__import__("numpy").__file__))',
    ),
    plant("write_sandbox_package", "leaves a module beside the sandbox's own", 'HOST["project"] + "/lockstep/sandbox"'),
    plant("write_project", "leaves a file in the checkout", 'HOST["project"]'),
    plant("write_open_folder", "leaves a file in a folder that everyone may write to", 'HOST["everyones"]'),
    case(
        "overwrite_writable",
        "overwrites a file that everyone may write to",
        """
        def attack():
            with open(HOST["writable"], "w") as file:
                file.write("changed")
        refused(attack)
        """,
    ),
    case(
        "append_to_writable",
        "appends to a file that everyone may write to",
        """refused(os.open, HOST["writable"], os.O_WRONLY | os.O_APPEND)""",
    ),
    case("truncate_by_path", "empties a file by its path", """refused(os.truncate, HOST["writable"], 0)"""),
    case(
        "truncate_own_users_file",
        "empties a file whose owner the guest itself is",
        """refused(os.truncate, HOST["owned"], 0)""",
    ),
    case(
        "remove_host_file",
        "removes a file from a folder that everyone may write to",
        """refused(os.unlink, HOST["writable"])""",
    ),
    case(
        "move_host_file",
        "moves a file of the host's away",
        """refused(os.rename, HOST["writable"], HOST["writable"] + "2")""",
    ),
    case(
        "move_host_file_in",
        "moves a file of the host's into scratch",
        """
        def attack():
            try:
                os.rename(HOST["writable"], "mine")
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                os.unlink(HOST["writable"])
        refused(attack)
        """,
    ),
    case("make_host_folder", "makes a folder on the host", """refused(os.mkdir, HOST["everyones"] + "/folder")"""),
    case(
        "make_host_symlink",
        "makes a symbolic link on the host",
        """refused(os.symlink, "/etc", HOST["everyones"] + "/symbolic")""",
    ),
    case("make_host_pipe", "makes a named pipe on the host", """refused(os.mkfifo, HOST["everyones"] + "/pipe")"""),
    case(
        "make_device",
        "makes the node of a disk in scratch and opens it",
        """
        def attack():
            os.mknod("disk", 0o60600, os.makedev(254, 0))
            return os.stat("disk")
        refused(attack)
        """,
    ),
    case(
        "make_host_socket",
        "binds a socket in a folder of the host's",
        """
        import socket
        refused(lambda: socket.socket(socket.AF_UNIX).bind(HOST["everyones"] + "/bound"))
        """,
    ),
    case(
        "open_for_neither",
        "opens a file for neither reading nor writing, which asks Landlock for nothing",
        """refused(os.open, HOST["writable"], 3)""",
    ),
    case(
        "truncate_for_neither",
        "truncates a file through such an open",
        """refused(os.open, HOST["writable"], 3 | os.O_TRUNC)""",
    ),
    case(
        "hard_link_out",
        "links a file of its own into a folder of the host's",
        """
        def attack():
            open("mine", "w").close()
            try:
                os.link("mine", HOST["everyones"] + "/linked")
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                os.link(HOST["writable"], HOST["everyones"] + "/linked")
        refused(attack)
        """,
    ),
    case(
        "link_nameless_file",
        "gives a nameless file a name on the host",
        """
        def attack():
            number = os.open(HOST["everyones"], os.O_TMPFILE | os.O_RDWR, 0o666)
            os.link(f"/proc/self/fd/{number}", HOST["everyones"] + "/nameless", src_dir_fd=number)
        refused(attack)
        """,
    ),
    case(
        "change_mode",
        "makes a file whose owner it is writable and executable by everyone",
        """tried(os.chmod, HOST["owned"], 0o777)""",
        control=harms,
    ),
    case(
        "change_mode_by_descriptor",
        "changes the mode through an O_PATH descriptor",
        """
        def attack():
            number = os.open(HOST["owned"], os.O_PATH)
            os.chmod(f"/proc/self/fd/{number}", 0o777)
        tried(attack)
        """,
        control=harms,
    ),
    case("change_owner", "gives a file away", """refused(os.chown, HOST["owned"], os.getuid(), os.getgid())"""),
    case(
        "change_date",
        "changes the dates of a file whose owner it is",
        """tried(os.utime, HOST["owned"], (1, 1))""",
        control=harms,
    ),
    case(
        "change_attribute",
        "sets an extended attribute of a file whose owner it is",
        """refused(os.setxattr, HOST["owned"], "user.hostile", b"1")""",
    ),
    case(
        "poison_bytecode",
        "replaces compiled code that the next interpreter loads",
        """
        import json
        refused(os.open, json.__cached__, os.O_RDWR)
        """,
    ),
    case(
        "overwrite_module",
        "opens a module of the standard library for writing",
        """
        import json
        refused(os.open, json.__file__, os.O_RDWR)
        """,
    ),
    case(
        "overwrite_zygote_module",
        "opens the sandbox's own source for writing",
        """
        refused(os.open, HOST["project"] + "/lockstep/sandbox/interface.py", os.O_RDWR)
        """,
    ),
    case(
        "replace_interpreter",
        "moves another program into the interpreter's place",
        """
        import sys
        program = os.path.realpath(sys.executable or "/usr/bin/env")
        def attack():
            beside = os.path.join(os.path.dirname(program), HOST["probe"])
            os.close(os.open(beside, os.O_CREAT | os.O_WRONLY))
            os.unlink(beside)
        refused(attack)
        """,
    ),
    case(
        "overwrite_running_program",
        "opens the running interpreter for writing",
        """refused(os.open, "/proc/self/exe", os.O_RDWR)""",
        control=None,
        no_control="a program that runs is busy: the kernel refuses everyone",
    ),
    case(
        "write_kernel_switch",
        "opens a switch of the kernel for writing",
        """refused(os.open, "/proc/sys/kernel/core_pattern", os.O_WRONLY)""",
    ),
    case(
        "open_magic_requests",
        "opens the kernel's emergency trigger for writing",
        """refused(os.open, "/proc/sysrq-trigger", os.O_WRONLY)""",
        control=None,
        no_control="not every kernel has it",
    ),
    case(
        "write_sysfs",
        "opens a file of /sys for writing",
        """refused(os.open, "/sys/kernel/mm/transparent_hugepage/enabled", os.O_WRONLY)""",
    ),
    case(
        "leave_its_control_group",
        "makes a control group",
        """
        def attack():
            for place in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/memory"):
                try:
                    os.mkdir(place + "/" + HOST["probe"])
                except OSError:
                    continue
                os.rmdir(place + "/" + HOST["probe"])
                return place
            raise OSError(errno.EPERM, "nowhere")
        refused(attack)
        """,
    ),
    case(
        "shield_from_oom",
        "asks the kernel to kill others in its place when memory is short",
        """
        def attack():
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-900")
        refused(attack)
        """,
        control=None,
        no_control="needs CAP_SYS_RESOURCE, which not every root has",
    ),
    case("write_uid_map", "maps itself to another user", """refused(os.open, "/proc/self/uid_map", os.O_WRONLY)"""),
)
