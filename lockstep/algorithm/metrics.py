"""Numbers that explain a step, from what is known of its sampled tokens. docs/metrics.md says what each should be.

Pure functions. A = action tokens of a whole step, all its microbatches and ranks; every tensor is a constant. They
return floats by name, finite for finite input (within float32's range), and leave out a number of an empty set rather
than call it NaN. What is not finite shows: it makes its numbers NaN or infinite.
"""

from __future__ import annotations

import torch

from lockstep.algorithm.tokens import LOG_BOUND, count_by, mean_by, sum_by
from lockstep.algorithm.value_loss import explained_variance

LARGE_GAP = 1.0  # a token's log-prob that differs by more, a factor of e, is no rounding
FIRST_TURNS = 4  # turns with a row of their own; later ones share one


def mismatch_metrics(
    trainer_logprobs: torch.Tensor, engine_logprobs: torch.Tensor, sequence: torch.Tensor, num_sequences: int
) -> dict[str, float]:
    """mismatch/*: how far the trainer's log-probs [A] are from the engine's [A], before any correction.

    d = trainer - engine, w = exp(d), W = exp(sum of d over a sequence); sequence int64 [A] of num_sequences. kl is
    KL(engine || trainer) by the k3 estimator, mean(exp(d) - 1 - d): never negative, low variance. k1 is mean(-d), whose
    sign says who is surer. Perplexities are over tokens, not over sequences as verl's; chi2 is mean(w^2) - 1, whose
    estimate, unlike the divergence itself, can be negative.
    """
    if not len(trainer_logprobs):
        return {}
    trainer, engine = trainer_logprobs.double(), engine_logprobs.double()
    d = trainer - engine
    weights = _exp(d)
    present = count_by(sequence, num_sequences) > 0
    products = _exp(sum_by(d, sequence, num_sequences)[present])
    apart = count_by(sequence[d.abs() > LARGE_GAP], num_sequences)[present] > 0
    return {
        "mismatch/kl": _k3(d).mean().item(),
        "mismatch/k1": -d.mean().item(),
        "mismatch/max_abs": d.abs().max().item(),
        "mismatch/perplexity_trainer": _exp(-trainer.mean()).item(),
        "mismatch/perplexity_engine": _exp(-engine.mean()).item(),
        "mismatch/perplexity_ratio": _exp(-d.mean()).item(),
        "mismatch/chi2_token": (weights.square().mean() - 1).item(),
        "mismatch/chi2_sequence": (products.square().mean() - 1).item(),
        **_summary("mismatch/weight", weights),
        "mismatch/weight_above_2": _share(weights > 2),
        "mismatch/weight_below_half": _share(weights < 0.5),
        "mismatch/ess_token": _effective_share(weights),
        "mismatch/ess_sequence": _effective_share(products),
        "mismatch/sequences_apart": _share(apart),
    }


def mismatch_shares(
    trainer_logprobs: torch.Tensor, engine_logprobs: torch.Tensor, trajectory: torch.Tensor, num_trajectories: int
) -> torch.Tensor:
    """[N]: what each trajectory adds to mismatch/kl; they sum to it. For finding whom to look at."""
    d = trainer_logprobs.double() - engine_logprobs.double()
    return sum_by(_k3(d), trajectory, num_trajectories) / max(1, len(d))


def correction_metrics(
    weights: torch.Tensor, kept: torch.Tensor, sequence: torch.Tensor, num_sequences: int, *, upper: float | None = None
) -> dict[str, float]:
    """correction/*: the weights [A] that were applied to kept tokens (bool [A]), and what was rejected.

    weight_*: over kept tokens. ess: over all, a rejected token weighs 0. rejected_sequences: those without any token
    kept, of the sequences [A] that have tokens. at_upper: the share of kept tokens at the bound `upper` or above it;
    give it only for weights that were truncated there, and not normalised afterwards.
    """
    if not len(weights):
        return {}
    chosen = weights[kept]
    num_tokens, num_kept = count_by(sequence, num_sequences), count_by(sequence[kept], num_sequences)
    found = _summary("correction/weight", chosen.double())
    if upper is not None and len(chosen):
        found["correction/at_upper"] = _share(chosen >= upper)  # in their own precision: float32(0.7) < 0.7
    return {
        **found,
        "correction/ess": _effective_share(torch.where(kept, weights, torch.zeros_like(weights)).double()),
        "correction/rejected_tokens": _share(~kept),
        "correction/rejected_sequences": _share(num_kept[num_tokens > 0] == 0),
    }


