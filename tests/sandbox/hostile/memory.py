"""Taking more memory or files than allowed, in every way that some accounting overlooks. Nothing takes over 2 GiB."""

from __future__ import annotations

from lockstep.sandbox.interface import Limits
from tests.sandbox.hostile.case import case

LIMIT = Limits(time_s=8.0, memory_bytes=192 << 20, files_bytes=1 << 24, max_files=64, max_processes=8)
ENDS = ("ok", "error", "memory", "killed")
SAYS_HELD_OR_DIES = {"limits": LIMIT, "expect": ENDS}


def take(name: str, attempts: str, attack: str, **options):
    """A case that is refused by a MemoryError or an OSError, or killed."""
    lines = "\n".join(f"    {line}" for line in attack.strip("\n").splitlines())
    code = f"""
try:
{lines}
    breach("took it")
except (MemoryError, OSError, RuntimeError, ValueError) as error:
    held(type(error).__name__)
"""
    return case(name, attempts, code, limits=LIMIT, expect=ENDS, **options)


CASES = (
    take("allocate", "fills one block of 600 MiB", "room = bytearray(b'x') * (600 << 20)"),
    take("allocate_bit_by_bit", "fills many small blocks", "rooms = [os.urandom(1000) * 100 for _ in range(6000)]"),
    take(
        "map_anonymous",
        "maps and fills 600 MiB",
        """
import mmap
room = mmap.mmap(-1, 600 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 600 << 20, 4096):
    room[at] = 1
""",
    ),
    take(
        "map_at_once",
        "maps 600 MiB, filled by the kernel",
        """
import mmap
room = mmap.mmap(-1, 600 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
""",
    ),
    take(
        "map_shared",
        "maps and fills 600 MiB that its children share",
        """
import mmap
room = mmap.mmap(-1, 600 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
for at in range(0, 600 << 20, 4096):
    room[at] = 1
""",
    ),
    take(
        "grow_by_break",
        "moves the end of its data by 600 MiB",
        """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.sbrk.restype = ctypes.c_void_p
libc.sbrk.argtypes = [ctypes.c_ssize_t]
if libc.sbrk(600 << 20) in (None, ctypes.c_void_p(-1).value):
    raise MemoryError
""",
    ),
    take("numpy_array", "fills an array of 600 MiB", "import numpy\nroom = numpy.ones(600 << 17)"),
    take(
        "fill_nameless_file",
        "writes 600 MiB into a file in memory, which counts as nobody's resident memory",
        """
number = os.memfd_create("room")
for _ in range(600):
    os.write(number, b"x" * (1 << 20))
""",
    ),
    take(
        "fill_many_nameless_files",
        "writes 12 MiB into each of 60 files in memory",
        """
for _ in range(60):
    number = os.memfd_create("room")
    for _ in range(12):
        os.write(number, b"x" * (1 << 20))
""",
    ),
    take(
        "fill_pipes",
        "fills 600 pipes of 1 MiB, memory of the kernel's",
        """
import fcntl
kept = []
for _ in range(600):
    reading, writing = os.pipe()
    kept.append((reading, writing))
    os.set_blocking(writing, False)
    fcntl.fcntl(writing, 1031, 1 << 20)
    while True:
        try:
            os.write(writing, b"x" * 65536)
        except BlockingIOError:
            break
""",
    ),
    take(
        "fill_sockets",
        "fills 2000 pairs of sockets, memory of the kernel's",
        """
import socket
kept = []
for _ in range(2000):
    left, right = socket.socketpair()
    kept.append((left, right))
    left.setblocking(False)
    try:
        while True:
            left.send(b"x" * 65536)
    except BlockingIOError:
        pass
""",
    ),
    case(
        "enlarge_sockets",
        "makes room for gigabytes in pairs of sockets",
        """
        import socket
        refused(socket.socketpair()[0].setsockopt, socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
        """,
    ),
    case(
        "take_huge_pages",
        "takes memory of the host's pool of huge pages",
        """
        import mmap
        try:
            mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
            breach()
        except OSError as error:
            (held if error.errno == errno.EPERM else breach)(error)
        """,
    ),
    case(
        "children_below_the_limit",
        "fills 100 MiB in each of 6 children",
        """
        reading, writing = os.pipe()
        for _ in range(6):
            if os.fork() == 0:
                os.close(reading)
                try:
                    room = bytearray(b"x") * (100 << 20)
                    os.write(writing, b".")
                    time.sleep(5)
                finally:
                    os._exit(0)
        os.close(writing)
        os.set_blocking(reading, False)
        made, end = 0, time.monotonic() + 4
        while made < 6 and time.monotonic() < end:
            time.sleep(0.01)
            try:
                made += len(os.read(reading, 10))
            except BlockingIOError:
                pass
        (breach if made > 4 else held)(made)
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "shared_memory_segments",
        "makes and fills 60 segments of 10 MiB, which outlive their maker",
        """
        import ctypes
        made = []
        libc = ctypes.CDLL(None)
        libc.shmat.restype = ctypes.c_void_p
        for _ in range(60):
            number, error = syscall("shmget", 0, 10 << 20, 0o1600)
            if number < 0:
                break
            where = libc.shmat(number, None, 0)
            libc.shmctl(number, 0, None)
            if where in (None, ctypes.c_void_p(-1).value):
                break
            ctypes.memset(where, 1, 10 << 20)
            made.append(number)
        (breach if len(made) > 30 else held)(len(made))
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "fill_dev_shm",
        "writes 300 MiB below /dev/shm",
        """
        def attack():
            with open("/dev/shm/" + HOST["probe"], "wb") as file:
                try:
                    for _ in range(300):
                        file.write(b"x" * (1 << 20))
                        file.flush()
                finally:
                    os.unlink("/dev/shm/" + HOST["probe"])
        refused(attack)
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "lock_memory",
        "locks 1 MiB into memory",
        """
        import ctypes, mmap
        room = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        where = ctypes.addressof(ctypes.c_char.from_buffer(room))
        libc = ctypes.CDLL(None, use_errno=True)
        (held if libc.mlock(ctypes.c_void_p(where), ctypes.c_size_t(1 << 20)) else breach)(ctypes.get_errno())
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "recurse",
        "recurses until the stack ends",
        """
        import sys
        sys.setrecursionlimit(1 << 30)
        def deeper(number):
            return max([number], key=lambda x: deeper(x + 1))
        deeper(0)
        breach()
        """,
        limits=LIMIT,
        expect=("error", "memory", "killed"),
        control=lambda plain: plain.exit_code not in (0, 1),
    ),
    case(
        "zip_bomb",
        "unpacks 600 MiB from 600 KiB",
        """
        import zlib
        packer = zlib.compressobj(wbits=-15)
        piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
        try:
            room = zlib.decompress(piece * 600 + packer.flush(), wbits=-15, bufsize=1 << 29)
            breach(len(room))
        except MemoryError:
            held()
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "catch_and_go_on",
        "catches every MemoryError and asks again",
        """
        rooms = []
        end = time.monotonic() + 1.5
        while time.monotonic() < end and len(rooms) < 150:
            try:
                rooms.append(bytearray(b"x") * (10 << 20))
            except MemoryError:
                time.sleep(0.01)
        (breach if len(rooms) > 40 else held)(len(rooms))
        """,
        **SAYS_HELD_OR_DIES,
    ),
    take(
        "hold_descriptors",
        "holds 1000 descriptors, memory of the kernel's",
        """
kept = [os.open(".", os.O_RDONLY) for _ in range(1000)]
""",
    ),
    case(
        "fill_scratch",
        "writes 200 MiB into one file",
        """
        def attack():
            with open("large", "wb") as file:
                for _ in range(200):
                    file.write(b"x" * (1 << 20))
        refused(attack)
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "fill_scratch_with_many",
        "writes 60 files of 3 MiB, each below the limit",
        """
        def attack():
            for number in range(60):
                with open(str(number), "wb") as file:
                    file.write(b"x" * (3 << 20))
                time.sleep(0.005)
        refused(attack)
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "fill_scratch_unseen",
        "writes to removed files, which no list of the folder shows",
        """
        def attack():
            kept = []
            for number in range(60):
                kept.append(open(str(number), "wb", buffering=0))
                os.unlink(str(number))
                kept[-1].write(b"x" * (3 << 20))
                time.sleep(0.005)
        refused(attack)
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "too_many_files",
        "makes 3000 files",
        """
        def attack():
            for number in range(3000):
                open(str(number), "wb").close()
                if number % 100 == 0:
                    time.sleep(0.02)
        refused(attack)
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "too_many_folders",
        "makes 3000 folders, one in the other",
        """
        def attack():
            for number in range(3000):
                os.mkdir("d")
                os.chdir("d")
                if number % 100 == 0:
                    time.sleep(0.02)
        refused(attack)
        """,
        **SAYS_HELD_OR_DIES,
    ),
    case(
        "folder_that_resists",
        "leaves folders and files that nobody may read, enter or remove",
        """
        os.makedirs("a/b/c")
        open("a/b/c/file", "w").close()
        open("strange \\n \\x1b[31m name", "w").close()
        for path in ("a/b/c/file", "a/b/c", "a/b", "a"):
            try:
                os.chmod(path, 0)
            except OSError:
                pass
        held()
        """,
        control=lambda plain: "HELD" in plain.output,
    ),
)
