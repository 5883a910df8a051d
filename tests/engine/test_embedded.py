"""The embedded engine: what it says of its tokens is what the trainer says, whatever else it is busy with."""

import asyncio
import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.engine.embedded import MAX_FORCED, EmbeddedEngine
from lockstep.engine.engine import EngineError, PromptTooLongError, Sampling
from lockstep.model.routing import RoutingError
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer

NEAR = 1e-4  # how far the engine's log-probs may be from the trainer's


def sampling(seed=0, max_tokens=20, temperature=1.0, stop=()):
    return Sampling(temperature=temperature, max_tokens=max_tokens, stop_token_ids=stop, seed=seed)


def run(coroutine):
    """The coroutine's result, or TimeoutError where somebody waits for ever."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def tokens_of(length, seed=0):
    return torch.randint(2, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def trainer_logprobs(model, tokens, mask, temperature=1.0):
    """What the trainer says of the masked tokens under the present weights."""
    (microbatch,) = pack([supervised_sample("s", tokens, mask)], max_tokens=10**6).microbatches
    return Trainer(model, Optimizer(), temperature=temperature).logprobs(microbatch).logprobs.tolist()


class Conversation:
    """A token history with its actions' mask and engine log-probs, grown turn by turn."""

    def __init__(self, engine, prompt, seed=0, temperature=1.0):
        self.engine, self.seed, self.temperature = engine, seed, temperature
        self.tokens, self.mask, self.logprobs = list(prompt), [False] * len(prompt), []
        self.num_turns = 0

    async def act(self, max_tokens=20):
        settings = sampling(self.seed * 1000 + self.num_turns, max_tokens, self.temperature)
        completion = await self.engine.generate(self.tokens, settings)
        self.tokens += completion.tokens
        self.mask += [True] * len(completion.tokens)
        self.logprobs += completion.logprobs
        self.num_turns += 1
        return completion

    def hear(self, context):
        self.tokens += context
        self.mask += [False] * len(context)

    def error(self, model):
        theirs = trainer_logprobs(model, self.tokens, self.mask, self.temperature)
        return max(abs(a - b) for a, b in zip(self.logprobs, theirs, strict=True))


@pytest.fixture
def forwards(gpt_oss):
    """The shape of the token ids of each forward of gpt_oss: [1, tokens] for a prefill, [rows, 1] for a tick."""
    shapes = []

    def note(module, arguments, options):
        shapes.append(tuple(options["input_ids"].shape))

    gpt_oss.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def prefills(shapes):
    return [tokens for rows, tokens in shapes if tokens > 1]


def ticks(shapes):
    return [rows for rows, tokens in shapes if tokens == 1]


# Agreement with the trainer and with transformers


def test_logprobs_of_many_turns_equal_the_trainers(model):
    """Sinks up to 5, a window of 16, histories that grow past 128 and 256 tokens, contexts short and long, two
    temperatures in one batch."""
    engine = EmbeddedEngine(model, max_concurrency=5)

    async def converse(seed):
        conversation = Conversation(engine, tokens_of(3 + 40 * seed, seed), seed, (1.0, 0.7)[seed % 2])
        for turn in range(3):
            await conversation.act(max_tokens=10 + 5 * seed)
            conversation.hear(tokens_of(1 + 30 * turn * (seed % 2), seed=100 + turn))
        await conversation.act()
        return conversation

    async def all_of_them():
        return await asyncio.gather(*map(converse, range(7)))

    conversations = run(all_of_them())
    assert max(len(c.tokens) for c in conversations) > 270
    assert max(c.error(model) for c in conversations) <= NEAR


@pytest.mark.parametrize("length", [5, 40])
def test_greedy_equals_transformers_generate(model, length):
    """Against `generate` with transformers' own eager attention, cache and experts."""
    prompt = tokens_of(length, seed=3)
    reference = AutoModelForCausalLM.from_pretrained(
        model.name_or_path, attn_implementation="eager", experts_implementation="eager"
    )
    options = {"do_sample": False, "max_new_tokens": 60, "eos_token_id": None, "pad_token_id": 0}
    expected = reference.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, length), **options)
    found = run(EmbeddedEngine(model).generate(prompt, sampling(max_tokens=60, temperature=0)))
    assert list(found.tokens) == expected[0, length:].tolist()
    assert len(set(found.tokens)) > 5


# Batching changes nothing


def test_an_action_does_not_depend_on_the_batch(gpt_oss):
    """Each request alone in a fresh engine, then all at once, in another order, in few rows."""
    requests = [(tokens_of(5 + 9 * i, seed=i), sampling(seed=i, max_tokens=8 + 5 * i)) for i in range(7)]
    alone = [run(EmbeddedEngine(gpt_oss).generate(*request)) for request in requests]

    async def together():
        engine = EmbeddedEngine(gpt_oss, max_concurrency=3)
        found = await asyncio.gather(*(engine.generate(*request) for request in reversed(requests)))
        return list(reversed(found))

    for one, other in zip(alone, run(together()), strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=NEAR)


