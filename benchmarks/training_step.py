"""A whole model's training step for `model.py`: the gradient of the log-probs of every token, in two ways."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from transformers import PreTrainedModel

import lockstep.model.attention  # noqa: F401  (registers attn_implementation="lockstep")
from benchmarks.workloads import Run, lockstep_logprobs


def lockstep_step(model: PreTrainedModel, tokens: torch.Tensor, lengths: Sequence[int]) -> Run:
    """Gradients of the mean log-prob of every token but a sequence's first, the sequences in one pack."""
    boundaries = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    predicted = torch.nonzero(positions).squeeze(1)

    def run():
        model.set_attn_implementation("lockstep")
        model.set_experts_implementation("lockstep")
        hidden = model.get_decoder()(
            input_ids=tokens[None],
            position_ids=positions[None],
            cu_seq_lens_q=boundaries,
            cu_seq_lens_k=boundaries,
            use_cache=False,
        ).last_hidden_state[0]
        found, _ = lockstep_logprobs(hidden[predicted - 1], model.get_output_embeddings().weight, tokens[predicted])
        (found.sum() / len(predicted)).backward()
        return gradients(model)

    return run


def transformers_step(model: PreTrainedModel, tokens: torch.Tensor, lengths: Sequence[int]) -> Run:
    """The same with eager attention, grouped_mm experts and log_softmax over all logits; the sequences one by one,
    which takes less memory than padding them. The entropy, which Lockstep's log-probs come with, is computed too."""
    count = sum(lengths) - len(lengths)

    def run():
        model.set_attn_implementation("eager")
        model.set_experts_implementation("grouped_mm")
        for sequence in tokens.split(list(lengths)):
            logits = model(input_ids=sequence[None], use_cache=False).logits[0, :-1]
            logp = torch.log_softmax(logits.float(), -1)
            with torch.no_grad():
                (logp.exp() * logp).sum(-1)
            (logp.gather(1, sequence[1:, None]).sum() / count).backward()
        return gradients(model)

    return run


def gradients(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """Taken from the model, so that the next step allocates its own."""
    found = tuple(p.grad for p in model.parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    return found
