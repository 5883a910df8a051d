"""Presets: each is what its line says, and a wrong name is told the nearest."""

import math
import re

import pytest
import torch

from lockstep.algorithm.correction import (
    PRESET_LINES,
    PRESETS,
    Correction,
    DivergenceMask,
    ImportanceWeights,
    Rejection,
    Veto,
    preset,
)

TOKEN, SEQUENCE = ImportanceWeights(), ImportanceWeights(level="sequence")
ICEPOP = ImportanceWeights(lower=0.5, upper=5, outside="drop")
GEOMETRIC = Rejection(statistic="k1", over="sequence_mean", lower=math.log(0.999), upper=math.log(1.001))
K3 = Rejection(statistic="k3", over="sequence_mean", upper=0.01)


def geometric(lower, upper):
    return ImportanceWeights(level="geometric", lower=lower, upper=upper, outside="drop")


EXPECTED = {
    "none": Correction(weights=None),
    "token-tis": Correction(),
    "token-tis-normalized": Correction(weights=ImportanceWeights(normalize=True)),
    "token-tis-veto": Correction(veto=Veto(threshold=1e-4)),
    "token-icepop": Correction(weights=ICEPOP),
    "sequence-tis": Correction(weights=SEQUENCE),
    "sequence-mis": Correction(weights=ImportanceWeights(level="sequence", lower=0.5, upper=2, outside="drop")),
    "geometric-mis": Correction(weights=geometric(0.99, 1.01)),
    "geometric-mis-strict": Correction(weights=geometric(0.999, 1.001)),
    "geometric-rejection": Correction(weights=None, rejection=GEOMETRIC),
    "geometric-rejection-token-tis": Correction(weights=TOKEN, rejection=GEOMETRIC),
    "geometric-rejection-sequence-tis": Correction(weights=SEQUENCE, rejection=GEOMETRIC),
    "geometric-rejection-veto": Correction(weights=None, rejection=GEOMETRIC, veto=Veto()),
    "k3-rejection": Correction(weights=None, rejection=K3),
    "k3-rejection-token-tis": Correction(weights=TOKEN, rejection=K3),
    "k3-rejection-sequence-tis": Correction(weights=SEQUENCE, rejection=K3),
    "divergence-mask": Correction(divergence_mask=DivergenceMask(threshold=0.5)),
    "bypass": Correction(weights=None, anchor="bypass"),
    "bypass-geometric-rejection": Correction(weights=None, rejection=GEOMETRIC, anchor="bypass"),
    "bypass-geometric-rejection-veto": Correction(weights=None, rejection=GEOMETRIC, veto=Veto(), anchor="bypass"),
    "bypass-k3-rejection": Correction(weights=None, rejection=K3, anchor="bypass"),
    "bypass-token-tis": Correction(anchor="bypass"),
    "bypass-token-icepop": Correction(weights=ICEPOP, anchor="bypass"),
    "bypass-sequence-tis": Correction(weights=SEQUENCE, anchor="bypass"),
    "bypass-geometric-rejection-token-tis": Correction(rejection=GEOMETRIC, anchor="bypass"),
    "bypass-geometric-rejection-sequence-tis": Correction(weights=SEQUENCE, rejection=GEOMETRIC, anchor="bypass"),
}


def test_presets_are_what_they_say():
    assert dict(PRESETS) == EXPECTED
    assert len(set(PRESETS.values())) == len(PRESETS)  # no two names for one thing


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_a_line_and_a_fitting_loss(name):
    assert preset(name) is PRESETS[name]
    line = PRESET_LINES[name]
    assert "\n" not in line and line.endswith(".") and len(line) < 160
    assert ("bypass" in name) == (PRESETS[name].anchor == "bypass")
    for_no_ratio = line.startswith("For a loss without ratio")
    PRESETS[name].check(not for_no_ratio)
    if for_no_ratio:
        with pytest.raises(ValueError, match="weight already"):
            PRESETS[name].check(True)


def test_lines_go_with_presets():
    assert list(PRESET_LINES) == list(PRESETS)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("token-tsi", "token-tis"),
        ("token_tis", "token-tis"),
        ("decoupled-token-tis", "token-tis"),
        ("icepop", "token-icepop"),
        ("disabled", "none"),
        ("decoupled_token_is", "token-tis"),
        ("decoupled_geo_rs", "geometric-rejection"),
        ("decoupled_seq_is_rs", "sequence-mis"),
        ("decoupled_k3_rs_token_tis", "k3-rejection-token-tis"),
        ("bypass_ppo_clip", "bypass"),
        ("bypass_pg_is", "bypass-sequence-tis"),
        ("bypass_pg_geo_rs_seq_tis", "bypass-geometric-rejection-sequence-tis"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(asked, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{re.escape(nearest)}'\\?") as error:
        preset(asked)
    assert repr(asked) in str(error.value) and "\n" not in str(error.value)


def test_any_wrong_name_is_an_error():
    for asked in ("", "zzzz", "0"):
        with pytest.raises(ValueError, match="no such preset"):
            preset(asked)


def test_presets_on_one_step():
    """Mean d of 0.0005, 0.005 and 0.3 a token: the strict keep the first, [0.99, 1.01] two, k3 <= 0.01 two, the rest
    all three; IcePop and TIS leave such ratios alone."""
    difference = torch.tensor([0.0005, 0.005, 0.3, 0.3], dtype=torch.float64)
    kept = {}
    for name in ("geometric-mis-strict", "geometric-rejection", "geometric-mis", "k3-rejection", "token-icepop"):
        found = PRESETS[name](difference - 2, torch.full_like(difference, -2), torch.tensor([0, 1, 2, 2]), 3)
        kept[name] = found.kept.tolist()
    assert kept == {
        "geometric-mis-strict": [True, False, False, False],
        "geometric-rejection": [True, False, False, False],
        "geometric-mis": [True, True, False, False],
        "k3-rejection": [True, True, False, False],
        "token-icepop": [True] * 4,
    }
