"""From one call to the next through the kernel: locks and flags of open files, and which pages are in memory."""

from __future__ import annotations

from tests.sandbox.hostile.case import case
from tests.sandbox.hostile.channels import pass_on

# In a sandbox standard input is /dev/null; the plain run is given a pipe.
NULL = 'if HOST.get("plain"):\n    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)\n'
LOCK = (
    NULL
    + """
import fcntl, struct
fcntl.fcntl(0, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 4711, 1, 0))  # F_OFD_SETLK
"""
)
# a lock of the open file itself shows to every other open file of /dev/null, the host's own included
LOCKED = """
import fcntl, struct
def locked():
    other = os.open("/dev/null", os.O_RDWR)
    found = fcntl.fcntl(other, 36, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 4711, 1, 0))  # F_OFD_GETLK
    return struct.unpack("hhqqi4x", found)[0] != fcntl.F_UNLCK
"""


def cached(name: str, attempts: str, attack: str):
    """A case that asks about a page of the standard library which is in memory."""
    code = f"""
import os
page = os.open(os.__file__, os.O_RDONLY)
os.pread(page, 4096, 0)
refused({attack})
"""
    return case(name, attempts, code)


CASES = (
    pass_on(
        "leave_lock",
        "leaves a lock of the open file that its input is",
        LOCK,
        "(exec(LOCKED), locked())[1]".replace("LOCKED", repr(LOCKED)),
    ),
    pass_on(
        "leave_flag",
        "leaves a flag of the open file that its input is",
        NULL + "import fcntl\nfcntl.fcntl(0, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)",
        "__import__('fcntl').fcntl(0, 3) & (os.O_APPEND | os.O_NONBLOCK)",
    ),
    cached("see_cached_page", "asks whether a page is in memory", "os.preadv, page, [bytearray(1)], 0, os.RWF_NOWAIT"),
    cached(
        "drop_cached_page",
        "drops a page from memory",
        "os.posix_fadvise, page, 0, 0, os.POSIX_FADV_DONTNEED",
    ),
)
