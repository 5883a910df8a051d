"""The tier "remote" against a real HTTP server on this machine whose answers are scripted, good and bad ones."""

import asyncio
import base64
import json
import logging
import math
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.sandbox import remote
from lockstep.sandbox.interface import Limits, SandboxFailure, SandboxUnavailable
from lockstep.sandbox.remote import RemoteSandbox, open_remote, outcome, request
from lockstep.sandbox.remote_http import MOST_BODY_BYTES, Address, NoAnswer
from lockstep.sandbox.sandbox import SandboxOptions, open_sandbox
from lockstep.sandbox.slots import Slots

SHORT = Limits(time_s=0.05)
SECRET = "guest-code-4711"


def finished(stdout="", stderr="", code=0, **other):
    result = {"status": "Finished", "execution_time": 0.25, "return_code": code, "stdout": stdout, "stderr": stderr}
    return {
        "status": "Failed" if code else "Success",
        "message": "",
        "compile_result": None,
        "run_result": result | other,
        "executor_pod_name": None,
        "files": {},
    }


class Server(ThreadingHTTPServer):
    """steps: what to do with each request, in order; the last one is repeated. Keeps what it was asked."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, *steps):
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps, self.requests, self.lock = list(steps), [], threading.Lock()
        self.gate, self.gone = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        """A client that went away is what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
            step = self.server.steps.pop(0) if len(self.server.steps) > 1 else self.server.steps[0]
        step(self)

    def log_message(self, *_):
        """Quiet."""


@contextmanager
def serving(*steps):
    with Server(*steps) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()


def says(answer=None, *, status=200, **headers):
    data = answer if isinstance(answer, bytes) else json.dumps(finished() if answer is None else answer).encode()

    def step(handler):
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return step


def sends(data):
    """Bytes as they are, then the end."""

    def step(handler):
        handler.wfile.write(data)
        handler.close_connection = True

    return step


