"""Rollout correction: the engine sampled, the trainer differentiates; tokens are weighed or dropped for it.

mu: the engine's probabilities; pi: the trainer's; d = log pi - log mu of a sampled token; r = exp(d) its ratio.
"""

from lockstep.algorithm.correction.correction import Correction
from lockstep.algorithm.correction.divergence import DivergenceMask
from lockstep.algorithm.correction.presets import PRESET_LINES, PRESETS, preset
from lockstep.algorithm.correction.rejection import Rejection, Veto
from lockstep.algorithm.correction.weights import Corrected, ImportanceWeights

__all__ = [
    "PRESETS",
    "PRESET_LINES",
    "Corrected",
    "Correction",
    "DivergenceMask",
    "ImportanceWeights",
    "Rejection",
    "Veto",
    "preset",
]
