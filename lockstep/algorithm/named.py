"""Algorithms by name, as their papers have them where that is more than one choice."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from lockstep.algorithm.advantages.gae import GAE
from lockstep.algorithm.advantages.grpo import GRPO
from lockstep.algorithm.advantages.opo import OPO
from lockstep.algorithm.advantages.optimal_token_baseline import OptimalTokenBaseline
from lockstep.algorithm.advantages.pass_at_k import PassAtK
from lockstep.algorithm.advantages.reinforce_plus_plus import ReinforcePlusPlus
from lockstep.algorithm.advantages.remax import ReMax
from lockstep.algorithm.advantages.rloo import RLOO
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction.correction import Correction
from lockstep.algorithm.losses.cispo import CISPO
from lockstep.algorithm.losses.dppo import DPPO
from lockstep.algorithm.losses.dro import DRO
from lockstep.algorithm.losses.gmpo import GMPO
from lockstep.algorithm.losses.gspo import GSPO
from lockstep.algorithm.losses.policy_gradient import PolicyGradient
from lockstep.algorithm.losses.ppo import PPO
from lockstep.algorithm.losses.sapo import SAPO

_BYPASS = Correction(weights=None, anchor="bypass")

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "grpo": Algorithm(),
        "dr-grpo": Algorithm(advantages=GRPO(normalize=False), aggregation="constant"),
        "rloo": Algorithm(advantages=RLOO(), loss=PolicyGradient(), aggregation="sequence-mean-token-sum"),
        "reinforce": Algorithm(advantages=GRPO(normalize=False), loss=PolicyGradient()),
        "reinforce++": Algorithm(advantages=ReinforcePlusPlus(), loss=PPO(clip_high=0.2)),
        "reinforce++-baseline": Algorithm(advantages=ReinforcePlusPlus(group_baseline=True), loss=PPO(clip_high=0.2)),
        "remax": Algorithm(advantages=ReMax(), loss=PolicyGradient()),
        "opo": Algorithm(advantages=OPO(), loss=PolicyGradient()),
        "pass@k": Algorithm(advantages=PassAtK()),
        "otb": Algorithm(advantages=OptimalTokenBaseline(), loss=PolicyGradient()),
        "ppo": Algorithm(advantages=GAE(), loss=PPO(clip_high=0.2)),
        "dapo": Algorithm(filter_truncated=True),
        "gspo": Algorithm(loss=GSPO(), aggregation="sequence-mean-token-mean"),
        "cispo": Algorithm(loss=CISPO()),
        "sapo": Algorithm(loss=SAPO(), aggregation="sequence-mean-token-mean"),
        "gmpo": Algorithm(loss=GMPO(), aggregation="sequence-mean-token-mean"),
        "dppo-tv": Algorithm(loss=DPPO(), correction=_BYPASS),
        "dppo-kl": Algorithm(loss=DPPO(divergence="kl"), correction=_BYPASS),
        "dro": Algorithm(advantages=GRPO(normalize=False), loss=DRO()),
    }
)


def named(name: str) -> Algorithm:
    """Raises ValueError, with the nearest name, for one that there is not."""
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name.lower(), list(ALGORITHMS), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no algorithm {name!r}{hint}; there are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
