"""A tool: its schema, its arguments checked strictly, and whatever goes wrong told to the model and never raised."""

import asyncio
import dataclasses
import json
import threading
from typing import Annotated, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.rollout import concurrency
from lockstep.rollout.concurrency import Limit
from lockstep.rollout.tool import MAX_CHARACTERS, InfrastructureError, ToolError, ToolResult, cut_middle, tool


def answer(made, arguments: str) -> ToolResult:
    return asyncio.run(made.call(arguments))


@tool
def repeat(text: str, times: int = 1, *, mark: Literal["!", "?"] | None = None) -> str:
    """Say a text
    several times.

    The model does not read this paragraph.
    """
    return text * times + (mark or "")


def test_a_function_describes_its_tool():
    description = repeat.description
    assert (repeat.name, description.name) == ("repeat", "repeat")
    assert description.description == "Say a text several times."
    assert description.parameters == {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "times": {"type": "integer", "default": 1},
            "mark": {"type": "string", "enum": ["!", "?"], "nullable": True, "default": None},
        },
        "required": ["text"],
        "additionalProperties": False,
    }


def test_the_schema_keeps_an_argument_that_is_named_like_a_keyword_of_schemas():
    @tool
    def book(title: str, properties: list[int]) -> str:
        """Find a book."""
        return title

    assert set(book.description.parameters["properties"]) == {"title", "properties"}
    assert answer(book, '{"title": "Emma", "properties": []}').text == "Emma"


def test_without_arguments():
    @tool
    def now() -> str:
        """Tell the time."""
        return "noon"

    assert now.description.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert answer(now, "{}") == ToolResult(text="noon")


def test_a_function_must_say_what_the_model_is_told():
    def silent(e: str) -> str:
        return e

    def untyped(e) -> str:
        """Repeat."""
        return e

    with pytest.raises(TypeError, match="tool 'silent' has no docstring"):
        tool(silent)
    with pytest.raises(TypeError, match="tool 'untyped': argument 'e' has no type annotation"):
        tool(untyped)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"text": "ha"}', "ha"),
        ('{"text": "ha", "times": 3, "mark": "!"}', "hahaha!"),
        (' {"mark": null, "text": "\\u00e9"}\n', "é"),
        ('{"text": ""}', ""),
    ],
)
def test_good_calls(arguments, text):
    assert answer(repeat, arguments) == ToolResult(text=text)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "{",
        '{"text": "ha", "times": NaN}',
        '{"times": -Infinity}',
        "{'text': 'ha'}",
        '{"text": "ha"} again',
        "[" * 100_000,
        "ha",
        "\x00",
    ],
)
def test_bad_json(arguments):
    result = answer(repeat, arguments)
    assert result.fault == "malformed/bad_json"
    assert result.text.startswith("Error: arguments are not valid JSON (")


def test_a_very_long_integer_is_bad_json():
    assert answer(repeat, '{"text": "ha", "times": ' + "1" * 5000 + "}").fault == "malformed/bad_json"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ('"ha"', "must be a JSON object, not str"),
        ('["ha"]', "must be a JSON object, not list"),
        ("null", "must be a JSON object, not NoneType"),
        ("{}", "text: Field required"),
        ('{"text": 3}', "text: Input should be a valid string"),
        ('{"text": null}', "text: Input should be a valid string"),
        ('{"text": "ha", "times": "3"}', "times: Input should be a valid integer"),
        ('{"text": "ha", "times": 3.0}', "times: Input should be a valid integer"),
        ('{"text": "ha", "times": true}', "times: Input should be a valid integer"),
        ('{"text": "ha", "mark": "."}', "mark: Input should be '!' or '?'"),
        ('{"text": "ha", "loud": true}', "loud: Extra inputs are not permitted"),
        ('{"text": 3, "times": "3"}', "text: Input should be a valid string; times: Input should be a valid integer"),
    ],
)
def test_wrong_arguments_name_the_argument(arguments, words):
    result = answer(repeat, arguments)
    assert result.fault == "malformed/bad_arguments"
    assert words in result.text and result.text.startswith("Error: ")


def test_values_inside_containers_are_checked_too():
    @tool
    def add(numbers: list[int]) -> str:
        """Add numbers."""
        return str(sum(numbers))

    assert answer(add, '{"numbers": [1, 2]}').text == "3"
    assert "numbers.1: Input should be a valid integer" in answer(add, '{"numbers": [1, "2"]}').text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["text", "times", "mark"]), inner),
    max_leaves=5,
)


