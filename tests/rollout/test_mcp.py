"""MCP servers as tools, against live servers: every call costs one message, and nothing outlives the trainer."""

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("mcp")

import httpx2

from lockstep.engine.scripted import ScriptedEngine
from lockstep.rollout.background import background
from lockstep.rollout.environment import Start, Step, ToolEnvironment
from lockstep.rollout.mcp import schema, transport
from lockstep.rollout.mcp.environment import WithTools
from lockstep.rollout.mcp.server import McpServer
from lockstep.rollout.renderer import Extension, Parsed
from lockstep.rollout.tool import BadArguments, InfrastructureError, ToolResult, tool
from lockstep.rollout.trajectory import Attempt, Policy, Rollout
from lockstep.types import Message, Task, UserError

ROOT = Path(__file__).parent.parent.parent
SCRIPT = str(Path(__file__).with_name("mcp_server.py"))
STDIO = (sys.executable, SCRIPT, "stdio")
BARE = (sys.executable, "-S", str(Path(__file__).with_name("mcp_bare.py")))  # starts at once
TASK = Task(id="task", messages=(Message(role="user", content="1"),))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are tied together by Linux")


@pytest.fixture(scope="module")
def local():
    """One process, which all tests share that do not end it."""
    return McpServer(command=STDIO, env={"TOKEN": "a $$ and $HOME"}, timeout_s=20)


