"""Numbers that describe a set of trajectories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lockstep.types import Group, Trajectory


def trajectory_statistics(trajectories: Sequence[Trajectory], *, success_reward: float) -> dict[str, float]:
    """Means over the trajectories; reward and success over those that are not masked, everything else over all.

    success: the share whose reward is at least success_reward. events/NAME: mean count a trajectory; events/malformed
    sums the malformed/* kinds. stop/REASON: shares.
    """
    graded = [t for t in trajectories if t.error is None]
    events: Counter[str] = Counter()
    for trajectory in trajectories:
        events.update(trajectory.events)
    events["malformed"] = sum(n for kind, n in events.items() if kind.startswith("malformed/"))
    events.setdefault("tool_calls", 0)
    stops = Counter(t.stop_reason for t in trajectories)
    parts = Counter()
    for trajectory in graded:
        parts.update(trajectory.reward_parts)
    count = len(trajectories)
    return {
        **({"reward": sum(t.reward for t in graded) / len(graded)} if graded else {}),
        **({"success": sum(t.reward >= success_reward for t in graded) / len(graded)} if graded else {}),
        **{f"reward/{part}": total / len(graded) for part, total in sorted(parts.items())},
        "masked": 1 - len(graded) / count,
        "num_turns": sum(len(t.turns) for t in trajectories) / count,
        "num_tokens": sum(t.num_tokens for t in trajectories) / count,
        "num_action_tokens": sum(t.num_action_tokens for t in trajectories) / count,
        **{f"events/{kind}": total / count for kind, total in sorted(events.items())},
        **{f"stop/{reason}": total / count for reason, total in sorted(stops.items())},
    }


def group_statistics(groups: Sequence[Group]) -> dict[str, float]:
    """groups/all_equal: the share of groups whose rewards are all the same, which give group-relative methods no
    signal."""
    equal = [len({t.reward for t in group.trajectories if t.error is None}) <= 1 for group in groups]
    return {"groups/all_equal": sum(equal) / len(equal)}
