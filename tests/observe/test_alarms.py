"""Alarms: what raises them and what does not, how often, and that a resumed run raises the same."""

import dataclasses
import json
import math
from typing import Any

import pytest

from lockstep.observe.alarms import Alarm, Alarms, check, check_each, worst
from lockstep.observe.recorder import Recorder, read_metrics

NOTHING: dict[str, Any] = {f.name: None for f in dataclasses.fields(Alarms) if f.name != "patience"}
OFF = Alarms(**NOTHING)


def on(**options):
    return dataclasses.replace(OFF, **options)


def raised_over(alarms, values, metric):
    """At which of the steps something is raised, when a metric takes these values."""
    records = [{} if value is None else {metric: value} for value in values]
    return [step for step, record in enumerate(records) if check(alarms, records[:step], record)]


def test_the_message_names_value_threshold_and_what_to_do():
    (raised,) = check(on(mismatch_kl_warn=0.002), [], {"mismatch/kl": 0.0123, "loss": 1.0})
    assert (raised.metric, raised.value, raised.threshold, raised.action) == ("mismatch/kl", 0.0123, 0.002, "warn")
    assert raised.message.startswith("mismatch/kl is 0.0123, above 0.002: look at turns/*/kl")
    assert "\n" not in raised.message


def test_every_threshold_is_an_alarm_on_the_right_side_of_its_metric():
    """A little beyond the default raises, the default itself does not, and None turns it off."""
    sides = {  # option: metric, whether the value is too high, the default's value
        "mismatch_kl_warn": ("mismatch/kl", True),
        "mismatch_kl_stop": ("mismatch/kl", True),
        "mismatch_ess": ("mismatch/ess_token", False),
        "rejected_tokens": ("correction/rejected_tokens", True),
        "routes_agreement": ("routes/agreement", False),
        "update_kl_warn": ("update/kl", True),
        "update_kl_stop": ("update/kl", True),
        "ratio": ("ratio/max", True),
        "clip_fraction": ("clip_fraction", True),
        "grad_norm": ("grad_norm", True),
        "all_equal": ("groups/all_equal", True),
        "masked": ("masked", True),
    }
    relative = {"not_finite", "patience", "grad_norm_jump", "entropy_low", "entropy_high"}
    assert sides.keys() | relative == {f.name for f in dataclasses.fields(Alarms)}
    for option, (metric, high) in sides.items():
        default = getattr(Alarms(), option)
        alarms = on(**{option: default})
        history = [{metric: default * (1.001 if high else 0.999)}] * 2  # the steps that some wait for
        assert [r.action for r in check(alarms, history, history[0])] in (
            [["stop"]] if option.endswith("_stop") else [["warn"], []]
        ), option
        assert raised_over(alarms, [history[0][metric]] * 3, metric), option
        assert not check(alarms, history, {metric: default}), option
        assert not check(alarms, history, {metric: default * (0.9 if high else 1.1)}), option
        assert not check(OFF, history, history[0])
    assert check(on(ratio=10.0), [], {"ratio/min": 0.09}) and not check(on(ratio=10.0), [], {"ratio/min": 0.11})


def test_which_alarms_wait():
    patient = {a.metric for a in Alarms().alarms() if a.patience == 3}
    assert patient == {"mismatch/kl", "update/kl", "routes/agreement", "entropy", "groups/all_equal"}
    assert {a.metric for a in Alarms().alarms() if a.action == "stop"} == {"mismatch/kl", "update/kl"}
    assert all(a.patience == 3 for a in Alarms().alarms() if a.action == "stop")


def test_a_stop_waits_for_its_patience_and_then_does_not_end():
    alarms = on(mismatch_kl_stop=0.1, patience=3)
    assert raised_over(alarms, [0.2, 0.2, 0.05, 0.2, 0.2, 0.2, 0.2, 0.05], "mismatch/kl") == [5, 6]
    (raised,) = check(alarms, [{"mismatch/kl": 0.2}] * 2, {"mismatch/kl": 0.2})
    assert raised.action == "stop" and ", 3 steps in a row: " in raised.message


def test_a_warning_that_lasts_is_repeated_ever_more_seldom():
    assert raised_over(on(masked=0.2), [0.5] * 20, "masked") == [0, 1, 3, 7, 15]
    assert raised_over(on(all_equal=0.9, patience=3), [1.0] * 13, "groups/all_equal") == [2, 5, 11]
    assert raised_over(on(masked=0.2), [0.5, 0.5, 0.1, 0.5], "masked") == [0, 1, 3]


