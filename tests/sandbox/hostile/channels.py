"""From one call to the next: whatever a call leaves where a later one may find it."""

from __future__ import annotations

from lockstep.sandbox.interface import Limits, Sandbox
from tests.sandbox.hostile.case import case


def pass_on(name: str, attempts: str, leave: str, find: str, **options):
    """A case of two calls: `leave` is run, then `find`, an expression that is true where something was found."""
    code = f"""
try:
    found = {find}
except (OSError, ImportError, AttributeError) as error:
    held(error)
else:
    (breach if found else held)(found)
"""
    options.setdefault("together", True)
    return case(name, attempts, code, before=leave, **options)


# Looks through the memory around several kinds of objects; a pipe tells which of it can be read. The page of the needle
# itself is left out, and the needle's text is nowhere else: it is made of bytes that are changed.
SCAN = """
import ctypes, gc
needle = bytes(each ^ 1 for each in b"uid!qsdwhntr!b`mm&r!rdbsdu")
own, step = id(needle) >> 16, 1 << 16
kept = [bytes(size) for size in range(520, 60000, 500)]
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_size_t
spots = {id(each) >> 21 for each in [*gc.get_objects(), *kept]}
blocks = {spot + near for spot in spots for near in range(-4, 5)}
blocks |= {block for block in range((libc.sbrk(0) >> 21) - 40, (libc.sbrk(0) >> 21) + 1)}
reading, writing = os.pipe()
os.set_blocking(reading, False)
os.set_blocking(writing, False)
seen, found, end = 0, [], time.monotonic() + 5


def look(at, size):
    sent = libc.write(writing, ctypes.c_void_p(at), ctypes.c_size_t(size))
    text = os.read(reading, size) if sent > 0 else b""
    return needle in text or (None if sent < size else False)


for block in sorted(blocks):
    for at in range(block << 21, (block + 1) << 21, step):
        if at >> 16 in (own, own - 1):
            continue
        there = look(at, step)
        if there is None:
            there = any(look(page, 4096) for page in range(at, at + step, 4096))
        seen += 1
        if there:
            found.append(hex(at))
    if found or time.monotonic() > end:
        break
(breach if found else held)(seen, found)
"""

ANYWHERE = ("/", "/dev", "/dev/shm", "/etc", "/tmp", "/usr", "/var/tmp", "/home", "/proc", "/scratch", "/call")


async def draws_alike(sandbox: Sandbox) -> list[str]:
    """Numbers that two forks of one warm interpreter draw, compared on the host."""
    code = "import numpy, random, uuid\nprint(random.random(), numpy.random.random(), uuid.uuid4())"
    ends = [await sandbox.run(code) for _ in range(2)]
    pairs = zip(*(end.stdout.split() for end in ends), strict=True)
    return [f"both drew {one}" for one, other in pairs if one == other] + [end.stderr for end in ends if end.stderr]