def test_siblings_of_other_seeds_differ(gpt_oss):
    async def siblings():
        engine = EmbeddedEngine(gpt_oss)
        return await asyncio.gather(*(engine.generate(tokens_of(9), sampling(seed)) for seed in (1, 2, 3, 1)))

    first, second, third, again = run(siblings())
    assert len({first.tokens, second.tokens, third.tokens}) == 3
    assert first.tokens == again.tokens


def test_a_prompt_that_many_ask_for_is_prefilled_once(gpt_oss, forwards):
    async def groups():
        engine = EmbeddedEngine(gpt_oss)
        prompts = [tokens_of(50, seed=1)] * 8 + [tokens_of(30, seed=2)] * 8
        return await asyncio.gather(*(engine.generate(p, sampling(i, 10)) for i, p in enumerate(prompts)))

    run(groups())
    assert prefills(forwards) == [80]
    assert ticks(forwards) == [16] * 9  # the prefill gave the first of the ten tokens


def test_rows_that_end_make_room_for_requests_that_wait(gpt_oss, forwards):
    lengths = [2, 9, 4, 1, 6, 3, 8]

    async def queue():
        engine = EmbeddedEngine(gpt_oss, max_concurrency=3)
        requests = (engine.generate(tokens_of(6, seed=i), sampling(i, n)) for i, n in enumerate(lengths))
        return await asyncio.gather(*requests)

    assert [len(c.tokens) for c in run(queue())] == lengths
    assert max(ticks(forwards)) == 3
    assert max(prefills(forwards)) == 3 * 6
    assert sum(ticks(forwards)) == sum(lengths) - len(lengths)


# Turns


def test_a_turn_feeds_only_what_is_new(gpt_oss, forwards):
    """The action's last token was never fed; with the new context that makes 1 + 3 ticks before the next action."""

    async def two_turns():
        conversation = Conversation(EmbeddedEngine(gpt_oss), tokens_of(40))
        await conversation.act(max_tokens=5)
        conversation.hear(tokens_of(3, seed=1))
        await conversation.act(max_tokens=5)
        return conversation

    conversation = run(two_turns())
    assert prefills(forwards) == [40]
    assert len(ticks(forwards)) == 4 + (1 + 3) + 4
    assert conversation.error(gpt_oss) <= NEAR


@pytest.mark.parametrize("rows", [16, 4], ids=["kept", "evicted"])
def test_a_turn_after_others_came_and_went_equals_a_fresh_prefill(gpt_oss, forwards, rows):
    """Its row was parked, swapped and moved, and is still its own; with few rows some were given away to strangers."""

    async def interrupted():
        engine = EmbeddedEngine(gpt_oss, max_concurrency=rows)
        patient = [Conversation(engine, tokens_of(30 + i, seed=i), seed=i) for i in range(3)]
        await asyncio.gather(*(conversation.act(10 + i) for i, conversation in enumerate(patient)))
        for i in range(3):  # strangers, new ones each time
            strangers = (
                engine.generate(tokens_of(20, seed=50 + 10 * i + j), sampling(j, 4 + j)) for j in range(2 + i % 2)
            )
            await asyncio.gather(*strangers)
        before = len(forwards)
        for i, conversation in enumerate(patient):
            conversation.hear(tokens_of(2 + i, seed=70 + i))
        await asyncio.gather(*(conversation.act(12) for conversation in reversed(patient)))
        return patient, forwards[before:]

    patient, later = run(interrupted())
    assert bool(prefills(later)) == (rows == 4)
    for conversation in patient:
        assert conversation.error(gpt_oss) <= NEAR
        fresh = EmbeddedEngine(gpt_oss)
        again = run(fresh.generate(conversation.tokens[:-12], sampling(conversation.seed * 1000 + 1, 12)))
        assert list(again.tokens) == conversation.tokens[-12:]
        assert again.logprobs == pytest.approx(conversation.logprobs[-12:], abs=NEAR)


