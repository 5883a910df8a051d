"""Corrections by name. Without a prefix they are decoupled; `bypass-` ones take the engine's log-probs for old ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from math import log
from types import MappingProxyType

from lockstep.algorithm.correction.correction import Correction
from lockstep.algorithm.correction.divergence import DivergenceMask
from lockstep.algorithm.correction.rejection import Rejection, Veto
from lockstep.algorithm.correction.weights import ImportanceWeights

TOKEN = ImportanceWeights(level="token", upper=2.0)
SEQUENCE = ImportanceWeights(level="sequence", upper=2.0)
ICEPOP = ImportanceWeights(level="token", lower=0.5, upper=5.0, outside="drop")
GEOMETRIC = Rejection(statistic="k1", over="sequence_mean", lower=log(0.999), upper=log(1.001))
K3 = Rejection(statistic="k3", over="sequence_mean", upper=0.01)


def _only(rejection: Rejection | None = None, weights: ImportanceWeights | None = None) -> Correction:
    return Correction(weights=weights, rejection=rejection)


def _bypass(rejection: Rejection | None = None, weights: ImportanceWeights | None = None) -> Correction:
    return Correction(weights=weights, rejection=rejection, anchor="bypass")


# name: (correction, verl's names for it, what it does)
_TABLE: dict[str, tuple[Correction, tuple[str, ...], str]] = {
    "none": (_only(), ("disabled",), "No correction; the mismatch is only measured"),
    "token-tis": (_only(weights=TOKEN), ("decoupled_token_is",), "Token ratios, at most 2; the default"),
    "token-tis-normalized": (
        _only(weights=replace(TOKEN, normalize=True)),
        ("decoupled_token_is with rollout_is_batch_normalize",),
        "token-tis, divided by the step's mean weight",
    ),
    "token-tis-veto": (
        Correction(weights=TOKEN, veto=Veto()),
        ("decoupled_token_is with rollout_token_veto_threshold",),
        "token-tis, without sequences that hold a token of ratio < 1e-4",
    ),
    "token-icepop": (_only(weights=ICEPOP), ("decoupled_token_icepop",), "Token ratios, 0 outside [0.5, 5]"),
    "sequence-tis": (_only(weights=SEQUENCE), ("decoupled_seq_is",), "Ratios of whole sequences, at most 2"),
    "sequence-mis": (
        _only(weights=replace(SEQUENCE, lower=0.5, outside="drop")),
        ("decoupled_seq_is_rs",),
        "Ratios of whole sequences, 0 outside [0.5, 2]; for short sequences (TRL's sequence_mask has [0, 3])",
    ),
    "geometric-mis": (
        _only(weights=ImportanceWeights(level="geometric", lower=0.99, upper=1.01, outside="drop")),
        ("earlier rollout_rs=geometric",),
        "Mean token ratios of sequences, 0 outside [0.99, 1.01]",
    ),
    "geometric-mis-strict": (
        _only(weights=ImportanceWeights(level="geometric", lower=0.999, upper=1.001, outside="drop")),
        ("earlier rollout_rs=geometric with 1.001",),
        "Mean token ratios of sequences, 0 outside [0.999, 1.001]",
    ),
    "geometric-rejection": (
        _only(GEOMETRIC),
        ("decoupled_geo_rs",),
        "Sequences with mean log-ratio within 0.001 of 0, unweighted",
    ),
    "geometric-rejection-token-tis": (
        _only(GEOMETRIC, TOKEN),
        ("decoupled_geo_rs_token_tis",),
        "geometric-rejection, what is left weighed as by token-tis",
    ),
    "geometric-rejection-sequence-tis": (
        _only(GEOMETRIC, SEQUENCE),
        ("decoupled_geo_rs_seq_tis",),
        "geometric-rejection, what is left weighed as by sequence-tis",
    ),
    "geometric-rejection-veto": (
        Correction(weights=None, rejection=GEOMETRIC, veto=Veto()),
        ("decoupled_geo_rs with rollout_token_veto_threshold",),
        "geometric-rejection, and without sequences that hold a token of ratio < 1e-4",
    ),
    "k3-rejection": (_only(K3), ("decoupled_k3_rs",), "Sequences with mean k3 up to 0.01, unweighted"),
    "k3-rejection-token-tis": (
        _only(K3, TOKEN),
        ("decoupled_k3_rs_token_tis",),
        "k3-rejection, what is left weighed as by token-tis",
    ),
    "k3-rejection-sequence-tis": (
        _only(K3, SEQUENCE),
        ("decoupled_k3_rs_seq_tis",),
        "k3-rejection, what is left weighed as by sequence-tis",
    ),
    "divergence-mask": (
        Correction(weights=TOKEN, divergence_mask=DivergenceMask()),
        (),
        "token-tis, and DeepSeek-V3.2's masking of bad sequences left behind (TRL's off_policy_mask_threshold=0.5)",
    ),
    "bypass": (_bypass(), ("bypass_ppo_clip",), "The loss's own ratio, to the engine, is the correction"),
    "bypass-geometric-rejection": (
        _bypass(GEOMETRIC),
        ("bypass_ppo_clip_geo_rs", "bypass_pg_geo_rs"),
        "bypass, only sequences with mean log-ratio within 0.001 of 0",
    ),
    "bypass-geometric-rejection-veto": (
        Correction(weights=None, rejection=GEOMETRIC, veto=Veto(), anchor="bypass"),
        ("bypass_ppo_clip_geo_rs with rollout_token_veto_threshold",),
        "bypass-geometric-rejection, and without sequences that hold a token of ratio < 1e-4",
    ),
    "bypass-k3-rejection": (
        _bypass(K3),
        ("bypass_ppo_clip_k3_rs",),
        "bypass, only sequences with mean k3 up to 0.01",
    ),
    "bypass-token-tis": (
        _bypass(weights=TOKEN),
        ("rollout_is=token, loss_type=reinforce",),
        "For a loss without ratio: token ratios of the current policy, at most 2",
    ),
    "bypass-token-icepop": (
        _bypass(weights=ICEPOP),
        ("bypass_pg_token_icepop",),
        "For a loss without ratio: token ratios of the current policy, 0 outside [0.5, 5]",
    ),
    "bypass-sequence-tis": (
        _bypass(weights=SEQUENCE),
        ("bypass_pg_is",),
        "For a loss without ratio: the current policy's ratios of whole sequences, at most 2",
    ),
    "bypass-geometric-rejection-token-tis": (
        _bypass(GEOMETRIC, TOKEN),
        ("bypass_pg_geo_rs_token_tis",),
        "For a loss without ratio: bypass-token-tis of sequences with mean log-ratio within 0.001 of 0",
    ),
    "bypass-geometric-rejection-sequence-tis": (
        _bypass(GEOMETRIC, SEQUENCE),
        ("bypass_pg_geo_rs_seq_tis",),
        "For a loss without ratio: bypass-sequence-tis of sequences with mean log-ratio within 0.001 of 0",
    ),
}

PRESETS: Mapping[str, Correction] = MappingProxyType({name: row[0] for name, row in _TABLE.items()})
"""Corrections by name."""

PRESET_LINES: Mapping[str, str] = MappingProxyType(
    {name: f"{line} (verl: {', '.join(verl)})." if verl else f"{line}." for name, (_, verl, line) in _TABLE.items()}
)
"""What each of them does, in a line, with verl's name for it."""


def preset(name: str) -> Correction:
    """The correction of that name; ValueError names the nearest, or Lockstep's for verl's."""
    if name in PRESETS:
        return PRESETS[name]
    ours = {known: known for known in PRESETS} | {verl: known for known, row in _TABLE.items() for verl in row[1]}
    nearest = difflib.get_close_matches(name, ours, n=1, cutoff=0)[0]
    raise ValueError(f"correction {name!r}: no such preset; did you mean {ours[nearest]!r}?")
