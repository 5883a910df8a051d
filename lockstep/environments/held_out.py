"""Which tasks are held out from training: a hash of the text decides, so that the split is the same on every machine,
in every order, and however many are drawn."""

from __future__ import annotations

import hashlib


def is_held_out(text: str, *, one_in: int) -> bool:
    """Whether the task with this text is held out; of many texts, one in `one_in` is."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % one_in == 0
