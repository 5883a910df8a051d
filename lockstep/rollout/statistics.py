"""Numbers that describe a set of trajectories. docs/metrics.md says what each should be.

Like the algorithm's metrics they leave out what has nothing to be the mean of.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from lockstep.types import Group, Trajectory

FIRST_TURNS = 4  # turns with a row of their own; later ones share one
_MOST_TOOLS = 32
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def trajectory_statistics(trajectories: Sequence[Trajectory], *, success_reward: float) -> dict[str, float]:
    """Means over the trajectories; reward and success over those that are not masked, everything else over all.

    success: the share whose reward is at least success_reward. reward/PART: the parts of the reward. measure/NAME: what
    was measured beside it. events/NAME: mean count a trajectory; events/malformed
    sums the malformed/* kinds. stop/REASON: shares.
    """
    if not trajectories:
        return {}
    graded = [t for t in trajectories if t.error is None]
    events = _events(trajectories)
    events["malformed"] = sum(n for kind, n in events.items() if kind.startswith("malformed/"))
    events.setdefault("tool_calls", 0)
    stops = Counter(t.stop_reason for t in trajectories)
    parts, measures = Counter(), Counter()
    for trajectory in graded:
        parts.update(trajectory.reward_parts)
        measures.update(trajectory.measures)
    count = len(trajectories)
    return {
        **({"reward": _mean([t.reward for t in graded])} if graded else {}),
        **({"success": _mean([t.reward >= success_reward for t in graded])} if graded else {}),
        **{f"reward/{part}": total / len(graded) for part, total in sorted(parts.items())},
        **{f"measure/{name}": total / len(graded) for name, total in sorted(measures.items())},
        "masked": 1 - len(graded) / count,
        "num_turns": _mean([len(t.turns) for t in trajectories]),
        "num_tokens": _mean([t.num_tokens for t in trajectories]),
        "num_action_tokens": _mean([t.num_action_tokens for t in trajectories]),
        **{f"events/{kind}": total / count for kind, total in sorted(events.items())},
        **{f"stop/{reason}": total / count for reason, total in sorted(stops.items())},
    }


def tool_statistics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """tools/NAME/calls: answered calls a trajectory. tools/NAME/errors: the share answered with an error, by the word
    'Error:' that the answer begins with. tools/failed: the share of all calls that failed or timed out in the tool
    itself, by the events; a malformed call is not among them.

    A tool that was never offered is no tool here (it is events/malformed/unknown_tool): its name is the model's own,
    and no metric may be named by a model.
    """
    if not trajectories:
        return {}
    answers = [answer for trajectory in trajectories for answer in _tool_answers(trajectory)]
    calls = Counter(name for name, _ in answers)
    known = {name for name, _ in calls.most_common(_MOST_TOOLS) if _TOOL_NAME.fullmatch(name)}
    calls, errors = Counter(), Counter()
    for name, failed in answers:
        row = name if name in known else "other"
        calls[row] += 1
        errors[row] += failed
    found = {}
    for name, number in sorted(calls.items()):
        found |= {f"tools/{name}/calls": number / len(trajectories), f"tools/{name}/errors": errors[name] / number}
    events = _events(trajectories)
    if events["tool_calls"]:
        found["tools/failed"] = (events["tool/error"] + events["tool/timeout"]) / events["tool_calls"]
    return found


def turn_statistics(trajectories: Sequence[Trajectory], *, max_action_tokens: int | None = None) -> dict[str, float]:
    """turns/T/action_tokens: mean length of the action of turn T (0 to 3, '4+' for the rest); turns/action_tokens of
    all, turns/longest_action the longest. turns/at_limit: the share of actions as long as max_action_tokens, where that
    is given. turns/restarts: the share of turns, each trajectory's first aside, that rewrote their history."""
    turns = [(i, turn) for trajectory in trajectories for i, turn in enumerate(trajectory.turns)]
    if not turns:
        return {}
    lengths = [len(turn.action) for _, turn in turns]
    rows: dict[str, list[int]] = {}
    for (i, _), length in zip(turns, lengths, strict=True):
        rows.setdefault(str(i) if i < FIRST_TURNS else f"{FIRST_TURNS}+", []).append(length)
    found = {f"turns/{row}/action_tokens": _mean(some) for row, some in sorted(rows.items())}
    found |= {"turns/action_tokens": _mean(lengths), "turns/longest_action": float(max(lengths))}
    if max_action_tokens is not None:
        found["turns/at_limit"] = _mean([length >= max_action_tokens for length in lengths])
    later = [turn.restarts for i, turn in turns if i]
    return found | ({"turns/restarts": _mean(later)} if later else {})


def group_statistics(groups: Sequence[Group], *, success_reward: float | None = None) -> dict[str, float]:
    """groups/*: what siblings say of each other, by the rewards of those that are not masked.

    all_equal: the share of groups whose rewards are all the same (or that have no two), which give group-relative
    methods no signal; left out where groups have one trajectory each. With success_reward, all_success and all_failure
    are the parts of it that reach it and do not, and solved is the share with a success at all. reward_std: mean over
    groups of two or more, unbiased as GRPO's. best: mean of the best reward. baseline: mean reward of the greedy
    trajectories. masked_sibling: the share of groups with one that is masked.
    """
    if not groups:
        return {}
    rewards = [[t.reward for t in group.trajectories if t.error is None] for group in groups]
    graded = [each for each in rewards if each]
    baselines = [g.baseline.reward for g in groups if g.baseline is not None and g.baseline.error is None]
    spreads = [_std(each) for each in rewards if len(each) >= 2]
    found = {
        "groups/masked_sibling": _mean([any(t.error is not None for t in group.trajectories) for group in groups]),
    }
    if any(len(group.trajectories) > 1 for group in groups):
        found["groups/all_equal"] = _mean([len(set(each)) <= 1 for each in rewards])
    if success_reward is not None:
        equal = [each[0] for each in graded if len(set(each)) == 1]
        found["groups/all_success"] = sum(reward >= success_reward for reward in equal) / len(groups)
        found["groups/all_failure"] = sum(reward < success_reward for reward in equal) / len(groups)
        found["groups/solved"] = sum(max(each) >= success_reward for each in graded) / len(groups)
    found |= {"groups/reward_std": _mean(spreads)} if spreads else {}
    found |= {"groups/best": _mean([max(each) for each in graded])} if graded else {}
    return found | ({"groups/baseline": _mean(baselines)} if baselines else {})


def _tool_answers(trajectory: Trajectory) -> list[tuple[str, bool]]:
    """(tool, whether it is an error) of every answer by a tool that exists."""
    found = []
    for message in trajectory.messages:
        if message.role == "tool":
            name, failed = (message.name or "").removeprefix("functions."), message.content.startswith("Error: ")
            malformed_action = name == "parser" and failed
            if not malformed_action and not message.content.startswith(f"Error: no tool {name!r};"):
                found.append((name, failed))
    return found


def _events(trajectories: Sequence[Trajectory]) -> Counter[str]:
    events: Counter[str] = Counter()
    for trajectory in trajectories:
        events.update(trajectory.events)
    return events


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    """Unbiased; exactly 0 for equal numbers, whose mean need not be exact."""
    if min(values) == max(values):
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
