"""How a judge is asked, against a live server: failures that mask, deadlines, keys, questions asked once."""

import asyncio
import json
import threading
import time

import pytest

from lockstep.rollout.judge import Judge
from lockstep.rollout.tool import InfrastructureError
from lockstep.types import UserError
from tests.rollout.judge_server import ending, judged, made

KEY = "sk-very-secret"


def test_an_unreadable_verdict_is_asked_for_once_more(serve):
    server = serve("I like it", '{"score": 1}')
    assert judged(made(server), ending()) == [1.0]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        "I give it 1.",
        (200, {}, "not json"),
        (200, {}, "[" * 100_000),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": null}}]}'),
        (200, {}, "[1]"),
        (200, {}, json.dumps({"choices": [{"message": {"content": "x" * (2 << 20)}}]})),
    ],
)
def test_garbage_masks_and_is_never_a_score(serve, answer):
    server = serve(answer)
    with pytest.raises(InfrastructureError, match=r"judge m at 127.0.0.1:\d+ gave no verdict twice: ") as raised:
        judged(made(server), ending())
    assert len(server.requests) == 2
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["Fine.\nscore: 1", None, '{"score": 1'])
def test_a_verdict_that_was_cut_off_is_none(serve, text):
    """`score: 1` of `score: 10`, or a thought that took all the room."""
    answer = json.dumps({"choices": [{"finish_reason": "length", "message": {"content": text}}]})
    with pytest.raises(InfrastructureError, match="no verdict twice: the answer was cut off at max_tokens=7"):
        judged(made(serve((200, {}, answer)), max_tokens=7, high=10), ending())


def test_a_whole_verdict_counts_whatever_was_cut_off_behind_it(serve):
    choice = {"finish_reason": "length", "message": {"content": '{"score": 1}' + "\n" * 99}}
    assert judged(made(serve((200, {}, json.dumps({"choices": [choice]})))), ending()) == [1.0]


def test_a_server_gets_the_fields_it_wants(serve):
    server = serve('{"score": 1}')
    request = {"max_tokens": None, "temperature": None, "max_completion_tokens": 9, "reasoning_effort": "low"}
    assert judged(made(server, request=request, constrained=False), ending()) == [1.0]
    (_, _, body) = server.requests[0]
    assert body.keys() == {"model", "messages", "max_completion_tokens", "reasoning_effort"}


def test_what_may_pass_is_waited_for(serve):
    server = serve(429, 503, (429, {"Retry-After": "0"}, ""), 500, '{"score": 1}')
    assert judged(made(server), ending()) == [1.0]
    assert len(server.requests) == 5


def test_a_server_is_waited_for_as_long_as_it_asks(serve):
    server = serve((429, {"Retry-After": "1"}, ""), '{"score": 1}')
    started = time.monotonic()
    assert judged(made(server), ending()) == [1.0]
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("answer", [429, "hang"])
def test_the_deadline_holds(serve, answer):
    server = serve(answer)
    with pytest.raises(InfrastructureError, match=r"gave no verdict within 0.3 s: (HTTP 429|no answer)"):
        judged(made(server, timeout_s=0.3), ending())


def test_who_asks_to_wait_too_long_is_not_waited_for(serve):
    server = serve((429, {"Retry-After": "1000"}, ""))
    with pytest.raises(InfrastructureError, match=r"asks to wait 1000 s \(HTTP 429\), longer than timeout_s"):
        judged(made(server), ending())
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_told(serve):
    server = serve(200)
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(InfrastructureError, match=r"gave no verdict within 0.3 s: (ConnectError|no answer)"):
        judged(Judge(url=url, model="m", rubric="r", timeout_s=0.3), ending())


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_told_at_once_and_never_shown(serve, monkeypatch, status, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve((status, {}, f"the key {KEY} is wrong"))
    judge = made(server, api_key_env="JUDGE_KEY")
    with pytest.raises(InfrastructureError, match=r"refuses the key .*; correct the key in JUDGE_KEY") as raised:
        judged(judge, ending())
    assert len(server.requests) == 1
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{raised.value} {judge!r} {caplog.text}"
    with pytest.raises(InfrastructureError, match="name the key's variable in api_key_env"):
        judged(made(server), ending())


def test_other_refusals_are_told_at_once_without_the_key(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve((400, {}, f"no such\nmodel, said with {KEY}" + "x" * 1000))
    with pytest.raises(
        InfrastructureError, match=r"answers with HTTP 400: no such model, said with \*\*\*xxx"
    ) as raised:
        judged(made(server, api_key_env="JUDGE_KEY"), ending())
    assert len(server.requests) == 1
    assert len(str(raised.value)) < 300


def test_redirects_are_not_followed(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    other = serve('{"score": 1}')
    server = serve((307, {"Location": other.url + "/chat/completions"}, ""))
    with pytest.raises(InfrastructureError, match="answers with HTTP 307"):
        judged(made(server, api_key_env="JUDGE_KEY"), ending())
    assert other.requests == []


def test_a_key_that_is_not_set_is_told(serve, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match="that environment variable is not set"):
        asyncio.run(made(serve(200), api_key_env="JUDGE_KEY").share({}))
    with pytest.raises(UserError, match="that environment variable is not set"):
        made(serve(200), api_key_env="JUDGE_KEY").reward()


def test_questions_at_once_are_limited(serve):
    """A question of another judge goes and comes while three hang: by then a fourth would have come too."""
    server = serve("hang")
    judge, other = made(server, max_concurrency=3), made(server, model="other")

    def wait():
        for _ in range(3):
            server.arrived.acquire()
        asyncio.run(other.share({}))
        server.release.set()

    threading.Thread(target=wait, daemon=True).start()
    assert judged(judge, *(ending(str(i)) for i in range(8))) == [1.0] * 8
    assert (len(server.requests), server.most) == (9, 3)


def test_the_same_question_is_asked_once(serve):
    server = serve('{"score": 1}')
    judge = made(server, cache_size=2)
    assert judged(judge, ending("a"), ending("a"), ending("b")) == [1.0] * 3
    assert judged(judge, ending("a")) == [1.0]  # of another event loop
    assert len(server.requests) == 2
    judged(judge, ending("c"))  # b was asked for longer ago than a
    judged(judge, ending("a"))
    assert len(server.requests) == 3
    judged(judge, ending("b"))
    assert len(server.requests) == 4
    judged(made(server, cache_size=0), ending("a"), ending("a"))
    assert len(server.requests) == 6


def test_a_failure_is_not_remembered(serve):
    server = serve(400, '{"score": 1}')
    judge = made(server)
    with pytest.raises(InfrastructureError):
        judged(judge, ending())
    assert judged(judge, ending()) == [1.0]


def test_who_gives_up_takes_no_other_along(serve):
    server = serve("hang")
    judge = made(server)

    async def run():
        first, second = (asyncio.create_task(judge.share({"answer": "4"})) for _ in range(2))
        await asyncio.to_thread(server.arrived.acquire)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        server.release.set()
        return await second

    assert asyncio.run(run()) == 1.0
    assert len(server.requests) == 1