def chunked(*pieces, end=b"0\r\n\r\n"):
    coded = b"".join(f"{len(piece):x};x=y\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded + end)


def resets(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hangs(handler):
    """No answer until the test ends; notes when the client goes."""
    while not handler.server.gate.is_set():
        handler.connection.settimeout(0.01)
        try:
            if handler.connection.recv(1) == b"":
                handler.server.gone.set()
                return
        except TimeoutError:
            continue
        except ConnectionError:
            handler.server.gone.set()
            return


def drips(handler):
    """A valid answer, a byte at a time, that never comes to its end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not handler.server.gate.wait(0.002):
        handler.wfile.write(b" ")


def call(server, code="print(1)", *, limits=None, grace_s=5.0, sandbox=None, **kwargs):
    sandbox = sandbox or RemoteSandbox(url=server.url, grace_s=grace_s)
    return asyncio.run(sandbox.run(code, limits=limits, **kwargs)), sandbox


# --- what is asked ---


def test_the_request_is_the_documented_one():
    with serving(says()) as server:
        limits = Limits(time_s=2.5, memory_bytes=(1 << 28) + 1)
        call(server, "print(1)", stdin="in\n", files={"a.bin": b"\0\xff", "d/b.txt": b""}, limits=limits)
        path, headers, body = server.requests[0]
    assert path == "/run_code"
    assert headers["Content-Type"] == "application/json"
    assert headers["Host"] == server.url.removeprefix("http://")
    assert body == {
        "language": "python",
        "code": "print(1)",
        "stdin": "in\n",
        "files": {"a.bin": base64.b64encode(b"\0\xff").decode(), "d/b.txt": ""},
        "run_timeout": 2.5,
        "compile_timeout": 2.5,
        "memory_limit_MB": 257,  # rounded up
    }


def test_a_call_without_limits_has_the_sandboxs():
    with serving(says()) as server:
        call(server, sandbox=RemoteSandbox(url=server.url, limits=Limits(time_s=7.0)))
    assert server.requests[0][2]["run_timeout"] == 7.0


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_a_file_name_that_leaves_the_directory(name):
    with pytest.raises(ValueError, match="inside the working directory"):
        request("", "", {name: b""}, Limits())


@given(code=st.text(st.characters()), stdin=st.text(st.characters()))
def test_any_text_can_be_sent(code, stdin):
    fields = json.loads(request(code, stdin, {}, Limits()))
    assert fields["code"] == code.encode("utf-8", "replace").decode()
    assert fields["stdin"].encode() is not None


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (Limits(max_processes=4), "Limits.max_processes=4"),
        (Limits(files_bytes=1 << 20), "Limits.files_bytes=1048576"),
        (Limits(max_files=10), "Limits.max_files=10"),
        (Limits(output_bytes=(1 << 20) + 1), "Limits.output_bytes=1048577"),
    ],
)
def test_a_limit_that_would_not_hold_is_refused(limits, named):
    with pytest.raises(ValueError, match=named):
        RemoteSandbox(url="http://127.0.0.1:1", limits=limits)
    with pytest.raises(ValueError, match=named):
        asyncio.run(RemoteSandbox(url="http://127.0.0.1:1").run("", limits=limits))


# --- what is answered ---


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (finished("out", "err"), ("ok", "out", "err", 0, None)),
        (finished("", "Traceback", 1), ("error", "", "Traceback", 1, None)),
        (finished(code=137), ("error", "", "", 137, None)),  # sys.exit(137) looks the same: it is an exit code
        (finished("o", code=-9), ("killed", "o", "", None, 9)),
        (finished(code=-11), ("killed", "", "", None, 11)),
        (finished("part", status="TimeLimitExceeded", code=None), ("timeout", "part", "", None, int(signal.SIGKILL))),
        (finished(None, None), ("ok", "", "", 0, None)),
    ],
)
def test_outcomes(answer, expected):
    with serving(says(answer)) as server:
        found, sandbox = call(server)
    assert (found.status, found.stdout, found.stderr, found.exit_code, found.signal) == expected
    assert (found.time_s, found.cpu_s, found.truncated, found.state_lost) == (0.25, 0.0, False, False)
    assert (sandbox.num_retries, len(server.requests)) == (0, 1)


@pytest.mark.parametrize(
    ("text", "most", "cut", "truncated"),
    [
        ("abcdef", 6, "abcdef", False),
        ("abcdefg", 6, "abcdef", True),
        ("ééé", 6, "ééé", False),
        ("ééé", 5, "éé\ufffd", True),
        ("a\ud800b", 9, "a?b", False),  # JSON can spell a lone surrogate
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_cut_at_its_limit_in_bytes(text, most, cut, truncated, stream):
    found = outcome(json.dumps(finished(**{stream: text})).encode(), Limits(output_bytes=most), time_s=1.0)
    assert (getattr(found, stream), found.truncated) == (cut, truncated)


@pytest.mark.parametrize("taken", [None, "1", True, -1.0, math.nan, math.inf, 10**400])
def test_a_missing_execution_time_is_our_own(taken):
    found = outcome(json.dumps(finished(execution_time=taken)).encode(), Limits(), time_s=3.5)
    assert found.time_s == 3.5


@pytest.mark.parametrize(
    "data",
    [
        chunked(json.dumps(finished("x")).encode()[:40], json.dumps(finished("x")).encode()[40:]),
        chunked(json.dumps(finished("x")).encode(), end=b"0\r\nTrailer: 1\r\n\r\n"),
        sends(b"HTTP/1.0 200 OK\r\nserver: old\r\n\r\n" + json.dumps(finished("x")).encode()),
        sends(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\n\r\n" + json.dumps(finished("x")).encode()),
        says(finished("x"), X_Long="y" * 30_000),
    ],
    ids=["chunks", "trailer", "until the end", "interim", "long head"],
)
def test_the_forms_of_an_answer(data):
    with serving(data) as server:
        found, sandbox = call(server)
    assert (found.stdout, sandbox.num_retries) == ("x", 0)


def test_a_large_answer():
    text = "\0" * (1 << 20)  # six bytes each in JSON
    with serving(says(finished(text, text))) as server:
        found, _ = call(server, limits=Limits(output_bytes=1 << 20))
    assert (found.stdout == text, found.stderr == text, found.truncated) == (True, True, False)


# --- what fails ---

BAD = {
    "garbage": (sends(b"\x16\x03\x01 what is this\r\n\r\n"), "not HTTP"),
    "bad status": (sends(b"HTTP/1.1 2x0 OK\r\n\r\n{}"), "not HTTP"),
    "endless head": (sends(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000), "not HTTP"),
    "no length": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"), "no valid length"),
    "giant length": (says(b"{}", Content_Length=str(MOST_BODY_BYTES + 1)), "more than 16777216 bytes"),
    "giant body": (sends(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MOST_BODY_BYTES + 1)), "more than 16777216 bytes"),
    "giant chunk": (chunked(end=b"fffffff0\r\n" + b"x"), "more than 16777216 bytes"),
    "giant chunks": (chunked(b"x" * (1 << 23), b"x" * (1 << 23), b"x"), "more than 16777216 bytes"),
    "bad chunk": (chunked(end=b"0x1_0\r\n\r\n"), "chunk without a valid size"),
    "negative chunk": (chunked(end=b"-5\r\n\r\n"), "chunk without a valid size"),
    "cut body": (says(b"{}", Content_Length="50"), "closed by the server"),
    "cut head": (sends(b"HTTP/1.1 200 OK\r\nContent-"), "closed by the server"),
    "no answer": (sends(b""), "closed by the server"),
    "reset": (resets, "the connection broke"),
    "500": (says(b'{"detail": "' + SECRET.encode() + b'"}', status=500), "HTTP status 500"),
    "504": (says(b"", status=504), "HTTP status 504"),
    "429": (says(b"", status=429), "HTTP status 429"),
    "sandbox error": (says({"status": "SandboxError", "message": SECRET}), "SandboxError"),
    "error result": (says(finished(status="Error")), "no valid 'run_result'"),
    "not JSON": (says(b"{'a': 1}"), "not JSON"),
    "not UTF-8": (says(b'{"status": "\xff"}'), "not JSON"),
    "deep JSON": (says(b"[" * 200_000), "not JSON"),
    "JSON list": (says(b"[]"), "no valid 'status'"),
    "no status": (says(b"{}"), "no valid 'status'"),
    "status list": (says({"status": ["Success"]}), "no valid 'status'"),
    "no result": (says({"status": "Success", "message": ""}), "no valid 'run_result'"),
    "null result": (says({"status": "Failed", "run_result": None}), "no valid 'run_result'"),
    "no code": (says(finished(code=None)), "no valid 'return_code'"),
    "text code": (says(finished(code="0")), "no valid 'return_code'"),
    "true code": (says(finished(code=True)), "no valid 'return_code'"),
    "stdout list": (says(finished(["x"])), "not text"),
    "stderr number": (says(finished(stderr=5)), "not text"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_tried_again_once_and_then_a_failure(name, caplog):
    step, what = BAD[name]
    with serving(step) as server, caplog.at_level(logging.DEBUG):
        sandbox = RemoteSandbox(url=server.url, grace_s=5.0)
        with pytest.raises(SandboxFailure) as caught:
            call(server, f"# {SECRET}", stdin=SECRET, sandbox=sandbox)
    text = str(caught.value)
    assert what in text and text.startswith(f"{server.url}/run_code: ") and ", twice; " in text
    assert "\n" not in text and SECRET not in text and SECRET not in caplog.text
    assert (len(server.requests), sandbox.num_retries) == (2, 1)


@pytest.mark.parametrize("name", ["garbage", "reset", "500", "sandbox error", "cut body", "no result"])
def test_a_second_attempt_can_succeed(name):
    with serving(BAD[name][0], says(finished("second"))) as server:
        found, sandbox = call(server)
    assert (found.stdout, sandbox.num_retries, len(server.requests)) == ("second", 1, 2)
    assert server.requests[0][2] == server.requests[1][2]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 301, 307, 204])
def test_a_refusal_is_not_tried_again(status):
    with serving(says(b"", status=status)) as server, pytest.raises(SandboxFailure) as caught:
        call(server)
    assert f"HTTP status {status};" in str(caught.value) and "twice" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_refusal_after_a_failure_is_the_end_as_well():
    with serving(resets, says(b"", status=404)) as server, pytest.raises(SandboxFailure, match="status 404; check"):
        call(server)
    assert len(server.requests) == 2


@pytest.mark.parametrize("step", [hangs, drips])
def test_a_late_answer(step):
    with serving(step) as server, pytest.raises(SandboxFailure, match=r"no answer within 0\.1 s, twice"):
        call(server, limits=SHORT, grace_s=0.05)
    assert len(server.requests) == 2


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(
        SandboxFailure, match=rf"{url}/run_code: no connection \(.*\), twice; check that the server runs"
    ):
        asyncio.run(RemoteSandbox(url=url).run(""))


def test_https_to_a_server_without_it():
    with serving(says()) as server, pytest.raises(SandboxFailure, match="no connection"):
        asyncio.run(RemoteSandbox(url=server.url.replace("http", "https"), grace_s=5.0).run(""))


# Any JSON at all is an outcome or NoAnswer: nothing else may come out.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
RESULT = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["Finished", "TimeLimitExceeded", "Error"]) | JSON,
        "return_code": st.integers() | JSON,
        "stdout": st.text() | JSON,
        "stderr": st.text() | JSON,
        "execution_time": JSON,
    },
)
ANSWER = st.fixed_dictionaries(
    {}, optional={"status": st.sampled_from(["Success", "Failed", "SandboxError"]) | JSON, "run_result": RESULT | JSON}
)


@settings(max_examples=400)
@given(answer=st.binary(max_size=40) | (ANSWER | JSON).map(lambda value: json.dumps(value).encode()))
def test_no_answer_breaks_the_client(answer):
    try:
        found = outcome(answer, Limits(output_bytes=10), time_s=1.0)
    except NoAnswer:
        return
    assert (found.exit_code is None) != (found.signal is None)
    assert (found.status == "ok") == (found.exit_code == 0)
    assert 0 <= found.time_s < 1e9 and len(found.stdout) <= 10
    assert found.stdout.encode() is not None  # encodable


# --- calls together, given up, and several loops ---


def test_no_more_connections_than_allowed_and_one_sandbox_on_several_loops():
    state = {"now": 0, "most": 0}
    both = threading.Barrier(3)  # a call ends only when three are in flight

    def counts(handler):
        with handler.server.lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        both.wait(10)
        with handler.server.lock:
            state["now"] -= 1
        says()(handler)

    async def many(sandbox):
        return await asyncio.gather(*(sandbox.run("") for _ in range(9)))

    with serving(counts) as server:
        sandbox = RemoteSandbox(url=server.url, max_connections=3)
        for _ in range(2):  # each asyncio.run is a new loop
            assert [found.status for found in asyncio.run(many(sandbox))] == ["ok"] * 9
    assert not sandbox._calls  # nothing is kept of calls that ended
    assert state == {"now": 0, "most": 3}


def test_a_cancelled_call_closes_its_connection_and_frees_its_slot():
    async def main(server):
        sandbox = RemoteSandbox(url=server.url, max_connections=1)
        task = asyncio.create_task(sandbox.run(""))
        waiting = asyncio.create_task(sandbox.run("waits for the slot and is cancelled there"))
        while not server.requests:
            await asyncio.sleep(0)
        waiting.cancel()
        task.cancel()
        for cancelled in (task, waiting):
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        return await asyncio.wait_for(sandbox.run("after"), 20)

    with serving(hangs, says(finished("after"))) as server:
        assert asyncio.run(main(server)).stdout == "after"
        assert server.gone.wait(10)
    assert [body["code"] for _, _, body in server.requests] == ["", "after"]


def test_closing_ends_calls_in_flight_and_refuses_later_ones():
    async def main(server):
        sandbox = RemoteSandbox(url=server.url, max_connections=1)
        tasks = [asyncio.create_task(sandbox.run("")) for _ in range(2)]  # one in flight, one waiting for its slot
        while not server.requests:
            await asyncio.sleep(0)
        await asyncio.to_thread(sandbox.close)  # from another thread
        for task in tasks:
            with pytest.raises(SandboxFailure, match=r"the sandbox (was|is) closed"):
                await asyncio.wait_for(task, 10)
        sandbox.close()
        with pytest.raises(SandboxFailure, match="the sandbox is closed; open another one"):
            await sandbox.run("")

    with serving(hangs) as server:
        asyncio.run(main(server))
        assert server.gone.wait(10)
    assert len(server.requests) == 1


def test_slots_pass_on_a_turn_whose_owner_was_cancelled():
    async def main():
        slots = Slots(1)
        order = []

        async def hold(name):
            async with slots:
                order.append(name)

        await slots.__aenter__()
        first, second = (asyncio.create_task(hold(name)) for name in ("first", "second"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await slots.__aexit__()  # first has its turn, and is cancelled before it runs
        first.cancel()
        await asyncio.wait_for(second, 10)
        async with asyncio.timeout(10), slots:
            return order

    assert asyncio.run(main()) == ["second"]


def test_slots_between_threads():
    slots, held, most = Slots(2), [], []

    async def work():
        for _ in range(50):
            async with slots:
                held.append(1)
                most.append(len(held))
                await asyncio.sleep(0)
                held.pop()

    async def several():
        await asyncio.gather(*(work() for _ in range(4)))

    threads = [threading.Thread(target=asyncio.run, args=(several(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(most), len(held)) == (600, 0)
    assert max(most) <= 2


def test_a_sandbox_without_slots():
    with pytest.raises(ValueError, match="slots=0"):
        RemoteSandbox(url="http://x", max_connections=0)


# --- opening ---


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://Host:8080", "http://host:8080/run_code"),
        ("http://host/", "http://host:80/run_code"),
        ("http://host:1/a/run_code", "http://host:1/a/run_code"),
        ("http://host:1/a/run_code/", "http://host:1/a/run_code"),
        ("https://host/a", "https://host:443/a/run_code"),
        ("http://[::1]:5", "http://[::1]:5/run_code"),
    ],
)
def test_addresses(url, shown):
    assert str(Address.of(url)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:8080",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://host/a b",
        "http://host/a\r\nX: y",
        "http://host/ä",
        "http://host/?token=hidden",
        "http://me:hidden@host/",
        f"http://{'a' * 70}/",
    ],
)
def test_no_address(url):
    with pytest.raises(ValueError, match="sandbox url=") as caught:
        RemoteSandbox(url=url)
    assert "hidden" not in str(caught.value) and "\n" not in str(caught.value)


def test_opening_tries_a_script_first():
    with serving(says(finished("lockstep 42\n"))) as server:
        sandbox = open_remote(url=server.url)
    assert sandbox.tier == "remote"
    assert server.requests[0][2]["code"] == remote.PING
    with serving(says(finished("lockstep 42\n"))) as server:

        async def inside_a_loop():
            return open_remote(url=server.url)

        assert asyncio.run(inside_a_loop()).tier == "remote"


def test_the_options_lead_to_it():
    with serving(says(finished("lockstep 42\n"))) as server:
        options = SandboxOptions(tier="remote", url=server.url, limits=Limits(time_s=7.0))
        sandbox = open_sandbox(options)
        asyncio.run(sandbox.run("print(1)"))
    assert isinstance(sandbox, RemoteSandbox)
    assert [body["run_timeout"] for _, _, body in server.requests] == [10.0, 7.0]  # the probe's, and the options'


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (resets, "the connection broke"),
        (says(finished("lockstep 42\n", code=1)), "ended 'error', exit code 1"),
        (says(finished("lockstep 43\n")), "ended 'ok', exit code 0, with 12 characters"),
        (says(b"", status=404), "HTTP status 404; check the url"),
    ],
)
def test_a_server_that_cannot_run_a_script_is_unavailable(step, what):
    with serving(step) as server, pytest.raises(SandboxUnavailable, match=what) as caught:
        open_remote(url=server.url)
    assert str(caught.value).startswith(f"tier 'remote': {server.url}/run_code")


@pytest.mark.parametrize("url", [None, ""])
def test_opening_without_a_url(url):
    with pytest.raises(ValueError, match="set url"):
        open_remote(url=url)


def test_there_are_no_sessions():
    with pytest.raises(SandboxUnavailable, match="no sessions; use run"):
        asyncio.run(RemoteSandbox(url="http://x").session())


# --- a server that really runs the code, as SandboxFusion does: a file, through bash ---


def runs(handler):
    body = handler.server.requests[-1][2]
    with tempfile.TemporaryDirectory() as name:
        for file, data in body["files"].items():
            (Path(name) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / file).write_bytes(base64.b64decode(data))
        (Path(name) / "code.py").write_text(body["code"])
        command = ["/bin/bash", "-c", f"{sys.executable} code.py"]
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            out, err = process.communicate(body["stdin"], timeout=body["run_timeout"])
            status, code = "Finished", process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            status, code = "TimeLimitExceeded", None
    taken = time.monotonic() - began
    says(finished(out, err, code, status=status, execution_time=taken))(handler)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(open('d/a').read() + input())", ("ok", "xy\n", 0, None)),
        ("import sys; sys.exit(3)", ("error", "", 3, None)),
        ("import os; os.kill(os.getpid(), 11)", ("killed", "", None, 11)),
        ("print('p', flush=True); input(); input()\nwhile True: pass", ("timeout", "p\n", None, 9)),
    ],
)
def test_a_server_that_runs_the_code(code, expected):
    limits = Limits(time_s=1.0 if expected[0] == "timeout" else 20.0)
    with serving(runs) as server:
        found, _ = call(server, code, stdin="y\n\n", files={"d/a": b"x"}, limits=limits, grace_s=20.0)
    assert (found.status, found.stdout, found.exit_code, found.signal) == expected
    assert found.time_s > 0