def test_steps_without_the_metric_do_not_count():
    alarms = on(mismatch_kl_stop=0.1, patience=2)
    assert raised_over(alarms, [0.2, None, 0.2, None], "mismatch/kl") == [2]
    assert raised_over(alarms, [0.2, math.nan, 0.2], "mismatch/kl") == [2]
    assert raised_over(on(masked=0.2), [0.5, math.nan, None], "masked") == [0]


def test_entropy_is_judged_by_the_first():
    alarms = on(entropy_low=0.5, entropy_high=2.0, patience=2)
    assert raised_over(alarms, [0.8, 0.41, 0.39, 0.39, 0.39], "entropy") == [3]
    assert raised_over(alarms, [0.8, 1.59, 1.61, 1.61, 1.61], "entropy") == [3]
    (low,) = check(alarms, [{"entropy": 0.8}, {"entropy": 0.3}], {"entropy": 0.2})
    assert low.threshold == 0.4
    assert low.message.startswith("entropy is 0.2, below 0.4 (0.5 times its first value, 0.8), 2 steps in a row: ")
    (high,) = check(alarms, [{"entropy": 0.8}, {"entropy": 3.0}], {"entropy": 2.0})
    assert high.message.startswith("entropy is 2, above 1.6 (2 times its first value, 0.8), 2 steps in a row: ")


def test_the_first_is_the_first_of_the_whole_run():
    values = [1.0] + [0.3] * 200
    assert raised_over(on(entropy_low=0.5, patience=100), values, "entropy") == [100, 200]


def test_a_first_value_of_0_says_nothing():
    assert raised_over(on(entropy_high=4.0, patience=1), [0.0, 1.0, 2.0], "entropy") == []
    assert raised_over(on(grad_norm_jump=10.0), [0.0] * 20 + [1.0], "grad_norm") == []


def test_a_gradient_that_jumps_is_judged_by_the_running_median():
    alarms = on(grad_norm_jump=10.0)
    assert raised_over(alarms, [1.0] * 9 + [50.0], "grad_norm") == []  # too few before it
    assert raised_over(alarms, [1.0] * 10 + [10.0, 10.1], "grad_norm") == [11]
    # The median follows: of 100 steps at 5 it is 5, whatever was before.
    assert raised_over(alarms, [1.0] * 200 + [5.0] * 100 + [49.0, 51.0], "grad_norm") == [301]
    assert raised_over(alarms, [5.0] * 101 + [1.0] * 99 + [10.5], "grad_norm") == [200]
    (raised,) = check(alarms, [{"grad_norm": g} for g in (1.0, 3.0) * 5], {"grad_norm": 30.0})
    assert raised.threshold == 20.0 and "above 20 (10 times its running median, 2)" in raised.message


def test_a_spike_does_not_excuse_the_next():
    """Both of two steps in a row are judged, each by what stood before it."""
    assert raised_over(on(grad_norm_jump=10.0), [1.0] * 12 + [50.0, 50.0, 1.0, 50.0], "grad_norm") == [12, 13, 15]


def test_what_is_not_finite_stops_at_once_in_one_line():
    metrics = {"reward": 0.5, "loss": math.nan, "grad_norm": math.inf, "a": -math.inf, "b": math.nan, "c": math.nan}
    (raised,) = check(Alarms(), [], metrics)
    assert (raised.metric, raised.action, raised.threshold) == ("loss", "stop", None)
    assert math.isnan(raised.value)
    assert raised.message.startswith("not finite: loss=nan, grad_norm=inf, a=-inf, b=nan and 1 more: ")
    assert check(on(not_finite="warn"), [], metrics)[0].action == "warn"
    assert check(OFF, [], metrics) == []
    (single,) = check(Alarms(), [], {"loss": math.nan})
    assert "more" not in single.message.split(":")[1]


def test_stops_come_first():
    found = check(Alarms(patience=1), [], {"masked": 0.9, "mismatch/kl": 0.5, "update/kl": 0.9})
    assert [(r.metric, r.action) for r in found] == [
        ("mismatch/kl", "stop"),
        ("update/kl", "stop"),
        ("mismatch/kl", "warn"),
        ("update/kl", "warn"),
        ("masked", "warn"),
    ]


