"""One trainer, one process: log-probs, accumulated gradients, and the invariants that stop an update."""

import asyncio
import copy
import dataclasses
import threading

import pytest
import torch

from lockstep.algorithm.losses.supervised import supervised_loss
from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.engine.embedded import EmbeddedEngine
from lockstep.engine.engine import Sampling
from lockstep.model.loading import load_model
from lockstep.model.precision import Precision, PrecisionError
from lockstep.model.routing import Routes, routing
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.packed import action_hidden
from lockstep.trainer.trainer import Trainer
from lockstep.trainer.value_head import ValueHead
from lockstep.types import InvariantError, UserError

BF16 = Precision(dtype="bfloat16")


def microbatch(lengths=(30, 20)):
    generator = torch.Generator().manual_seed(0)
    samples = [
        supervised_sample(
            f"s{n}", torch.randint(2, 97, (n,), generator=generator).tolist(), [i % 3 > 0 for i in range(n)]
        )
        for n in lengths
    ]
    (found,) = pack(samples, max_tokens=10**6).microbatches
    return found


def likelihood(outputs, microbatch):
    return supervised_loss(outputs.logprobs, denominator=len(outputs.logprobs))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_tokens_given_what_precedes_them(model, eager, temperature):
    """Against log_softmax of transformers' eager logits, sequence by sequence."""
    batch = microbatch()
    found = Trainer(model, Optimizer(), temperature=temperature).logprobs(batch)
    expected, expected_entropies = [], []
    for tokens in batch.tokens.split([30, 20]):
        logp = (eager(tokens[None]).logits[0] / temperature).log_softmax(-1)
        actions = torch.tensor([i for i in range(len(tokens)) if i % 3 > 0])
        expected.append(logp[actions - 1, tokens[actions]])
        expected_entropies.append(-(logp.exp() * logp).sum(-1)[actions - 1])
    assert (found.logprobs - torch.cat(expected)).abs().max() <= 1e-5
    assert (found.entropies - torch.cat(expected_entropies)).abs().max() <= 1e-5


def test_a_step_updates_every_parameter_and_clears_the_gradients(gpt_oss):
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    found = trainer.forward_backward(microbatch(), likelihood)
    assert not any(x.requires_grad for x in (found.loss, found.logprobs, found.entropies))
    norm = trainer.optim_step(1e-2)
    assert norm > 0
    assert all(group["lr"] == 1e-2 for group in trainer.updater.optimizer.param_groups)
    assert not [name for name, p in gpt_oss.named_parameters() if torch.equal(p, before[name])]
    assert all(p.grad is None for p in gpt_oss.parameters())


def test_gradients_of_microbatches_add(gpt_oss):
    trainer = Trainer(gpt_oss, Optimizer())
    trainer.forward_backward(microbatch(), likelihood)
    once = {name: p.grad.clone() for name, p in gpt_oss.named_parameters()}
    trainer.forward_backward(microbatch(), likelihood)
    for name, p in gpt_oss.named_parameters():
        assert (p.grad - 2 * once[name]).abs().max() <= 1e-6


def test_a_large_gradient_is_scaled_down_to_the_clip(gpt_oss, monkeypatch):
    """The norm that is returned is the one before."""
    trainer = Trainer(gpt_oss, Optimizer(gradient_clip=0.125))
    norms = []
    monkeypatch.setattr(
        trainer.updater.optimizer,
        "step",
        lambda: norms.append(sum(p.grad.square().sum() for p in gpt_oss.parameters()) ** 0.5),
    )
    trainer.forward_backward(microbatch(), lambda *arguments: 10 * likelihood(*arguments))
    expected = sum(p.grad.square().sum() for p in gpt_oss.parameters()) ** 0.5
    assert trainer.optim_step(1e-2) == pytest.approx(expected.item(), rel=1e-5)
    assert expected > 1
    assert norms[0].item() == pytest.approx(0.125, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_nothing_and_raises(gpt_oss, value):
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    trainer.forward_backward(microbatch(), likelihood)
    gpt_oss.model.norm.weight.grad[3] = value
    with pytest.raises(InvariantError, match=f"gradient norm is {value}: nothing was updated"):
        trainer.optim_step(1e-2)
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())


