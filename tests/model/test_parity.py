"""Whole models: Lockstep's attention and experts against transformers' own, and packs against one by one."""

import torch

from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.correction import Correction
from lockstep.algorithm.tokens import ActionTokens
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer

LENGTHS = (1, 40, 17, 90, 2)  # the window is 16


def tokens_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 97, (length,), generator=generator) for length in lengths]


def probe(logits, seed=0):
    """A scalar whose gradient reaches every logit with a weight of its own, of mean square 1 / number of tokens."""
    generator = torch.Generator().manual_seed(seed)
    return (logits * torch.randn(logits.shape, generator=generator)).sum() / logits.shape[-2] ** 0.5


def gradients(model):
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, grad in found.items() if grad is None]
    model.zero_grad()
    return found


def assert_close(ours, theirs, tolerance=1e-5):
    """Each within `tolerance` of the largest magnitude among its own kind, or of 1."""
    assert ours.keys() == theirs.keys()
    errors = {name: (ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1) for name in ours}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= tolerance, (worst, errors[worst].item())


def run(model, tokens, **layout):
    logits = model(input_ids=tokens, use_cache=False, **layout).logits
    probe(logits).backward()
    return {"logits": logits.detach()} | gradients(model)


def run_packed(model, sequences):
    lengths = torch.tensor([len(s) for s in sequences])
    cu_seqlens = torch.cat([torch.tensor([0]), lengths.cumsum(0)]).int()
    positions = torch.cat([torch.arange(n) for n in lengths])
    return run(
        model,
        torch.cat(sequences)[None],
        position_ids=positions[None],
        cu_seq_lens_q=cu_seqlens,
        cu_seq_lens_k=cu_seqlens,
    )


def test_one_sequence_equals_transformers_eager(model, eager):
    tokens = tokens_of([75])[0][None]
    assert_close(run(model, tokens), run(eager, tokens))


def test_a_batch_of_whole_sequences_equals_transformers_eager(model, eager):
    tokens = torch.stack(tokens_of([33, 33, 33]))
    assert_close(run(model, tokens), run(eager, tokens))


def test_packed_equals_one_by_one(model):
    sequences = tokens_of(LENGTHS)
    packed = run_packed(model, sequences)
    logits = [model(input_ids=tokens[None], use_cache=False).logits[0] for tokens in sequences]
    probe(torch.cat(logits)[None]).backward()
    assert_close(packed, {"logits": torch.cat(logits)[None].detach()} | gradients(model))


def test_packed_equals_transformers_eager_one_by_one(model, eager):
    sequences = tokens_of(LENGTHS, seed=1)
    packed = run_packed(model, sequences)
    logits = [eager(input_ids=tokens[None], use_cache=False).logits[0] for tokens in sequences]
    probe(torch.cat(logits)[None]).backward()
    assert_close(packed, {"logits": torch.cat(logits)[None].detach()} | gradients(eager))


def test_every_sink_of_every_head_gets_a_gradient_from_the_policy_loss(gpt_oss):
    samples = [
        supervised_sample(f"s{i}", tokens.tolist(), [j > 3 for j in range(len(tokens))])
        for i, tokens in enumerate(tokens_of([30, 50, 20]))
    ]
    (microbatch,) = pack(samples, max_tokens=1000).microbatches
    trainer = Trainer(gpt_oss, Optimizer())

    sequence = torch.arange(3).repeat_interleave(torch.tensor([26, 46, 16]))
    algorithm = Algorithm(correction=Correction(weights=None))

    def loss(outputs, microbatch):
        logprobs, own = outputs.logprobs, sequence[microbatch.action_place]
        tokens = ActionTokens(
            engine_logprobs=logprobs.detach(),
            old_logprobs=logprobs.detach(),
            advantages=1.0 - 2 * (own % 2),
            sequence=own,
            trajectory=own,
            turn=torch.zeros_like(own),
            num_sequences=3,
            num_trajectories=3,
            loss_weights=torch.full((88,), 1 / 88),
        )
        return algorithm.token_losses(logprobs, outputs.entropies, tokens, None).sum()

    trainer.forward_backward(microbatch, loss)
    grads = {name: p.grad for name, p in gpt_oss.named_parameters() if name.endswith(".sinks")}
    assert len(grads) == gpt_oss.config.num_hidden_layers
    assert not [name for name, grad in grads.items() if grad is None or (grad == 0).any()]
