"""A reply in each format, whole and as events. That the programs' own libraries read them, test_tasksets_parity.py
shows."""

import json

import pytest

from lockstep.environments.verifiers_adapter.messages import Call, Reply
from lockstep.environments.verifiers_adapter.wires import ANTHROPIC, CHAT, RESPONSES, arguments_of, unheard_of

CALLS = (Call(id="a", name="add", arguments='{"x": 1}'), Call(id="b", name="add", arguments="{"))
FULL = Reply(content="So.", reasoning="Hm.", calls=CALLS)
WIRES = {"chat": CHAT, "responses": RESPONSES, "anthropic": ANTHROPIC}


def data_of(event):
    """The JSON of one server-sent event, and the name that stands before it."""
    assert event.endswith(b"\n\n") and event.count(b"\n\n") == 1
    head, _, data = event.decode().rpartition("data: ")
    return head.removeprefix("event: ").strip() or None, data.strip()


def test_chat():
    (choice,) = CHAT.whole(FULL, 3, False)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "So.",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
            {"id": "b", "type": "function", "function": {"name": "add", "arguments": "{"}},
        ],
    }
    chunk, done = map(data_of, CHAT.events(CHAT.whole(FULL, 3, False)))
    (choice,) = json.loads(chunk[1])["choices"]
    assert [call["index"] for call in choice["delta"]["tool_calls"]] == [0, 1]
    assert choice["finish_reason"] == "tool_calls" and done == (None, "[DONE]")


def test_responses():
    body = RESPONSES.whole(FULL, 3, False)
    thought, said, *calls = body["output"]
    assert thought["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert [part["text"] for part in said["content"]] == ["So."]
    assert [(c["type"], c["call_id"], c["arguments"]) for c in calls] == [
        ("function_call", "a", '{"x": 1}'),
        ("function_call", "b", "{"),
    ]
    assert len({item["id"] for item in body["output"]} | {"a", "b"}) == 6
    assert body["status"] == "completed" and body["incomplete_details"] is None
    events = [(kind, json.loads(data)) for kind, data in map(data_of, RESPONSES.events(body))]
    assert [kind for kind, _ in events] == [data["type"] for _, data in events]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert [data["item"] for kind, data in events if kind == "response.output_item.done"] == body["output"]
    assert [data["delta"] for kind, data in events if kind.endswith(".delta")] == ["Hm.", "So.", '{"x": 1}', "{"]
    assert events[-1][1]["response"] == body and events[-1][0] == "response.completed"


def test_anthropic():
    body = ANTHROPIC.whole(FULL, 3, False)
    assert body["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "So."},
        {"type": "tool_use", "id": "a", "name": "add", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "add", "input": {"malformed": "{"}},
    ]
    assert body["stop_reason"] == "tool_use"
    events = [(kind, json.loads(data)) for kind, data in map(data_of, ANTHROPIC.events(body))]
    assert [kind for kind, _ in events] == [
        "message_start",
        *["content_block_start", "content_block_delta", "content_block_stop"] * 4,
        "message_delta",
        "message_stop",
    ]
    deltas = [list(data["delta"].values())[1] for kind, data in events if kind == "content_block_delta"]
    assert deltas == ["Hm.", "So.", '{"x": 1}', '{"malformed": "{"}']
    assert events[-2][1]["delta"]["stop_reason"] == "tool_use"


@pytest.mark.parametrize("text", ["", "[1]", "3", "null", '{"a": 1', "[" * 100_000])
def test_arguments_that_are_no_object_are_kept_as_text(text):
    assert arguments_of(Call(id="a", name="add", arguments=text)) == {"malformed": text}


@pytest.mark.parametrize(
    ("name", "end", "cut"),
    [
        ("chat", lambda body: body["choices"][0]["finish_reason"], ["stop", "length"]),
        ("responses", lambda body: body["status"], ["completed", "incomplete"]),
        ("anthropic", lambda body: body["stop_reason"], ["end_turn", "max_tokens"]),
    ],
)
def test_a_cut_reply_says_so(name, end, cut):
    spoken = Reply(content="So", reasoning=None)
    assert [end(WIRES[name].whole(spoken, 0, truncated)) for truncated in (False, True)] == cut
    last = [json.loads(data) for kind, data in map(data_of, RESPONSES.events(RESPONSES.whole(spoken, 0, True)))][-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"logprobs": True}, "log-probs"),
        ({"top_logprobs": 5}, "log-probs"),
        ({"response_format": {"type": "json_object"}}, "an answer of the shape 'json_object'"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "an answer of the shape 'json_schema'"),
        ({"text": {"format": {"type": "json_schema"}}}, "an answer of the shape 'json_schema'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "an answer of the shape 'json_schema'"),
        ({"tool_choice": "required"}, "a call it must make (tool_choice 'required')"),
        ({"tool_choice": {"type": "function", "function": {}}}, "a call it must make (tool_choice 'function')"),
        ({"tool_choice": {"type": "any"}}, "a call it must make (tool_choice 'any')"),
    ],
)
def test_what_a_request_may_not_demand(body, said):
    assert unheard_of(body) == said


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"logprobs": False, "tool_choice": "auto", "temperature": 0.2, "max_tokens": 9, "stop": ["x"]},
        {"response_format": {"type": "text"}, "text": {"format": {"type": "text"}}, "tool_choice": "none"},
        {"tool_choice": {"type": "auto"}, "text": None, "output_config": {"effort": "low"}, "response_format": None},
    ],
)
def test_how_an_answer_is_sampled_is_no_demand(body):
    assert unheard_of(body) is None
