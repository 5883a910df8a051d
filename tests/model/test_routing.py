"""Routes: what is recorded is replayed, gates stay live, and routes of other tokens are found out."""

import dataclasses

import pytest
import torch

from lockstep.data.packing import pack
from lockstep.data.samples import supervised_sample
from lockstep.model.loading import load_model
from lockstep.model.routing import Routes, RoutingError, agreement, check_alignment, check_routes, routers, routing
from lockstep.trainer.optimizer import Optimizer
from lockstep.trainer.trainer import Trainer
from lockstep.types import UNKNOWN_ROUTE, InvariantError


def microbatch(lengths=(30, 20), routes=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = [
        supervised_sample(
            f"s{n}", torch.randint(2, 97, (n,), generator=generator).tolist(), [i % 3 > 0 for i in range(n)]
        )
        for n in lengths
    ]
    (found,) = pack(samples, max_tokens=10**6).microbatches
    return dataclasses.replace(found, routed_experts=routes)


def total(outputs, microbatch):
    return outputs.logprobs.sum()


def other_routes(routes, num_experts=8):
    """Routes with every first expert exchanged for one that is not among the token's."""
    exchanged = routes.clone().long()
    for expert in range(num_experts):
        free = ~(exchanged == expert).any(-1)
        changed = free & (exchanged[..., 0] == routes[..., 0])
        exchanged[..., 0] = torch.where(changed, expert, exchanged[..., 0])
    return exchanged.to(torch.uint8)


def test_the_routes_of_a_pass_are_the_routers_top_k(model):
    """Against the router's own scores, layer by layer."""
    batch, scores = microbatch(), []
    hooks = [
        router.register_forward_hook(lambda module, arguments, result: scores.append(result[0]))
        for router in routers(model)
    ]
    found = Trainer(model, Optimizer()).logprobs(batch)
    for hook in hooks:
        hook.remove()
    top_k = routers(model)[0].top_k
    assert found.routes.shape == (50, len(scores), top_k)
    assert found.routes.dtype == torch.uint8
    for layer, score in enumerate(scores):
        assert torch.equal(found.routes[:, layer].long(), score.topk(top_k).indices)
    assert found.route_agreement is None


def test_a_replay_of_ones_own_routes_changes_no_bit(model):
    trainer = Trainer(model, Optimizer())
    first = trainer.forward_backward(microbatch(), total)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    second = trainer.forward_backward(microbatch(routes=first.routes), total)
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(first.routes, second.routes)
    assert second.route_agreement == 1.0
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())


