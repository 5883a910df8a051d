"""A reply in the JSON of each format that an agent's program may ask a model in, whole or as a stream of events.

Three formats: OpenAI's chat completions and responses, and Anthropic's messages, as their published references describe
them. Nothing here counts tokens: usage is left out, or 0 where the format demands it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lockstep.environments.verifiers_adapter.messages import Call, Reply

Json = dict[str, Any]
MODEL = "lockstep"  # the model's name, as programs are told it


@dataclass(frozen=True, slots=True)
class Wire:
    """whole: a reply as the body of one answer; its arguments: the reply, a number that is its own in the conversation,
    and whether a limit cut it. events: the same body as the events of a stream, server-sent."""

    whole: Callable[[Reply, int, bool], Json]
    events: Callable[[Json], Iterator[bytes]]


def unheard_of(body: Mapping[str, Any]) -> str | None:
    """What a request demands of the answer that Lockstep's model cannot promise; goes on from `an agent asks its model
    for`. How it wants it sampled (temperature, max_tokens, stop) is not that, and does not count."""
    if body.get("logprobs") or body.get("top_logprobs"):
        return "log-probs"
    shapes = [body.get("response_format"), (body.get("text") or {}).get("format"), body.get("output_config")]
    for shape in shapes:
        shape = shape.get("format", shape) if isinstance(shape, Mapping) else {}
        if shape.get("type") in ("json_object", "json_schema"):
            return f"an answer of the shape {shape['type']!r}"
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    return None if kind in (None, "auto", "none") else f"a call it must make (tool_choice {kind!r})"


def _event(data: Json, kind: str | None = None) -> bytes:
    head = f"event: {kind}\n" if kind else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def _chat(reply: Reply, number: int, truncated: bool) -> Json:
    message: Json = {"role": "assistant", "content": reply.content}
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.calls
        ]
    reason = "length" if truncated else "tool_calls" if reply.calls else "stop"
    return {
        "id": f"lockstep_{number}",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
    }


def _chat_events(body: Json) -> Iterator[bytes]:
    (choice,) = body["choices"]
    delta = dict(choice["message"])
    if "tool_calls" in delta:
        delta["tool_calls"] = [{**call, "index": i} for i, call in enumerate(delta["tool_calls"])]
    chunk = {"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}
    yield _event({**body, "object": "chat.completion.chunk", "choices": [chunk]})
    yield b"data: [DONE]\n\n"


def _responses(reply: Reply, number: int, truncated: bool) -> Json:
    items: list[Json] = []
    if reply.reasoning is not None:
        summary = [{"type": "summary_text", "text": reply.reasoning}]
        items.append({"type": "reasoning", "id": f"rs_{number}", "summary": summary})
    if reply.content is not None:
        part = {"type": "output_text", "text": reply.content, "annotations": []}
        items.append(
            {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed", "content": [part]}
        )
    for i, call in enumerate(reply.calls):
        fields = {"call_id": call.id, "name": call.name, "arguments": call.arguments, "status": "completed"}
        items.append({"type": "function_call", "id": f"fc_{number}_{i}", **fields})
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 0,
        "status": "incomplete" if truncated else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if truncated else None,
        "model": MODEL,
        "output": items,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _responses_events(body: Json) -> Iterator[bytes]:
    end = "response.incomplete" if body["status"] == "incomplete" else "response.completed"
    begun = {**body, "status": "in_progress", "incomplete_details": None, "output": []}
    parts = [("response.created", {"response": begun})]
    for i, item in enumerate(body["output"]):
        parts += _item_events(item, i)
    for number, (kind, data) in enumerate([*parts, (end, {"response": body})]):
        yield _event({"type": kind, "sequence_number": number, **data}, kind)


def _item_events(item: Json, i: int) -> Iterator[tuple[str, Json]]:
    at = {"item_id": item["id"], "output_index": i}
    match item["type"]:
        case "reasoning":
            (part,), at = item["summary"], at | {"summary_index": 0}
            yield "response.output_item.added", {"output_index": i, "item": {**item, "summary": []}}
            yield "response.reasoning_summary_part.added", {**at, "part": {**part, "text": ""}}
            yield "response.reasoning_summary_text.delta", {**at, "delta": part["text"]}
            yield "response.reasoning_summary_text.done", {**at, "text": part["text"]}
            yield "response.reasoning_summary_part.done", {**at, "part": part}
        case "message":
            (part,), at = item["content"], at | {"content_index": 0}
            yield "response.output_item.added", {"output_index": i, "item": {**item, "content": []}}
            yield "response.content_part.added", {**at, "part": {**part, "text": ""}}
            yield "response.output_text.delta", {**at, "delta": part["text"], "logprobs": []}
            yield "response.output_text.done", {**at, "text": part["text"], "logprobs": []}
            yield "response.content_part.done", {**at, "part": part}
        case _:
            said = item["arguments"]
            yield "response.output_item.added", {"output_index": i, "item": {**item, "arguments": ""}}
            yield "response.function_call_arguments.delta", {**at, "delta": said}
            yield "response.function_call_arguments.done", {**at, "name": item["name"], "arguments": said}
    yield "response.output_item.done", {"output_index": i, "item": item}


def _anthropic(reply: Reply, number: int, truncated: bool) -> Json:
    blocks: list[Json] = []
    if reply.reasoning is not None:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if reply.content is not None:
        blocks.append({"type": "text", "text": reply.content})
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(arguments_of(call))}
        for call in reply.calls
    ]
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": blocks,
        "stop_reason": "max_tokens" if truncated else "tool_use" if reply.calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def arguments_of(call: Call) -> Mapping[str, Any]:
    """A call's arguments for a format that has only objects: other text is the one argument `malformed`."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"malformed": call.arguments}


def _anthropic_events(body: Json) -> Iterator[bytes]:
    def event(kind: str, **data: Any) -> bytes:
        return _event({"type": kind, **data}, kind)

    yield event("message_start", message={**body, "content": [], "stop_reason": None})
    for i, block in enumerate(body["content"]):
        match block["type"]:
            case "thinking":
                empty, delta = {"thinking": ""}, {"type": "thinking_delta", "thinking": block["thinking"]}
            case "text":
                empty, delta = {"text": ""}, {"type": "text_delta", "text": block["text"]}
            case _:
                empty = {"input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield event("content_block_start", index=i, content_block={**block, **empty})
        yield event("content_block_delta", index=i, delta=delta)
        yield event("content_block_stop", index=i)
    stop = {"stop_reason": body["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=stop, usage=body["usage"])
    yield event("message_stop")


CHAT = Wire(_chat, _chat_events)
RESPONSES = Wire(_responses, _responses_events)
ANTHROPIC = Wire(_anthropic, _anthropic_events)