def ratio_metrics(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clipped: torch.Tensor
) -> dict[str, float]:
    """ratio/*, update/*, clip_fraction: how far the policy [A] has moved from old_logprobs [A], what the loss clipped.

    d = logprobs - old_logprobs, ratio = exp(d). update/kl is mean(exp(d) - 1 - d), k3 of KL(old || current); update/k1
    mean(-d). clipped bool [A] is the loss's own (PolicyTerms); clip_fraction/positive is the share among tokens of a
    positive advantage, /negative of a negative one. On policy min and max are exactly 1, unless a log-prob is NaN.
    """
    if not len(logprobs):
        return {}
    d = logprobs.double() - old_logprobs.double()
    ratio = _exp(d)
    signs = {"positive": clipped[advantages > 0], "negative": clipped[advantages < 0]}
    return {
        "ratio/min": ratio.min().item(),
        "ratio/max": ratio.max().item(),
        "ratio/mean": ratio.mean().item(),
        "update/kl": _k3(d).mean().item(),
        "update/k1": -d.mean().item(),
        "clip_fraction": _share(clipped),
        **{f"clip_fraction/{sign}": _share(some) for sign, some in signs.items() if len(some)},
    }


def advantage_metrics(advantages: torch.Tensor, trajectory: torch.Tensor, num_trajectories: int) -> dict[str, float]:
    """advantages/*: of tokens [A]. trajectories_zero: the share of trajectories, of those that have tokens, whose
    advantages are all 0: they were sampled for nothing."""
    if not len(advantages):
        return {}
    num_tokens = count_by(trajectory, num_trajectories)
    num_teaching = count_by(trajectory[advantages != 0], num_trajectories)
    return {
        **_summary("advantages", advantages.double(), separator="/"),
        "advantages/positive": _share(advantages > 0),
        "advantages/zero": _share(advantages == 0),
        "advantages/trajectories_zero": _share(num_teaching[num_tokens > 0] == 0),
    }


def entropy_metrics(entropies: torch.Tensor) -> dict[str, float]:
    """entropy, entropy/std, /min, /max: nats of the trainer's distribution at each sampled token [A]."""
    if not len(entropies):
        return {}
    found = _summary("entropy", entropies.double(), separator="/")
    return {"entropy": found.pop("entropy/mean"), **found}


def turn_metrics(
    turn: torch.Tensor, trainer_logprobs: torch.Tensor, engine_logprobs: torch.Tensor, entropies: torch.Tensor
) -> dict[str, float]:
    """turns/T/kl and turns/T/entropy: mismatch (k3, as mismatch/kl) and mean entropy of the tokens [A] of each turn T
    of their trajectories; 0 to 3, and '4+' for the rest."""
    rows = turn.clamp(max=FIRST_TURNS)
    kl = mean_by(_k3(trainer_logprobs.double() - engine_logprobs.double()), rows, FIRST_TURNS + 1).tolist()
    entropy = mean_by(entropies.double(), rows, FIRST_TURNS + 1).tolist()
    found = {}
    for row, count in enumerate(count_by(rows, FIRST_TURNS + 1).tolist()):
        if count:
            name = f"turns/{row}" if row < FIRST_TURNS else f"turns/{row}+"
            found |= {f"{name}/kl": kl[row], f"{name}/entropy": entropy[row]}
    return found


def value_metrics(values: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """critic/*: of a critic's values [A] before its update, beside what they should have been, targets [A].

    explained_variance = 1 - var(targets - values) / var(targets): 1 foresees all, 0 no more than a constant, negative
    less; left out when all targets are the same. error: mean |targets - values|, which sees a constant offset too.
    """
    if not len(values):
        return {}
    found = {
        "critic/value_mean": values.double().mean().item(),
        "critic/target_mean": targets.double().mean().item(),
        "critic/error": (targets.double() - values.double()).abs().mean().item(),
    }
    if targets.min() < targets.max():
        found["critic/explained_variance"] = explained_variance(values, targets)
    return found


def staleness_metrics(lags: torch.Tensor) -> dict[str, float]:
    """staleness/*: by how many versions the weights that sampled were older than those trained, per token or sample."""
    if not len(lags):
        return {}
    return {
        "staleness/mean": lags.double().mean().item(),
        "staleness/max": float(lags.max().item()),
        "staleness/share": _share(lags > 0),
    }


def _exp(log: torch.Tensor) -> torch.Tensor:
    return log.clamp(-LOG_BOUND, LOG_BOUND).exp()


def _k3(d: torch.Tensor) -> torch.Tensor:
    """exp(d) - 1 - d, exactly 0 at 0, growing to both sides up to the bound; only its rising side needs one."""
    d = d.clamp(max=LOG_BOUND)
    return torch.expm1(d) - d


def _share(chosen: torch.Tensor) -> float:
    return chosen.double().mean().item()


def _summary(name: str, values: torch.Tensor, *, separator: str = "_") -> dict[str, float]:
    if not len(values):
        return {}
    parts = {
        "mean": values.mean(),
        "std": values.std(unbiased=False),
        "min": values.min(),
        "max": values.max(),
    }
    return {f"{name}{separator}{part}": value.item() for part, value in parts.items()}


def _effective_share(weights: torch.Tensor) -> float:
    """Kish's effective sample size over the number of weights, (sum w)^2 / (n sum w^2): 1 for equal ones."""
    largest = weights.max()
    if largest == 0:
        return 0.0
    scaled = weights / largest  # squares of tiny weights are 0
    return min(1.0, (scaled.sum().square() / (len(weights) * scaled.square().sum())).item())
