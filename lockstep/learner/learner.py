"""The learner: what becomes of a step's groups. Passes, credit, correction, updates, and the numbers that explain them.

The order is that of PPO (arXiv:1707.06347): what is known before the first update (values, reference and, where
something needs them at once, old log-probs) comes first, then advantages, then `epochs` times the `minibatches`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from lockstep.algorithm.aggregation import token_weights
from lockstep.algorithm.algorithm import Algorithm
from lockstep.algorithm.kl import kl_estimate
from lockstep.algorithm.tokens import ActionTokens, Outcomes
from lockstep.algorithm.value_loss import ValueLoss
from lockstep.data.packing import pack
from lockstep.learner.experience import experience
from lockstep.learner.report import NO_UPDATE, Report, report
from lockstep.learner.step import Epoch, Step
from lockstep.trainer.critic import Critic
from lockstep.trainer.trainer import Outputs, Pass, Trainer
from lockstep.types import Batch, Group, InvariantError, Microbatch, UserError


class Learner:
    """Trains a policy, and a critic where there is one, on one step's groups after another.

    max_tokens: the constant of the aggregation 'constant', the length limit of a trajectory. critic: a model of its
    own. value_loss: of the trainer's value head, where the critic shares the policy's trunk. reference: what the KL
    penalty measures from.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        trainer: Trainer,
        *,
        microbatch_tokens: int,
        max_tokens: int,
        num_steps: int,
        seed: int = 0,
        critic: Critic | None = None,
        value_loss: ValueLoss | None = None,
        reference: Trainer | None = None,
    ) -> None:
        if "critic" in algorithm.advantages.needs and critic is None and value_loss is None:
            raise ValueError(f"{type(algorithm.advantages).__name__} needs values: give the learner a critic")
        if algorithm.kl is not None and reference is None:
            raise ValueError("algorithm.kl: needs a reference to measure from; give the learner one")
        self.algorithm, self.trainer, self.critic, self.value_loss = algorithm, trainer, critic, value_loss
        self.reference, self.microbatch_tokens, self.max_tokens = reference, microbatch_tokens, max_tokens
        self.num_steps, self.seed = num_steps, seed
        self.kl = algorithm.kl  # its coefficient may be adapted

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside the policy's weights."""
        critic = {} if self.critic is None else {"critic": self.critic.state_dict()}
        kl = {} if self.kl is None else {"kl_coefficient": self.kl.coefficient}
        return {"trainer": self.trainer.state_dict()} | critic | kl

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        if self.kl is not None:
            self.kl = dataclasses.replace(self.kl, coefficient=state["kl_coefficient"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])

    def update(self, groups: Sequence[Group], *, step: int) -> Report:
        """The groups' updates, as step 0..num_steps-1. Raises UserError when every trajectory is masked, InvariantError
        when an invariant breaks."""
        state = self._begin(groups, step)
        if state is None:
            return NO_UPDATE
        self._judge(state, step)
        done, stopped, warming = 0, False, self._is_warming(step)
        for epoch in range(self.algorithm.epochs):
            visited: list[tuple[Microbatch, Pass]] = []
            judged: list[tuple[Microbatch, torch.Tensor]] = []
            for i in range(len(state.batches)):
                if not (warming or stopped):
                    stopped = not self._update_policy(state, i, epoch, step, visited)
                    done += not stopped
                judged += self._update_critic(state, i, step)
            self._end_epoch(state, visited, judged)
        state.metrics |= {"update/epochs_done": done / len(state.batches), "update/stopped_early": float(stopped)}
        self._adapt(state, moved=done > 0)
        return report(self.algorithm, state, step=step, deterministic=self.trainer.precision.deterministic)

    def _is_warming(self, step: int) -> bool:
        """Whether only the critic is trained."""
        return self.critic is not None and step < self.critic.settings.warmup_steps

    def _seed(self, step: int) -> int:
        return self.seed * self.num_steps + step

    def _begin(self, groups: Sequence[Group], step: int) -> Step | None:
        """Pack, and take the first pass where something needs it. None when no trajectory may be trained on, though not
        all are masked."""
        found = experience(self.algorithm, groups)
        if not found.samples:
            errors = [t.error or self._baseline_error(group) for group in groups for t in group.trajectories]
            if all(errors):
                raise UserError(
                    f"nothing to train on in this step: all {len(errors)} trajectories are masked; mend what the first "
                    f"says and go on with --resume: {next(iter(errors), 'there is none')}"
                )
            return None
        parts = found.deal(self.algorithm.minibatches, seed=self._seed(step))
        batches = [pack(found.samples, max_tokens=self.microbatch_tokens, chosen=part) for part in parts]
        state = Step(found=found, batches=batches, tokens=found.tokens())
        if self.algorithm.needs_first_pass or self.value_loss is not None or self._is_warming(step):
            norms = "square_norms" in self.algorithm.advantages.needs
            passes = [self.trainer.logprobs(m, with_square_norms=norms) for m in state.microbatches]
            self._know_old(state, passes)
        return state

    def _baseline_error(self, group: Group) -> str | None:
        return group.baseline.error if group.baseline and "greedy" in self.algorithm.advantages.needs else None

    def _know_old(self, state: Step, passes: list[Pass]) -> None:
        """From passes with the weights before the first update: old log-probs, the correction, the routes."""
        logprobs = state.flat(passes, lambda each: each.logprobs)
        state.first, state.old_known = passes, True
        state.corrected = self.algorithm.correct(logprobs, state.tokens)
        correction = self.algorithm.correction
        if correction.anchor == "decoupled":
            state.tokens = dataclasses.replace(state.tokens, old_logprobs=logprobs)
        if correction.anchor == "decoupled" or correction.needs_batch:  # else each update's own policy decides
            weights, kept = state.corrected.weights, state.corrected.kept
            state.tokens = dataclasses.replace(state.tokens, weights=weights, kept=kept)
        if self.algorithm.old_logprobs == "current":
            state.replay(passes)
        else:
            state.trust_routes()

    def _judge(self, state: Step, step: int) -> None:
        """Values, reference, advantages, and the tokens' shares of the loss."""
        tokens = state.tokens
        values = None
        if self.critic is not None:
            values = state.flat([self.critic.values(m) for m in state.microbatches], lambda found: found)
        elif self.value_loss is not None:
            values = state.flat(state.first, lambda each: each.values)
        if self.reference is not None:
            passes = [self.reference.logprobs(m) for m in state.microbatches]
            tokens = dataclasses.replace(tokens, reference_logprobs=state.flat(passes, lambda each: each.logprobs))
        norms = None
        if "square_norms" in self.algorithm.advantages.needs:
            norms = state.flat(state.first, lambda each: each.square_norms).double()
        credit = self.algorithm.advantages(self._outcomes(state, tokens, values, norms))
        tokens = dataclasses.replace(tokens, advantages=credit.advantages.float(), values=values)
        if credit.targets is not None:
            tokens = dataclasses.replace(tokens, targets=credit.targets.float())
        state.tokens = dataclasses.replace(tokens, selected=self.algorithm.select(tokens, self._seed(step)))
        state.tokens = dataclasses.replace(state.tokens, loss_weights=self._loss_weights(state))

    def _outcomes(
        self, state: Step, tokens: ActionTokens, values: torch.Tensor | None, norms: torch.Tensor | None
    ) -> Outcomes:
        found, corrected = state.found, state.corrected
        token_rewards = torch.zeros(len(tokens.trajectory), dtype=torch.float64)
        if self.kl is not None and self.kl.where == "reward" and tokens.reference_logprobs is not None:
            token_rewards = self.kl.token_rewards(tokens.old_logprobs, tokens.reference_logprobs).double()
        return Outcomes(
            rewards=found.rewards,
            group=found.group,
            num_groups=found.num_groups,
            lengths=torch.tensor([trajectory.num_action_tokens for trajectory in found.trajectories]),
            trajectory=tokens.trajectory,
            token_rewards=token_rewards,
            weights=torch.ones_like(token_rewards) if corrected is None else corrected.weights.double(),
            greedy_rewards=found.greedy_rewards,
            values=None if values is None else values.double(),
            square_norms=norms,
        )

    def _loss_weights(self, state: Step) -> torch.Tensor:
        """[A]: of each minibatch by itself, since each makes an update."""
        tokens, algorithm = state.tokens, self.algorithm
        weights = torch.zeros(len(tokens.trajectory))
        for batch in state.batches:
            place = torch.cat([m.action_place for m in batch.microbatches])
            leave = not algorithm.correction.rejected_in_denominator and tokens.kept is not None
            weights[place] = token_weights(
                algorithm.aggregation,
                tokens.trajectory[place],
                tokens.num_trajectories,
                counted=tokens.kept[place] if leave else None,  # pyright: ignore[reportOptionalSubscript]
                max_tokens=self.max_tokens if algorithm.aggregation == "constant" else None,
            )
        return weights

    def _update_policy(
        self, state: Step, i: int, epoch: int, step: int, visited: list[tuple[Microbatch, Pass]]
    ) -> bool:
        """One update on minibatch i; False, with nothing changed, when the policy is too far from the old one."""
        batch, first = state.batches[i], epoch == i == 0
        forced = first and self.algorithm.old_logprobs == "current"
        loss = partial(self._policy_loss, state, batch, forced)
        found = [self.trainer.forward_backward(microbatch, loss) for microbatch in batch.microbatches]
        visited += zip(batch.microbatches, found, strict=True)
        _check_finite(batch, found)
        tokens = state.tokens.at(torch.cat([m.action_place for m in batch.microbatches]))
        logprobs = torch.cat([each.logprobs for each in found])
        if forced and state.old_known and self.algorithm.correction.anchor == "decoupled":
            _check_first_pass(logprobs, tokens.old_logprobs)
        kl = kl_estimate(tokens.old_logprobs, logprobs, "k3").mean()
        if not first and self.algorithm.stop_kl is not None and kl > self.algorithm.stop_kl:
            self.trainer.updater.discard()
            return False
        learning_rate = self.trainer.updater.settings.learning_rate_at(step, self.num_steps)
        norm = self.trainer.optim_step(learning_rate)
        state.metrics |= {"grad_norm": max(norm, state.metrics.get("grad_norm", 0.0)), "lr": learning_rate}
        return True

    def _policy_loss(
        self, state: Step, batch: Batch, forced: bool, outputs: Outputs, microbatch: Microbatch
    ) -> torch.Tensor:
        """forced: the old log-probs are the current ones, detached, and the ratio is exactly 1."""
        tokens = state.tokens.at(microbatch.action_place)
        if forced and self.algorithm.correction.anchor == "decoupled":
            tokens = dataclasses.replace(tokens, old_logprobs=outputs.logprobs.detach())
        losses = self.algorithm.token_losses(outputs.logprobs, outputs.entropies, tokens, self.kl)
        if self.value_loss is None or outputs.values is None:
            return losses.sum()
        return losses.sum() + _value_loss(self.value_loss, batch, tokens, outputs.values)

    def _update_critic(self, state: Step, i: int, step: int) -> list[tuple[Microbatch, torch.Tensor]]:
        """One update on minibatch i; each microbatch's values before it."""
        if self.critic is None:
            return []
        batch, settings, judged = state.batches[i], self.critic.settings, []
        for microbatch in batch.microbatches:
            tokens = state.tokens.at(microbatch.action_place)
            loss = partial(_value_loss, settings.loss, batch, tokens)
            judged.append((microbatch, self.critic.forward_backward(microbatch, loss)))
        norm = self.critic.updater.step(settings.optimizer.learning_rate_at(step, self.num_steps))
        state.metrics["critic/grad_norm"] = max(norm, state.metrics.get("critic/grad_norm", 0.0))
        return judged

    def _end_epoch(
        self, state: Step, visited: list[tuple[Microbatch, Pass]], judged: list[tuple[Microbatch, torch.Tensor]]
    ) -> None:
        """What the epoch's passes say of policy and critic; after the first, the old log-probs are known."""
        if visited:
            logprobs = torch.cat([found.logprobs for _, found in visited])
            place = torch.cat([microbatch.action_place for microbatch, _ in visited])
            total = sum(found.loss.item() for _, found in visited if found.loss is not None)
            visits = {id(microbatch) for microbatch, _ in visited}
            num_batches = sum(id(batch.microbatches[0]) in visits for batch in state.batches)
            state.epochs.append(Epoch(place=place, logprobs=logprobs, loss=total / num_batches))
            judged = judged or [(m, found.values) for m, found in visited if found.values is not None]
        if judged:
            tokens = state.tokens.at(torch.cat([m.action_place for m, _ in judged]))
            settings = self.value_loss if self.critic is None else self.critic.settings.loss
            assert settings is not None and tokens.values is not None and tokens.targets is not None
            losses, clipped = settings(torch.cat([values for _, values in judged]), tokens.values, tokens.targets)
            found = {"loss": losses.mean().item(), "clip_fraction": clipped.float().mean().item()}
            state.metrics |= {f"critic/{name}": value for name, value in found.items()}
        if visited and not state.old_known:  # the only minibatch of the first epoch
            self._know_old(state, [found for _, found in visited])

    def _adapt(self, state: Step, *, moved: bool) -> None:
        """The adaptive coefficient of the KL penalty, for the next step; unchanged while only the critic learns."""
        tokens = state.tokens
        if self.kl is None or tokens.reference_logprobs is None:
            return
        observed = kl_estimate(tokens.old_logprobs, tokens.reference_logprobs, "k3").mean().item()
        state.metrics |= {"reference/kl": observed, "reference/coefficient": self.kl.coefficient}
        if moved:
            self.kl = self.kl.adapted(observed, tokens.num_trajectories)


