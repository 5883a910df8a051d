"""Packing: every token once, aligned, balanced, without padding; and the loss does not know how it was packed."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.algorithm.aggregation import token_weights
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.tokens import ActionTokens
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import InvariantError, Sample


@st.composite
def samples_of(draw, max_samples=12, max_length=20):
    """Samples whose tokens are all different, so that each can be found again."""
    lengths = draw(st.lists(st.integers(1, max_length), max_size=max_samples))
    samples, first = [], 0
    for i, length in enumerate(lengths):
        mask = np.array([False, *draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))])
        tokens = np.arange(first, first + length)
        first += length
        samples.append(
            Sample(
                trajectory_id=f"s{i}",
                tokens=tokens,
                action_mask=mask,
                engine_logprobs=np.where(mask, -0.5 * tokens, 0).astype(np.float32),
                turn=tokens,
                weights_version=0,
                routed_experts=(tokens[:, None, None] % 256).astype(np.uint8).repeat(2, axis=1),
            )
        )
    return samples


def actions_of(samples):
    """What is known of all the samples' action tokens, one after the other: where places point."""

    def joined(arrays):
        return torch.from_numpy(np.concatenate([np.zeros(0), *arrays]))

    masks = [sample.action_mask for sample in samples]
    return {
        "token": joined(sample.tokens[mask] for sample, mask in zip(samples, masks, strict=True)),
        "engine_logprobs": joined(sample.engine_logprobs[mask] for sample, mask in zip(samples, masks, strict=True)),
        "turn": joined(sample.turn[mask] for sample, mask in zip(samples, masks, strict=True)),
        "sample": joined(np.full(mask.sum(), i) for i, mask in enumerate(masks)).long(),
    }


@settings(max_examples=60)
@given(samples_of(), st.integers(1, 60))
def test_every_token_is_packed_once_and_everything_aligned_with_it(samples, max_tokens):
    batch = pack(samples, max_tokens=max_tokens)
    by_id = {sample.trajectory_id: sample for sample in samples}
    known, places = actions_of(samples), []
    found = []
    for m in batch.microbatches:
        cuts = m.cu_seqlens.tolist()
        assert (m.cu_seqlens.dtype, cuts[0], cuts[-1]) == (torch.int32, 0, len(m.tokens))
        assert len(cuts) == len(m.sample_ids) + 1
        for name, start, stop in zip(m.sample_ids, cuts[:-1], cuts[1:], strict=True):
            found.append(name)
            assert m.tokens[start:stop].tolist() == by_id[name].tokens.tolist()
            assert m.positions[start:stop].tolist() == list(range(stop - start))
            assert np.array_equal(m.routed_experts[start:stop].numpy(), by_id[name].routed_experts)
        actions = m.tokens[m.action_index]
        assert known["token"][m.action_place].tolist() == actions.tolist()
        assert known["engine_logprobs"][m.action_place].tolist() == (-0.5 * actions).tolist()
        assert known["turn"][m.action_place].tolist() == actions.tolist()
        owners = [samples[i].trajectory_id for i in known["sample"][m.action_place].tolist()]
        assert all(token in by_id[name].tokens for token, name in zip(actions.tolist(), owners, strict=True))
        places += m.action_place.tolist()
        assert set(actions.tolist()) == {
            t for name in m.sample_ids for t in by_id[name].tokens[by_id[name].action_mask]
        }
        assert len(m.tokens) <= max_tokens or len(m.sample_ids) == 1
    assert sorted(found) == sorted(by_id)
    assert sorted(places) == list(range(batch.num_action_tokens))
    assert batch.num_sequences == len(samples)
    assert batch.num_tokens == sum(len(sample.tokens) for sample in samples)
    assert batch.num_action_tokens == sum(int(sample.action_mask.sum()) for sample in samples)


@settings(max_examples=60)
@given(samples_of(), st.integers(1, 60), st.integers(1, 4), st.randoms(use_true_random=False))
def test_minibatches_have_the_places_of_the_whole_step(samples, max_tokens, num_parts, random):
    """Dealt into parts in any order: each token once, at the place where it stands among all samples' tokens."""
    order = list(range(len(samples)))
    random.shuffle(order)
    known, places = actions_of(samples), []
    for part in (order[i::num_parts] for i in range(num_parts)):
        batch = pack(samples, max_tokens=max_tokens, chosen=part)
        own = [samples[i] for i in part]
        alone = pack(own, max_tokens=max_tokens)
        for m, expected in zip(batch.microbatches, alone.microbatches, strict=True):
            assert torch.equal(m.tokens, expected.tokens)  # cut and ordered as if there were no others
            assert m.sample_ids == expected.sample_ids
            assert known["token"][m.action_place].tolist() == m.tokens[m.action_index].tolist()
            places += m.action_place.tolist()
        ids = [name for m in batch.microbatches for name in m.sample_ids]
        assert sorted(ids) == sorted(sample.trajectory_id for sample in own)
        assert all(len(m.tokens) <= max_tokens or len(m.sample_ids) == 1 for m in batch.microbatches)
        assert batch.num_sequences == len(own)
        assert batch.num_tokens == sum(len(sample.tokens) for sample in own)
        assert batch.num_action_tokens == sum(int(sample.action_mask.sum()) for sample in own)
    assert sorted(places) == list(range(len(known["token"])))


def test_places_golden():
    """Action tokens 1, 2 | 4 | 6, 7 of three samples have the places 0..4; the last two samples are chosen."""
    masks = [[False, True, True], [False, True], [False, True, True]]
    samples = [
        supervised_sample(f"s{i}", tokens, mask)
        for i, (tokens, mask) in enumerate(zip(([0, 1, 2], [3, 4], [5, 6, 7]), masks, strict=True))
    ]
    (both,) = pack(samples, max_tokens=9, chosen=[2, 1]).microbatches
    assert both.sample_ids == ("s2", "s1")
    assert both.tokens[both.action_index].tolist() == [6, 7, 4]
    assert both.action_place.tolist() == [3, 4, 2]
    assert both.action_place.dtype == torch.int64
    assert pack(samples, max_tokens=9, chosen=[]).microbatches == []