@pytest.mark.parametrize("gradient", [None, 0.0])
def test_a_sink_without_a_gradient_changes_nothing_and_raises(gpt_oss, gradient):
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    trainer.forward_backward(microbatch(), likelihood)
    sinks = gpt_oss.model.layers[2].self_attn.sinks
    sinks.grad = None if gradient is None else torch.zeros_like(sinks)
    with pytest.raises(InvariantError, match=r"model\.layers\.2\.self_attn\.sinks has no gradient"):
        trainer.optim_step(1e-2)
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())


def test_frozen_sinks_need_no_gradient(gpt_oss):
    for name, parameter in gpt_oss.named_parameters():
        parameter.requires_grad_(not name.endswith(".sinks"))
    trainer, before = Trainer(gpt_oss, Optimizer()), weights(gpt_oss)
    trainer.forward_backward(microbatch(), likelihood)
    trainer.optim_step(1e-2)
    moved = {name for name, p in gpt_oss.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.endswith(".sinks")}


def test_a_loss_without_signal_is_no_fault(gpt_oss):
    """A group whose rewards are all equal: every gradient is zero, the sinks' too."""
    trainer = Trainer(gpt_oss, Optimizer())
    trainer.forward_backward(microbatch(), lambda *arguments: 0 * likelihood(*arguments))
    assert trainer.optim_step(1e-2) == 0


@pytest.mark.parametrize("layers", [[2], [0, 1, 2, 3]])
def test_sinks_without_a_gradient_are_found_out_in_one_layer_and_in_all(gpt_oss, layers):
    """As long as anything else of the attention has one."""
    trainer = Trainer(gpt_oss, Optimizer())
    trainer.forward_backward(microbatch(), likelihood)
    for layer in layers:
        gpt_oss.model.layers[layer].self_attn.sinks.grad = None
    with pytest.raises(InvariantError, match=rf"model\.layers\.{layers[0]}\.self_attn\.sinks has no gradient"):
        trainer.optim_step(1e-2)


def test_sinks_that_alone_are_trained_in_their_attention_are_checked_too(gpt_oss):
    for name, parameter in gpt_oss.named_parameters():
        parameter.requires_grad_(name.endswith(".sinks") or "self_attn" not in name)
    trainer = Trainer(gpt_oss, Optimizer())
    trainer.forward_backward(microbatch(), likelihood)
    gpt_oss.model.layers[1].self_attn.sinks.grad = None
    with pytest.raises(InvariantError, match=r"model\.layers\.1\.self_attn\.sinks has no gradient"):
        trainer.optim_step(1e-2)


# Readers, value heads, square norms


def test_without_an_optimizer_a_trainer_only_reads(model):
    expected = Trainer(model, Optimizer()).logprobs(microbatch())
    before = weights(model)
    reader = Trainer(model, None)
    found = reader.logprobs(microbatch())
    assert torch.equal(found.logprobs, expected.logprobs)
    assert torch.equal(found.routes, expected.routes)
    for use in (lambda: reader.updater, lambda: reader.optim_step(1e-2), reader.state_dict):
        with pytest.raises(ValueError, match="this trainer has no optimizer: it only reads its model; give it one"):
            use()
    with pytest.raises(ValueError, match="no optimizer"):
        reader.load_state_dict({})
    reader.close()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_reader_takes_no_gradients_away(rounded):
    """A trainer of the same model goes on while one reads it, and after it is closed; none has to be closed first."""
    reader = Trainer(rounded, None, precision=BF16)
    trainer = Trainer(rounded, Optimizer(), precision=BF16)
    trainer.forward_backward(microbatch(), likelihood)
    assert all(master.grad is not None for master in trainer.updater.masters.parameters.values())
    reader.close()
    assert trainer.optim_step(1e-4) > 0