@contextmanager
def served(port=0):
    """A server on a free port of this machine; gives its address."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, SCRIPT, "http", str(port)], stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def remote():
    with served() as url:
        yield McpServer(url=url, timeout_s=20)


@pytest.fixture(params=["local", "remote"])
def server(request):
    return request.getfixturevalue(request.param)


def ask(server, *calls, timeout_s=None):
    """Their results, one after the other, in an event loop of their own."""

    async def run():
        async with server.tools() as tools:
            named = {tool.name: dataclasses.replace(tool, timeout_s=timeout_s or tool.timeout_s) for tool in tools}
            return [await named[name].call(arguments) for name, arguments in calls]

    return asyncio.run(run())


def said(server, name, arguments="{}"):
    return ask(server, (name, arguments))[0]


def process_of(server):
    """The id of the process that answers."""
    return int(said(server, "count").text.split()[-1])


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds=10):
    """Wait for it; a deadline, not a measurement."""

    async def wait():
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("add", '{"a": 1, "b": 2}', ToolResult(text="3")),
        ("echo", '{"text": "<|call|> é\\n"}', ToolResult(text="<|call|> é\n")),
        ("echo", '{"text": ""}', ToolResult(text="")),
        (
            "fail",
            '{"why": "it rains"}',
            ToolResult(text="Error: Error executing tool fail: it rains", fault="tool/error"),
        ),
        ("image", "{}", ToolResult(text="[image/png, about 120 bytes, not shown]")),
        ("structured", "{}", ToolResult(text='{"is": ["é", 1]}')),
        (
            "resources",
            "{}",
            ToolResult(text="see\n[resource file:///notes.txt]\n[resource file:///a.txt]\ninside"),
        ),
        ("visit", '{"place": {"city": "Rome", "near": []}, "how": "foot"}', ToolResult(text="Rome by foot")),
        ("odd_name_x", "{}", ToolResult(text="odd")),
    ],
)
def test_a_call_is_answered(server, name, arguments, expected):
    assert said(server, name, arguments) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("add", "{}", "Error: arguments: 'a' is a required property; arguments: 'b' is a required property."),
        ("add", '{"a": 1, "b": "2"}', "Error: b: '2' is not of type 'integer'."),
        (
            "visit",
            '{"place": {"city": "Rome", "near": [{"city": 3}]}, "how": "car"}',
            "Error: place.near.0.city: 3 is not of type 'string'; how: 'car' is not one of ['foot', 'train'].",
        ),
        ("echo", '{"text": "\\ud800"}', "Error: arguments: a text has half a surrogate pair, which is no character."),
    ],
)
def test_arguments_are_checked_before_they_are_sent(local, name, arguments, text):
    assert said(local, name, arguments) == ToolResult(text=text, fault="malformed/bad_arguments")


def test_a_number_beyond_all_is_refused(local):
    assert said(local, "add", '{"a": 1, "b": 1e999}').fault == "malformed/bad_json"
    with pytest.raises(BadArguments, match="a number is too large"):
        schema.checker({})({"a": float("inf")})


def test_a_call_that_hangs_costs_one_message_and_the_server_stays(server):
    process = process_of(server)
    assert ask(server, ("hang", "{}"), timeout_s=0.1) == [
        ToolResult(text="Error: no answer within 0.1 s.", fault="tool/timeout")
    ]
    assert process_of(server) == process


@pytest.mark.parametrize("characters", [600_000, 20_000_000])
def test_a_flood_costs_one_message_and_the_server_stays(server, characters):
    process = process_of(server)
    result = said(server, "flood", f'{{"characters": {characters}}}')
    if characters < transport.MAX_EVENT_BYTES:
        assert result.fault is None
        assert result.text.startswith("ababab") and "characters left out" in result.text
        assert len(result.text) < 300_000
    else:
        assert result == ToolResult(text="Error: the answer is too long, or cannot be read.", fault="tool/error")
    assert process_of(server) == process


def test_calls_run_at_once_and_no_more_than_allowed():
    """Two that hang do not keep a third from its answer, unless there are but two places."""

    async def run(server, hang_s):
        async with server.tools() as tools:
            named = {tool.name: tool for tool in tools}
            hanging = dataclasses.replace(named["hang"], timeout_s=hang_s)
            tasks = [asyncio.create_task(hanging.call("{}")) for _ in range(2)]
            await asyncio.sleep(0)
            answer = await named["echo"].call('{"text": "now"}')
            ended = sum(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            return answer.text, ended

    assert asyncio.run(run(McpServer(command=BARE), 30)) == ('{"text": "now"}', 0)
    text, ended = asyncio.run(run(McpServer(command=BARE, max_concurrency=2), 0.2))
    assert text == '{"text": "now"}' and ended > 0


def test_one_connection_serves_several_event_loops(server):
    assert len({process_of(server) for _ in range(3)}) == 1
    counts = [int(said(server, "count").text.split()[0]) for _ in range(2)]
    assert counts[1] == counts[0] + 1


def test_a_process_for_each_trajectory_ends_with_it():
    server = McpServer(command=BARE, per_trajectory=True)

    async def run():
        async with server.tools() as first, server.tools() as second:
            texts = []
            for tools in (first, first, second):
                counting = next(tool for tool in tools if tool.name == "count")
                texts.append((await counting.call("{}")).text.split())
            return texts

    (one, _, process), (two, _, same), (again, _, other) = asyncio.run(run())
    assert (one, two, again) == ("1", "2", "1")
    assert process == same != other
    assert not alive(process) and not alive(other)


def test_a_session_for_each_trajectory_over_http(remote):
    server = dataclasses.replace(remote, per_trajectory=True)
    texts = [[result.text.split()[0] for result in ask(server, ("count", "{}"), ("count", "{}"))] for _ in range(2)]
    assert texts == [["1", "2"], ["1", "2"]]


def test_a_server_that_died_is_started_once_more():
    server = McpServer(command=BARE, timeout_s=60)
    first = process_of(server)
    os.kill(first, signal.SIGKILL)
    second = process_of(server)
    assert second != first
    with pytest.raises(InfrastructureError, match="exit code 3; it last said: it went wrong here"):
        said(server, "crash")  # ends the second, is repeated, and ends the third
    assert process_of(server) not in (first, second)


def test_a_server_with_state_that_died_is_not_started_again():
    """Its state is lost: the trajectory is masked rather than continued with another."""
    server = McpServer(command=BARE, per_trajectory=True)
    with pytest.raises(InfrastructureError, match="ended with exit code 3; it last said: it went wrong here"):
        ask(server, ("count", "{}"), ("crash", "{}"))


def test_a_remote_server_that_died_masks():
    with (
        served() as url,
        pytest.raises(InfrastructureError, match=r"MCP server http://127.0.0.1:\d+/mcp: ConnectError"),
    ):
        said(McpServer(url=url, timeout_s=20), "crash")


@pytest.mark.slow
def test_a_remote_server_that_is_back_answers():
    with served() as url:
        server = McpServer(url=url, timeout_s=20)
        first = process_of(server)
    with served(int(url.rpartition(":")[2].removesuffix("/mcp"))):
        assert process_of(server) != first


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("no-such-program",), "MCP server no-such-program: .*; correct its command, env or cwd$"),
        ((sys.executable, "-c", "import sys; sys.exit('not today')"), "exit code 1; it last said: not today"),
        ((sys.executable, "-c", "print('hello'); import sys; sys.stdin.read()"), "did not answer within 0.5 s"),
    ],
)
def test_a_server_that_does_not_start_is_told_in_one_line(command, message):
    with pytest.raises(InfrastructureError, match=message) as raised:
        said(McpServer(command=command, connect_timeout_s=0.5 if "hello" in str(command) else 20), "add")
    assert "\n" not in str(raised.value)


@LINUX
def test_nothing_survives_the_trainer(tmp_path):
    """kill -9 of the process that started a server: it ends, and so does its child that ignores everything."""
    pids, ready = tmp_path / "pids", tmp_path / "ready"
    trainer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import asyncio, pathlib, signal
            from lockstep.rollout.mcp.server import McpServer

            async def main():
                async with McpServer(command={(*BARE, str(pids))!r}, env={{"STUBBORN": "1"}}).tools():
                    pathlib.Path({str(ready)!r}).touch()
                    signal.pause()

            asyncio.run(main())
            """),
        ],
        cwd=ROOT,
    )
    try:
        until(lambda: ready.exists() or trainer.poll() is not None, 30)
        server, child = (int(pid) for pid in pids.read_text().split()[:2])
        assert alive(server) and alive(child)
    finally:
        trainer.kill()
        trainer.wait()
    until(lambda: not alive(server) and not alive(child))