CASES = (
    case(
        "ask_for_the_other_side",
        "asks a socket for the process, user and groups of who made it",
        """
        import socket
        refused(socket.socketpair()[0].getsockopt, socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        """,
    ),
    pass_on(
        "leave_file", "leaves a file in its working directory", "open('left', 'w').close()", "os.path.exists('left')"
    ),
    pass_on(
        "leave_tmp_file",
        "leaves a file in /tmp, if it may",
        """
        def leave():
            with open("/tmp/" + HOST["probe"], "w") as file:
                file.write("left")
        tried(leave)
        """,
        "os.path.exists('/tmp/' + HOST['probe'])",
    ),
    pass_on(
        "leave_shared_memory_file",
        "leaves a file below /dev/shm, if it may",
        """
        def leave():
            with open("/dev/shm/" + HOST["probe"], "w") as file:
                file.write("left")
        tried(leave)
        """,
        "os.path.exists('/dev/shm/' + HOST['probe'])",
    ),
    pass_on(
        "leave_segment",
        "leaves a System V segment",
        'syscall("shmget", 0x10C57EA, 4096, 0o1666)',
        'syscall("shmget", 0x10C57EA, 4096, 0)[0] >= 0',
    ),
    pass_on(
        "leave_semaphore",
        "leaves a System V semaphore",
        'syscall("semget", 0x10C57EA, 1, 0o1666)',
        'syscall("semget", 0x10C57EA, 1, 0)[0] >= 0',
    ),
    pass_on(
        "leave_queue",
        "leaves a System V queue of messages",
        'syscall("msgget", 0x10C57EA, 0o1666)',
        'syscall("msgget", 0x10C57EA, 0)[0] >= 0',
    ),
    pass_on(
        "leave_posix_queue",
        "leaves a POSIX queue of messages",
        'syscall("mq_open", b"hostile-queue", 0o102, 0o666, 0)',
        'syscall("mq_open", b"hostile-queue", 0, 0, 0)[0] >= 0',
    ),
    pass_on(
        "leave_key",
        "leaves a key in a key ring of its user",
        'syscall("add_key", b"user", b"hostile", b"left", 4, -4)',
        'syscall("request_key", b"user", b"hostile", 0, 0)[0] >= 0',
    ),
    case(
        "host_segment",
        "reads a System V segment of the host's",
        """
        import ctypes
        number, error = syscall("shmget", HOST["shm_key"], 0, 0)
        if number >= 0:
            libc = ctypes.CDLL(None)
            libc.shmat.restype = ctypes.c_void_p
            where = libc.shmat(number, None, 0o10000)
            (breach if where and ctypes.string_at(where, len(secret())) == secret() else held)(number)
        else:
            held(error)
        """,
    ),
    case("host_shared_memory_file", "reads a file of the host's below /dev/shm", 'refused(read, HOST["dev_shm"])'),
    pass_on(
        "leave_environment",
        "leaves a variable in the environment",
        "os.environ['HOSTILE'] = 'left'",
        "'HOSTILE' in os.environ",
    ),
    pass_on("leave_mask", "leaves another mask for new files", "os.umask(0o123)", "os.umask(0o22) == 0o123"),
    pass_on(
        "leave_folder",
        "leaves another working directory",
        "os.mkdir('elsewhere')\nos.chdir('elsewhere')",
        "os.getcwd().endswith('elsewhere')",
    ),
    pass_on(
        "leave_limit",
        "leaves a lower limit",
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
        "__import__('resource').getrlimit(7)[0] == 40",
    ),
    pass_on(
        "leave_priority",
        "leaves a lower priority",
        "os.setpriority(os.PRIO_PROCESS, 0, 17)",
        "os.getpriority(os.PRIO_PROCESS, 0) == 17",
    ),
    pass_on(
        "leave_signal_handling",
        "leaves a signal ignored and another blocked",
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])",
        "signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN or signal.pthread_sigmask(signal.SIG_BLOCK, [])",
    ),
    pass_on(
        "leave_timer",
        "leaves an alarm set",
        "signal.setitimer(signal.ITIMER_REAL, 100)",
        "signal.getitimer(signal.ITIMER_REAL)[0] > 0",
    ),
    pass_on(
        "leave_module_changed",
        "changes a warm module",
        "import numpy\nnumpy.add = lambda *_: 666",
        "__import__('numpy').add(1, 1) == 666",
    ),
    pass_on(
        "leave_class_changed",
        "changes a class of the standard library",
        "import json\njson.JSONDecoder.decode = lambda *_: 666",
        "__import__('json').loads('1') == 666",
    ),
    pass_on(
        "leave_builtin_changed",
        "changes a built-in function",
        "import builtins\nbuiltins.hostile = builtins.print",
        "hasattr(__import__('builtins'), 'hostile')",
    ),
    pass_on(
        "leave_module_planted",
        "plants a module in the table of modules",
        "import sys, types\nsys.modules['hostile_plant'] = types.ModuleType('x')",
        "__import__('hostile_plant') is not None",
    ),
    pass_on(
        "leave_path_entry",
        "leaves a folder on the path of modules",
        "import sys\nsys.path.insert(0, '/hostile')\nsys.meta_path.insert(0, None)",
        "'/hostile' in __import__('sys').path or None in __import__('sys').meta_path",
    ),
    pass_on(
        "leave_array_memory_changed",
        "writes into a constant of the interpreter",
        """
        import ctypes
        number = 200  # small integers are shared by the whole interpreter
        ctypes.c_int32.from_address(id(number) + 24).value = 201
        """,
        "int('199') + 1 == 201 or int('20') * 10 == 201",
    ),
    pass_on(
        "leave_fork_handler",
        "has the interpreter run its code at the next fork",
        """
        def mark():
            os.environ["FORKED"] = "1"
        os.register_at_fork(before=mark, after_in_child=mark)
        """,
        "bool(os.fork() or os._exit(0)) and 'FORKED' in os.environ",
    ),
    case(
        "leave_position",
        "moves the shared position of an inherited descriptor",
        """
        found = []
        for number in range(3, 1024):
            try:
                if os.lseek(number, 0, os.SEEK_CUR) == 12345:
                    found.append(number)
            except OSError:
                pass
        (breach if found else held)(found)
        """,
        before="""
        kept = os.open("file", os.O_CREAT | os.O_RDWR)
        for number in range(3, 1024):
            try:
                os.lseek(number, 12345, os.SEEK_SET)
            except OSError:
                pass
        """,
        together=True,
    ),
    case(
        "draw_alike",
        "has two calls draw the same random numbers",
        "",
        play=draws_alike,
        control=None,
        no_control="it is the host that compares",
    ),
    pass_on(
        "leave_file_anywhere",
        "leaves a file in any folder that there is",
        f"""
for place in {ANYWHERE}:
    try:
        os.close(os.open(place + "/" + HOST["probe"], os.O_CREAT | os.O_WRONLY))
    except OSError:
        pass
""",
        f"[place for place in {ANYWHERE} if os.path.exists(place + '/' + HOST['probe'])]",
    ),
    case(
        "scan_for_previous_code",
        "searches its memory for the code of the call before",
        SCAN,
        before="kept = 1\n" + "# the previous call's secret\n" * 400,
        together=True,
        limits=Limits(time_s=8.0),
    ),
)
