"""Which kind of forward pass is running: read by attention and experts, which transformers calls without a way to say.

`decoding`: one new token a row, no gradient, speed before bits. `exact`: a token's numbers are a function of its own
history alone, bit for bit, whatever else is in the batch (exact.py). A training or log-prob pass is never `decoding`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DECODING: ContextVar[bool] = ContextVar("decoding", default=False)
_EXACT: ContextVar[bool] = ContextVar("exact", default=False)


@contextmanager
def _set(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def decoding(value: bool = True):
    """Within: experts may take the path made for few tokens."""
    return _set(_DECODING, value)


def exact(value: bool = True):
    """Within: attention, experts and linear layers keep every row's bits free of its neighbours."""
    return _set(_EXACT, value)


def is_decoding() -> bool:
    return _DECODING.get()


def is_exact() -> bool:
    return _EXACT.get()
