"""Getting out of sight of the supervisor, which looks at a call's processes from outside, or breaking its looks."""

from __future__ import annotations

from lockstep.sandbox.interface import Limits
from tests.sandbox.hostile.case import Case, case

MEMORY = Limits(time_s=5.0, memory_bytes=128 << 20, files_bytes=1 << 24, max_processes=16)
DISK = Limits(time_s=5.0, memory_bytes=1 << 28, files_bytes=8 << 20, max_files=64)
ENDS = ("ok", "error", "memory", "killed")
READ = "it is the supervisor that reads this"

# Three children that fill 48 MiB each, one more than the limit allows. `begin` is called in each of them first.
CHILDREN = """
import threading
reading, writing = os.pipe()


def fill():
    try:
        room = bytearray(b"x") * (48 << 20)
    except MemoryError:  # a thread's arena may have taken the address space
        os._exit(0)
    os.write(writing, b".")
    time.sleep(1.5)
    os._exit(0)


for _ in range(3):
    if os.fork() == 0:
        begin()
        fill()
os.close(writing)
made = 0
while made < 3 and (said := os.read(reading, 3)):
    made += len(said)
time.sleep(0.7)
(breach if made == 3 else held)("took", made * 48, "MiB")
"""

# Removed files of 6 MiB, held open for longer than a look takes to come.
HOLD = """
def hold(batch):
    kept = []
    for number in range(2):
        kept.append(os.open(f"{batch}-{number}", os.O_CREAT | os.O_RDWR))
        os.unlink(f"{batch}-{number}")
        for _ in range(3):
            os.write(kept[-1], bytes(1 << 20))
    return kept
"""

# mov eax, SYS_clone; syscall; in the thread: pause for ever
CLONE = """
import ctypes, mmap, platform
CLONE_THREAD, CLONE_SIGHAND, CLONE_VM = 0x10000, 0x800, 0x100
if platform.machine() != "x86_64":
    held("ENOSYS: these are another machine's instructions")
    os._exit(0)
page = mmap.mmap(-1, 4096, prot=7, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page.write(bytes.fromhex("b838000000 0f05 85c0 7509 b822000000 0f05 ebf7 c3"))
form = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_long)
clone = form(ctypes.addressof(ctypes.c_char.from_buffer(page)))
stacks = []


def raw_thread(flags):
    stacks.append(mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    top = ctypes.addressof(ctypes.c_char.from_buffer(stacks[-1])) + 60000
    return clone(flags, top, 0, 0, 0)
"""


def hide_memory(name: str, attempts: str, begin: str) -> Case:
    return case(name, attempts, begin + CHILDREN, limits=MEMORY, expect=ENDS)


def hide_files(name: str, attempts: str, code: str) -> Case:
    return case(name, attempts, HOLD + code, limits=DISK, expect=ENDS)


def confuse(name: str, attempts: str, code: str) -> Case:
    return case(name, attempts, code, control=None, no_control=READ)


CASES = (
    confuse(
        "odd_name",
        "takes names that are no text, and names with a line of /proc in them",
        r"""
        for name in (b"\xff\xfe", b"\x0bVmSwap: x", b"\x0bVmSwap:", b"\x85Pid: x", b"a)\n(b c", b"\x1cRssAnon: 1 2 3"):
            syscall("prctl", 15, name)
            time.sleep(0.12)
        held()
        """,
    ),
    confuse(
        "odd_name_of_mapping",
        "maps a file whose name is no text",
        r"""
        import mmap
        file = os.open(b"f\xff", os.O_CREAT | os.O_RDWR)
        os.ftruncate(file, 4096)
        room = mmap.mmap(file, 4096, mmap.MAP_SHARED)
        time.sleep(0.2)
        held()
        """,
    ),
    confuse(
        "odd_line_of_mapping",
        "maps a removed file whose name breaks the line that tells of it",
        r"""
        import mmap
        folder = "x\x0b" + os.getcwd()
        os.makedirs(folder)
        file = os.open(folder + "/f", os.O_CREAT | os.O_RDWR)
        os.ftruncate(file, 4096)
        os.unlink(folder + "/f")
        room = mmap.mmap(file, 4096, mmap.MAP_SHARED)
        time.sleep(0.2)
        held()
        """,
    ),
    hide_memory("hide_memory", "fills 48 MiB in each of three children", "begin = lambda: None"),
    hide_memory(
        "hide_memory_behind_first_thread",
        "fills 48 MiB in each of three children whose first thread has ended",
        """
def begin():
    threading.Thread(target=lambda: (time.sleep(0.05), fill())).start()
    syscall("exit", 0)
""",
    ),
    hide_memory(
        "hide_memory_by_name",
        "fills 48 MiB in each of three children named like a line that takes it back",
        r"""
def begin():
    syscall("prctl", 15, b"\x0bVmSwap: -99999")
""",
    ),
    hide_files(
        "hide_files_behind_first_thread",
        "holds removed files in a process whose first thread has ended",
        """
import threading

def attack():
    time.sleep(0.02)
    try:
        kept = [hold(batch) for batch in range(4)]
        time.sleep(0.6)
        breach("24 MiB")
    except OSError as error:
        held(error)
    os._exit(0)

threading.Thread(target=attack).start()
syscall("exit", 0)
""",
    ),
    hide_files(
        "hide_files_in_another_table",
        "holds removed files in threads with descriptors of their own",
        """
import threading
failed = []

def attack(batch):
    result, error = syscall(436, 4000, 4000, 2)  # close_range with CLOSE_RANGE_UNSHARE
    try:
        if result:
            raise OSError(error, "close_range")
        kept = hold(batch)
        time.sleep(0.7)
    except OSError as error:
        failed.append(error)

threads = [threading.Thread(target=attack, args=[batch]) for batch in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
(held if failed else breach)(failed)
""",
    ),
    hide_files(
        "hide_files_in_raw_threads",
        "holds removed files in threads that were made with descriptors of their own",
        CLONE
        + """
try:
    for batch in range(4):
        kept = hold(batch)
        if raw_thread(CLONE_THREAD | CLONE_SIGHAND | CLONE_VM) < 0:
            raise OSError("clone")
        for file in kept:
            os.close(file)
    time.sleep(0.6)
    breach("24 MiB")
except OSError as error:
    held(error)
os._exit(0)
""",
    ),
)