@LINUX
def test_what_a_server_started_ends_with_it(tmp_path):
    pids = tmp_path / "pids"
    said(McpServer(command=(*BARE, str(pids)), per_trajectory=True), "count")
    assert [alive(int(pid)) for pid in pids.read_text().split()[:2]] == [False, False]


def test_a_server_may_end_in_peace_when_the_trainer_does(tmp_path):
    pids = tmp_path / "pids"
    code = f"""
import asyncio
from lockstep.rollout.mcp.server import McpServer

async def main():
    async with McpServer(command={(*BARE, str(pids))!r}).tools():
        pass

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert pids.read_text().split()[2:] == ["ended"]


def test_a_command_runs_where_it_is_told(tmp_path):
    assert said(McpServer(command=BARE, cwd=tmp_path), "where").text == str(tmp_path.resolve())


@contextmanager
def refusing(status, headers=None):
    """A server that answers everything with one status; gives its address, and the headers that it was sent."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(dict(self.headers))
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/mcp", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_server_that_refuses_is_told_in_one_line(status, monkeypatch):
    monkeypatch.setenv("LOCKSTEP_TEST_SECRET", "hidden")
    with refusing(status) as (url, seen):
        server = McpServer(url=url, headers={"Authorization": "Bearer $LOCKSTEP_TEST_SECRET"})
        with pytest.raises(InfrastructureError) as raised:
            said(server, "add")
    fix = "start it, or correct its url or headers"
    assert str(raised.value) == f"MCP server {url}: answered with HTTP {status}; {fix}"
    assert seen[0]["Authorization"] == "Bearer hidden"
    assert "hidden" not in repr(server)


def test_a_server_may_lead_on_but_not_to_another_place(remote):
    assert said(dataclasses.replace(remote, url=f"{remote.url}/"), "echo", '{"text": "x"}').text == "x"
    with (
        refusing(307, {"Location": remote.url}) as (url, _),
        pytest.raises(InfrastructureError, match=r"leads to another place, 127.0.0.1:\d+: give that url"),
    ):
        said(McpServer(url=url), "add")


