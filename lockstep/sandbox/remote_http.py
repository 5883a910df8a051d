"""One HTTP/1.1 POST on a connection of its own, bounded in time and in size. Standard library only.

In: an address and a body of JSON. Out: the body of a 200 answer, or NoAnswer. Nothing that was sent or received becomes
part of an error's text. Proxies from the environment are not used.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

MOST_HEAD_BYTES = 1 << 16
MOST_BODY_BYTES = 1 << 24  # two streams of 1 MiB whose every byte JSON spells with six
CONNECT_S = 10.0
BUSY = (408, 429)  # the only refusals that a second attempt may change


class NoAnswer(Exception):
    """The server gave no outcome. fix: what to do. again: a second attempt may go better."""

    def __init__(self, what: str, *, fix: str, again: bool) -> None:
        super().__init__(what)
        self.fix = fix
        self.again = again


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to send: a server's host and port, the path of the call, and TLS's context for https."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, url: str) -> Address:
        """The address of `<url>/run_code`; a url that ends so already is taken as it is. Raises ValueError."""
        shown = repr(url.split("?")[0].split("#")[0].rsplit("@", 1)[-1])  # without what may be secret
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("idna").decode("ascii"), parts.port
        except ValueError:
            raise ValueError(f"sandbox url={shown}: is no address; give one like http://host:8080") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"sandbox url={shown}: is no address; give one like http://host:8080")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                f"sandbox url={shown}: SandboxFusion has no login and no parameters; give scheme, host, port and path"
            )
        if not parts.path.isascii() or any(sign in url for sign in " \r\n\t"):
            raise ValueError(f"sandbox url={shown}: must be ASCII without blanks; percent-encode the path")
        path = parts.path.rstrip("/")
        secure = parts.scheme == "https"
        return cls(
            host=host,
            port=port or (443 if secure else 80),
            path=path if path.endswith("/run_code") else f"{path}/run_code",
            tls=ssl.create_default_context() if secure else None,
        )

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


async def post(address: Address, body: bytes, *, deadline_s: float) -> bytes:
    """Send `body`, give back the answer's. The connection is closed whatever happens, a cancellation included.

    Raises NoAnswer: no connection within CONNECT_S, no whole answer within deadline_s, not HTTP, too large, not 200.
    """
    writer, deadline = None, asyncio.timeout(deadline_s)
    try:
        async with deadline:
            reader, writer = await _connect(address)
            writer.write(_head(address, len(body)) + body)
            await writer.drain()
            status, headers = await _read_head(reader)
            if status != 200:
                raise _refused(status)
            return await _read_body(reader, headers)
    except TimeoutError:
        if not deadline.expired():
            raise _unreachable(writer, f"nothing within {CONNECT_S:g} s") from None
        fix = "give the server more workers, or lower max_connections"
        raise NoAnswer(f"no answer within {deadline_s:g} s", fix=fix, again=True) from None
    except asyncio.IncompleteReadError:
        raise _unreachable(writer, "closed by the server") from None
    except OSError as error:  # refused, reset, of the name's lookup, of TLS
        raise _unreachable(writer, error.strerror or type(error).__name__) from None
    except (asyncio.LimitOverrunError, _NotHttp) as error:
        what = str(error) if isinstance(error, _NotHttp) else "the answer is not HTTP"
        raise NoAnswer(what, fix="check that the url is that of a SandboxFusion server", again=True) from None
    finally:
        if writer is not None:
            writer.transport.abort()


class _NotHttp(Exception):
    """An answer that breaks the protocol or its bounds; the text says how."""


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(CONNECT_S):
        return await asyncio.open_connection(address.host, address.port, ssl=address.tls, limit=MOST_HEAD_BYTES)


def _head(address: Address, num_bytes: int) -> bytes:
    lines = (
        f"POST {address.path} HTTP/1.1",
        f"Host: {address.authority}",
        "Content-Type: application/json",
        f"Content-Length: {num_bytes}",
        "Accept: application/json",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """(status, headers by their lower-case names) of the first answer that is not an interim one (1xx)."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdecimal() and len(code) == 3):
            raise _NotHttp("the answer is not HTTP")
        if not 100 <= int(code) < 200:
            headers = (line.partition(":") for line in lines)
            return int(code), {name.strip().lower(): value.strip() for name, _, value in headers}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _read_chunks(reader)
    length = headers.get("content-length")
    if length is None:
        return await _read_to_end(reader)
    if not (length.isascii() and length.isdecimal()):
        raise _NotHttp("the answer has no valid length")
    return await reader.readexactly(_bounded(int(length)))


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while piece := await reader.read(MOST_HEAD_BYTES):
        data += piece
        _bounded(len(data))
    return bytes(data)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while True:
        line = (await reader.readuntil(b"\r\n"))[:-2].split(b";")[0].strip()
        if not line or line.strip(b"0123456789abcdefABCDEF"):
            raise _NotHttp("the answer has a chunk without a valid size")
        size = int(line, 16)
        _bounded(len(data) + size)
        if size == 0:
            return bytes(data)  # trailers, if any, are of no interest: the connection is closed
        data += (await reader.readexactly(size + 2))[:-2]


def _bounded(num_bytes: int) -> int:
    if num_bytes > MOST_BODY_BYTES:
        raise _NotHttp(f"the answer has more than {MOST_BODY_BYTES} bytes")
    return num_bytes


def _refused(status: int) -> NoAnswer:
    if status >= 500 or status in BUSY:
        return NoAnswer(f"HTTP status {status}", fix="the cause is in the server's own log", again=True)
    return NoAnswer(f"HTTP status {status}", fix="check the url, and that the server is SandboxFusion", again=False)


def _unreachable(writer: asyncio.StreamWriter | None, why: str) -> NoAnswer:
    what = "no connection" if writer is None else "the connection broke during the call"
    return NoAnswer(f"{what} ({why})", fix="check that the server runs and can be reached from here", again=True)
