"""Every datum that crosses a boundary between Lockstep's rooms.

All are frozen, slotted, keyword-only dataclasses; this file imports nothing heavy. Words are the field's: a
*trajectory* is one attempt at a task, a *turn* is one action of the policy with the context that preceded it, a *group*
is the siblings on one task, a *sample* is one unbroken token history, a *batch* is what one optimiser step trains on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch

UNKNOWN_ROUTE = 255  # in routed_experts: this token's route was not recorded, the trainer's router chooses

Role = Literal["system", "developer", "user", "assistant", "tool"]

StopReason = Literal[
    "done",  # the environment ended it
    "max_turns",  # the turn limit
    "length",  # an action, or the whole history, met its token limit
    "environment_error",  # the environment's own code failed; masked
    "infrastructure_error",  # what the environment relies on failed (sandbox, tool server, judge); masked
    "engine_error",  # the engine failed after its retries; masked
]


class UserError(ValueError):
    """A user's mistake. The message is one line: what is wrong, the value, and what fixes it."""


class InvariantError(RuntimeError):
    """An invariant of docs/concepts.md broke while running. The message carries the evidence; the run stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message, in Harmony's terms. A tool call is an assistant message with a recipient and JSON content.

    channel: 'analysis', 'commentary' or 'final' for assistant messages; None where a format has no channels.
    recipient: whom an assistant message calls, e.g. 'functions.calculator'; None speaks to the user.
    name: which tool speaks, for role 'tool', e.g. 'functions.calculator'.
    """

    role: Role
    content: str
    channel: str | None = None
    recipient: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDescription:
    """What a model is told of a tool: its bare name, one paragraph, and the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem. `messages` opens the conversation; `data` is for the environment alone and never reaches the
    model."""

    id: str
    messages: tuple[Message, ...]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A solved task: `messages` continues the task's own messages with assistant and tool messages up to the end."""

    task: Task
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One action and the context before it, as tokens.

    context: tokens new since the last action; the whole prompt when `restarts`.
    action: sampled tokens, exactly as the engine returned them, stop token included.
    engine_logprobs: one per action token, of the distribution that was sampled (temperature included).
    routed_experts: uint8 [tokens, layers, top_k] when the engine recorded routes: those of the tokens fed in this turn,
    in order, which are the last token of the action before (unless the history restarts), the context, and the action
    but its last token. Over a history they are those of all its tokens but the last.
    restarts: earlier tokens are no prefix of this prompt (history was rewritten); the token history splits here.
    """

    context: tuple[int, ...]
    action: tuple[int, ...]
    engine_logprobs: tuple[float, ...]
    weights_version: int
    routed_experts: np.ndarray | None = None
    restarts: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.context) + len(self.action)

    def __post_init__(self) -> None:
        if len(self.action) != len(self.engine_logprobs):
            raise InvariantError(
                f"turn has {len(self.action)} action tokens but {len(self.engine_logprobs)} engine log-probs: "
                "the engine must return exactly one log-prob for each sampled token"
            )
        if self.routed_experts is not None and not 0 <= self.num_tokens - len(self.routed_experts) <= 1:
            raise InvariantError(
                f"turn has {self.num_tokens} tokens but routes of {len(self.routed_experts)}: one for each is fed, "
                "or one less where a history begins"
            )
        if not self.context and not self.action:
            raise InvariantError("turn has neither context nor action tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One attempt at a task.

    messages: the whole conversation, for people and for the record; training uses the turns' tokens only.
    reward: the sum of reward_parts. measures: what else the grader measured, without a say in the reward. events:
    counts of what happened, e.g. {'tool_calls': 3, 'malformed/bad_json': 1}.
    error: why it is masked (environment or infrastructure failure); None for a trajectory that may be trained on.
    """

    id: str
    task: Task
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    reward: float
    reward_parts: Mapping[str, float]
    stop_reason: StopReason
    events: Mapping[str, int]
    measures: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def num_action_tokens(self) -> int:
        return sum(len(turn.action) for turn in self.turns)

    @property
    def num_tokens(self) -> int:
        return sum(turn.num_tokens for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Siblings: several trajectories on one task, sampled by the same policy. baseline: a greedy one beside them, which
    is compared with and never trained on."""

    task: Task
    trajectories: tuple[Trajectory, ...]
    baseline: Trajectory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One unbroken token history, flat. T = its number of tokens; arrays align one to one with tokens.

    tokens int64 [T]; action_mask bool [T] marks sampled (or demonstrated) tokens; engine_logprobs float32 [T], 0 where
    not an action; turn int64 [T]: the turn of its trajectory that a token came with, from 0; routed_experts uint8
    [T, layers, top_k], 255 where a token's route is not known, or None; weights_version: the oldest that sampled any of
    its tokens.
    """

    trajectory_id: str
    tokens: np.ndarray
    action_mask: np.ndarray
    engine_logprobs: np.ndarray
    turn: np.ndarray
    weights_version: int
    routed_experts: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """Several samples packed end to end without padding. T tokens, S samples, A action tokens.

    tokens, positions int64 [T]; cu_seqlens int32 [S + 1]; action_index int64 [A] points at action tokens (never a
    sequence's first token); action_place int64 [A]: each action token's place among those of all the step's samples, in
    the samples' order, where everything else that is known of it stands; sample_ids names the samples' trajectories;
    routed_experts uint8 [T, layers, top_k], the routes to replay, or None; own_routes: they are those of a pass of the
    trainer's, or were compared with one, and are not to be compared with the live router's again.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    action_index: torch.Tensor
    action_place: torch.Tensor
    sample_ids: tuple[str, ...]
    routed_experts: torch.Tensor | None = None
    own_routes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one optimiser step trains on, and its counts."""

    microbatches: Sequence[Microbatch]
    num_action_tokens: int
    num_sequences: int
    num_tokens: int
