"""What a tool's annotations mean: what the model is told, what it may write, and what the function is given."""

import asyncio
import datetime
import decimal
import enum
import functools
import json
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import pydantic
import pytest
from typing_extensions import TypedDict

from lockstep.rollout.harmony_tools import tools_section
from lockstep.rollout.tool import tool


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Rank(enum.IntEnum):
    LOW = 1


@dataclass
class Place:
    city: str
    floor: int = 0


class Range(TypedDict):
    low: int


class Point(NamedTuple):
    x: int
    y: int


class Visit(pydantic.BaseModel):
    place: Place
    how: Literal["foot", "train"] = "foot"


def made(kind, default=...):
    """A tool with one argument of a kind, which keeps what it was given."""
    given = []

    def keep(value):
        """Keep."""
        given.append(value)
        return ""

    keep.__annotations__ = {"value": kind, "return": str}
    if default is not ...:
        keep.__defaults__ = (default,)
    return tool(keep, inline=True), given


def call(one, **arguments):
    return asyncio.run(one.call(json.dumps(arguments)))


@pytest.mark.parametrize(
    ("kind", "written", "expected"),
    [
        (Colour, "red", Colour.RED),
        (Rank, 1, Rank.LOW),
        (list[Colour], ["blue"], [Colour.BLUE]),
        (Place, {"city": "Rome"}, Place("Rome")),
        (list[Place], [{"city": "Rome", "floor": 2}], [Place("Rome", 2)]),
        (Range, {"low": 1}, {"low": 1}),
        (Point, [1, 2], Point(1, 2)),
        (Visit, {"place": {"city": "Rome"}}, Visit(place=Place("Rome"))),
        (tuple[int, str], [1, "a"], (1, "a")),
        (set[str], ["a", "b"], {"a", "b"}),
        (datetime.date, "2026-11-21", datetime.date(2026, 11, 21)),
        (decimal.Decimal, "1.50", decimal.Decimal("1.50")),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (int | str | None, None, None),
        (float, 3, 3.0),
        (int, 10**30, 10**30),
    ],
)
def test_what_json_can_say_of_a_type_is_accepted(kind, written, expected):
    one, given = made(kind)
    assert call(one, value=written).fault is None
    assert given == [expected] and type(given[0]) is type(expected)


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        (Colour, "green"),
        (Colour, "RED"),
        (Place, {"city": "Rome", "floor": "2"}),
        (Place, {"city": "Rome", "street": "x"}),
        (Place, {"floor": 2}),
        (Point, [1]),
        (tuple[int, str], ["1", "a"]),
        (bool, 1),
        (int, True),
        (int, "3"),
        (int, 3.0),
        (float, "3"),
        (str, 3),
        (datetime.date, "tomorrow"),
        (list[int], "12"),
        (str, "\ud800"),
    ],
)
def test_what_is_another_type_is_refused(kind, written):
    one, given = made(kind)
    assert call(one, value=written).fault == "malformed/bad_arguments"
    assert given == []


def test_the_model_is_told_what_a_type_holds():
    """Formats show a reference, and anyOf, as anything: then a model could only guess what to write."""

    @tool
    def go(place: Place, colour: Colour, when: int | str, via: list[Place] | None = None) -> str:
        """Go."""
        return ""

    told = go.description.parameters
    written = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "floor": {"type": "integer", "default": 0}},
        "required": ["city"],
        "additionalProperties": False,
    }
    assert told["properties"] == {
        "place": written,
        "colour": {"type": "string", "enum": ["red", "blue"]},
        "when": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        "via": {"type": "array", "items": written, "nullable": True, "default": None},
    }
    assert "any" not in tools_section([go.description]).replace("=> any;", "")
    assert 'colour: "red" | "blue",' in tools_section([go.description])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["_x", "schema", "json", "model_config", "model_dump", "__config__", "tool_argument_0"]
)
def test_an_argument_may_have_any_name(name):
    namespace = {}
    exec(f"def keep(first: int, {name}: str) -> str:\n    'Keep.'\n    return {name}", namespace)
    one = tool(namespace["keep"], inline=True)
    assert list(one.description.parameters["properties"]) == ["first", name]
    assert call(one, first=1, **{name: "a"}).text == "a"
    assert call(one, first=1).text == f"Error: {name}: Field required."


def test_an_argument_may_be_written_by_another_name():
    @tool
    def fly(start: Annotated[str, pydantic.Field(alias="from")]) -> str:
        """Fly."""
        return start

    assert list(fly.description.parameters["properties"]) == ["from"]
    assert call(fly, **{"from": "Rome"}).text == "Rome"


def test_a_default_of_pydantic_s_keeps_its_limits_beside_a_docstring():
    @tool
    def take(number: int = pydantic.Field(3, ge=0)) -> str:
        """Take.

        Args:
            number: how many
        """
        return repr(number)

    told = {"type": "integer", "description": "how many", "default": 3, "minimum": 0}
    assert take.description.parameters["properties"] == {"number": told}
    assert call(take).text == "3"
    assert call(take, number=-1).fault == "malformed/bad_arguments"


def test_a_function_that_yields_is_no_tool():
    def plain() -> str:
        """Yield."""
        yield "a"

    async def later() -> str:
        """Yield."""
        yield "a"

    for function in (plain, later):
        with pytest.raises(TypeError, match="yields: its answer would be no text; return the whole of it"):
            tool(function)


def test_what_has_no_name_and_a_type_that_is_not_there():

    with pytest.raises(TypeError, match="has no name for the model to call"):
        tool(functools.partial(print))

    def keep(x: "Nowhere") -> str:  # noqa: F821  # pyright: ignore
        """Keep."""
        return x

    with pytest.raises(TypeError, match="tool 'keep': name 'Nowhere' is not defined, which an annotation says"):
        tool(keep)
