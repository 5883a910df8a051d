"""Routes: which experts each token went to, recorded in one forward pass and replayed in another (arXiv:2510.11370).

A route is uint8 [T, layers, top_k], layers being the model's mixture layers in order and UNKNOWN_ROUTE marking a token
whose route was not recorded. Only the choice is replayed: gates are computed from the live logits, so the router still
learns. Any router serves that picks its experts by one `torch.topk` over scores [T, experts], as GPT-OSS, Qwen3-MoE,
Mixtral and OLMoE do: within a router's forward that one call is answered with the scores at the replayed places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lockstep.types import UNKNOWN_ROUTE, InvariantError, UserError

MIN_KAPPA = 0.2  # agreement beyond chance below which routes cannot belong to these tokens
MARGIN = 0.1  # of agreement, by which routes must fit better a token further on to be called shifted


class RoutingError(UserError):
    """A mixture-of-experts model whose router cannot be replayed. One line."""


class Routes:
    """The routes of one forward pass (and of its recomputation in the backward). replay: uint8 [T, layers, top_k] or
    None to let the router choose."""

    def __init__(self, num_layers: int, replay: torch.Tensor | None = None) -> None:
        self._replay = replay
        self._live: list[torch.Tensor | None] = [None] * num_layers
        self._used: list[torch.Tensor | None] = [None] * num_layers

    def choose(
        self, layer: int, input: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(values, indices) [T, k] for the scores `input` [T, experts] of a layer's router, as torch.topk has its
        arguments. A second call for a layer, a gradient checkpoint's recomputation, gets the experts of the first.
        """
        scores, used = input, self._used[layer]
        if scores.ndim != 2 or dim not in (-1, 1):
            raise RoutingError(
                f"the router of mixture layer {layer} picks over dimension {dim} of {tuple(scores.shape)}: routes are "
                "of [tokens, experts]; set replay_routes to False"
            )
        if used is None:
            live = torch.topk(scores.detach(), k, largest=largest, sorted=sorted).indices.to(torch.uint8)
            self._live[layer] = self._used[layer] = used = live
            if self._replay is not None:
                replayed = self._replay[:, layer].to(scores.device)
                self._used[layer] = used = torch.where(replayed == UNKNOWN_ROUTE, live, replayed)
        indices = used.long()
        return scores.gather(-1, indices), indices

    @property
    def used(self) -> torch.Tensor:
        """uint8 [T, layers, top_k]: what every token was routed by."""
        return _stacked(self._used)

    @property
    def live(self) -> torch.Tensor:
        """uint8 [T, layers, top_k]: what the router would have chosen."""
        return _stacked(self._live)


def _stacked(layers: list[torch.Tensor | None]) -> torch.Tensor:
    missing = [i for i, layer in enumerate(layers) if layer is None]
    if missing:
        raise InvariantError(f"mixture layers {missing} did not run: no routes were recorded")
    return torch.stack([layer for layer in layers if layer is not None], dim=1)


_CURRENT: ContextVar[Routes | None] = ContextVar("routes", default=None)


def routers(model: nn.Module) -> list[Any]:
    """The model's routers, in order of layers; empty for a dense model. Prepares each, once, to be recorded.

    Raises RoutingError for a mixture layer without a router that can be, or with more experts than a route can name.
    """
    found = [_router(name, module) for name, module in model.named_modules() if _is_mixture(module)]
    if len(kinds := {(router.top_k, router.num_experts) for router in found}) > 1:
        raise RoutingError(f"layers differ in (top_k, experts), {sorted(kinds)}: set replay_routes to False")
    for layer, router in enumerate(found):
        if not isinstance(router.forward, _Routed):
            router.forward = _Routed(router.forward, layer)
    return found


def has_mixtures(model: nn.Module) -> bool:
    """Whether the model has layers of experts."""
    return any(_is_mixture(module) for module in model.modules())


def _is_mixture(module: nn.Module) -> bool:
    return hasattr(getattr(module, "experts", None), "gate_up_proj")


def _router(name: str, mixture: nn.Module) -> Any:
    candidates: list[Any] = [m for m in mixture.children() if hasattr(m, "top_k") and hasattr(m, "num_experts")]
    if len(candidates) != 1:
        raise RoutingError(
            f"{name} ({type(mixture).__name__}) has {len(candidates)} modules with top_k and num_experts: its routes "
            "cannot be replayed; set replay_routes to False"
        )
    if candidates[0].num_experts > UNKNOWN_ROUTE:
        raise RoutingError(
            f"{name} has {candidates[0].num_experts} experts: routes name at most {UNKNOWN_ROUTE} of them; set "
            "replay_routes to False"
        )
    return candidates[0]