@pytest.mark.parametrize("order", [(2, 0, 3, 1), (3, 1, 2, 0), (0, 1, 2, 3)])
def test_parked_rows_may_be_taken_up_in_any_order(gpt_oss, forwards, order):
    """One after another, and then once more from the same histories, whose rows are gone by then."""

    async def one_by_one():
        engine = EmbeddedEngine(gpt_oss)
        conversations = [Conversation(engine, tokens_of(20 + i, seed=i), seed=i) for i in range(4)]
        await asyncio.gather(*(conversation.act(6) for conversation in conversations))
        again = [copy.deepcopy((c.tokens, c.mask, c.logprobs)) for c in conversations]
        before = len(forwards)
        for i in order:
            conversations[i].hear(tokens_of(3, seed=30 + i))
            await conversations[i].act(6)
        later = prefills(forwards[before:])
        for i in order:
            branch = Conversation(engine, [], seed=50 + i)
            branch.tokens, branch.mask, branch.logprobs = again[i]
            branch.hear(tokens_of(2, seed=40 + i))
            await branch.act(6)
            conversations.append(branch)
        return conversations, later

    conversations, later = run(one_by_one())
    assert later == []
    assert max(conversation.error(gpt_oss) for conversation in conversations) <= NEAR


def test_a_long_new_context_is_prefilled_with_its_history(gpt_oss, forwards):
    async def two_turns(extra):
        conversation = Conversation(EmbeddedEngine(gpt_oss), tokens_of(20))
        await conversation.act(max_tokens=5)
        conversation.hear(tokens_of(MAX_FORCED + extra, seed=1))
        before = len(forwards)
        await conversation.act(max_tokens=5)
        return conversation, prefills(forwards[before:])

    fed, prefilled = run(two_turns(-1)), run(two_turns(0))
    assert (fed[1], prefilled[1]) == ([], [20 + 5 + MAX_FORCED])
    assert max(fed[0].error(gpt_oss), prefilled[0].error(gpt_oss)) <= NEAR


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("stop", [True, False], ids=["stop", "length"])
def test_an_action_of_one_token_ends_and_may_be_continued(gpt_oss, neighbours, stop):
    """It ends at the prefill, before its row was ever decoded."""

    async def turns():
        engine = EmbeddedEngine(gpt_oss)
        busy = [asyncio.create_task(engine.generate(tokens_of(9, seed=i), sampling(i, 30))) for i in range(neighbours)]
        conversation = Conversation(engine, tokens_of(25))
        if stop:
            first = await engine.generate(conversation.tokens, sampling(0, 9, stop=tuple(range(97))))
            conversation.tokens += first.tokens
            conversation.mask += [True]
            conversation.logprobs += first.logprobs
            assert first.stop_reason == "stop"
        else:
            assert (await conversation.act(max_tokens=1)).stop_reason == "length"
        for _ in range(2):
            await asyncio.sleep(0)
        conversation.hear(tokens_of(2, seed=7))
        await conversation.act(max_tokens=6)
        await asyncio.gather(*busy)
        return conversation

    conversation = run(turns())
    assert sum(conversation.mask) == 7
    assert conversation.error(gpt_oss) <= NEAR


def test_a_stop_token_ends_the_action_and_is_part_of_it(gpt_oss):
    prompt = tokens_of(20)
    engine = EmbeddedEngine(gpt_oss)
    free = run(engine.generate(prompt, sampling(max_tokens=30)))
    assert free.stop_reason == "length"
    stop = free.tokens[11]
    place = free.tokens.index(stop)
    found = run(engine.generate(prompt, sampling(max_tokens=30, stop=(stop,))))
    assert found.stop_reason == "stop"
    assert found.tokens == free.tokens[: place + 1]
    assert found.logprobs == pytest.approx(free.logprobs[: place + 1], abs=NEAR)


# Weights