def head_of(model, seed=0):
    head, generator = ValueHead(model.config.hidden_size), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return head


def error(outputs, microbatch):
    return likelihood(outputs, microbatch) + (outputs.values - 1).square().mean()


def test_a_value_head_judges_the_states_that_predict_the_tokens(model, eager):
    head, batch = head_of(model), microbatch()
    found = Trainer(model, Optimizer(), value_head=head).logprobs(batch)
    plain = Trainer(model, Optimizer()).logprobs(batch)
    assert plain.values is None
    assert torch.equal(found.logprobs, plain.logprobs)
    expected = []
    for tokens in batch.tokens.split([30, 20]):
        hidden = eager.get_decoder()(tokens[None]).last_hidden_state[0]
        before = torch.tensor([i - 1 for i in range(len(tokens)) if i % 3 > 0])
        expected.append(hidden[before] @ head.weight[0] + head.bias)
    assert (found.values - torch.cat(expected)).abs().max() <= 1e-5
    assert (found.values.dtype, found.values.requires_grad) == (torch.float32, False)


def test_the_value_loss_pulls_at_head_and_trunk(gpt_oss):
    """Head and policy in one step: its gradient is the sum of both losses', and everything moves."""
    head, batch = head_of(gpt_oss), microbatch()
    trainer, found = Trainer(gpt_oss, Optimizer(), value_head=head), {}
    for name, loss in (
        ("both", error),
        ("policy", likelihood),
        ("value", lambda outputs, m: (outputs.values - 1).square().mean()),
    ):
        done = trainer.forward_backward(batch, loss)
        assert not done.values.requires_grad
        found[name] = {n: p.grad.clone() for n, p in trainer.updater.masters.parameters.items() if p.grad is not None}
        trainer.updater.discard()
    assert found["both"].keys() == found["policy"].keys() | found["value"].keys()
    assert found["both"].keys() - found["policy"].keys() == {"value_head.weight", "value_head.bias"}
    for name, gradient in found["both"].items():
        parts = [found[part][name] for part in ("policy", "value") if name in found[part]]
        assert (gradient - sum(parts)).abs().max() <= 1e-5 * gradient.abs().max().clamp(min=1)
    before = weights(gpt_oss) | {f"head.{n}": p.detach().clone() for n, p in head.named_parameters()}
    trainer.forward_backward(batch, error)
    trainer.optim_step(1e-2)
    after = dict(gpt_oss.named_parameters()) | {f"head.{n}": p for n, p in head.named_parameters()}
    assert not [name for name, p in after.items() if torch.equal(p, before[name])]


def test_a_value_head_of_zeros_beside_a_policy_without_signal_is_no_fault(gpt_oss):
    """A group without a signal in a shared critic's first step: nothing but the head has a gradient."""
    trainer = Trainer(gpt_oss, Optimizer(), value_head=ValueHead(gpt_oss.config.hidden_size))
    before = weights(gpt_oss)
    trainer.forward_backward(microbatch(), lambda outputs, _: 0 * outputs.logprobs.sum() + (outputs.values - 1).sum())
    assert trainer.optim_step(1e-2) > 0
    assert trainer.value_head.weight.any()
    assert all(torch.equal(p, before[name]) for name, p in gpt_oss.named_parameters())


def test_square_norms_are_of_the_same_pass(model, eager):
    """Against autograd through transformers' eager logits; None where not asked for."""
    batch, temperature = microbatch(), 0.7
    trainer = Trainer(model, Optimizer(), temperature=temperature)
    plain, found = trainer.logprobs(batch), trainer.logprobs(batch, with_square_norms=True)
    assert plain.square_norms is None
    assert torch.equal(plain.logprobs, found.logprobs)
    expected = []
    for tokens in batch.tokens.split([30, 20]):
        actions = torch.tensor([i for i in range(len(tokens)) if i % 3 > 0])
        logits = (eager(tokens[None]).logits[0, actions - 1] / temperature).detach().double().requires_grad_()
        chosen = logits.log_softmax(-1).gather(1, tokens[actions][:, None]).sum()
        expected.append(torch.autograd.grad(chosen, logits)[0].square().sum(-1))
    assert (found.square_norms - torch.cat(expected)).abs().max() <= 1e-5


