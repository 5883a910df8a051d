"""MCP servers that would keep the trainer busy, or full, for ever: each costs a message, or an error that says so."""

import asyncio
import gzip
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("mcp")

from lockstep.rollout.mcp import schema, transport
from lockstep.rollout.mcp.server import McpServer
from lockstep.rollout.tool import BadArguments, InfrastructureError, ToolResult

BARE = (sys.executable, "-S", str(Path(__file__).with_name("mcp_bare.py")))


class Handler(BaseHTTPRequestHandler):
    """Speaks the protocol of 2025 as JSON, with sessions; what it does worse than others is the server's to say."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"content-length": len(body), "content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(405)

    def do_DELETE(self):
        self.server.deleting.set()
        self.server.release.wait()
        self.answer(200)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.encodings.add(self.headers["accept-encoding"])
        method, headers = asked["method"], {}
        if "id" not in asked:
            return self.answer(202)
        reply = {"jsonrpc": "2.0", "id": asked["id"]}
        if method == "initialize":
            version, headers = asked["params"]["protocolVersion"], {"mcp_session_id": "1"}
            info = {"name": "h", "version": "1"}
            reply["result"] = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        elif method == "tools/list":
            reply["result"] = {"tools": [{"name": "go", "inputSchema": {"type": "object"}, **self.server.described}]}
        elif method == "tools/call":
            reply["result"] = self.server.result
        else:
            reply["error"] = {"code": -32601, "message": "unknown method"}
        body = json.dumps(reply).encode()
        if method == "tools/call" and self.server.compresses:
            body, headers = gzip.compress(body), {"content_encoding": "gzip"}
        self.answer(200, body, **headers)

    def log_message(self, *_):
        pass


@contextmanager
def hostile(*, described=None, result=None, compresses=False):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.described, server.compresses, server.encodings = described or {}, compresses, set()
    server.result = {"content": [{"type": "text", "text": "here"}], **(result or {})}
    server.release, server.deleting = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/mcp"
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()


def said(server, arguments="{}"):
    async def ask():
        async with server.tools() as tools:
            return await tools[-1].call(arguments)

    return asyncio.run(asyncio.wait_for(ask(), 30))


def test_a_server_that_hangs_at_the_end_of_a_session_is_left(monkeypatch):
    monkeypatch.setattr(transport, "GRACE_S", 0.05)
    with hostile() as (server, url):
        assert said(McpServer(url=url, per_trajectory=True)) == ToolResult(text="here")
        assert server.deleting.is_set() and not server.release.is_set()


def test_a_compressed_answer_is_refused():
    """Its bound is of what the server sends: 3 MB of gzip can be 3 GB of text."""
    with hostile(compresses=True) as (server, url):
        with pytest.raises(InfrastructureError, match="answers in the encoding 'gzip', which was not asked for"):
            said(McpServer(url=url))
        assert server.encodings == {"identity"}


@pytest.mark.parametrize("promised", [{"pattern": "^(a+)+$"}, {"$ref": "http://127.0.0.1:9/schema"}, {"type": "null"}])
def test_a_result_is_not_held_against_what_the_server_promised(promised):
    """Such a pattern takes minutes on 40 signs, in which nothing else runs."""
    described = {"outputSchema": {"type": "object", "properties": {"a": promised}}}
    with hostile(described=described, result={"structuredContent": {"a": "aab"}}) as (_, url):
        assert said(McpServer(url=url)) == ToolResult(text="here")


def test_an_answer_that_cannot_be_read_is_not_waited_for():
    result = said(McpServer(command=BARE, env={"MORE_TOOLS": "half"}, allow=("half",), per_trajectory=True))
    assert result == ToolResult(text="Error: the answer is too long, or cannot be read.", fault="tool/error")


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        (b'{"result": {"content": [{"type": "text", "text": "\\ud800"}]}, "jsonrpc": "2.0", "id": 7}', 7),
        (b'{"result": {"a": "\xff"}, "jsonrpc": "2.0", "id": 7}', 7),
        (b'{"jsonrpc": "2.0", "id": 7, "result": ' + b"[" * 5000, 7),
        (b'{"method": "\\ud800", "jsonrpc": "2.0", "id": 7}', None),
        (b'{"result": "\\ud800", "jsonrpc": "2.0", "id": true}', None),
        (b"[7]", None),
        (b"noise", None),
        (b'{"id":' * 5000, None),
    ],
)
def test_which_call_an_unreadable_line_answers(line, answers):
    message = transport._message(line)
    if answers is None:
        assert isinstance(message, ValueError)
    else:
        assert not isinstance(message, Exception)
        assert (message.message.id, message.message.error.code) == (answers, -32700)


def test_a_schema_that_takes_a_check_for_ever_is_refused():
    laughs = {f"l{i}": {"allOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(16)} | {"l16": {}}
    check = schema.checker({"$defs": laughs, "$ref": "#/$defs/l0"})
    for _ in range(2):
        with pytest.raises(BadArguments, match="the schema takes more than 20000 steps"):
            check({})
    person = {"type": "object", "properties": {name: {"type": "string", "minLength": 1} for name in "abcdefgh"}}
    people = {"people": [dict.fromkeys("abcdefgh", "x")] * schema.MAX_ITEMS}
    for _ in range(2):
        assert schema.checker({"properties": {"people": {"items": person}}})(people) == people


def test_a_schema_is_read_once():
    one = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert schema.checker(one) is schema.checker(json.loads(json.dumps(one)))