def test_a_session_that_the_server_dropped_masks(remote):
    async def run():
        async with dataclasses.replace(remote, per_trajectory=True).tools() as tools:
            named = {tool.name: tool for tool in tools}
            session = (await named["session"].call("{}")).text
            async with httpx2.AsyncClient() as client:
                await client.delete(remote.url, headers={"mcp-session-id": session})
            await named["count"].call("{}")

    with pytest.raises(InfrastructureError, match=r"no longer knows its session \(HTTP 404\)"):
        asyncio.run(run())


def test_secrets_come_from_the_environment_and_stay_out_of_the_recipe(local, monkeypatch):
    monkeypatch.setenv("LOCKSTEP_TEST_SECRET", "hidden")
    assert said(local, "secret", '{"name": "TOKEN"}').text == f"a $ and {os.environ['HOME']}"
    assert said(local, "secret", '{"name": "LOCKSTEP_TEST_SECRET"}').text == "is not set"
    with pytest.raises(UserError, match="needs the environment variable NO_SUCH_NAME; set it"):
        said(McpServer(url="http://127.0.0.1:1/mcp", headers={"X": "Bearer $NO_SUCH_NAME"}), "add")
    with pytest.raises(UserError, match=r"has a \$ that begins no name"):
        said(McpServer(command=STDIO, env={"X": "hidden$"}), "add")
    assert McpServer(url="https://user:hidden@host/mcp?key=hidden").name == "host/mcp"
    assert McpServer(command=("uvx", "server", "--key", "hidden")).name == "uvx server"


