"""Making and removing the scratch folders of the Landlock tier, where no file system of its own can be mounted."""

from __future__ import annotations

import os
from itertools import count


def make_folder(path: str, uid: int | None) -> None:
    """An empty folder for one guest; `uid` is the guest's user where the supervisor is root."""
    os.mkdir(path, 0o700)
    if uid is not None:
        os.chown(path, uid, uid)


def remove_folder(path: str) -> None:
    """Remove a folder and all in it, however deep, with few descriptors. No process may still write there.

    A folder's own folders are first renamed up to `path`: nothing is ever deeper than two, no link is followed.
    """
    fresh = count()
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    while names:
        for name in names:
            _flatten(path, os.path.join(path, name), fresh)
        names = os.listdir(path)
    os.rmdir(path)


def _flatten(top: str, path: str, fresh: count[int]) -> None:
    try:
        os.unlink(path)
        return
    except (IsADirectoryError, PermissionError):
        pass
    os.chmod(path, 0o700)
    for name in os.listdir(path):
        inner = os.path.join(path, name)
        try:
            os.unlink(inner)
        except (IsADirectoryError, PermissionError):
            os.chmod(inner, 0o700)
            os.rename(inner, _unused(top, fresh))
    os.rmdir(path)


def _unused(top: str, fresh: count[int]) -> str:
    while True:
        path = os.path.join(top, f".removed-{next(fresh)}")
        if not os.path.lexists(path):
            return path