# Two passes over one batch


def test_a_pass_without_gradient_has_the_bits_of_one_with(model):
    """So that the ratio of the first of several updates is exactly 1; few tokens too, as an engine decodes."""
    trainer = Trainer(model, Optimizer())
    for lengths in ((30, 20), (3,), (300, 200, 70)):
        assert torch.equal(
            trainer.logprobs(microbatch(lengths)).logprobs,
            trainer.forward_backward(microbatch(lengths), likelihood).logprobs,
        )


def test_after_an_update_the_routes_of_the_first_pass_are_replayed(model):
    trainer = Trainer(model, Optimizer())
    first = trainer.forward_backward(microbatch(), likelihood)
    trainer.optim_step(1e-2)
    again = dataclasses.replace(microbatch(), routed_experts=first.routes, own_routes=True)
    second, live = trainer.forward_backward(again, likelihood), trainer.logprobs(microbatch())
    assert torch.equal(second.routes, first.routes)
    assert not torch.equal(live.routes, first.routes)
    assert second.route_agreement < 1


# Memory and precision


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def outputs_of(trainer, batch):
    """What a loss would be made of, with its graph."""
    return trainer._outputs(action_hidden(trainer.model, batch, trainer.precision, trainer._checkpointed), batch)


@pytest.mark.parametrize("precision", [Precision(), Precision(deterministic=True)])
@pytest.mark.parametrize("replay", [False, True])
def test_gradient_checkpointing_changes_no_bit(model, replay, precision):
    plain = Trainer(model, Optimizer(), precision=precision)
    batch = microbatch((40, 61))
    if replay:
        batch = dataclasses.replace(batch, routed_experts=plain.logprobs(batch).routes)
    expected, expected_gradients = plain.forward_backward(batch, likelihood), gradients(model)
    model.zero_grad()
    again = Trainer(model, Optimizer(), precision=precision, gradient_checkpointing=True)
    found = again.forward_backward(batch, likelihood)
    assert torch.equal(found.logprobs, expected.logprobs)
    assert torch.equal(found.routes, expected.routes)
    assert all(torch.equal(gradient, expected_gradients[name]) for name, gradient in gradients(model).items())


def test_a_recomputation_on_another_thread_takes_the_same_routes(gpt_oss):
    """As autograd's own threads do on CUDA: they know nothing of the forward's context."""
    trainer, calls = Trainer(gpt_oss, Optimizer(), gradient_checkpointing=True), []
    choose = Routes.choose
    with routing(len(trainer.routers)) as routes:
        logprobs = outputs_of(trainer, microbatch()).logprobs
    routes.choose = lambda *arguments, **options: calls.append(arguments[0]) or choose(routes, *arguments, **options)
    thread = threading.Thread(target=logprobs.sum().backward)
    thread.start()
    thread.join()
    assert calls == [3, 2, 1, 0]


def test_a_model_that_cannot_be_checkpointed_is_refused(gpt_oss, monkeypatch):
    monkeypatch.setattr(type(gpt_oss), "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="GptOssForCausalLM has no layers that can be; set it to False"):
        Trainer(gpt_oss, Optimizer(), gradient_checkpointing=True)


def test_gradient_checkpointing_recomputes_and_keeps_less(model):
    """Every layer runs twice, and what the graph saves shrinks."""
    calls, saved = [], {}
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda *arguments: calls.append(1))
    for checkpointing in (False, True):
        calls.clear()
        sizes = []
        trainer = Trainer(model, Optimizer(), gradient_checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=sizes: kept.append(x.numel()) or x, lambda x: x):
            logprobs = outputs_of(trainer, microbatch((200,))).logprobs
        logprobs.sum().backward()
        saved[checkpointing] = sum(sizes)
        assert len(calls) == len(model.model.layers) * (1 + checkpointing)
    assert saved[True] < 0.5 * saved[False]


