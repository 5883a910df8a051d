"""Packing: every token once, aligned, balanced, without padding; and the loss does not know how it was packed."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.algorithm.algorithm import GRPO
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
                advantages=np.where(mask, 0.25 * tokens, 0).astype(np.float32),
                weights_version=0,
                routed_experts=(tokens[:, None, None] % 256).astype(np.uint8).repeat(2, axis=1),
            )
        )
    return samples


@settings(max_examples=60)
@given(samples_of(), st.integers(1, 60))
def test_every_token_is_packed_once_and_everything_aligned_with_it(samples, max_tokens):
    batch = pack(samples, max_tokens=max_tokens)
    by_id = {sample.trajectory_id: sample for sample in samples}
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
        assert m.advantages.tolist() == (0.25 * actions).tolist()
        assert m.engine_logprobs.tolist() == (-0.5 * actions).tolist()
        owners = [m.sample_ids[i] for i in m.action_sample.tolist()]
        assert all(token in by_id[name].tokens for token, name in zip(actions.tolist(), owners, strict=True))
        assert set(actions.tolist()) == {
            t for name in m.sample_ids for t in by_id[name].tokens[by_id[name].action_mask]
        }
        assert len(m.tokens) <= max_tokens or len(m.sample_ids) == 1
    assert sorted(found) == sorted(by_id)
    assert batch.num_sequences == len(samples)
    assert batch.num_tokens == sum(len(sample.tokens) for sample in samples)
    assert batch.num_action_tokens == sum(int(sample.action_mask.sum()) for sample in samples)


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
        ({"advantages": np.zeros(2, np.float32)}, "do not align"),
        ({"routed_experts": np.zeros((2, 1, 1), np.uint8)}, "do not align"),
        ({"action_mask": np.array([True, False, True])}, "first token cannot be an action"),
        (
            {name: np.zeros(0, bool) for name in ("tokens", "action_mask", "engine_logprobs", "advantages")},
            "first token cannot be an action",
        ),
    ],
)
def test_a_sample_that_does_not_align_stops_the_run(change, words):
    sample = dataclasses.replace(supervised_sample("7/3", [1, 2, 3], [False, True, True]), **change)
    with pytest.raises(InvariantError, match=f"sample 7/3: .*{words}"):
        pack([sample], max_tokens=9)


def policy_gradient(model, samples, max_tokens):
    """Loss and every gradient of one step on the samples, summed over their microbatches."""
    batch = pack(samples, max_tokens=max_tokens)
    trainer, algorithm = Trainer(model, Optimizer()), GRPO()

    def loss(logprobs, m):
        return algorithm.loss(logprobs, None, m.engine_logprobs, m.advantages, denominator=batch.num_action_tokens)

    total = sum(trainer.forward_backward(m, loss).loss.item() for m in batch.microbatches)
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return total, grads, len(batch.microbatches)


@pytest.mark.parametrize("max_tokens", [1, 70, 130, 1000])
def test_loss_and_gradients_do_not_depend_on_the_packing(model, max_tokens):
    generator = np.random.default_rng(0)
    samples = []
    for i, length in enumerate((5, 60, 33, 18, 90, 41, 2)):
        mask = generator.random(length) < 0.5
        mask[0], mask[-1] = False, True
        logprobs = np.where(mask, -4 * generator.random(length), 0).astype(np.float32)
        tokens = generator.integers(2, 97, length)
        samples.append(supervised_sample(f"s{i}", tokens, mask, generator.normal(), logprobs))
    loss, grads, count = policy_gradient(model, samples, 400)
    again, others, other_count = policy_gradient(model, samples[::-1], max_tokens)
    assert count == 1
    assert other_count == {1: 7, 70: 4, 130: 2, 1000: 1}[max_tokens]
    assert abs(loss - again) <= 1e-5
    assert max((grads[name] - others[name]).abs().max().item() for name in grads) <= 1e-5