def test_samples_that_are_not_chosen_must_align_too():
    """Places are counted over their masks."""
    right, wrong = supervised_sample("a", [1, 2], [False, True]), supervised_sample("b", [1, 2], [True, True])
    with pytest.raises(InvariantError, match="sample b: the first token cannot be an action"):
        pack([wrong, right], max_tokens=9, chosen=[1])


@settings(max_examples=60)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(100, 300))
def test_microbatches_are_balanced(lengths, max_tokens):
    """The fullest and the emptiest differ by at most the longest sample, and there are at most twice too many."""
    samples = [supervised_sample(f"s{i}", [0] * n, [False] * n) for i, n in enumerate(lengths)]
    sizes = [len(m.tokens) for m in pack(samples, max_tokens=max_tokens).microbatches]
    assert max(sizes) - min(sizes) <= max(lengths)
    assert len(sizes) <= 2 * -(-sum(lengths) // max_tokens)


def test_golden_packing():
    samples = [supervised_sample(f"s{n}", [n] * n, [False] * n) for n in (3, 9, 4, 7, 1)]
    found = pack(samples, max_tokens=13).microbatches
    assert [m.sample_ids for m in found] == [("s3", "s9"), ("s4", "s7", "s1")]
    assert pack([], max_tokens=13).microbatches == []
    tight = pack(samples, max_tokens=8).microbatches  # s9 is longer and stands alone
    assert [m.sample_ids for m in tight] == [("s9",), ("s7", "s1"), ("s3", "s4")]


def test_all_samples_have_routes_or_none():
    with_routes = supervised_sample("a", [1, 2], [False, True])
    with_routes = dataclasses.replace(with_routes, routed_experts=np.zeros((2, 1, 1), np.uint8))
    (both,) = pack([with_routes, with_routes], max_tokens=9).microbatches
    assert both.routed_experts.shape == (4, 1, 1)
    without = supervised_sample("b", [1], [False])
    assert pack([without], max_tokens=9).microbatches[0].routed_experts is None
    with pytest.raises(InvariantError, match="1 of 2 samples have expert routes"):
        pack([with_routes, without], max_tokens=9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"action_mask": np.array([False, True])}, "do not align"),
        ({"engine_logprobs": np.zeros(4, np.float32)}, "do not align"),
        ({"turn": np.zeros(2, np.int64)}, "do not align"),
        ({"routed_experts": np.zeros((2, 1, 1), np.uint8)}, "do not align"),
        ({"action_mask": np.array([True, False, True])}, "first token cannot be an action"),
        (
            {name: np.zeros(0, bool) for name in ("tokens", "action_mask", "engine_logprobs", "turn")},
            "first token cannot be an action",
        ),
    ],
)
def test_a_sample_that_does_not_align_stops_the_run(change, words):
    sample = dataclasses.replace(supervised_sample("7/3", [1, 2, 3], [False, True, True]), **change)
    with pytest.raises(InvariantError, match=f"sample 7/3: .*{words}"):
        pack([sample], max_tokens=9)


def policy_gradient(model, samples, advantages, max_tokens):
    """Loss and every gradient of one step on the samples, summed over their microbatches. advantages: by sample id."""
    batch = pack(samples, max_tokens=max_tokens)
    trainer, algorithm = Trainer(model, Optimizer()), Algorithm()
    known = actions_of(samples)
    tokens = ActionTokens(
        engine_logprobs=known["engine_logprobs"].float(),
        old_logprobs=known["engine_logprobs"].float(),
        advantages=torch.tensor([advantages[s.trajectory_id] for s in samples], dtype=torch.float32)[known["sample"]],
        sequence=known["sample"],
        trajectory=known["sample"],
        turn=known["turn"].long(),
        num_sequences=len(samples),
        num_trajectories=len(samples),
        loss_weights=token_weights(algorithm.aggregation, known["sample"], len(samples)),
    )

    def loss(outputs, m):
        own = dataclasses.replace(tokens.at(m.action_place), old_logprobs=outputs.logprobs.detach())
        return algorithm.token_losses(outputs.logprobs, outputs.entropies, own, None).sum()

    total = sum(trainer.forward_backward(m, loss).loss.item() for m in batch.microbatches)
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return total, grads, len(batch.microbatches)


@pytest.mark.parametrize("max_tokens", [1, 70, 130, 1000])
def test_loss_and_gradients_do_not_depend_on_the_packing(model, max_tokens):
    generator = np.random.default_rng(0)
    samples, advantages = [], {}
    for i, length in enumerate((5, 60, 33, 18, 90, 41, 2)):
        mask = generator.random(length) < 0.5
        mask[0], mask[-1] = False, True
        logprobs = np.where(mask, -4 * generator.random(length), 0).astype(np.float32)
        tokens = generator.integers(2, 97, length)
        advantages[f"s{i}"] = generator.normal()
        samples.append(supervised_sample(f"s{i}", tokens, mask, logprobs))
    loss, grads, count = policy_gradient(model, samples, advantages, 400)
    again, others, other_count = policy_gradient(model, samples[::-1], advantages, max_tokens)
    assert count == 1
    assert other_count == {1: 7, 70: 4, 130: 2, 1000: 1}[max_tokens]
    assert abs(loss - again) <= 1e-5
    assert max((grads[name] - others[name]).abs().max().item() for name in grads) <= 1e-5