def test_routes_are_replayed_under_other_weights_with_live_gates(model):
    """After the routers moved far: the old experts, and weights for them from the new scores, with a gradient."""
    trainer = Trainer(model, Optimizer())
    old = trainer.logprobs(microbatch()).routes
    with torch.no_grad():
        for router in routers(model):
            router.weight.add_(torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    live = trainer.logprobs(microbatch())
    replayed = trainer.forward_backward(microbatch(routes=old), total)
    assert not torch.equal(live.routes, old)
    assert torch.equal(replayed.routes, old)
    assert 0.3 < replayed.route_agreement < 1
    assert not torch.equal(replayed.logprobs, live.logprobs)
    assert all(router.weight.grad.abs().max() > 0 for router in routers(model))


def test_gates_of_replayed_experts_are_the_models_own_formula(model):
    """GPT-OSS: softmax over the chosen logits; Qwen3-MoE: chosen softmax probabilities, normalised."""
    router = routers(model)[1]
    hidden = torch.randn(9, router.hidden_dim, generator=torch.Generator().manual_seed(0))
    chosen = torch.stack(
        [torch.randperm(8, generator=torch.Generator().manual_seed(i))[: router.top_k] for i in range(9)]
    )
    replay = torch.full((9, len(routers(model)), router.top_k), UNKNOWN_ROUTE, dtype=torch.uint8)
    replay[:, 1] = chosen
    with routing(replay.shape[1], replay):
        _, gates, indices = router(hidden)
    logits = torch.nn.functional.linear(hidden, router.weight, getattr(router, "bias", None)).gather(1, chosen)
    assert torch.equal(indices, chosen)
    assert (gates - logits.softmax(-1)).abs().max() <= 1e-6  # normalised probabilities are the softmax of the chosen


def test_tokens_without_a_route_are_routed_live(model):
    trainer = Trainer(model, Optimizer())
    live = trainer.logprobs(microbatch())
    routes = live.routes.clone()
    routes[::2] = UNKNOWN_ROUTE
    found = trainer.logprobs(microbatch(routes=routes))
    assert torch.equal(found.routes, live.routes)
    assert torch.equal(found.logprobs, live.logprobs)


@pytest.mark.parametrize("step", [-1, 1])
def test_routes_shifted_by_one_token_are_found_out(model, step):
    trainer = Trainer(model, Optimizer())
    routes = trainer.logprobs(microbatch()).routes
    with pytest.raises(InvariantError, match="they are not aligned with these tokens"):
        trainer.logprobs(microbatch(routes=routes.roll(step, 0)))


def test_routes_of_other_tokens_are_found_out(gpt_oss):
    trainer = Trainer(gpt_oss, Optimizer())
    with pytest.raises(InvariantError, match="not of these weights"):
        trainer.logprobs(microbatch(routes=other_routes(trainer.logprobs(microbatch()).routes)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda routes: routes[:-1], r"uint8 \(49, 4, 2\), but the pass has 50 tokens"),
        (lambda routes: routes[:, :3], r"uint8 \(50, 3, 2\), but the pass has 50 tokens in 4 mixture layers"),
        (lambda routes: routes[..., :1], r"uint8 \(50, 4, 1\)"),
        (lambda routes: routes.int(), r"int32 \(50, 4, 2\)"),
        (lambda routes: routes + 5, "routes name expert 12 of 8"),
        (lambda routes: routes[..., :1].expand(-1, -1, 2), "an expert twice"),
    ],
)
def test_routes_of_another_shape_or_model_are_refused(gpt_oss, change, words):
    trainer = Trainer(gpt_oss, Optimizer())
    routes = trainer.logprobs(microbatch()).routes
    with pytest.raises(InvariantError, match=words):
        trainer.logprobs(microbatch(routes=change(routes)))


def test_agreement_golden():
    """Two of three tokens have a route; 3 of their 4 choices are the live ones."""
    replayed = torch.tensor([[[0, 1]], [[2, 3]], [[UNKNOWN_ROUTE] * 2]], dtype=torch.uint8)
    live = torch.tensor([[[1, 0]], [[2, 7]], [[4, 5]]], dtype=torch.uint8)
    assert agreement(replayed, live) == 0.75
    assert agreement(torch.full_like(replayed, UNKNOWN_ROUTE), live) == 1.0


def test_texts_that_repeat_themselves_are_aligned():
    """A shift changes nothing there, and a flip makes it fit as well."""
    live = torch.tensor([[0, 1]], dtype=torch.uint8).repeat(30, 2, 1)
    replayed = live.clone()
    replayed[0, 0] = torch.tensor([2, 1])
    check_alignment(replayed, live, 8)


def test_ones_own_routes_are_replayed_however_far_the_weights_moved(gpt_oss):
    """A second update on a batch: the routes are the trainer's own, and aligned by construction."""
    trainer = Trainer(gpt_oss, Optimizer())
    first = trainer.logprobs(microbatch())
    own = dataclasses.replace(microbatch(routes=other_routes(first.routes)), own_routes=True)
    assert trainer.logprobs(own).route_agreement <= 0.5


def test_a_recomputation_takes_the_routes_of_the_first_time():
    routes = Routes(1)
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    assert routes.choose(0, scores, 2)[1].tolist() == [[0, 1]]
    values, indices = routes.choose(0, torch.tensor([[1.0, 2.0, 3.0]]), 2)
    assert (values.tolist(), indices.tolist()) == ([[1.0, 2.0]], [[0, 1]])


