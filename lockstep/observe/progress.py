"""What a display knows of one phase of a run: how far it is, how long it took, and its latest metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

_ETA_UPDATES = 30


class Progress:
    """One phase. Times are seconds of any monotonic clock; the caller reads it, so that tests need not wait."""

    def __init__(self, name: str, total_steps: int, now_s: float, metrics: Mapping[str, float]) -> None:
        self.name = name
        self.total_steps = total_steps
        self.step = 0
        self.metrics = dict(metrics)
        self.history: dict[str, dict[int, float]] = {}
        self._started_s = now_s
        self._times: deque[tuple[int, float]] = deque(maxlen=_ETA_UPDATES)

    def update(self, step: int, metrics: Mapping[str, float], now_s: float) -> None:
        """Take in a step's metrics; those not given keep their last value. `step` counts the phase's finished steps."""
        if not self._times:
            # A resumed phase starts in the middle: its first update is one step after where it began.
            self._times.append((max(0, step - 1), self._started_s))
        if step > self._times[-1][0]:
            self._times.append((step, now_s))
        else:
            # Evaluations before a step and between two: their time is no step's, so the estimate leaves them out.
            late_s = now_s - self._times[-1][1]
            self._times = deque(((at, time_s + late_s) for at, time_s in self._times), maxlen=_ETA_UPDATES)
        self.step = step
        self.metrics.update(metrics)
        for key, value in metrics.items():
            self.history.setdefault(key, {})[step] = value

    def elapsed_s(self, now_s: float) -> float:
        return now_s - self._started_s

    def remaining_s(self, now_s: float) -> float | None:
        """The mean of the last steps' times, for the steps that are left, less what has passed; None before a step."""
        if len(self._times) < 2:
            return None
        (first, first_s), (last, last_s) = self._times[0], self._times[-1]
        step_s = (last_s - first_s) / (last - first)
        return max(0.0, (self.total_steps - last) * step_s - (now_s - last_s))

    def headline(self) -> str | None:
        """The metric whose curve tells most of this phase."""
        return next((key for key in ("reward", "success", "loss") if key in self.history), None)

    def held_out(self) -> dict[str, float]:
        """Held-out numbers: what outlives the phase."""
        return {key: value for key, value in self.metrics.items() if key.startswith("eval/")}


def malformed_share(metrics: Mapping[str, float]) -> float | None:
    """What is malformed, actions and calls, as a part of all actions, or of all calls where an action has several; None
    where a count is missing."""
    if not {"events/malformed", "events/tool_calls", "num_turns"} <= metrics.keys():
        return None
    malformed = metrics["events/malformed"]
    tries = max(metrics["num_turns"], metrics["events/tool_calls"], malformed)
    return malformed / tries if tries else 0.0
