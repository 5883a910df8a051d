"""Alarms: which metrics say that a run goes wrong, and when to stop it. In: metrics by name. Out: what is raised.

Nothing is remembered here. What an alarm compares with (a first value, a running median, how long it has lasted) is
read from the metrics of the steps before, as they were recorded, so that a resumed run raises what an uninterrupted one
does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Action = Literal["warn", "stop"]
Reference = Literal["first", "median"]

MEDIAN_STEPS = 100  # how far back a running median looks
MEDIAN_WARM_UP = 10  # values it needs; before, an alarm that compares with it is silent

Metrics = Mapping[str, float]
Record = Mapping[str, float | str]
"""A step's metrics, or a line of metrics.jsonl as `read_metrics` gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Raised while `metric` is above `above` or below `below`, at least `patience` steps in a row.

    times: the bounds are multiples of the metric's first value in the run, or of the median of its last values;
    None: they are values. advice: what to do, the end of the message.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    action: Action = "warn"
    patience: int = 1
    times: Reference | None = None
    advice: str = "look at docs/metrics.md"

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ValueError(f"alarm on {self.metric!r}: no bound is given; give above, below or both")
        if self.patience < 1:
            raise ValueError(f"alarm on {self.metric!r}: patience={self.patience}: must be at least 1; 1 is at once")
        if self.action not in ("warn", "stop"):
            raise ValueError(f"alarm on {self.metric!r}: action={self.action!r}: must be 'warn' or 'stop'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An alarm that went off. threshold: the bound that value crossed, None where value is not finite. message: one
    line."""

    metric: str
    value: float
    threshold: float | None
    action: Action
    message: str


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """When to warn and when to stop. None turns an alarm off; docs/metrics.md explains the metrics."""

    not_finite: Action | None = "stop"
    """What a NaN or an infinity in any metric does: it seldom goes away, and every later step is lost."""
    patience: int = 3
    """Steps in a row that a metric must be beyond a threshold before the run stops, or before its entropy, its routes
    or its groups are warned of: one odd batch is no collapse. Other warnings come at once."""
    mismatch_kl_warn: float | None = 0.002
    """KL between engine and trainer (mismatch/kl). 0.002 is the gate that others set for GPT-OSS-20B; sampling weights
    that lag (rollout.max_lag) add their own, so raise it there."""
    mismatch_kl_stop: float | None = 0.1
    """The same KL, beyond which importance weights no longer repair the gradient."""
    mismatch_ess: float | None = 0.5
    """Lowest effective sample size of the untruncated token weights, as a share (mismatch/ess_token): below it a few
    tokens would carry the step."""
    rejected_tokens: float | None = 0.5
    """Highest share of tokens that the correction may reject (correction/rejected_tokens): beyond it most of the
    rollout is thrown away."""
    routes_agreement: float | None = 0.8
    """Lowest share of the engine's expert choices that the trainer's routers make too (routes/agreement); about 0.9 is
    usual between two engines."""
    update_kl_warn: float | None = 0.05
    """KL from the policy before the step's first update to that of its last one (update/kl); 0.01 to 0.02 is a usual
    target."""
    update_kl_stop: float | None = 0.5
    """The same KL, beyond which the policy has been replaced rather than improved."""
    ratio: float | None = 100.0
    """Highest importance ratio of a token, and one over the lowest (ratio/max, ratio/min)."""
    clip_fraction: float | None = 0.4
    """Highest share of tokens whose gradient the loss may clip (clip_fraction)."""
    grad_norm: float | None = 100.0
    """Highest gradient norm before clipping (grad_norm)."""
    grad_norm_jump: float | None = 10.0
    """Highest gradient norm as a multiple of the median of the last 100 steps; silent in the first 10."""
    entropy_low: float | None = 0.05
    """Lowest entropy, as a share of the run's first: below it the policy has collapsed and explores nothing. A run that
    learns to be sure falls too (Ledger, healthy: to 0.07)."""
    entropy_high: float | None = 4.0
    """Highest entropy, as a multiple of the run's first: beyond it the policy dissolves into noise."""
    all_equal: float | None = 0.95
    """Highest share of groups without a difference in reward (groups/all_equal): beyond it there is next to nothing to
    learn from."""
    masked: float | None = 0.2
    """Highest share of trajectories that an environment's or the engine's failure may mask (masked)."""

    def __post_init__(self) -> None:
        if self.not_finite not in (None, "warn", "stop"):
            raise ValueError(f"not_finite={self.not_finite!r}: must be 'warn', 'stop' or None")
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be at least 1; 3 is usual")
        for name, low, high, usual in _RANGES:
            value = getattr(self, name)
            if value is not None and not low < value < high:
                end = "" if high == math.inf else f" and below {high:g}"
                raise ValueError(f"{name}={value}: must be above {low:g}{end}; {usual:g} is usual, None turns it off")
        for name in ("mismatch_kl", "update_kl"):
            warn, stop = getattr(self, f"{name}_warn"), getattr(self, f"{name}_stop")
            if warn is not None and stop is not None and warn > stop:
                raise ValueError(
                    f"{name}_warn={warn}: must not be above {name}_stop={stop}; lower it or raise the other"
                )

    def alarms(self) -> tuple[Alarm, ...]:
        """The alarms that are on, but for not_finite, which is on every metric."""
        return tuple(a for a in (*_mismatch(self), *_updates(self), *_policy(self), *_rollouts(self)) if a is not None)


_RANGES = (  # option, above, below, usual
    ("mismatch_kl_warn", 0, math.inf, 0.002),
    ("mismatch_kl_stop", 0, math.inf, 0.1),
    ("mismatch_ess", 0, 1, 0.5),
    ("rejected_tokens", 0, 1, 0.5),
    ("routes_agreement", 0, 1, 0.8),
    ("update_kl_warn", 0, math.inf, 0.05),
    ("update_kl_stop", 0, math.inf, 0.5),
    ("ratio", 1, math.inf, 100),
    ("clip_fraction", 0, 1, 0.4),
    ("grad_norm", 0, math.inf, 100),
    ("grad_norm_jump", 1, math.inf, 10),
    ("entropy_low", 0, 1, 0.05),
    ("entropy_high", 1, math.inf, 4),
    ("all_equal", 0, 1, 0.95),
    ("masked", 0, 1, 0.2),
)


def check(alarms: Alarms, history: Sequence[Record], metrics: Metrics) -> list[Raised]:
    """What a step's metrics raise, those that stop first. history: the RL steps before it, oldest first.

    A warning that lasts is raised again only when it has lasted twice as long; a stop at every step. A step without a
    metric, or with one that is not finite, is no step of that metric's.
    """
    return check_each(alarms.alarms(), history, metrics, not_finite=alarms.not_finite)


def check_each(
    alarms: Sequence[Alarm], history: Sequence[Record], metrics: Metrics, *, not_finite: Action | None
) -> list[Raised]:
    """The same for alarms of one's own."""
    raised = [] if not_finite is None else _not_finite(metrics, not_finite)
    for alarm in alarms:
        if math.isfinite(metrics.get(alarm.metric, math.nan)):
            values = _values((*history, metrics), alarm.metric)
            lasted = _steps_beyond(alarm, values)
            if lasted and _is_due(alarm, lasted):
                raised.append(_raise(alarm, values, lasted))
    return sorted(raised, key=lambda each: each.action != "stop")


def worst(scores: Mapping[str, float], count: int = 8) -> tuple[str, ...]:
    """The ids with the highest scores, worst first: NaN before all, equal ones by id."""
    return tuple(sorted(scores, key=lambda id_: (not math.isnan(scores[id_]), _descending(scores[id_]), id_))[:count])


def _mismatch(on: Alarms) -> tuple[Alarm | None, ...]:
    kl = "look at turns/*/kl and routes/agreement, then at precision and replay_routes; with a lag, lower max_lag"
    return (
        _alarm("mismatch/kl", above=on.mismatch_kl_warn, advice=kl),
        _alarm("mismatch/kl", above=on.mismatch_kl_stop, action="stop", patience=on.patience, advice=kl),
        _alarm(
            "mismatch/ess_token",
            below=on.mismatch_ess,
            advice="few tokens carry the weights: look at mismatch/weight_max and truncate or reject in the correction",
        ),
        _alarm(
            "correction/rejected_tokens",
            above=on.rejected_tokens,
            advice="the correction throws most of the rollout away: lower the mismatch or widen its bounds",
        ),
        _alarm(
            "routes/agreement",
            below=on.routes_agreement,
            patience=on.patience,
            advice="engine and trainer route apart: keep replay_routes on, freeze '*.router.*', check the precision",
        ),
    )


def _updates(on: Alarms) -> tuple[Alarm | None, ...]:
    far = "the step moves the policy too far: lower optimizer.learning_rate or the number of updates a batch"
    return (
        _alarm("update/kl", above=on.update_kl_warn, advice=far),
        _alarm("update/kl", above=on.update_kl_stop, action="stop", patience=on.patience, advice=far),
        _alarm("ratio/max", above=on.ratio, advice=far),
        _alarm("ratio/min", below=None if on.ratio is None else 1 / on.ratio, advice=far),
        _alarm("clip_fraction", above=on.clip_fraction, advice=far),
        _alarm(
            "grad_norm",
            above=on.grad_norm,
            advice="it is clipped to optimizer.gradient_clip, but look for one long or badly matched trajectory",
        ),
        _alarm(
            "grad_norm",
            above=on.grad_norm_jump,
            times="median",
            advice="a spike: look at advantages/max, mismatch/max_abs and the step's worst trajectories",
        ),
    )


def _policy(on: Alarms) -> tuple[Alarm | None, ...]:
    return (
        _alarm(
            "entropy",
            below=on.entropy_low,
            times="first",
            patience=on.patience,
            advice="the policy collapses: raise the loss's upper clip, add a reference KL, or stop if success is high",
        ),
        _alarm(
            "entropy",
            above=on.entropy_high,
            times="first",
            patience=on.patience,
            advice="the policy dissolves: read its trajectories, lower optimizer.learning_rate, go back a checkpoint",
        ),
    )


def _rollouts(on: Alarms) -> tuple[Alarm | None, ...]:
    return (
        _alarm(
            "groups/all_equal",
            above=on.all_equal,
            patience=on.patience,
            advice="tasks are too easy (groups/all_success) or too hard (groups/all_failure): change or filter them",
        ),
        _alarm(
            "masked",
            above=on.masked,
            advice="environments or the engine fail: read `error` of the recorded trajectories; stop/* says which",
        ),
    )


def _alarm(
    metric: str,
    *,
    above: float | None = None,
    below: float | None = None,
    action: Action = "warn",
    patience: int = 1,
    times: Reference | None = None,
    advice: str,
) -> Alarm | None:
    """None for one that is turned off."""
    if above is None and below is None:
        return None
    return Alarm(metric=metric, above=above, below=below, action=action, patience=patience, times=times, advice=advice)


def _values(records: Sequence[Record], metric: str) -> list[float]:
    """Only finite ones: a record on disk keeps no others, and a resumed run must see the same."""
    found = [record.get(metric) for record in records]
    return [value for value in found if isinstance(value, float | int) and math.isfinite(value)]


def _scale(alarm: Alarm, values: Sequence[float], at: int) -> float | None:
    """What the bounds of values[at] are multiples of; None where there is too little to say."""
    if alarm.times is None:
        return 1.0
    if alarm.times == "first":
        return values[0] if values[0] > 0 else None
    if at < MEDIAN_WARM_UP:
        return None
    median = statistics.median(values[max(0, at - MEDIAN_STEPS) : at])
    return median if median > 0 else None


def _crossed(alarm: Alarm, values: Sequence[float], at: int) -> float | None:
    """The bound that values[at] is beyond."""
    scale = _scale(alarm, values, at)
    if scale is None:
        return None
    if alarm.above is not None and values[at] > alarm.above * scale:
        return alarm.above * scale
    if alarm.below is not None and values[at] < alarm.below * scale:
        return alarm.below * scale
    return None


def _steps_beyond(alarm: Alarm, values: Sequence[float]) -> int:
    """How many of the last values in a row were beyond a bound, each judged by what was known at its own step."""
    lasted = 0
    while lasted < len(values) and _crossed(alarm, values, len(values) - 1 - lasted) is not None:
        lasted += 1
    return lasted


def _is_due(alarm: Alarm, lasted: int) -> bool:
    periods, rest = divmod(lasted, alarm.patience)
    if alarm.action == "stop":
        return periods >= 1
    return rest == 0 and periods.bit_count() == 1


def _raise(alarm: Alarm, values: Sequence[float], lasted: int) -> Raised:
    value, last = values[-1], len(values) - 1
    threshold, scale = _crossed(alarm, values, last), _scale(alarm, values, last)
    assert threshold is not None and scale is not None
    side = "above" if value > threshold else "below"
    bound = f"{threshold:.4g}"
    if alarm.times is not None:
        factor = alarm.above if side == "above" else alarm.below
        of = "its first value" if alarm.times == "first" else "its running median"
        bound += f" ({factor:g} times {of}, {scale:.4g})"
    steps = f", {lasted} steps in a row" if lasted > 1 else ""
    return Raised(
        metric=alarm.metric,
        value=value,
        threshold=threshold,
        action=alarm.action,
        message=f"{alarm.metric} is {value:.4g}, {side} {bound}{steps}: {alarm.advice}",
    )


def _not_finite(metrics: Metrics, action: Action) -> list[Raised]:
    """One for all of them: where one is lost, most are."""
    lost = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if not lost:
        return []
    first = next(iter(lost))
    named = ", ".join(f"{name}={value}" for name, value in list(lost.items())[:4])
    more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
    message = (
        f"not finite: {named}{more}: go back to the last checkpoint with a lower optimizer.learning_rate, "
        "and look at the first of these in the step before"
    )
    return [Raised(metric=first, value=lost[first], threshold=None, action=action, message=message)]


def _descending(score: float) -> float:
    return 0.0 if math.isnan(score) else -score
