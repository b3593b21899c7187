"""An agent's local step: the batch, the noise, the attack, the gradient, the optimiser.

`raydist.adversary` and `raydist.learning` hold the equations. This module adds the round, because
its number decides every draw, the budget and the learning rate.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from raydist.adversary import awp, telemetry
from raydist.adversary.attack import Ascent, Gradient, PerSample, by_autograd
from raydist.adversary.fosc import first_order_gap
from raydist.adversary.instability import add_gaussian
from raydist.adversary.schedule import Timetable
from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import Experiment
from raydist.engine.agent.foreign import Border
from raydist.engine.agent.passes import CudaGraph, computed, tf32
from raydist.engine.agent.task import rate_named
from raydist.engine.agent.tasks import Task
from raydist.engine.agent.wasserstein import Distributional
from raydist.learning import optim
from raydist.network.strategy import find
from raydist.seeding import Purpose, torch_generator
from raydist.vector import FlatModel


@dataclass(frozen=True)
class Attacked:
    """A batch and its adversarial points.

    Attributes:
        x: inputs, (N, ...), with the remedy's noise if it is due.
        y: labels, (N,).
        points: the attack's result.
        threat: the threat, at the budget of the round.
        round: the round n.
    """

    x: Tensor
    y: Tensor
    points: Ascent
    threat: ThreatModel
    round: int


class LocalStep:
    """The work of agent k between two exchanges."""

    def __init__(
        self, config: Experiment, agent: int, times: Timetable, task: Task, flat: FlatModel
    ) -> None:
        """Bind the parts.

        Args:
            config: the experiment.
            agent: the agent k.
            times: length, epochs and periods of the run.
            task: batches, attack and loss.
            flat: the model.
        """
        self.config, self.agent, self.task, self.flat = config, agent, task, flat
        self._times = times
        self._device = flat.w.device
        self._lr = rate_named(config)
        self.model = computed(flat.module, config)
        self.distributional = Distributional(config, self.model, task)
        self.optimiser = self._optimiser(flat.w)
        self.border = Border(config, agent, flat)
        self._ascent: Gradient = by_autograd
        self._descent: Callable[..., Tensor] | None = None
        if config.cuda_graphs and self._device.type == "cuda":
            self._ascent = self._replayed_ascent()
            self._descent = CudaGraph(self._backward, self._changed)

    def attack(self, n: int, noisy: bool) -> Attacked:
        """The batch of round n, attacked.

        Args:
            n: the round.
            noisy: True to add Gaussian noise to the inputs first (remedy of arXiv:2410.07675).

        Returns:
            The batch and its adversarial points.
        """
        x, y = self.task.batch(n)
        threat = self.task.own.in_round(n, self._times)
        if noisy:
            remedy, draw = self.config.stop.remedy, self._draw(Purpose.NOISE, n)
            x = add_gaussian(x, remedy.amount, remedy.how, generator=draw, bounds=threat.bounds)
        draw = self._draw(Purpose.ATTACK, n)
        with tf32(self.config.precision == "tf32"), self.border.passing(Purpose.IN_ATTACK, n):
            pointwise = partial(self.task.attack, self.model, x, y, threat, draw, self._ascent)
            points = self.distributional.attack(x, y, threat, pointwise)
        return Attacked(x, y, points, threat, n)

    def gradient(self, batch: Attacked) -> dict[str, Tensor]:
        """Write ∇̂J(w) into the flat gradient, with the model in train mode.

        Args:
            batch: the attacked batch.

        Returns:
            Scalars: `loss`, `grad_norm`, and `fosc` of the attack at its last gradient's point.
        """
        model, loss = self.model.train(), self.task.loss
        x, x_adv, y = batch.x, batch.points.x_adv, batch.y
        with (
            tf32(self.config.precision == "tf32"),
            self.border.passing(Purpose.IN_STEP, batch.round),
            ExitStack() as weights,
        ):
            if self.config.awp.gamma:
                v = awp.perturbation(model, loss, x, x_adv, y, self.config.awp.gamma)
                weights.enter_context(awp.perturbed(model, v))
            value = (self._descent or self._backward)(x, x_adv, y)
        found = {
            "loss": value,
            "grad_norm": torch.linalg.vector_norm(self.flat.grad),
        }
        if batch.points.grad is not None:
            gap = first_order_gap(x, batch.points.x_last, batch.points.grad, batch.threat)
            found["fosc"] = gap.mean()
        return found

    def _backward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Return the loss of the attacked batch; its gradient goes into the flat gradient."""
        self.flat.grad.zero_()
        value = self.task.loss(self.model, x, x_adv, y)
        torch.autograd.backward(value)
        self.border.bind()  # here, so that a recording does so too
        return value.detach()

    def look_closer(self, batch: Attacked, n: int) -> Callable[[], dict[str, Tensor]]:
        """Take telemetry of arXiv:2410.07675 on a batch, before and after the agent's own step.

        Args:
            batch: the attacked batch, whose gradient was just taken.
            n: the round.

        Returns:
            A function to call after the step, which returns training accuracies, `stepwise_cosine`
            along PGD, `grad_norm_ce` and `grad_norm_kl` (TRADES), and `grad_cosine` between the
            gradients before and after the agent's own step (centralized agents make none).
        """
        before = self.flat.model_order(self.flat.grad)
        with self.border.passing(Purpose.IN_TELEMETRY, n):
            found = self._look(batch, n)

        def after() -> dict[str, Tensor]:
            if find(self.config.strategy).steps_together:
                return found
            with self.border.passing(Purpose.IN_STEP, n):  # the draws of `gradient`
                now = telemetry.weight_gradient(
                    self.model,
                    lambda: self.task.loss(self.model, batch.x, batch.points.x_adv, batch.y),
                )
            return found | {"grad_cosine": telemetry.cosine(before, now)}

        return after

    def _look(self, batch: Attacked, n: int) -> dict[str, Tensor]:
        """Telemetry before the own step."""
        model, x, x_adv, y = self.model, batch.x, batch.points.x_adv, batch.y
        found = dict(
            zip(
                ("train_clean_acc", "train_adv_acc"),
                telemetry.accuracies(model, x, x_adv[: len(x)], y),
                strict=True,
            )
        )
        if batch.threat.eps > 0:
            found["stepwise_cosine"] = telemetry.stepwise_cosine(
                model,
                x,
                y,
                batch.threat,
                steps=max(1, self.config.attack.steps),
                alpha=batch.threat.eps / 4,
                generator=self._draw(Purpose.EVALUATE, n),
            )
        if self.config.loss.name == "trades":
            terms = telemetry.trades_gradients(model, x, x_adv, y, 1.0)
            for name in ("ce", "kl"):
                found[f"grad_norm_{name}"] = torch.linalg.vector_norm(terms[name])
        return found

    def step(self, n: int) -> None:
        """Make the optimiser's step of round n with the flat gradient."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr(n)
        self.optimiser.step()

    def lr(self, n: int) -> float:
        """The learning rate of round n."""
        return self._lr(self._times.progress(n))

    def state(self) -> list[Tensor]:
        """The optimiser's vectors, (P,) each, such as momentum."""
        return _vectors(self.optimiser, self.flat.w)

    def vectors(self) -> int:
        """Number of vectors in `state` from the first step on."""
        trial = torch.nn.Parameter(torch.zeros(2))
        trial.grad = torch.zeros(2)
        optimiser = self._optimiser(trial)
        optimiser.step()
        return len(_vectors(optimiser, trial))

    def _optimiser(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        return optim.build(params=[parameter], **self.config.optim.options())

    def _replayed_ascent(self) -> Gradient:
        """Gradient function like `by_autograd`, replayed for an attack's model and loss."""

        def gradient(model: torch.nn.Module, loss: PerSample, *inputs: Tensor) -> Tensor:
            found = by_autograd(model, loss, *inputs)
            self.border.bind()
            return found

        replay = cache(lambda model, loss: CudaGraph(partial(gradient, model, loss), self._changed))
        return lambda model, loss, x, target: replay(model, loss)(x, target)

    def _changed(self) -> list[Tensor]:
        """Tensors that a pass may write besides its result."""
        return [self.flat.state_vector, *self.model.buffers()]

    def _draw(self, purpose: Purpose, n: int) -> torch.Generator:
        return torch_generator(purpose, self.config.seed, self.agent, n, self._device)


def _vectors(optimiser: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> list[Tensor]:
    state = optimiser.state[parameter].values()
    return [t for t in state if isinstance(t, Tensor) and t.shape == parameter.shape]