@given(st.one_of(st.text(), st.dictionaries(st.sampled_from(["text", "times", "mark"]), json_values).map(json.dumps)))
def test_nothing_a_model_writes_raises(arguments):
    result = answer(repeat, arguments)
    assert result.fault in (None, "malformed/bad_json", "malformed/bad_arguments")
    assert result.fault is None or result.text.startswith("Error: ")


@pytest.mark.parametrize("inline", [False, True])
def test_what_a_tool_raises_is_told_to_the_model(inline):
    @tool(inline=inline)
    def divide(a: int, b: int) -> str:
        """Divide a by b."""
        if b == 13:
            raise ToolError("13 brings bad luck")
        return str(a // b)

    assert answer(divide, '{"a": 6, "b": 3}') == ToolResult(text="2")
    assert answer(divide, '{"a": 6, "b": 13}') == ToolResult(text="Error: 13 brings bad luck", fault="tool/error")
    failed = answer(divide, '{"a": 6, "b": 0}')
    assert failed.fault == "tool/error" and failed.text.startswith("Error: ZeroDivisionError: ")


def test_what_an_async_tool_raises_is_told_to_the_model():
    @tool
    async def fetch(name: str) -> str:
        """Fetch something."""
        await asyncio.sleep(0)
        if name == "nothing":
            raise LookupError("nothing is there")
        return name

    assert answer(fetch, '{"name": "bread"}') == ToolResult(text="bread")
    assert answer(fetch, '{"name": "nothing"}') == ToolResult(
        text="Error: LookupError: nothing is there", fault="tool/error"
    )


def test_what_is_not_text_becomes_text():
    @tool(inline=True)
    def count(text: str) -> int:
        """Count letters."""
        return len(text)

    assert answer(count, '{"text": "four"}') == ToolResult(text="4")


def test_an_async_tool_that_hangs_is_cancelled_at_its_deadline():
    cancelled = []

    @tool(timeout_s=0.01)
    async def wait() -> str:
        """Wait for ever."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "never"

    assert answer(wait, "{}") == ToolResult(text="Error: no answer within 0.01 s.", fault="tool/timeout")
    assert cancelled == [True]


def test_a_function_that_hangs_does_not_stop_the_others():
    release = threading.Event()

    @tool(timeout_s=0.01)
    def wait() -> str:
        """Wait for the event."""
        release.wait(timeout=30)
        return "late"

    async def both():
        waiting = asyncio.create_task(wait.call("{}"))
        quick = await repeat.call('{"text": "ha"}')
        found = await waiting
        still_waiting = not release.is_set()
        release.set()
        return quick, found, still_waiting

    quick, late, still_waiting = asyncio.run(both())
    assert quick.text == "ha" and still_waiting
    assert late == ToolResult(text="Error: no answer within 0.01 s.", fault="tool/timeout")


def test_cancelling_the_caller_is_no_fault_of_the_tool():
    entered = asyncio.Event()

    @tool
    async def wait() -> str:
        """Wait for ever."""
        entered.set()
        await asyncio.Event().wait()
        return "never"

    async def cancel() -> None:
        call = asyncio.create_task(wait.call("{}"))
        await entered.wait()
        call.cancel()
        await call

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


@pytest.mark.parametrize("inline", [False, True])
def test_only_an_inline_function_runs_on_the_event_loop_s_thread(inline):
    @tool(inline=inline)
    def where() -> str:
        """Name the thread."""
        return str(threading.get_ident() == loop_thread)

    loop_thread = threading.get_ident()
    assert answer(where, "{}").text == str(inline)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_async_function_cannot_be_inline():
    async def fetch(name: str) -> str:
        """Fetch something."""
        return name

    with pytest.raises(TypeError, match="inline"):
        tool(fetch, inline=True)


def test_a_timeout_of_the_tool_s_own_is_an_error_of_the_tool():
    @tool
    def connect() -> str:
        """Connect."""
        raise TimeoutError("the database is down")

    assert answer(connect, "{}") == ToolResult(text="Error: TimeoutError: the database is down", fault="tool/error")


def test_an_answer_is_text_that_can_be_encoded():
    answer(repeat, '{"text": "\\ud800"}').text.encode()


def test_arguments_are_described_by_the_docstring_or_by_their_type():
    @tool
    def find(
        query: str, limit: int = 5, order: Annotated[str, pydantic.Field(description="asc or desc")] = "asc"
    ) -> str:
        """Find people.

        Args:
            query: what to look for,
                in plain words
            limit: how many
        """
        return query * limit

    properties = find.description.parameters["properties"]
    assert find.description.description == "Find people."
    assert properties["query"] == {"type": "string", "description": "what to look for, in plain words"}
    assert properties["limit"] == {"type": "integer", "default": 5, "description": "how many"}
    assert properties["order"]["description"] == "asc or desc"
    assert find.description.parameters["required"] == ["query"]
    assert answer(find, '{"query": "a"}').text == "aaaaa"


def test_a_docstring_that_describes_what_is_not_there():
    def find(query: str) -> str:
        """Find people.

        Args:
            text: what to look for
        """
        return query

    with pytest.raises(TypeError, match="tool 'find' describes an argument 'text' that it lacks"):
        tool(find)


def test_arguments_that_have_no_name():
    def many(*texts: str) -> str:
        """Join."""
        return "".join(texts)

    def placed(text: str, /) -> str:
        """Repeat."""
        return text

    for function in (many, placed):
        with pytest.raises(TypeError, match="cannot be given by name"):
            tool(function)


def test_so_many_calls_at_once_over_all_that_share_the_limit():
    inside, most = 0, 0
    limit = Limit(2)

    def make():
        @tool(max_concurrency=limit)
        async def work() -> str:
            """Work."""
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            return "done"

        return work

    async def play():
        return await asyncio.gather(*(made.call("{}") for made in (make(), make()) for _ in range(4)))

    assert {result.text for result in asyncio.run(play())} == {"done"}
    assert most == 2


def test_a_count_of_calls_is_a_limit_of_its_own():
    @tool(max_concurrency=3)
    async def work() -> str:
        """Work."""
        return "done"

    assert work.limit is not None and work.limit.size == 3


def test_infrastructure_that_fails_passes_through():
    for inline in (True, False):

        @tool(inline=inline)
        def run() -> str:
            """Rely on a sandbox."""
            raise InfrastructureError("the sandbox is gone")

        with pytest.raises(InfrastructureError, match="the sandbox is gone"):
            answer(run, "{}")


def test_a_flood_is_cut_in_the_middle():
    @tool
    def flood(error: bool) -> str:
        """Say much."""
        if error:
            raise ToolError("e" * 10_000_000)
        return "a" * 5_000_000 + "b" * 5_000_000

    for arguments, first, last in (('{"error": false}', "a", "b"), ('{"error": true}', "E", "e")):
        text = answer(flood, arguments).text
        assert len(text) < MAX_CHARACTERS + 100
        assert (text[0], text[-1]) == (first, last)
        assert "characters left out ...]" in text


def test_the_middle_that_is_cut_is_counted():
    assert cut_middle("0123456789", 10) == "0123456789"
    assert cut_middle("0123456789", 5) == "01\n[... 5 characters left out ...]\n789"


class Mute(Exception):
    def __str__(self):
        raise OSError("no words")


class Unspeakable:
    def __str__(self):
        raise OSError("no words")


class Leaving(Exception):
    def __str__(self):
        raise SystemExit


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (SystemExit(3), ""),
        (Mute(), "Mute: (no message)"),
        (Leaving(), "Leaving: (no message)"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
)
def test_whatever_a_tool_raises_is_one_message(inline, raised, said):
    @tool(inline=inline)
    def leave() -> str:
        """Leave."""
        raise raised

    result = answer(leave, "{}")
    assert result.fault == "tool/error"
    assert result.text.startswith("Error: ") and said in result.text


@pytest.mark.parametrize("how", ["CancelledError", "cancel", "GeneratorExit", "SystemExit", "BaseExceptionGroup"])
def test_what_would_end_a_task_or_the_loop_is_one_message(how):
    raised = {
        "CancelledError": asyncio.CancelledError(),
        "GeneratorExit": GeneratorExit(),
        "SystemExit": SystemExit(),
        "BaseExceptionGroup": BaseExceptionGroup("two", [SystemExit(), GeneratorExit()]),
    }

    @tool
    async def leave() -> str:
        """Leave."""
        if how in raised:
            raise raised[how]
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return "never"

    said = "CancelledError" if how == "cancel" else how
    assert answer(leave, "{}") == ToolResult(text=f"Error: RuntimeError: {said}", fault="tool/error")


def test_what_has_no_text_is_a_fault():
    @tool
    def leave() -> Unspeakable:
        """Leave."""
        return Unspeakable()

    assert answer(leave, "{}").text == "Error: OSError: no words"


def test_hanging_calls_take_no_place_from_others():
    release = threading.Event()

    @tool(timeout_s=0.01)
    def hang() -> str:
        """Hang."""
        release.wait()
        return ""

    @tool
    def quick() -> str:
        """Answer."""
        return "here"

    async def play():
        hung = await asyncio.gather(*(hang.call("{}") for _ in range(64)))
        return hung, await quick.call("{}")

    hung, said = asyncio.run(play())
    release.set()
    assert {result.fault for result in hung} == {"tool/timeout"}
    assert said.text == "here"


def test_a_validator_that_breaks_is_a_wrong_argument():
    @tool
    def halve(n: Annotated[int, pydantic.AfterValidator(lambda n: 1 // n)]) -> str:
        """Halve."""
        return str(n)

    result = answer(halve, '{"n": 0}')
    assert result.fault == "malformed/bad_arguments"
    assert result.text.startswith("Error: ZeroDivisionError: ")


def test_a_float_beyond_all_floats_is_bad_json():
    @tool
    def keep(x: float) -> str:
        """Keep."""
        return str(x)

    assert answer(keep, '{"x": 1e999}').fault == "malformed/bad_json"
    assert answer(keep, '{"x": 1e99}').text == "1e+99"


def test_of_many_wrong_arguments_a_few_are_named():
    result = answer(repeat, json.dumps({f"a{i}": i for i in range(2000)}))
    assert result.fault == "malformed/bad_arguments"
    assert len(result.text) < 400 and result.text.endswith("and 1996 more.")


def test_an_awaitable_is_awaited_whatever_gave_it():
    class Callable:
        """Say hello."""

        __name__ = "hello"

        async def __call__(self) -> str:
            return "hello"

    async def later() -> str:
        return "later"

    @tool
    def gives() -> str:
        """Say it later."""
        return later()  # pyright: ignore

    made = dataclasses.replace(gives, function=Callable())
    assert answer(made, "{}").text == "hello"
    assert answer(gives, "{}").text == "later"


def test_infrastructure_that_fails_inside_a_group_passes_through():
    @tool
    async def run() -> str:
        """Rely on several things."""
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
        return ""

    async def fail():
        raise InfrastructureError("gone")

    with pytest.raises(InfrastructureError, match="gone"):
        answer(run, "{}")


def test_a_late_call_keeps_its_place_until_it_has_ended():
    """Two calls of a function that is not to run twice at once, the first of them too long."""
    release, inside, most = threading.Event(), 0, 0

    @tool(timeout_s=0.05, max_concurrency=1)
    def alone(wait: bool) -> str:
        """Run alone."""
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if wait:
            release.wait()
        inside -= 1
        return "done"

    async def play():
        late = await alone.call('{"wait": true}')
        refused = await alone.call('{"wait": false}')
        release.set()
        while (last := await alone.call('{"wait": false}')).fault is not None:
            pass
        return late, refused, last

    late, refused, last = asyncio.run(play())
    assert late.text == "Error: no answer within 0.05 s."
    assert refused == ToolResult(text="Error: no place for this call within 0.05 s.", fault="tool/timeout")
    assert (last.text, most) == ("done", 1)


def test_an_async_tool_that_swallows_its_cancellation_is_left_behind(monkeypatch):
    monkeypatch.setattr(concurrency, "GRACE_S", 0.01)

    async def play():
        release = asyncio.Event()

        @tool(timeout_s=0.01)
        async def stubborn() -> str:
            """Never end."""
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return ""

        result = await stubborn.call("{}")
        release.set()
        return result

    assert asyncio.run(play()).fault == "tool/timeout"


def test_an_inline_tool_gives_its_place_back():
    @tool(inline=True, max_concurrency=1, timeout_s=0.5)
    def fail(how: str) -> str:
        """Fail."""
        if how == "exit":
            raise SystemExit
        raise ToolError("no")

    async def play():
        return [(await fail.call(f'{{"how": "{how}"}}')).text for how in ("exit", "error", "exit")]

    assert asyncio.run(play()) == ["Error: RuntimeError: SystemExit", "Error: no", "Error: RuntimeError: SystemExit"]


def test_a_machine_without_threads_is_infrastructure(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(InfrastructureError, match="tool 'repeat': can't start new thread"):
        answer(repeat, '{"text": "ha"}')


def test_a_function_that_refuses_its_arguments_gives_its_place_back():
    @tool(max_concurrency=1, timeout_s=0.5)
    async def keep(x: int) -> str:
        """Keep."""
        return str(x)

    wrong = dataclasses.replace(keep, check=lambda values: {"y": 1})

    async def play():
        return [(await each.call('{"x": 1}')).text for each in (wrong, wrong, keep)]

    first, second, last = asyncio.run(play())
    assert first == second and "unexpected keyword argument" in first
    assert last == "1"


def test_an_awaitable_that_a_thread_gave_keeps_its_place_until_it_is_done():
    inside, most = 0, 0

    async def work() -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        return "done"

    @tool(max_concurrency=1)
    def gives() -> str:
        """Work."""
        return work()  # pyright: ignore

    async def play():
        return await asyncio.gather(*(gives.call("{}") for _ in range(4)))

    assert {result.text for result in asyncio.run(play())} == {"done"}
    assert most == 1