def test_tools_are_chosen_and_named():
    async def names(**options):
        async with McpServer(command=BARE, **options).tools() as tools:
            return [tool.name for tool in tools]

    assert asyncio.run(names()) == ["count", "hang", "crash", "a_dd", "add", "echo", "where"]
    assert asyncio.run(names(allow=("a?d", "e*"), prefix="my_")) == ["my_add", "my_echo"]
    with pytest.raises(UserError, match=r"allow=\('search_\*',\) allows none of its tools, which are: count, hang"):
        asyncio.run(names(allow=("search_*",)))
    with pytest.raises(UserError, match="two of its tools are named 'where_'; allow only one of them"):
        asyncio.run(names(env={"MORE_TOOLS": "where! where?"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of the two"),
        ({"command": ("a",), "url": "http://a"}, "give one of the two"),
        ({"command": "uvx x"}, r"command='uvx x'\): write \('uvx', 'x'\)"),
        ({"command": ("a",), "allow": "search_*"}, r"allow='search_\*'\): write \('search_\*',\)"),
        ({"url": "a:1"}, "must begin with http"),
        ({"url": "http://a", "env": {"A": "b"}}, "env=...\\) has no effect with url"),
        ({"url": "http://a", "cwd": Path()}, "cwd=...\\) has no effect with url"),
        ({"command": ("a",), "headers": {"A": "b"}}, "headers=...\\) has no effect with command"),
        ({"command": ("a",), "prefix": "my server."}, "prefix='my server.'\\): take letters, digits, _ and - alone"),
        ({"command": ("a",), "timeout_s": 0}, "timeout_s=0\\): must be above 0"),
        ({"command": ("a",), "max_concurrency": 0}, "max_concurrency=0\\): must be above 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        McpServer(**options)


# A trajectory of any environment.


@tool(inline=True)
def double(number: int) -> str:
    """Twice a number."""
    return str(2 * number)


class Doubling(ToolEnvironment):
    def __init__(self):
        self.log = []

    async def open(self, task):
        self.log.append("open")
        return "mine"

    def tools(self, task, state):
        return (double,)

    async def grade(self, ending):
        return {"turns": float(len([m for m in ending.messages if m.role == "tool"]))}

    async def release(self, state):
        self.log.append(f"release {state}")


class Renderer:
    """A token is a whole action: the number of what is said."""

    stop_token_ids = (0,)

    def __init__(self, actions):
        self.actions, self.tools = actions, ()

    def start(self, messages, tools):
        self.tools = tools
        return (99,)

    def parse(self, action):
        return Parsed(messages=tuple(self.actions[action[0]]))

    def extend(self, messages, new, tools, *, last_action):
        return Extension(tokens=(98,))

    def shorten(self, text, max_tokens):
        return text[: 4 * max_tokens]


def call(name, arguments="{}"):
    return Message(role="assistant", content=arguments, recipient=f"functions.{name}")


def play(environment, *actions):
    renderer = Renderer([*actions, [Message(role="assistant", content="done")]])
    engine = ScriptedEngine([[number] for number in range(len(renderer.actions))])
    limits = Rollout(max_turns=20, max_tokens=1000)
    policy = Policy(engine=engine, renderer=renderer, settings=limits, temperature=1.0)
    return asyncio.run(Attempt(policy, environment, TASK, "0/0", seed=1).run()), renderer


def test_a_trajectory_with_the_tools_of_a_server_and_of_its_environment(server):
    own = Doubling()
    environment = WithTools(environment=own, servers=(server,))
    trajectory, renderer = play(
        environment,
        [call("add", '{"a": 2, "b": 3}')],
        [call("double", '{"number": 4}')],
        [call("echo", '{"text": "x"}'), call("double", '{"number": 1}'), call("add", '{"a": 1}')],
        [Message(role="assistant", content="hm", channel="analysis"), call("nothing")],
    )
    assert (trajectory.stop_reason, trajectory.error) == ("done", None)
    answers = [(m.name, m.content) for m in trajectory.messages if m.role == "tool"]
    assert answers[:5] == [
        ("functions.add", "5"),
        ("functions.double", "8"),
        ("functions.echo", "x"),
        ("functions.double", "2"),
        ("functions.add", "Error: arguments: 'b' is a required property."),
    ]
    assert answers[5][0] == "functions.nothing"
    assert answers[5][1].startswith("Error: no tool 'nothing'; the tools are: double, add, echo, ")
    assert trajectory.events == {"tool_calls": 6, "malformed/bad_arguments": 1, "malformed/unknown_tool": 1}
    assert trajectory.reward == 6.0
    assert own.log == ["open", "release mine"]
    assert [tool.name for tool in renderer.tools][:3] == ["double", "add", "echo"]


def test_a_server_that_is_gone_masks_the_trajectory_and_releases_the_environment():
    own = Doubling()
    server = McpServer(command=BARE, per_trajectory=True)
    trajectory, _ = play(WithTools(environment=own, servers=(server,)), [call("crash")])
    assert trajectory.stop_reason == "infrastructure_error"
    assert "exit code 3" in trajectory.error
    assert own.log == ["open", "release mine"]


def test_a_server_that_cannot_start_masks_the_trajectory_and_releases_the_environment():
    own = Doubling()
    trajectory, _ = play(WithTools(environment=own, servers=(McpServer(command=("no-such-program",)),)))
    assert trajectory.stop_reason == "infrastructure_error"
    assert own.log == ["open", "release mine"]


def test_two_tools_of_one_name_are_refused(local):
    environment = WithTools(environment=Doubling(), servers=(local, local))
    with pytest.raises(UserError, match="two tools are named 'add': give one server a prefix, or allow only one"):
        asyncio.run(environment.start(TASK))


class Talking:
    """An environment that is no ToolEnvironment: it answers whatever it is told."""

    async def close(self, state):
        pass

    async def start(self, task):
        return Start(messages=task.messages)

    async def step(self, state, action):
        return Step(
            messages=(Message(role="user", content="a"), Message(role="user", content="b")), events={"steps": 1}
        )


def test_the_environment_sees_what_is_not_for_the_servers(local):
    environment = WithTools(environment=Talking(), servers=(local,))

    async def steps(*actions):
        state = (await environment.start(TASK)).state
        return [await environment.step(state, action) for action in actions]

    browse = Message(role="assistant", content="", recipient="browser.open")
    both, alone, spoken, own = asyncio.run(
        steps(
            [call("echo", '{"text": "x"}'), browse],
            [browse],
            [Message(role="assistant", content="hi")],
            [call("count")],
        )
    )
    assert [message.content for message in both.messages] == ["a", "b", "x"]
    assert both.events == Counter(steps=1, tool_calls=1)
    assert alone.events == spoken.events == {"steps": 1}
    assert own.events == {"tool_calls": 1}


# Schemas.


def test_a_check_says_no_more_than_a_line_and_fetches_nothing(monkeypatch):
    fetched = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *given, **_: fetched.append(given))
    check = schema.checker({"properties": {"a": {"type": "integer"}, "b": {"$ref": "http://127.0.0.1:1/schema"}}})
    with pytest.raises(BadArguments) as raised:
        check({"a": "long\n" * 1000})
    assert len(str(raised.value)) < 250 and "\n" not in str(raised.value)
    with pytest.raises(BadArguments, match=r"the schema points at 'http://127.0.0.1:1/schema'"):
        check({"b": 1})
    assert fetched == []
    with pytest.raises(BadArguments) as raised:
        schema.checker({"properties": {str(i): {"type": "integer"} for i in range(9)}})({str(i): "x" for i in range(9)})
    assert str(raised.value).count("is not of type") == schema.MAX_FAULTS
    with pytest.raises(ValueError, match="is not valid under any of the given schemas"):
        schema.checker({"type": "thing"})


def test_a_check_refuses_what_is_nested_too_deeply():
    tree = {"$defs": {"T": {"items": {"$ref": "#/$defs/T"}}}, "properties": {"t": {"$ref": "#/$defs/T"}}}
    nested = []
    for _ in range(900):
        nested = [nested]
    with pytest.raises(BadArguments, match="nested too deeply"):
        schema.checker(tree)({"t": nested})


def test_a_check_takes_no_longer_than_the_arguments_length():
    """Each of these would take minutes, were patterns matched or items compared in pairs."""
    slow = {"type": "string", "pattern": "^(a+)+$"}
    text = "a" * 60 + "b"
    given = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"S": {"$schema": "https://json-schema.org/draft/2020-12/schema", **slow}},
        "properties": {"a": slow, "b": {"$ref": "#/$defs/S"}, "c": {"$ref": "#"}, "n": {"type": "integer"}},
        "patternProperties": {"^(a+)+$": {}},
        "additionalProperties": False,
    }
    check = schema.checker(given)
    values = {"a": text, "b": text, "c": {"a": text}, text: 1}
    assert check(values) == values
    with pytest.raises(BadArguments, match=r"c\.n: 'x' is not of type 'integer'"):
        check({"c": {"n": "x"}})
    unique = schema.checker({"properties": {"a": {"uniqueItems": True}, "b": {"uniqueItems": False}}})
    rows = [{"number": number} for number in range(schema.MAX_ITEMS)]
    assert unique({"a": rows, "b": [1, 1]})["a"] == rows
    with pytest.raises(BadArguments, match="a: has an item twice"):
        unique({"a": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]})


