"""Engine and trainer in lockstep: the same bits in exact mode, and routes that the trainer can replay."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample, to_samples
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.engine.engine import Sampling
from lockstep.model import experts
from lockstep.model.experts_grouped import decode_experts
from lockstep.model.loading import load_model
from lockstep.model.precision import Precision
from lockstep.model.routing import routers
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import UNKNOWN_ROUTE, Task, Trajectory, Turn


def tokens_of(length, seed):
    return torch.randint(2, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


async def converse(engine, seed, temperature, num_turns=3):
    """A trajectory of random contexts, some fed token by token, some longer than that and prefilled anew."""
    turns, history = [], []
    for number in range(num_turns):
        long = number == 2 and seed % 3 == 0
        context = tokens_of(70 if long else 1 + (7 * seed + 11 * number) % 37, seed * 10 + number)
        history += context
        settings = Sampling(
            temperature=temperature, max_tokens=1 + (5 * seed + number) % 23, stop_token_ids=(), seed=seed * 10 + number
        )
        completion = await engine.generate(history, settings)
        routes = completion.routed_experts
        if routes is not None:
            assert routes.shape[0] == len(history) + len(completion.tokens) - 1
            routes = routes if number == 0 else routes[-(len(context) + len(completion.tokens)) :]
        history += completion.tokens
        turns.append(
            Turn(
                context=tuple(context),
                action=completion.tokens,
                engine_logprobs=completion.logprobs,
                weights_version=0,
                routed_experts=routes,
            )
        )
    return Trajectory(
        id=str(seed),
        task=Task(id="t", messages=()),
        turns=tuple(turns),
        messages=(),
        reward=0.0,
        reward_parts={},
        stop_reason="done",
        events={},
    )


def sampled(engine, num, temperature):
    """Samples of `num` concurrent trajectories."""

    async def all_of_them():
        return await asyncio.gather(*(converse(engine, seed, temperature) for seed in range(num)))

    trajectories = asyncio.run(asyncio.wait_for(all_of_them(), 120))
    return [sample for trajectory in trajectories for sample in to_samples(trajectory)]


def differences(trainer, samples, max_tokens):
    """Trainer - engine of every action token, microbatch by microbatch, and the passes."""
    engine_logprobs = torch.from_numpy(np.concatenate([s.engine_logprobs[s.action_mask] for s in samples]))
    passes = [(m, trainer.logprobs(m)) for m in pack(samples, max_tokens=max_tokens).microbatches]
    found = torch.cat([each.logprobs - engine_logprobs[m.action_place] for m, each in passes])
    return found, [each for _, each in passes]


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 300, 10**6])
@pytest.mark.parametrize(
    ("kind", "dtype", "temperature", "rows"),
    [("gpt_oss", "float32", 1.0, 4), ("gpt_oss", "bfloat16", 0.7, 9), ("qwen3_moe", "float32", 0.7, 9)],
)
def test_exact_engine_and_trainer_agree_in_every_bit(kind, dtype, temperature, rows, max_tokens, replay, exact_samples):
    """Mismatch exactly 0: rows that come and go, cached and prefilled tokens, packed and alone."""
    model, precision, samples = exact_samples(kind, dtype, temperature, rows)
    if not replay:
        samples = [dataclasses.replace(sample, routed_experts=None) for sample in samples]
    found, _ = differences(
        Trainer(model, Optimizer(), temperature=temperature, precision=precision), samples, max_tokens
    )
    assert len(found) > 150
    assert not found.any()


@pytest.fixture(scope="module")
def exact_samples(request):
    """(kind, dtype, temperature, rows) -> the model, its precision and what its exact engine sampled, once for all."""
    known = {}

    def make(kind, dtype, temperature, rows):
        if kind not in known or known[kind][1].dtype != dtype:
            precision = Precision(dtype=dtype, deterministic=True)
            model = load_model(request.getfixturevalue(f"{kind}_folder"), dtype=precision.torch_dtype)
            engine = EmbeddedEngine(model, max_concurrency=rows, precision=precision, record_routes=True)
            known[kind] = model, precision, sampled(engine, 8, temperature)
        return known[kind]

    return make


def test_an_exact_action_is_the_same_bits_in_every_batch(gpt_oss_folder):
    """Alone, and among eight in three rows."""
    model = load_model(gpt_oss_folder)
    options = {"precision": Precision(deterministic=True)}
    together = sampled(EmbeddedEngine(model, max_concurrency=3, **options), 8, 1.0)
    (alone,) = asyncio.run(_one(EmbeddedEngine(model, **options), 5))
    assert alone.tokens.tolist() == together[5].tokens.tolist()
    assert np.array_equal(alone.engine_logprobs, together[5].engine_logprobs)


async def _one(engine, seed):
    return to_samples(await converse(engine, seed, 1.0))


def test_the_default_engine_is_near_but_not_equal(model):
    """Otherwise the test above shows nothing; with the engine's routes no flip of a router can widen the gap."""
    samples = sampled(EmbeddedEngine(model, max_concurrency=4, record_routes=True), 8, 1.0)
    found, passes = differences(Trainer(model, Optimizer()), samples, 300)
    assert 0 < found.abs().max() <= 1e-4
    assert all(each.route_agreement > 0.99 for each in passes)


