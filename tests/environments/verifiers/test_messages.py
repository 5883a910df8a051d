"""Messages there and back, without verifiers: its side is stood for by objects with the same attributes."""

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.environments.verifiers_adapter.messages import Call, Reply, read_messages, read_tools, reply_of, text_of
from lockstep.rollout.tool import MAX_CHARACTERS
from lockstep.types import Message


def theirs(role, content=None, **fields):
    fields = {"reasoning_content": None, "tool_calls": None} | fields if role == "assistant" else fields
    return SimpleNamespace(role=role, content=content, **fields)


def ours(content, channel="final", recipient=None):
    return Message(role="assistant", channel=channel, recipient=recipient, content=content)


def call(number, name, arguments):
    return Call(id=f"call_{number}", name=name, arguments=arguments)


@pytest.mark.parametrize(
    ("action", "reply"),
    [
        ([ours("7")], Reply(content="7", reasoning=None)),
        ([ours("7", None)], Reply(content="7", reasoning=None)),
        ([ours("hm", "analysis"), ours("ah", "analysis"), ours("7")], Reply(content="7", reasoning="hm\nah")),
        ([ours("now", "commentary"), ours("7")], Reply(content="7", reasoning=None)),
        ([ours("hm", "analysis")], Reply(content=None, reasoning="hm")),
        ([ours("")], Reply(content="", reasoning=None)),
        ([], Reply(content="", reasoning=None)),
        (
            [ours("{}", "commentary", "functions.add")],
            Reply(content=None, reasoning=None, calls=(call(5, "add", "{}"),)),
        ),
        (
            [ours("hm", "analysis"), ours("see", "commentary"), ours("x", None, "functions.a"), ours("y", None, "b")],
            Reply(content="see", reasoning="hm", calls=(call(5, "a", "x"), call(6, "b", "y"))),
        ),
        (
            [ours("code", "analysis", "python")],
            Reply(content=None, reasoning=None, calls=(call(5, "python", "code"),)),
        ),
    ],
)
def test_an_action_as_one_reply(action, reply):
    assert reply_of(action, itertools.count(5)) == reply


def test_messages_of_every_role():
    names = {}
    asked = theirs("assistant", "see", tool_calls=[Call(id="1", name="add", arguments="{}")], reasoning_content="hm")
    said = [
        theirs("system", "s"),
        theirs("user", "u"),
        theirs("text", "t"),
        asked,
        theirs("tool", "3", tool_call_id="1"),
    ]
    assert read_messages(said, names) == (
        Message(role="system", content="s"),
        Message(role="user", content="u"),
        Message(role="user", content="t"),
        ours("hm", "analysis"),
        ours("see", "commentary"),
        ours("{}", "commentary", "functions.add"),
        Message(role="tool", name="functions.add", content="3"),
    )
    assert names == {"1": "add"}


def test_an_assistant_that_says_nothing_still_spoke():
    assert read_messages([theirs("assistant")], {}) == (ours(""),)


def test_a_calls_name_is_made_readable_where_it_comes_back():
    (answer,) = read_messages([theirs("tool", "x\udc00", tool_call_id="1")], {"1": "ad\ud800"})
    assert answer == Message(role="tool", name="functions.ad?", content="x?")


def test_a_tool_that_floods_is_cut_in_the_middle_and_a_user_is_not():
    flood = "x" * (MAX_CHARACTERS + 999)
    tool, user = read_messages([theirs("tool", flood, tool_call_id="1"), theirs("user", flood)], {"1": "add"})
    assert len(tool.content) < len(flood) and "999 characters left out" in tool.content
    assert user.content == flood


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (theirs("critic", "x"), "the role 'critic'"),
        (theirs("tool", "x", tool_call_id="2"), "answers the call '2', which nobody made"),
        (theirs("user", [{"type": "image_url", "image_url": {}}]), "a part of type 'image_url'"),
        (theirs("user", [SimpleNamespace(type="input_audio")]), "a part of type 'input_audio'"),
    ],
)
def test_what_cannot_be_read_is_one_line(message, said):
    with pytest.raises(ValueError, match=said) as raised:
        read_messages([message], {"1": "add"})
    assert "\n" not in str(raised.value)


def test_texts_in_parts():
    parts = [{"type": "text", "text": "a"}, SimpleNamespace(type="text", text="b\ud800")]
    assert text_of(parts) == "ab?" and text_of(None) == "" and text_of([]) == ""


def test_tools():
    schema = {"type": "object", "properties": {}}
    (tool,) = read_tools([SimpleNamespace(name="add", description="Add.", parameters=schema, strict=True)])
    assert (tool.name, tool.description, tool.parameters) == ("add", "Add.", schema)


words = st.text(max_size=8)
actions = st.builds(
    lambda thought, text, calls: [
        *([ours(thought, "analysis")] if thought else []),
        *([ours(text, "commentary" if calls else "final")] if text or not (calls or thought) else []),
        *(ours(arguments, "commentary", f"functions.{name}") for name, arguments in calls),
    ],
    words,
    words,
    st.lists(st.tuples(words, words), max_size=3),
)


@given(actions)
def test_there_and_back_is_the_same(action):
    """What goes to verifiers comes back as it was: thoughts, words and calls, in order."""
    reply = reply_of(action, itertools.count())
    message = theirs("assistant", reply.content, reasoning_content=reply.reasoning, tool_calls=list(reply.calls))
    assert read_messages([message], {}) == tuple(action)


anything = st.builds(
    ours,
    st.text(max_size=8),
    st.sampled_from(["analysis", "commentary", "final", None, "odd"]),
    st.none() | words,
)


@given(st.lists(anything, max_size=5), st.integers(0, 99))
def test_every_call_has_an_id_of_its_own(action, first):
    ids = itertools.count(first)
    reply = reply_of(action, ids)
    assert len({each.id for each in reply.calls}) == sum(message.recipient is not None for message in action)
    assert next(ids) == first + len(reply.calls)
    assert reply.content is not None or reply.reasoning or reply.calls
