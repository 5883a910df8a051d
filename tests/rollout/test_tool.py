"""A tool: its schema, its arguments checked strictly, and whatever goes wrong told to the model and never raised."""

import asyncio
import json
import threading
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.rollout.tool import ToolError, ToolResult, tool


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


@pytest.mark.parametrize("arguments", ["", "{", "{'text': 'ha'}", '{"text": "ha"} again', "[" * 100_000, "ha", "\x00"])
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
        ('{"text": "ha", "times": NaN}', "times: Input should be a valid integer"),
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