def test_recorded_routes_are_those_of_each_token(model):
    """Against the trainer's own, for every token but a history's last, through continuations and prefills."""
    samples = sampled(EmbeddedEngine(model, max_concurrency=4, record_routes=True), 8, 1.0)
    trainer = Trainer(model, Optimizer())
    for sample in samples:
        assert (sample.routed_experts[-1] == UNKNOWN_ROUTE).all()
        assert (sample.routed_experts[:-1] != UNKNOWN_ROUTE).all()
        (microbatch,) = pack([dataclasses.replace(sample, routed_experts=None)], max_tokens=10**6).microbatches
        own = trainer.logprobs(microbatch).routes[:-1].sort(-1).values
        assert torch.equal(torch.from_numpy(sample.routed_experts[:-1]).sort(-1).values, own)


def test_routes_of_the_engine_are_used_by_the_trainer(gpt_oss):
    """An engine whose routers are noisy (bfloat16 routers, say): replayed, its choices come back; live, they do not."""
    noise = torch.Generator().manual_seed(0)
    hooks = [
        router.register_forward_pre_hook(lambda m, args: (args[0] + 0.3 * torch.randn(args[0].shape, generator=noise),))
        for router in routers(gpt_oss)
    ]
    samples = sampled(EmbeddedEngine(gpt_oss, max_concurrency=4, record_routes=True), 8, 1.0)
    for hook in hooks:
        hook.remove()
    trainer = Trainer(gpt_oss, Optimizer())
    replayed, passes = differences(trainer, samples, 10**6)
    live, _ = differences(trainer, [dataclasses.replace(s, routed_experts=None) for s in samples], 10**6)
    assert passes[0].route_agreement < 0.95
    assert replayed.abs().mean() < 0.6 * live.abs().mean()


def test_routes_are_recorded_only_when_asked_for(gpt_oss):
    assert all(sample.routed_experts is None for sample in sampled(EmbeddedEngine(gpt_oss), 2, 1.0))


def test_only_ticks_take_the_experts_path_for_few_tokens(gpt_oss, monkeypatch):
    """One call a layer for each token that is fed alone; none in a prefill, a log-prob pass or exact mode."""
    calls = []
    monkeypatch.setattr(
        experts, "decode_experts", lambda *arguments: calls.append(len(arguments[1])) or decode_experts(*arguments)
    )
    settings = Sampling(temperature=1.0, max_tokens=6, stop_token_ids=(), seed=0)
    found = asyncio.run(EmbeddedEngine(gpt_oss).generate([3, 4, 5], settings))
    assert calls == [1] * 5 * len(gpt_oss.model.layers)
    calls.clear()
    asyncio.run(EmbeddedEngine(gpt_oss, precision=Precision(deterministic=True)).generate([3, 4, 5], settings))
    sample = supervised_sample("s", [3, 4, 5, *found.tokens], [False] * 3 + [True] * 6)
    differences(Trainer(gpt_oss, Optimizer()), [sample], 99)
    assert calls == []