def test_layers_that_did_not_run_are_missed():
    with pytest.raises(InvariantError, match=r"mixture layers \[0, 1\] did not run"):
        _ = Routes(2).used


class TwoChoices(torch.nn.Module):
    """A router by groups of experts, as DeepSeek's: it asks twice."""

    top_k, num_experts = 2, 4

    def forward(self, scores):
        groups = scores.view(-1, 2, 2).amax(-1).topk(1).indices
        return scores.topk(self.top_k).indices + 0 * groups


class Mixture(torch.nn.Module):
    def __init__(self, **routers):
        super().__init__()
        self.experts = torch.nn.Module()
        self.experts.gate_up_proj = torch.nn.Parameter(torch.zeros(1))
        for name, router in routers.items():
            setattr(self, name, router)


def test_routers_that_choose_twice_are_refused():
    mixture = Mixture(gate=TwoChoices())
    (router,) = routers(mixture)
    with routing(1), pytest.raises(RoutingError, match="2 calls of topk"):
        router(torch.rand(3, 4))
    router(torch.rand(3, 4))  # outside, it is left alone


class Spelled(torch.nn.Module):
    top_k, num_experts = 2, 4

    def __init__(self, choose):
        super().__init__()
        self.choose = choose

    def forward(self, scores):
        return self.choose(scores)


@pytest.mark.parametrize(
    "choose",
    [
        lambda scores: torch.topk(scores, 2),
        lambda scores: torch.topk(scores, k=2, dim=-1, sorted=False),
        lambda scores: scores.topk(2, 1),
        lambda scores: torch.topk(input=scores, k=2),
    ],
)
def test_however_a_router_spells_it(choose):
    (router,) = routers(Mixture(gate=Spelled(choose)))
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    with routing(1, torch.tensor([[[1, 0]]], dtype=torch.uint8)) as routes:
        values, indices = router(scores)
    assert (values.tolist(), indices.tolist()) == ([[2.0, 1.0]], [[1, 0]])
    assert sorted(routes.live[0, 0].tolist()) == [2, 3]


def test_a_router_over_other_dimensions_is_refused():
    (router,) = routers(Mixture(gate=Spelled(lambda scores: torch.topk(scores, 2, 0))))
    with routing(1), pytest.raises(RoutingError, match=r"picks over dimension 0 of \(3, 4\)"):
        router(torch.rand(3, 4))


def test_layers_of_different_kinds_are_refused():
    wide = TwoChoices()
    wide.num_experts = 8
    with pytest.raises(RoutingError, match=r"layers differ in \(top_k, experts\), \[\(2, 4\), \(2, 8\)\]"):
        routers(torch.nn.ModuleList([Mixture(gate=TwoChoices()), Mixture(gate=wide)]))


def test_mixtures_whose_router_is_not_found_are_refused():
    with pytest.raises(RoutingError, match=r"\(Mixture\) has 0 modules with top_k and num_experts"):
        routers(Mixture())
    crowded = TwoChoices()
    crowded.num_experts = 256
    with pytest.raises(RoutingError, match="256 experts: routes name at most 255"):
        routers(Mixture(gate=crowded))


def test_a_dense_model_has_no_routers():
    assert routers(torch.nn.Sequential(torch.nn.Linear(2, 2))) == []


def test_check_routes_takes_what_is_whole(gpt_oss):
    routes = torch.tensor([0, 1], dtype=torch.uint8).expand(5, 4, 2).clone()
    routes[3] = UNKNOWN_ROUTE
    check_routes(routes, 5, routers(gpt_oss))


def test_a_reloaded_model_is_not_marked(gpt_oss, tmp_path):
    """Preparing routers leaves nothing in what is saved."""
    routers(gpt_oss)
    gpt_oss.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert "forward" not in vars(again.model.layers[0].mlp.router)
    assert again.state_dict().keys() == gpt_oss.state_dict().keys()