def test_an_engine_still_decodes_with_the_cache_while_checkpointing_is_on(gpt_oss):
    """transformers drops the cache in training mode: layers are in it during the trainer's own pass alone."""
    trainer = Trainer(gpt_oss, Optimizer(), gradient_checkpointing=True)
    trainer.forward_backward(microbatch(), likelihood)
    settings = Sampling(temperature=0.0, max_tokens=12, stop_token_ids=(), seed=0)
    found = asyncio.run(EmbeddedEngine(gpt_oss).generate([3, 4, 5], settings))
    expected = asyncio.run(EmbeddedEngine(gpt_oss, max_concurrency=1).generate([3, 4, 5], settings))
    assert found.tokens == expected.tokens
    tokens = [3, 4, 5, *found.tokens]
    (batch,) = pack([supervised_sample("s", tokens, [False] * 3 + [True] * 12)], max_tokens=99).microbatches
    assert torch.allclose(trainer.logprobs(batch).logprobs, torch.tensor(found.logprobs), atol=1e-5)


@pytest.mark.parametrize(("attention", "experts"), [("eager", "lockstep"), ("lockstep", "grouped_mm")])
def test_a_model_with_other_implementations_is_refused(gpt_oss, attention, experts):
    gpt_oss.set_attn_implementation(attention)
    gpt_oss.set_experts_implementation(experts)
    with pytest.raises(ValueError, match=f"attn_implementation='{attention}', experts_implementation='{experts}'"):
        Trainer(gpt_oss, Optimizer())


def test_without_replay_a_model_that_was_prepared_for_it_is_left_alone(gpt_oss):
    expected = Trainer(gpt_oss, Optimizer()).logprobs(microbatch())
    found = Trainer(gpt_oss, Optimizer(), replay_routes=False).logprobs(
        dataclasses.replace(microbatch(), routed_experts=expected.routes.flip(0))
    )
    assert torch.equal(found.logprobs, expected.logprobs)
    assert found.routes is None


def test_a_model_in_another_dtype_than_the_precision_is_refused(gpt_oss, rounded):
    for model, precision in ((gpt_oss, BF16), (rounded, Precision())):
        with pytest.raises(PrecisionError, match=r"the model is in torch\.(float32|bfloat16); load it in that dtype"):
            Trainer(model, Optimizer(), precision=precision)
        with pytest.raises(PrecisionError, match="load it in that dtype"):
            EmbeddedEngine(model, precision=precision)


# bfloat16 with float32 master weights


@pytest.fixture
def rounded(gpt_oss_folder):
    return load_model(gpt_oss_folder, dtype=torch.bfloat16)


def test_updates_below_bfloat16s_digits_add_up(rounded):
    """50 steps of 4e-5 on weights of about 0.1, whose neighbours in bfloat16 are 5e-4 apart: AdamW's sign-like steps
    must move them by about 2e-3 in all."""
    trainer = Trainer(rounded, Optimizer(gradient_clip=1e9), precision=BF16)
    weight = rounded.model.layers[0].self_attn.q_proj.weight
    before = weight.detach().float().clone()
    batch = microbatch((12,))
    for _ in range(50):
        trainer.forward_backward(batch, likelihood)
        trainer.optim_step(4e-5)
    moved = (weight.detach().float() - before).abs()
    assert weight.dtype == torch.bfloat16
    assert moved.mean().item() == pytest.approx(1.5e-3, rel=0.5)