@pytest.mark.parametrize("values", [{"a": [0] * 501}, {"a": {"b": [[0] * 501]}}])
def test_a_long_array_is_refused(values):
    with pytest.raises(BadArguments, match="an array of more than 500 items"):
        schema.checker({})(values)


def test_long_arguments_are_refused():
    check = schema.checker({})
    assert check({"a": "é" * 32_700})
    with pytest.raises(BadArguments, match="longer than 65536 bytes"):
        check({"a": "é" * 32_768})


def test_a_missing_package_is_named():
    for name in ("transport", "connection", "schema"):
        gone = "jsonschema" if name == "schema" else "mcp"
        code = f"""
import importlib, sys
from lockstep.types import UserError
sys.modules[{gone!r}] = None
try:
    importlib.import_module("lockstep.rollout.mcp.{name}")
except UserError as error:
    print(error)
"""
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told == "MCP tools need the package mcp: pip install mcp==2.0.0\n"


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_lines_are_bounded(monkeypatch, chunk):
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 5)

    async def split(text):
        stream = asyncio.StreamReader()
        read = stream.read
        monkeypatch.setattr(stream, "read", lambda n: read(min(n, chunk)))
        stream.feed_data(text)
        stream.feed_eof()
        return [line async for line in transport.lines(stream)]

    assert asyncio.run(split(b"ab\n\nabcde\nabcdefghij\nxy\nrest")) == [b"ab", b"", b"abcde", b"abcdef", b"xy"]


def test_what_is_closed_need_not_be_closed_at_exit():
    before = set(background().closers)
    ask(McpServer(command=BARE, per_trajectory=True), ("count", "{}"))
    assert background().closers == before