def nudge(model):
    """Another policy: every parameter moved a little."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_nothing_computed_with_old_weights_survives_an_update(gpt_oss):
    """A parked row, and one whose action has only just ended, at the update between two turns."""

    async def turns():
        engine = EmbeddedEngine(gpt_oss)
        parked, ended = Conversation(engine, tokens_of(30)), Conversation(engine, tokens_of(40, seed=1), seed=1)
        await parked.act()
        await ended.act()
        nudge(gpt_oss)
        await engine.update_weights(7)
        assert engine.weights_version == 7
        for conversation in (parked, ended):
            conversation.mask = [False] * len(conversation.mask)  # the old policy's tokens are context now
            conversation.logprobs = []
            conversation.hear(tokens_of(2, seed=3))
            assert (await conversation.act()).weights_version == 7
        return parked, ended

    for conversation in run(turns()):
        assert conversation.error(gpt_oss) <= NEAR


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_an_update_while_generating_is_refused(gpt_oss, when):
    async def update():
        engine = EmbeddedEngine(gpt_oss)
        action = asyncio.create_task(engine.generate(tokens_of(10), sampling()))
        for _ in range(1 if when == "waiting" else 4):
            await asyncio.sleep(0)
        with pytest.raises(EngineError, match="max_lag must be 0"):
            await engine.update_weights(1)
        assert (await action).weights_version == 0
        await engine.update_weights(1)

    run(update())


# Whoever leaves early, and whatever breaks


def test_a_cancelled_request_frees_its_row(gpt_oss, forwards):
    async def impatient():
        engine = EmbeddedEngine(gpt_oss, max_concurrency=1)
        running = asyncio.create_task(engine.generate(tokens_of(10), sampling(max_tokens=500)))
        waiting = asyncio.create_task(engine.generate(tokens_of(11), sampling(max_tokens=500)))
        last = asyncio.create_task(engine.generate(tokens_of(12), sampling(max_tokens=5)))
        for _ in range(5):
            await asyncio.sleep(0)
        running.cancel()
        waiting.cancel()
        assert len((await last).tokens) == 5
        for task in (running, waiting):
            with pytest.raises(asyncio.CancelledError):
                await task

    run(impatient())
    assert prefills(forwards) == [10, 12]
    assert len(forwards) < 15


def test_a_cancelled_request_does_not_stand_in_the_way_of_an_update(gpt_oss):
    async def cancelled():
        engine = EmbeddedEngine(gpt_oss)
        tasks = [asyncio.create_task(engine.generate(tokens_of(10), sampling(i, max_tokens=500))) for i in range(3)]
        for _ in range(4):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await engine.update_weights(1)  # at once, with the rows still there
        return await engine.generate(tokens_of(10), sampling(max_tokens=3))

    assert run(cancelled()).weights_version == 1


def test_a_failing_forward_is_an_engine_error_for_all_and_the_engine_goes_on(gpt_oss, monkeypatch):
    decoder = gpt_oss.get_decoder()
    forward, calls = decoder.forward, []

    def fails_at_the_fourth(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return forward(*arguments, **options)

    async def broken():
        engine = EmbeddedEngine(gpt_oss, max_concurrency=2)
        expected = await engine.generate(tokens_of(10), sampling(max_tokens=8))
        await engine.update_weights(0)
        monkeypatch.setattr(decoder, "forward", fails_at_the_fourth)
        requests = (engine.generate(tokens_of(10, seed=i), sampling(i, 8)) for i in range(5))
        failures = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(failure) for failure in failures] == [EngineError] * 5
        assert "RuntimeError: out of memory" in str(failures[4])
        again = await engine.generate(tokens_of(10), sampling(max_tokens=8))
        assert again.tokens == expected.tokens
        assert again.logprobs == pytest.approx(expected.logprobs, abs=NEAR)

    run(broken())


def test_a_closed_engine_lets_nobody_wait(gpt_oss):
    async def closed():
        engine = EmbeddedEngine(gpt_oss, max_concurrency=1)
        tasks = [asyncio.create_task(engine.generate(tokens_of(10), sampling(i, 500))) for i in range(2)]
        for _ in range(4):
            await asyncio.sleep(0)
        await engine.close()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(failure) for failure in found] == [EngineError] * 2

    run(closed())


@pytest.mark.parametrize("length", [32, 33, 100])
def test_a_prompt_without_room_for_an_action_is_refused_in_one_line(gpt_oss, length):
    engine = EmbeddedEngine(gpt_oss, max_length=32)
    with pytest.raises(PromptTooLongError, match=f"{length} tokens.*max_length=32.*raise engine.max_length") as error:
        run(engine.generate(tokens_of(length), sampling()))
    assert "\n" not in str(error.value)


def test_an_action_ends_where_the_history_is_full(gpt_oss):
    found = run(EmbeddedEngine(gpt_oss, max_length=32).generate(tokens_of(25), sampling(max_tokens=20)))
    assert (len(found.tokens), found.stop_reason) == (7, "length")


def test_an_empty_prompt_is_refused(gpt_oss):
    with pytest.raises(ValueError, match="empty prompt"):
        run(EmbeddedEngine(gpt_oss).generate([], sampling()))


def test_a_model_with_another_attention_is_refused(gpt_oss_folder):
    model = AutoModelForCausalLM.from_pretrained(gpt_oss_folder, attn_implementation="eager")
    with pytest.raises(ValueError, match=r"'eager'.*lockstep\.model\.loading"):
        EmbeddedEngine(model)


def test_a_router_that_cannot_be_recorded_is_the_users_to_mend(gpt_oss):
    """Not an engine's failure, which would be retried and masked."""
    engine = EmbeddedEngine(gpt_oss, record_routes=True)
    router = gpt_oss.model.layers[1].mlp.router
    forward = router.forward.forward
    router.forward.forward = lambda hidden: forward(hidden) and forward(hidden)
    with pytest.raises(RoutingError, match="layer 1 picked its experts with 2 calls of topk"):
        run(engine.generate([3, 4], sampling()))
