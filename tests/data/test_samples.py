"""Trajectories to samples: nothing is added, dropped or re-ordered; a rewritten history begins a new sample."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.data.samples import supervised_sample, to_samples
from lockstep.types import UNKNOWN_ROUTE, InvariantError, Task, Trajectory, Turn

TASK = Task(id="t", messages=())


def turn(context, action, version=0, restarts=False):
    logprobs = tuple(-0.25 * token for token in action)
    return Turn(
        context=tuple(context),
        action=tuple(action),
        engine_logprobs=logprobs,
        weights_version=version,
        restarts=restarts,
    )


def trajectory(*turns):
    return Trajectory(
        id="7/1",
        task=TASK,
        turns=turns,
        messages=(),
        reward=0.0,
        reward_parts={},
        stop_reason="done",
        events={},
    )


def test_turns_are_joined_and_actions_marked():
    (sample,) = to_samples(trajectory(turn([1, 2], [3], version=4), turn([5], [6, 7], version=3)))
    assert sample.trajectory_id == "7/1"
    assert sample.tokens.tolist() == [1, 2, 3, 5, 6, 7]
    assert sample.action_mask.tolist() == [False, False, True, False, True, True]
    assert sample.engine_logprobs.tolist() == [0, 0, -0.75, 0, -1.5, -1.75]
    assert sample.turn.tolist() == [0, 0, 0, 1, 1, 1]
    assert sample.weights_version == 3
    assert (sample.tokens.dtype, sample.turn.dtype) == (np.int64, np.int64)
    assert (sample.action_mask.dtype, sample.engine_logprobs.dtype) == (np.bool_, np.float32)


def test_a_restart_begins_a_new_sample():
    first, second = to_samples(
        trajectory(
            turn([1], [2]), turn([3], [4]), turn([1, 9], [5], version=1, restarts=True), turn([6], [7], version=2)
        )
    )
    assert first.tokens.tolist() == [1, 2, 3, 4]
    assert second.tokens.tolist() == [1, 9, 5, 6, 7]
    assert first.turn.tolist() == [0, 0, 1, 1]
    assert second.turn.tolist() == [2, 2, 2, 3, 3]
    assert (first.weights_version, second.weights_version) == (0, 1)


def test_a_history_without_an_action_is_no_sample():
    assert to_samples(trajectory()) == []
    assert to_samples(trajectory(turn([1, 2], []))) == []
    (only,) = to_samples(trajectory(turn([1, 2], []), turn([3], [4], restarts=True)))
    assert only.tokens.tolist() == [3, 4]
    assert only.turn.tolist() == [1, 1]  # the first turn counts, though nothing of it is trained on


def test_a_trajectory_that_begins_with_an_action_is_refused():
    with pytest.raises(InvariantError, match="7/1 begins with a sampled token"):
        to_samples(trajectory(turn([], [4])))


TURNS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), min_size=1, max_size=4), st.lists(st.integers(0, 9), max_size=4), st.booleans()
    ),
    max_size=6,
)


@settings(max_examples=50)
@given(TURNS)
def test_every_token_of_a_trained_history_is_kept_in_order(turns):
    turns = [turn(context, action, restarts=restarts) for context, action, restarts in turns]
    samples = to_samples(trajectory(*turns))
    kept = [token for sample in samples for token, m in zip(sample.tokens, sample.action_mask, strict=True) if m]
    assert kept == [token for t in turns for token in t.action]
    assert sum(int(sample.action_mask.sum()) for sample in samples) == trajectory(*turns).num_action_tokens
    for sample in samples:
        assert not sample.action_mask[0]
        assert len(sample.turn) == len(sample.tokens)
        assert np.array_equal(sample.engine_logprobs, np.where(sample.action_mask, -0.25 * sample.tokens, 0.0))
    numbers = [number for sample in samples for number in sample.turn[sample.action_mask]]
    assert numbers == [i for i, t in enumerate(turns) for _ in t.action]
    assert [n for sample in samples for n in sample.turn] == sorted(n for sample in samples for n in sample.turn)


def test_a_demonstration_is_one_turn_and_no_engine_sampled_it():
    sample = supervised_sample("d", (5, 6, 7), (False, True, True))
    assert sample.turn.tolist() == [0, 0, 0]
    assert sample.action_mask.tolist() == [False, True, True]
    assert sample.engine_logprobs.tolist() == [0, 0, 0]


def test_a_turn_whose_log_probs_do_not_align_is_refused():
    with pytest.raises(InvariantError, match="2 action tokens but 1 engine log-probs"):
        Turn(context=(1,), action=(2, 3), engine_logprobs=(-1.0,), weights_version=0)
    with pytest.raises(InvariantError, match="neither context nor action"):
        Turn(context=(), action=(), engine_logprobs=(), weights_version=0)


def routed(context, action, first, restarts=False):
    """A turn whose routes say which token was fed: expert = the token. first: a history begins here."""
    fed = [*context, *action[:-1]] if first is None else [first, *context, *action[:-1]]
    routes = np.array(fed, np.uint8)[:, None, None]
    return dataclasses.replace(turn(context, action, restarts=restarts), routed_experts=routes)


def test_routes_stay_with_their_tokens():
    """An action's last token is fed with the next turn; the history's last never is."""
    one, two = to_samples(
        trajectory(
            routed([1, 2], [3, 4], None),
            routed([5], [6], 4),
            routed([1, 9], [7], None, restarts=True),
            routed([], [8], 7),
        )
    )
    assert one.routed_experts[:, 0, 0].tolist() == [1, 2, 3, 4, 5, UNKNOWN_ROUTE]
    assert two.routed_experts[:, 0, 0].tolist() == [1, 9, 7, UNKNOWN_ROUTE]


def test_routes_that_are_missing_in_some_turn_are_refused():
    with pytest.raises(InvariantError, match="1 of 2 turns have routes, of 2 tokens in all, but the history feeds 4"):
        to_samples(trajectory(routed([1, 2], [3], None), turn([5], [6])))


@pytest.mark.parametrize("num_routes", [0, 2, 6])
def test_a_turn_has_a_route_for_each_token_it_feeds(num_routes):
    with pytest.raises(InvariantError, match=f"turn has 4 tokens but routes of {num_routes}"):
        dataclasses.replace(turn([1, 2], [3, 4]), routed_experts=np.zeros((num_routes, 1, 1), np.uint8))