def test_a_healthy_step_raises_nothing():
    healthy = {
        "mismatch/kl": 5e-4, "mismatch/ess_token": 0.99, "correction/rejected_tokens": 0.01, "routes/agreement": 0.93,
        "update/kl": 0.0, "ratio/min": 1.0, "ratio/max": 1.0, "clip_fraction": 0.0, "grad_norm": 0.4, "entropy": 0.3,
        "groups/all_equal": 0.5, "masked": 0.0, "reward": 0.4,
    }  # fmt: skip
    assert check(Alarms(), [healthy] * 30, healthy) == []


def test_a_resumed_run_raises_the_same(tmp_path):
    """History from memory and from disk, where the line of a lost step has nulls and others are of evaluations."""
    alarms = dataclasses.replace(Alarms(), not_finite=None, patience=2)
    values = [0.1, 0.3, math.nan, 0.001, 0.1 + 0.2, math.inf, 0.001, 0.004, 5.0, 0.004, 7.0, 0.002, 9.0, 0.3]
    records = [{"entropy": v, "grad_norm": v, "mismatch/kl": v / 3} for v in values]
    with Recorder(tmp_path, tensorboard=False) as recorder:
        for step, record in enumerate(records, start=1):
            recorder.write_metrics(step, "rl", record)
    lines = [line for line in read_metrics(tmp_path) if line["phase"] == "rl"]
    from_memory = [check(alarms, records[:i], records[i]) for i in range(len(records))]
    from_disk = [check(alarms, lines[:i], records[i]) for i in range(len(records))]
    assert from_memory == from_disk
    assert sum(map(len, from_memory)) > 5
    assert json.dumps([r.message for each in from_memory for r in each]).isascii()


def test_alarms_of_ones_own():
    alarm = Alarm(metric="events/hints", above=2, below=1, action="stop")
    assert [r.action for r in check_each([alarm], [], {"events/hints": 3.0}, not_finite=None)] == ["stop"]
    (low,) = check_each([alarm], [], {"events/hints": 0.5}, not_finite=None)
    assert (low.threshold, low.message) == (1, "events/hints is 0.5, below 1: look at docs/metrics.md")
    assert check_each([alarm], [], {"events/hints": 1.5}, not_finite=None) == []
    assert check_each([alarm], [], {"loss": math.nan}, not_finite="stop")[0].metric == "loss"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience=0: must be at least 1; 3 is usual"),
        ({"not_finite": "halt"}, "not_finite='halt': must be 'warn', 'stop' or None"),
        ({"mismatch_kl_warn": 0.0}, "mismatch_kl_warn=0.0: must be above 0; 0.002 is usual, None turns it off"),
        ({"mismatch_ess": 1.0}, "mismatch_ess=1.0: must be above 0 and below 1; 0.5 is usual, None turns it off"),
        ({"grad_norm_jump": 1.0}, "grad_norm_jump=1.0: must be above 1; 10 is usual, None turns it off"),
        ({"masked": math.nan}, "masked=nan: must be above 0 and below 1; 0.2 is usual, None turns it off"),
        (
            {"mismatch_kl_warn": 0.3},
            "mismatch_kl_warn=0.3: must not be above mismatch_kl_stop=0.1; lower it or raise the other",
        ),
        (
            {"update_kl_stop": 0.01},
            "update_kl_warn=0.05: must not be above update_kl_stop=0.01; lower it or raise the other",
        ),
    ],
)
def test_a_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError) as error:
        Alarms(**options)
    assert str(error.value) == message


def test_every_threshold_has_a_range_that_its_default_is_in():
    """Wrong values of each are refused, and the usual one that the message names is the default."""
    for field in dataclasses.fields(Alarms):
        if field.name not in ("patience", "not_finite"):
            wrong: dict[str, Any] = {field.name: -1}
            with pytest.raises(ValueError, match=rf"^{field.name}=-1: .*; {field.default:g} is usual") as error:
                Alarms(**wrong)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "no bound"), ({"above": 1, "patience": 0}, "patience=0"), ({"above": 1, "action": "halt"}, "action='halt'")],
)
def test_a_wrong_alarm_is_one_line(options, words):
    with pytest.raises(ValueError, match=f"alarm on 'loss': {words}"):
        Alarm(metric="loss", **options)


def test_the_worst():
    scores = {"b": 1.0, "a": 1.0, "c": -3.0, "d": math.inf, "e": 2.0, "f": math.nan, "g": -math.inf}
    assert worst(scores) == ("f", "d", "e", "a", "b", "c", "g")
    assert worst(scores, count=3) == ("f", "d", "e")
    assert worst({}) == () and len(worst({str(i): float(i) for i in range(20)})) == 8