def test_gradients_gather_in_float32_masters_and_leave_the_model(rounded):
    trainer = Trainer(rounded, Optimizer(), precision=BF16)
    trainer.forward_backward(microbatch(), likelihood)
    once = {name: master.grad.clone() for name, master in trainer.updater.masters.parameters.items()}
    trainer.forward_backward(microbatch(), likelihood)
    for name, parameter in rounded.named_parameters():
        master = trainer.updater.masters.parameters[name]
        assert master.grad.dtype == torch.float32
        assert torch.equal(master.grad, 2 * once[name])  # bfloat16 would be exact here too; a third is not
        if parameter.dtype == torch.bfloat16:
            assert parameter.grad is None
            assert torch.equal(master.to(torch.bfloat16), parameter)
    third = 1e-3 * once["lm_head.weight"].abs().max()
    trainer.updater.masters.parameters["lm_head.weight"].grad.add_(third)
    trainer.forward_backward(microbatch(), likelihood)
    expected = 3 * once["lm_head.weight"] + third
    assert (
        trainer.updater.masters.parameters["lm_head.weight"].grad - expected
    ).abs().max() <= 1e-6 * expected.abs().max()


def test_a_closed_trainer_leaves_gradients_to_the_model(rounded):
    trainer = Trainer(rounded, Optimizer(), precision=BF16)
    trainer.close()
    trainer.forward_backward(microbatch(), likelihood)
    assert all(parameter.grad is not None for parameter in rounded.parameters())


def test_two_open_trainers_do_not_share_gradients(rounded):
    Trainer(rounded, Optimizer(), precision=BF16)
    second = Trainer(rounded, Optimizer(), precision=BF16)
    with pytest.raises(InvariantError, match="close that trainer first"):
        second.forward_backward(microbatch(), likelihood)


def test_masters_survive_in_the_state(rounded, gpt_oss_folder):
    """Two steps in one go, and with a save and a load between them: the same bits."""

    def step(trainer):
        trainer.forward_backward(microbatch(), likelihood)
        trainer.optim_step(1e-4)

    trainer = Trainer(rounded, Optimizer(), precision=BF16)
    step(trainer)
    state, between = copy.deepcopy(trainer.state_dict()), weights(rounded)
    step(trainer)
    other = load_model(gpt_oss_folder, dtype=torch.bfloat16)
    other.load_state_dict(between)
    again = Trainer(other, Optimizer(), precision=BF16)
    again.load_state_dict(state)
    step(again)
    after = weights(rounded)
    assert all(torch.equal(value, after[name]) for name, value in weights(other).items())
    assert all(map(torch.equal, trainer.updater.masters.copies(), again.updater.masters.copies()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_value_head_survives_in_the_state(gpt_oss_folder, dtype):
    """Two steps in one go, and with a save and a load between them: the same head, and so the same values."""
    precision = Precision(dtype=dtype)

    def fresh():
        model = load_model(gpt_oss_folder, dtype=precision.torch_dtype)
        return Trainer(model, Optimizer(), precision=precision, value_head=ValueHead(model.config.hidden_size))

    def step(trainer):
        trainer.forward_backward(microbatch(), error)
        trainer.optim_step(1e-3)

    trainer, again = fresh(), fresh()
    step(trainer)
    again.model.load_state_dict(weights(trainer.model))
    again.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert torch.equal(again.logprobs(microbatch()).values, trainer.logprobs(microbatch()).values)
    step(trainer)
    step(again)
    expected = trainer.updater.masters.parameters
    assert all(torch.equal(p, expected[name]) for name, p in again.updater.masters.parameters.items())
    assert torch.equal(again.logprobs(microbatch()).values, trainer.logprobs(microbatch()).values)


def test_float32_needs_no_copies(gpt_oss):
    trainer = Trainer(gpt_oss, Optimizer())
    assert trainer.updater.masters.copies() == []
    assert all(trainer.updater.masters.parameters[name] is p for name, p in gpt_oss.named_parameters())