class _Routed:
    """A router's forward that asks the current Routes, if there are any, for the top k."""

    def __init__(self, forward: Any, layer: int) -> None:
        self.forward, self.layer = forward, layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        routes = _CURRENT.get()
        if routes is None:
            return self.forward(*args, **kwargs)
        with _TopK(routes, self.layer) as answered:
            result = self.forward(*args, **kwargs)
        if answered.calls != 1:
            raise RoutingError(
                f"the router of mixture layer {self.layer} picked its experts with {answered.calls} calls of topk: "
                "only routers with exactly one can be replayed; set replay_routes to False"
            )
        return result


class _TopK(TorchFunctionMode):
    def __init__(self, routes: Routes, layer: int) -> None:
        super().__init__()
        self.routes, self.layer, self.calls = routes, layer, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.topk or func is torch.Tensor.topk:
            self.calls += 1
            with torch._C.DisableTorchFunction():
                return torch.return_types.topk(self.routes.choose(self.layer, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


@contextmanager
def routing(num_layers: int, replay: torch.Tensor | None = None) -> Iterator[Routes]:
    """Within: the forward of a model whose `routers` were prepared is recorded, and replays `replay` where given."""
    routes = Routes(num_layers, replay)
    with resumed(routes):
        yield routes


def current() -> Routes | None:
    """The Routes that a forward pass records to now, if any."""
    return _CURRENT.get()


@contextmanager
def resumed(routes: Routes | None) -> Iterator[None]:
    """Within: a forward is part of the pass of `routes`, or of none."""
    token = _CURRENT.set(routes)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def check_routes(routes: torch.Tensor, num_tokens: int, found: list[Any]) -> None:
    """Raise InvariantError unless routes can be those of `num_tokens` tokens in a model with these routers."""
    top_k, num_experts = found[0].top_k, found[0].num_experts
    expected = (num_tokens, len(found), top_k)
    if routes.dtype != torch.uint8 or tuple(routes.shape) != expected:
        raise InvariantError(
            f"routes are {routes.dtype} {tuple(routes.shape)}, but the pass has {num_tokens} tokens in {len(found)} "
            f"mixture layers with {top_k} experts a token: uint8 {expected} is expected"
        )
    known = routes[routes[:, 0, 0] != UNKNOWN_ROUTE]
    if known.numel() and (int(known.max()) >= num_experts or not bool(known.sort(-1).values.diff(dim=-1).all())):
        raise InvariantError(
            f"routes name expert {int(known.max())} of {num_experts}, or an expert twice for one token: "
            "they come from another model"
        )


def agreement(replayed: torch.Tensor, live: torch.Tensor) -> float:
    """The share of replayed choices that the live router makes too, over tokens with a route; 1.0 where none has.
    replayed, live: uint8 [T, layers, top_k]."""
    known = replayed[:, 0, 0] != UNKNOWN_ROUTE
    return _overlap(replayed[known], live[known]) if bool(known.any()) else 1.0


def check_alignment(replayed: torch.Tensor, live: torch.Tensor, num_experts: int) -> None:
    """Raise InvariantError when routes of these very weights fit these tokens no better than chance, or clearly better
    when they are shifted by one token: then they are not of these tokens. Arguments as in `agreement`."""
    share, known = agreement(replayed, live), replayed[:, 0, 0] != UNKNOWN_ROUTE
    chance = live.shape[2] / num_experts
    shifted = {step: _shifted_overlap(replayed, live, known, step) for step in (-1, 1)}
    step = max(shifted, key=lambda each: shifted[each])
    if share < chance + MIN_KAPPA * (1 - chance) or shifted[step] > share + MARGIN:
        raise InvariantError(
            f"replayed routes agree with {share:.2f} of the live router's choices (chance: {chance:.2f}; shifted by "
            f"{step} token: {shifted[step]:.2f}): they are not aligned with these tokens, or not of these weights"
        )


def _overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a[..., :, None] == b[..., None, :]).any(-1).float().mean().item()


def _shifted_overlap(replayed: torch.Tensor, live: torch.Tensor, known: torch.Tensor, step: int) -> float:
    own, other = (slice(1, None), slice(None, -1)) if step == 1 else (slice(None, -1), slice(1, None))
    kept = known[own]
    return _overlap(replayed[own][kept], live[other][kept]) if bool(kept.any()) else 0.0
