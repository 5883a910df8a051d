"""What the supervisor's looks cost: no guest may make one long."""

import mmap
import os
import sys

import pytest

from lockstep.sandbox import watch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the local tiers need Linux")
MOST_FILES = 10


@pytest.fixture
def proc():
    descriptor = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def num_looked_at(monkeypatch):
    """How many entries of folders were taken from the kernel's lists."""
    taken, real = [], os.scandir

    class Listed:
        def __init__(self, path):
            self.entries = real(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            return self

        def __next__(self):
            taken.append(next(self.entries))
            return taken[-1]

    monkeypatch.setattr(watch.os, "scandir", Listed)
    return lambda: len(taken)


@pytest.mark.parametrize("folders", [1, 8, 100])
def test_no_more_files_are_looked_at_than_the_limit_and_one(proc, tmp_path, num_looked_at, folders):
    """A folder may turn into a link to the whole machine after it was listed: the look follows it, but not far."""
    for number in range(folders):
        (tmp_path / "large" / str(number)).mkdir(parents=True)
        for name in range(40):
            (tmp_path / "large" / str(number) / str(name)).touch()
    (tmp_path / "link").symlink_to(tmp_path / "large")
    _, count = watch.held_in(proc, str(tmp_path / "link"), [], MOST_FILES)
    assert count == MOST_FILES + 1
    assert num_looked_at() <= 2 * (MOST_FILES + 1)


def test_files_up_to_the_limit_are_all_counted(proc, tmp_path):
    for number in range(MOST_FILES):
        (tmp_path / str(number)).write_bytes(bytes(4096))
    size, count = watch.held_in(proc, str(tmp_path), [], MOST_FILES)
    assert (size, count) == (4096 * MOST_FILES, MOST_FILES)


def test_mappings_that_take_long_to_read_count_as_too_many(proc, tmp_path, monkeypatch):
    file = tmp_path / "mapped"
    file.write_bytes(bytes(1 << 16))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        file.unlink()
        size, _ = watch.held_in(proc, str(tmp_path), [os.getpid()], MOST_FILES)
        monkeypatch.setattr(watch, "_MOST_MAPS_BYTES", 1000)
        size_of_many, _ = watch.held_in(proc, str(tmp_path), [os.getpid()], MOST_FILES)
    assert 1 << 16 <= size < 1 << 20 and size_of_many >= 1 << 62
