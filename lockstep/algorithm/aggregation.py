"""From a loss for each token to the loss of a step: the constant that every token's loss is multiplied with.

The weights are counted over the whole step before it is cut, so that the *sum* over all microbatches and ranks is the
step's loss, whatever the cut. Peers have averaged within a microbatch first, which is the same only when all are alike
(TRL's 'bnpo', verl without its global batch_num_tokens and global_batch_size).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from lockstep.algorithm.tokens import count_by

Aggregation = Literal["token-mean", "sequence-mean-token-mean", "sequence-mean-token-sum", "constant"]


def token_weights(
    aggregation: Aggregation,
    trajectory: torch.Tensor,
    num_trajectories: int,
    *,
    counted: torch.Tensor | None = None,
    max_tokens: int | None = None,
) -> torch.Tensor:
    """float32 [A]: the weight of each of a step's tokens, whose trajectories are int64 [A].

    token-mean               1 / A: every token alike, so long trajectories weigh more (DAPO, arXiv:2503.14476 eq. 8;
                             verl's and prime-rl's default, TRL's 'dapo')
    sequence-mean-token-mean 1 / (N * tokens of its trajectory): every trajectory alike, so a long one's tokens weigh
                             less and long failures are cheap (GRPO, arXiv:2402.03300 eq. 3; verl's seq-mean-token-mean,
                             TRL's 'grpo')
    sequence-mean-token-sum  1 / N: the plain policy gradient; grows with the length (verl's seq-mean-token-sum)
    constant                 1 / (N * max_tokens): the same without the growth (Dr. GRPO, arXiv:2503.20783; TRL's
                             'dr_grpo'; verl's seq-mean-token-sum-norm, by default with the padded width instead, which
                             differs from batch to batch)

    "Sequence" is the peers' word for what is a trajectory here: one that yields several samples, because its history
    was rewritten, counts once, with the tokens of them all. A is the number of counted tokens, N of the trajectories
    that have one. counted bool [A], None for all: tokens that are not (rejected ones) weigh 0 and leave every
    denominator. max_tokens: the longest that a trajectory may get, for 'constant' only. Raises ValueError without it
    there, or with it elsewhere.
    """
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation={aggregation!r}: must be one of {', '.join(get_args(Aggregation))}")
    if (aggregation == "constant") != (max_tokens is not None):
        fix = "needs it" if max_tokens is None else "has no use for it; leave it out"
        raise ValueError(f"max_tokens={max_tokens}: aggregation {aggregation!r} {fix}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}: must be >= 1, the longest that a trajectory may get")
    if counted is None:
        counted = torch.ones_like(trajectory, dtype=torch.bool)
    lengths = count_by(trajectory[counted], num_trajectories)
    denominator = _denominators(aggregation, lengths, max_tokens)[trajectory]
    return torch.where(counted, 1 / denominator, 0).float()


def _denominators(aggregation: Aggregation, lengths: torch.Tensor, max_tokens: int | None) -> torch.Tensor:
    """float64 [N]: what the losses of a trajectory's tokens are divided by; lengths int64 [N], its counted tokens."""
    num_present = (lengths > 0).sum()
    if aggregation == "token-mean":
        one = lengths.sum()
    elif aggregation == "sequence-mean-token-mean":
        return (num_present * lengths).double()
    else:
        one = num_present * (1 if max_tokens is None else max_tokens)
    return one.double().expand(len(lengths))