def _value_loss(loss: ValueLoss, batch: Batch, tokens: ActionTokens, values: torch.Tensor) -> torch.Tensor:
    """A microbatch's share of the mean over the minibatch's tokens."""
    assert tokens.values is not None and tokens.targets is not None
    losses, _ = loss(values, tokens.values, tokens.targets)
    return losses.sum() / batch.num_action_tokens


def _check_first_pass(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> None:
    """Raises InvariantError when the first update does not see what the pass before it saw."""
    if not torch.equal(logprobs, old_logprobs):
        gap = (logprobs - old_logprobs).abs().max().item()
        raise InvariantError(
            f"the first update's log-probs differ by up to {gap} from those of the pass before it, with "
            "the same weights, packing and routes, so the importance ratio is not 1: a kernel is not deterministic; to "
            "go on all the same, set algorithm.old_logprobs to recomputed"
        )


def _check_finite(batch: Batch, passes: Sequence[Pass]) -> None:
    """Raises InvariantError for a log-prob that is not finite: its ratio to itself is not 1."""
    for microbatch, found in zip(batch.microbatches, passes, strict=True):
        bad = torch.nonzero(~torch.isfinite(found.logprobs)).flatten()
        if len(bad):
            raise InvariantError(
                f"{len(bad)} of {len(found.logprobs)} log-probs are not finite (first at action token "
                f"{int(microbatch.action_place[bad[0]])} of the step), so no importance ratio can be 1: lower the "
                "learning rate or check the model"
            )
