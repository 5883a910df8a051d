"""How a judge is asked over HTTP: places, attempts and deadlines, what is remembered, and what a server may answer.

In: the messages of a question. Out: the score that the judge's text gives, or InfrastructureError in one line.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from lockstep.rollout.background import background
from lockstep.rollout.tool import InfrastructureError

if TYPE_CHECKING:
    from lockstep.rollout.judge import Judge

MAX_ANSWER_BYTES = 1 << 20
FIRST_WAIT_S, MAX_WAIT_S = 0.5, 20.0  # before a further attempt
MAX_ATTEMPTS_VERDICT = 2  # how often a judge may answer without a verdict
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses that may pass


class NoVerdict(ValueError):
    """A judge's text that has no score, or not one."""


class _Passing(Exception):
    """A failure that may pass. The message is one line; wait_s: what the server asks for, or 0."""

    def __init__(self, what: str, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s


class Asked:
    """What has been asked of a judge: its connections, its places and its verdicts, all in the background loop.

    verdict: the score that a judge's text gives; raises NoVerdict."""

    def __init__(self, judge: Judge, verdict: Callable[[str], float]) -> None:
        self.judge, self.verdict = judge, verdict
        self.name = f"judge {judge.model} at {urlsplit(judge.url).netloc}"
        self.verdicts: OrderedDict[bytes, asyncio.Task[float]] = OrderedDict()
        self.client: httpx2.AsyncClient | None = None
        self.places = asyncio.Semaphore(judge.max_concurrency)

    async def share(self, messages: list[dict[str, str]]) -> float:
        """A verdict, from memory when the same was asked before, or is being asked."""
        key = hashlib.sha256(json.dumps(messages).encode()).digest()
        task = self.verdicts.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self.ask(messages))
            if not self.judge.cache_size:
                return await task
            self.verdicts[key] = task
            while len(self.verdicts) > self.judge.cache_size:
                self.verdicts.popitem(last=False)
        self.verdicts.move_to_end(key)
        return await asyncio.shield(task)  # others may wait for it too

    async def ask(self, messages: list[dict[str, str]]) -> float:
        """Ask until there is a verdict, or the deadline."""
        last, attempt, refused = "no place among its questions", 0, 0
        deadline = asyncio.timeout(self.judge.timeout_s)
        try:
            async with deadline, self.places:
                while True:
                    last = "no answer"
                    try:
                        return self.verdict(await self._post(messages))
                    except NoVerdict as error:
                        refused += 1
                        if refused == MAX_ATTEMPTS_VERDICT:
                            raise InfrastructureError(f"{self.name} gave no verdict twice: {error}") from error
                    except _Passing as error:
                        last = str(error)
                        if error.wait_s > self.judge.timeout_s:
                            raise InfrastructureError(
                                f"{self.name} asks to wait {error.wait_s:g} s ({last}), longer than timeout_s; raise it"
                            ) from error
                        wait_s = min(FIRST_WAIT_S * 2**attempt, MAX_WAIT_S) * random.uniform(0.5, 1.0)
                        attempt += 1
                        await asyncio.sleep(max(wait_s, error.wait_s))
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise InfrastructureError(
                f"{self.name} gave no verdict within {self.judge.timeout_s:g} s: {last}; see that it runs at its url, "
                "raise its timeout_s, or lower its max_concurrency"
            ) from error

    async def _post(self, messages: list[dict[str, str]]) -> str:
        """What the judge says. Raises _Passing, or InfrastructureError for what will not pass."""
        judge = self.judge
        if self.client is None:
            self.client = httpx2.AsyncClient(timeout=judge.timeout_s / 2, limits=httpx2.Limits(max_connections=None))
            background().closers.add(self.client.aclose)
        asked: dict[str, Any] = {"model": judge.model, "messages": messages, "temperature": 0.0}
        asked["max_tokens"] = judge.max_tokens
        if judge.constrained:
            asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": _SCHEMA}}
        asked = {name: value for name, value in {**asked, **judge.request}.items() if value is not None}
        key = os.environ.get(judge.api_key_env, "") if judge.api_key_env else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            async with self.client.stream(
                "POST", f"{judge.url.rstrip('/')}/chat/completions", json=asked, headers=headers
            ) as response:
                body = await _bounded(response)
        except httpx2.TimeoutException:
            raise _Passing(f"no answer within {judge.timeout_s / 2:g} s") from None
        except httpx2.HTTPError as error:
            raise _Passing(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
        return self._content(response, body, key)

    def _content(self, response: httpx2.Response, body: bytes, key: str) -> str:
        status = response.status_code
        if status in PASSING:
            raise _Passing(f"HTTP {status}", _seconds(response.headers.get("retry-after", "")))
        if status in (401, 403):
            fix = f"correct the key in {self.judge.api_key_env}" if key else "name the key's variable in api_key_env"
            raise InfrastructureError(f"{self.name} refuses the key (HTTP {status}); {fix}")
        if status != 200:
            said = body[:2000].decode("utf-8", "replace")
            said = " ".join((said.replace(key, "***") if key else said).split())[:200]
            raise InfrastructureError(f"{self.name} answers with HTTP {status}: {said}")
        try:
            choice = json.loads(body)["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            choice, content = {}, None
        ends = isinstance(content, str) and content.rstrip().endswith(("}", "```"))  # an object shows that it is whole
        if choice.get("finish_reason") == "length" and not ends:  # `score: 1` may be the beginning of `score: 10`
            raise NoVerdict(
                f"the answer was cut off at max_tokens={self.judge.max_tokens}, or a limit in `request`; raise it"
            )
        if not isinstance(content, str):
            raise NoVerdict("the answer is no chat completion with a text")
        return content


_SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "number"}},
    "required": ["reason", "score"],
    "additionalProperties": False,
}


async def _bounded(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise NoVerdict(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _seconds(text: str) -> float:
    """What a Retry-After asks for in seconds; 0 for a date or anything else."""
    return float(text) if re.fullmatch(r"\d{1,4}", text.strip()) else 0.0
