"""The embedded engine: generation in this process, on the trainer's own modules. No copy of the weights, no other
program.

Continuous batching: every tick feeds one token to each running row, the one just sampled or the next of a turn's new
context; rows leave when their action ends and new requests enter. Requests with the same prompt are prefilled once, and
a request that continues a finished one (the next turn of a trajectory) finds its keys and values still there. A token's
keys, values and expert routes are those of the pass that fed it, once, whoever reads them later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lockstep.engine.cache import CacheShape, PrefillCapture, SlotCache
from lockstep.engine.engine import Completion, EngineError, PromptTooLongError, Sampling
from lockstep.engine.sampling import sample_tokens
from lockstep.model.forward import decoder_hidden, head_logits, token_logprobs
from lockstep.model.precision import Precision
from lockstep.model.routing import routers, routing
from lockstep.types import InvariantError, UserError

PREFILL_TOKENS = 8192  # at most so many prompt tokens in one packed forward
MAX_FORCED = 64  # a longer continuation is prefilled anew rather than fed a token a tick


@dataclass(slots=True)
class Request:
    """One action in the making. `pending` holds context tokens that are still to be fed; `routes` the experts of those
    that were, in pieces uint8 [tokens, layers, top_k]."""

    prompt: tuple[int, ...]
    sampling: Sampling
    future: asyncio.Future[Completion]
    pending: deque[int] = field(default_factory=deque)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    routes: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class History:
    """The tokens that a row holds, and their routes, uint8 [tokens, layers, top_k], where routes are recorded."""

    tokens: tuple[int, ...] = ()
    routes: np.ndarray | None = None


class EmbeddedEngine:
    """See the file's docstring. max_concurrency: rows that decode at once; further requests wait. max_length: prompt
    and action together, at most so many tokens. precision: the trainer's. record_routes: completions say which experts
    their tokens went to; without effect on a dense model. Runs on the event loop's thread; `update_weights` refuses
    while requests run, because the weights are the trainer's own."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_concurrency: int = 256,
        max_length: int = 4096,
        precision: Precision | None = None,
        record_routes: bool = False,
    ) -> None:
        if model.config._attn_implementation != "lockstep":
            raise ValueError(
                f"attn_implementation={model.config._attn_implementation!r}: load the model with lockstep.model.loading"
            )
        self.model, self.max_concurrency, self.max_length = model, max_concurrency, max_length
        self.precision = precision or Precision()
        self.precision.check(model.dtype)
        self.num_tokens_sampled = 0
        self._num_layers = len(routers(model)) if record_routes else 0  # whose routes are recorded
        self._version = 0
        self._cache = SlotCache(CacheShape.of(model), exact=self.precision.deterministic)
        self._waiting: list[Request] = []
        self._unanswered: set[asyncio.Future[Completion]] = set()
        # Rows of the cache, in order: running ones, then parked ones, whose actions ended and may be continued.
        self._running: list[Request] = []
        self._parked: list[History] = []  # what each parked row holds
        self._ended: dict[int, History] = {}  # rows among the running whose action the last tick ended
        self._task: asyncio.Task[None] | None = None

    @property
    def weights_version(self) -> int:
        return self._version

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> Completion:
        if not prompt:
            raise ValueError("empty prompt: an action needs at least one token before it")
        room = self.max_length - len(prompt)
        if room < 1 or sampling.max_tokens < 1:
            raise PromptTooLongError(
                f"prompt of {len(prompt)} tokens leaves no room (engine max_length={self.max_length}, "
                f"max_tokens={sampling.max_tokens}): raise engine.max_length"
            )
        request = Request(tuple(prompt), sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._unanswered.add(request.future)
        request.future.add_done_callback(self._unanswered.discard)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await request.future

    async def update_weights(self, version: int) -> None:
        if any(not future.done() for future in self._unanswered):  # a cancelled request may still hold a row
            raise EngineError(
                "weights changed while the embedded engine was generating: it shares the trainer's weights, "
                "so max_lag must be 0"
            )
        self._version = version
        self._forget()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _forget(self) -> None:
        self._running.clear()
        self._parked.clear()
        self._ended.clear()

    async def _run(self) -> None:
        try:
            while self._waiting or len(self._running) > len(self._ended):
                with torch.inference_mode():
                    self._admit()
                    if self._running:
                        self._tick()
                await asyncio.sleep(0)  # whoever was waiting for an ended action may ask for the next one now
        except BaseException as error:
            failure = error
            if not isinstance(error, UserError | InvariantError):  # those are no failure that a retry could mend
                failure = EngineError(f"embedded engine failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
            for future in list(self._unanswered):
                if not future.done():
                    future.set_exception(failure)
            self._waiting.clear()
            self._forget()
            raise

    def _admit(self) -> None:
        """Give waiting requests rows: rows that hold their history first, then new rows through a prefill."""
        requests, self._waiting = [request for request in self._waiting if not request.future.cancelled()], []
        requests = [request for request in requests if not self._continue_ended(request)]
        self._park_ended()
        fresh: dict[tuple[int, ...], list[Request]] = {}
        num_tokens, num_fresh = 0, 0
        for request in requests:
            if len(self._running) + num_fresh == self.max_concurrency or num_tokens >= PREFILL_TOKENS:
                self._waiting.append(request)
            elif not self._continue_parked(request):
                num_tokens += 0 if request.prompt in fresh else len(request.prompt)
                fresh.setdefault(request.prompt, []).append(request)
                num_fresh += 1
        if fresh:
            self._prefill(fresh)
            self._park_ended()  # an action may end with its first token; its row must not be fed again

    def _continue_ended(self, request: Request) -> bool:
        row = _holder(request.prompt, self._ended)
        if row is None:
            return False
        _continue(request, self._ended.pop(row))
        self._running[row] = request
        return True

    def _continue_parked(self, request: Request) -> bool:
        place = _holder(request.prompt, dict(enumerate(self._parked)))
        if place is None:
            return False
        _continue(request, self._parked[place])
        boundary = len(self._running)
        self._cache.swap(boundary, boundary + place)
        self._parked[place] = self._parked[0]
        del self._parked[0]
        self._running.append(request)
        return True

    def _park_ended(self) -> None:
        """Move ended and cancelled rows behind the running ones."""
        for row in range(len(self._running) - 1, -1, -1):
            if row in self._ended or self._running[row].future.cancelled():
                history = self._ended.pop(row, History())  # a cancelled row is never asked for again
                self._cache.swap(row, len(self._running) - 1)
                self._running[row] = self._running[-1]
                self._running.pop()
                self._parked.insert(0, history)

    def _make_rows(self, num_new: int, length: int) -> None:
        """Free the rows just behind the running ones: parked rows there move to the end, or go when there are too
        many."""
        del self._parked[self.max_concurrency :]
        first, num_parked = len(self._running), len(self._parked)
        self._cache.reserve(first + num_new + num_parked, length)
        num_moved = min(num_new, num_parked)
        for i in range(num_moved):
            self._cache.move(first + i, first + max(num_new, num_parked) + i)
        self._parked = self._parked[num_moved:] + self._parked[:num_moved]

    def _prefill(self, fresh: dict[tuple[int, ...], list[Request]]) -> None:
        """Run the prompts packed, once each, copy their caches to their requests' rows, and sample the first tokens."""
        prompts = list(fresh)
        boundaries = np.cumsum([0, *map(len, prompts)])
        tokens = torch.tensor([token for prompt in prompts for token in prompt])
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
        capture = PrefillCapture()
        layout = {"cu_seq_lens_q": torch.from_numpy(boundaries), "cu_seq_lens_k": torch.from_numpy(boundaries)}
        hidden, routes = self._forward(tokens[None], positions[None], past_key_values=capture, **layout)
        hidden = hidden[0]
        first = len(self._running)
        self._make_rows(sum(map(len, fresh.values())), max(map(len, prompts)) + 1)
        requests: list[Request] = []
        for prompt, start, stop in zip(prompts, boundaries[:-1], boundaries[1:], strict=True):
            rows = range(len(self._running), len(self._running) + len(fresh[prompt]))
            self._cache.write(rows, capture, int(start), int(stop))
            self._running.extend(fresh[prompt])
            requests.extend(fresh[prompt])
            if routes is not None:
                for request in fresh[prompt]:
                    request.routes.append(routes[start:stop])
        counts = torch.tensor([len(fresh[prompt]) for prompt in prompts])
        self._sample(
            torch.repeat_interleave(hidden[torch.from_numpy(boundaries[1:]) - 1], counts, dim=0), requests, first
        )

    def _tick(self) -> None:
        """Feed one token to every running row and sample where no context is pending."""
        feed = [r.pending.popleft() if r.pending else r.tokens[-1] for r in self._running]
        num_rows = len(feed)
        self._cache.reserve(num_rows, int(self._cache.lengths[:num_rows].max()) + 1)
        positions = self._cache.begin(num_rows)
        hidden, routes = self._forward(torch.tensor(feed)[:, None], positions[:, None], decode=self._cache)
        hidden = hidden[:, 0]
        if routes is not None:
            for row, request in enumerate(self._running):
                request.routes.append(routes[row : row + 1])
        rows = [row for row, request in enumerate(self._running) if not request.pending]
        if len(rows) == num_rows:
            self._sample(hidden, self._running, 0)
        elif rows:
            self._sample(hidden[rows], [self._running[row] for row in rows], rows)

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, **layout: Any
    ) -> tuple[torch.Tensor, np.ndarray | None]:
        """Hidden states [B, T, H] of the decoder, and the routes of the B * T tokens where they are recorded."""
        if not self._num_layers:
            return decoder_hidden(self.model, tokens, positions, self.precision, **layout), None
        with routing(self._num_layers) as routes:
            hidden = decoder_hidden(self.model, tokens, positions, self.precision, **layout)
        return hidden, routes.used.numpy()

    def _sample(self, hidden: torch.Tensor, requests: Sequence[Request], rows: int | Sequence[int]) -> None:
        """Draw one token for each request from hidden [B, H]; requests that are done are answered and leave their
        row."""
        logits = head_logits(self.model, hidden, self.precision)
        tokens, logprobs = sample_tokens(logits, requests)
        if self.precision.deterministic:
            logprobs = self._exact_logprobs(hidden, tokens, requests)
        self.num_tokens_sampled += len(tokens)
        for i, (request, token, logprob) in enumerate(zip(list(requests), tokens, logprobs, strict=True)):
            request.tokens.append(token)
            request.logprobs.append(logprob)
            stopped = token in request.sampling.stop_token_ids
            limit = min(request.sampling.max_tokens, self.max_length - len(request.prompt))
            if stopped or len(request.tokens) == limit:
                row = rows + i if isinstance(rows, int) else rows[i]
                self._finish(row, request, "stop" if stopped else "length")

    def _exact_logprobs(self, hidden: torch.Tensor, tokens: list[int], requests: Sequence[Request]) -> list[float]:
        """The sampled tokens' log-probs as the trainer computes them."""
        targets, logprobs = torch.tensor(tokens), [0.0] * len(tokens)
        for temperature in {request.sampling.temperature for request in requests}:
            rows = [i for i, request in enumerate(requests) if request.sampling.temperature == temperature]
            found, _ = token_logprobs(self.model, hidden[rows], targets[rows], temperature or 1.0, self.precision)
            for row, logprob in zip(rows, found.tolist(), strict=True):
                logprobs[row] = logprob
        return logprobs

    def _finish(self, row: int, request: Request, stop_reason) -> None:
        routes = np.concatenate(request.routes) if request.routes else None
        fed = request.prompt + tuple(request.tokens[:-1])  # the last token never was
        self._ended[row] = History(fed, routes)
        if not request.future.cancelled():
            request.future.set_result(
                Completion(
                    tokens=tuple(request.tokens),
                    logprobs=tuple(request.logprobs),
                    weights_version=self._version,
                    stop_reason=stop_reason,
                    routed_experts=routes,
                )
            )


def _continue(request: Request, history: History) -> None:
    request.pending.extend(request.prompt[len(history.tokens) :])
    if history.routes is not None:
        request.routes.append(history.routes)


def _holder(prompt: tuple[int, ...], histories: Mapping[int, History]) -> int | None:
    """Which of the histories is the longest that `prompt` continues (by at most MAX_FORCED tokens)."""
    places = {history.tokens: place for place, history in histories.items()}
    for length in sorted({len(history) for history in places}, reverse=True):
        if 0 < length < len(prompt) <= length + MAX_FORCED and (key := prompt[:length]) in places:
            return places[key]
    return None
