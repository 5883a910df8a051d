"""How the embedded engine draws: the right distribution, from numbers that are a function of the seed and the place."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lockstep.engine.engine import Sampling
from lockstep.engine.sampling import sample_tokens, uniform

UINT64 = st.integers(0, 2**64 - 1)


def request(seed=0, temperature=1.0, num_sampled=0):
    sampling = Sampling(temperature=temperature, max_tokens=99, stop_token_ids=(), seed=seed)
    return SimpleNamespace(sampling=sampling, tokens=[0] * num_sampled)


def draw(logits, requests):
    """Tokens and log-probs for rows that all have the same logits."""
    return sample_tokens(logits.repeat(len(requests), 1), requests)


def numbers(seeds, counters):
    return uniform(np.array(seeds, dtype=np.uint64), np.array(counters, dtype=np.uint64))


def test_uniform_is_splitmix64():
    """The published first outputs of SplitMix64 seeded with 1234567, top 53 bits."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert numbers([1234567] * 5, range(5)).tolist() == [(z >> 11) * 2.0**-53 for z in published]


@given(st.lists(st.tuples(UINT64, st.integers(0, 2**32)), min_size=1))
def test_uniform_stays_in_range_and_depends_on_its_own_row_alone(pairs):
    drawn = numbers(*zip(*pairs, strict=True))
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert drawn.tolist() == [numbers([seed], [counter]).item() for seed, counter in pairs]


@pytest.mark.parametrize("vary", ["seed", "place"])
def test_uniform_numbers_are_spread_evenly(vary):
    """100 cells of 20000 draws: chi-square of 99 degrees of freedom exceeds 148 once in a thousand times."""
    many, one = np.arange(20000), np.full(20000, 42)
    drawn = numbers(many, one) if vary == "seed" else numbers(one, many)
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 148


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_tokens_come_with_their_softmax_frequencies(temperature):
    """chi-square of 8 degrees of freedom exceeds 26.1 once in a thousand times."""
    logits = torch.tensor([0.0, 2.0, -3.0, 1.0, -1000.0, 0.5, -1.0, 3.0, 0.0, 1.5])
    tokens, logprobs = draw(logits, [request(seed, temperature) for seed in range(20000)])
    expected = torch.softmax(logits / temperature, -1)
    counts = torch.bincount(torch.tensor(tokens), minlength=10)
    assert counts[4] == 0
    possible = expected > 0
    assert ((counts - 20000 * expected)[possible] ** 2 / (20000 * expected[possible])).sum() < 26.1
    assert (torch.tensor(logprobs).exp() - expected[tokens]).abs().max() <= 1e-6


def test_greedy_takes_the_likeliest_and_reports_temperature_one():
    logits = torch.tensor([0.0, 2.0, 1.0])
    tokens, logprobs = draw(logits, [request(seed, 0.0) for seed in range(50)])
    assert set(tokens) == {1}
    assert logprobs == pytest.approx([torch.log_softmax(logits, -1)[1].item()] * 50, abs=1e-6)


def test_rows_of_a_batch_keep_their_own_temperature_seed_and_place():
    logits = torch.linspace(-1, 1, 50)
    requests = [
        request(seed, temperature, place) for seed in range(5) for temperature in (0.0, 0.5, 1.0) for place in range(4)
    ]
    together = draw(logits, requests)
    alone = [draw(logits, [one]) for one in requests]
    assert together[0] == [tokens[0] for tokens, _ in alone]
    assert together[1] == pytest.approx([logprobs[0] for _, logprobs in alone], abs=1e-6)
    assert len({together[0][i] for i, one in enumerate(requests) if one.sampling.temperature == 1.0}) > 10


def test_the_extreme_draws_give_possible_tokens(monkeypatch):
    """The smallest and the largest uniform number, with impossible tokens at both ends."""
    logits = torch.tensor([-1000.0, 0.0, 1.0, -1000.0])
    for value, token in ((0.0, 1), (1 - 2.0**-53, 2)):
        monkeypatch.setattr(
            "lockstep.engine.sampling.uniform", lambda seeds, _, value=value: np.full(len(seeds), value)
        )
        assert draw(logits, [request()])[0] == [token]
