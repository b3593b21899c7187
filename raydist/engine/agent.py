"""An agent: a plain object that adapts on its own data and combines what its neighbours send.

Its whole state travels as one flat vector: the parameters, and behind them BatchNorm's running
statistics. Every method is fenced by the round: called out of order, it refuses to work.
"""

import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from raydist.adversary import awp
from raydist.adversary.fosc import first_order_gap
from raydist.adversary.schedule import eps_at, lr_at
from raydist.config import Experiment
from raydist.engine.flat import FlatModel, join, spread
from raydist.engine.measurer import Measurer
from raydist.engine.task import (
    Split,
    build_model,
    image_task,
    quadratic_of,
    quadratic_task,
)
from raydist.learning import optim
from raydist.learning.average import RunningAverage
from raydist.measure import trained
from raydist.network import strategy
from raydist.seeding import Purpose, torch_generator

Message = NDArray[np.floating[Any]]
Info = dict[str, float]


@dataclass(frozen=True)
class AgentSpec:
    """What an agent is told when it starts.

    Attributes:
        agent: its number k in 0..K-1.
        config: the experiment.
        neighbours: the l of its neighbourhood N_k in ascending order, k among them.
        weights: the a_lk in the same order.
        rounds: length of the run.
        epoch: rounds in a pass over the data.
        shape: of one input, (C, H, W).
        classes: number of classes.
        scale: what brings stored pixels to [0, 1].
        threads: CPU threads that it may use.
        cuda: whether it computes on a GPU.
    """

    agent: int
    config: Experiment
    neighbours: tuple[int, ...]
    weights: tuple[float, ...]
    rounds: int
    epoch: int
    shape: tuple[int, ...]
    classes: int
    scale: float
    threads: int
    cuda: bool


class Agent:
    """One learner k with its own data, model and optimiser."""

    def __init__(self, spec: AgentSpec, share: Split | None, held: dict[str, Split]) -> None:
        """Build the agent at round 0.

        Args:
            spec: who it is and what it shall do.
            share: its private training images and labels (None for the quadratic task).
            held: the "validation" and "test" splits, common to all agents.
        """
        torch.set_num_threads(spec.threads)
        self.spec, self.config = spec, spec.config
        self.device = torch.device("cuda" if spec.cuda else "cpu")
        self.flat = FlatModel(build_model(self.config, spec.shape, spec.classes).to(self.device))
        self.measurer = Measurer(
            self.config, spec.agent, held, spec.scale, spec.classes, self.device
        )
        self.start = self.flat.w.detach().clone()
        table = self.config.optim
        self.optimiser = optim.build(
            table.name,
            [self.flat.w],
            table.lr,
            momentum=table.momentum,
            nesterov=table.nesterov,
            weight_decay=table.weight_decay,
            **table.deat(),
        )
        self.average = RunningAverage(self.flat.state(), self.config.average_decay())
        self.task = (
            quadratic_task(self.config, spec.agent, self.device)
            if share is None
            else image_task(self.config, spec.agent, share, spec.scale, self.device)
        )
        self.round, self.open = 0, False
        self.sent = self.flat.w.detach()
        self.seconds_combine = 0.0

    def step(self, n: int, *messages: Message) -> tuple[Message, Info]:
        """Finish round n − 1 with what the neighbours sent, then adapt in round n.

        Args:
            n: the round, one more than the last.
            messages: m_l(n−1) of the neighbours other than k, in ascending order; none if that
                round was already finished by `combine`.

        Returns:
            m_k(n), one contiguous vector; and what was measured.
        """
        if self.open:
            self.combine(n - 1, *messages)
        return self.adapt(n)

    def adapt(self, n: int) -> tuple[Message, Info]:
        """Attack a fresh batch, take the gradient there, make the local step φ = w − μ ∇̂J(w).

        Args:
            n: the round.

        Returns:
            The message m_k(n) and what was measured: loss, grad_norm, fosc, lr, eps, times, bytes.

        Raises:
            RuntimeError: if n is not the next round.
        """
        if self.open or n != self.round + 1:
            raise RuntimeError(f"agent {self.spec.agent} is at round {self.round}, not before {n}")
        clock = [self._now()]
        x, y = self.task.batch(n)
        draw = torch_generator(Purpose.ATTACK, self.config.seed, self.spec.agent, n, self.device)
        threat = replace(self.task.threat, eps=self._eps(n))
        attacked = self.task.attack(self.flat.module, x, y, threat, draw)
        clock.append(self._now())
        w = self.flat.w.detach().clone()
        loss = self._gradient(x, attacked.x_adv, y)
        lr = self._set_lr(n)
        if self.config.strategy != "centralized":  # that one steps with the mean gradient
            self.optimiser.step()
        phi = self.flat.w.detach()
        self.sent = strategy.message(self.config.strategy, w, phi, self.flat.grad)
        message = self._outgoing().cpu().numpy().copy()
        clock.append(self._now())
        self.round, self.open = n, True
        measured = {"loss": loss, "grad_norm": torch.linalg.vector_norm(self.flat.grad)}
        if attacked.grad is not None:
            gap = first_order_gap(x, attacked.x_last, attacked.grad, threat)
            measured["fosc"] = gap.mean()
        info = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
        return message, info | {
            "lr": lr,
            "eps": threat.eps,
            "seconds_attack": clock[1] - clock[0],
            "seconds_adapt": clock[2] - clock[1],
            "seconds_combine": self.seconds_combine,
            "bytes_sent": float(message.nbytes * (len(self.spec.neighbours) - 1)),
        }

    def combine(self, n: int, *messages: Message) -> None:
        """w⁺ = Σ_l a_lk m_l + (φ − m): the end of round n.

        Args:
            n: the round that is open.
            messages: as in `step`.

        Raises:
            RuntimeError: if round n is not open or a message is missing.
        """
        if not self.open or n != self.round or len(messages) != len(self.spec.neighbours) - 1:
            raise RuntimeError(f"agent {self.spec.agent} cannot combine round {n}: out of order")
        began, inbox = self._now(), iter(messages)
        received = [
            self._outgoing() if l == self.spec.agent else self._tensor(next(inbox))
            for l in self.spec.neighbours
        ]
        mixed = strategy.combine(self.spec.weights, received)
        size = self.flat.w.numel()
        with torch.no_grad():
            if self.config.strategy == "centralized":
                self.flat.grad.copy_(mixed[:size])
                self.optimiser.step()
            else:
                self.flat.w.copy_(strategy.update(mixed[:size], self.flat.w, self.sent))
        spread(mixed[size:], self._companions())
        self._add_to_average(n)
        self.open = False
        self.seconds_combine = self._now() - began

    def state(self, averaged: bool = False) -> Message:
        """w_k and the running statistics, one vector; or their average over the run."""
        return (self.average.value if averaged else self.flat.state()).cpu().numpy()

    def mean(self, *states: Message) -> Message:
        """The centroid (1/K) Σ_k w_k of all agents' states, in their order."""
        tensors = [self._tensor(state) for state in states]
        return strategy.combine([1 / len(states)] * len(states), tensors).cpu().numpy()

    def measure(self, n: int, centroid: Message) -> tuple[Info, trained.Sums]:
        """What is known of the state after round n.

        Args:
            n: the round, finished.
            centroid: the centroid's vector.

        Returns:
            Of this agent's own state: distance from the start, squared distance from the centroid,
            excess risk (quadratic task). Of the centroid, on this agent's part of the validation
            images: sums that the driver adds up.

        Raises:
            RuntimeError: if round n is not finished.
        """
        if self.open or n != self.round:
            raise RuntimeError(f"agent {self.spec.agent} cannot be measured at round {n}")
        w, center = self.flat.w.detach(), self._tensor(centroid)
        own = {
            "distance": torch.linalg.vector_norm(w - self.start).item(),
            "disagreement": (w - center[: w.numel()]).square().sum().item(),
        }
        if self.config.data.set == "quadratic":
            own["excess_risk"] = quadratic_of(self.config).excess_risk(w.cpu().double().numpy())
            return own, {}
        with self.flat.holding(center) as model:
            return own, self.measurer.validate(model, n)

    def evaluate(self, centroid: Message | None) -> trained.Masks:
        """Per-image verdicts on test images.

        Args:
            centroid: judge this model on this agent's part of the images; None judges the agent's
                own model on all of them.

        Returns:
            The verdicts.
        """
        with self.flat.holding(self._state_or(centroid)) as model:
            return self.measurer.judge(model, shared=centroid is not None)

    def save(self, file: str, centroid: Message | None = None) -> None:
        """Write the model (or the centroid, given its state) as safetensors, whole or not at all.

        Args:
            file: the path; its folder exists.
            centroid: the centroid's vector, to write that instead.
        """
        with self.flat.holding(self._state_or(centroid)) as model:
            tensors = {name: value.clone() for name, value in model.state_dict().items()}
        save_file(tensors, file + ".part")
        os.replace(file + ".part", file)

    def _gradient(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """∇̂J(w) into the flat gradient, model in train mode; returns the loss."""
        self.flat.module.train()
        self.flat.grad.zero_()
        if self.config.loss.awp == 0:
            loss = self.task.loss(self.flat.module, x, x_adv, y)
            torch.autograd.backward(loss)
            return loss.detach()
        v = awp.perturbation(self.flat.module, self.task.loss, x, x_adv, y, self.config.loss.awp)
        with awp.perturbed(self.flat.module, v) as worst:
            loss = self.task.loss(worst, x, x_adv, y)
            torch.autograd.backward(loss)
        return loss.detach()

    def _add_to_average(self, n: int) -> None:
        """The state after round n joins the average, from its first round on."""
        if self.config.average and n >= self.config.average.start * self.spec.rounds:
            self.average.add(self.flat.state())

    def _eps(self, n: int) -> float:
        """This agent's budget in round n; all agents' follow the common schedule."""
        table, target = self.config.threat.schedule, self.config.threat.eps
        done = n - 1 if table.per == "round" else (n - 1) // self.spec.epoch * self.spec.epoch
        params = table.model_dump(include={"eps_max", "eps_min"}, exclude_none=True)
        now = eps_at(table.name, done / self.spec.rounds, target, **params)
        return self.task.threat.eps * (now / target if target else 1.0)

    def _set_lr(self, n: int) -> float:
        schedule, progress = self.config.optim.schedule, (n - 1) / self.spec.rounds
        lr = lr_at(schedule.name, progress, self.config.optim.lr, **schedule.params())
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        return lr

    def _outgoing(self) -> Tensor:
        """m_k, and behind it what travels with it."""
        return join(self.sent, self._companions())

    def _companions(self) -> list[Tensor]:
        """What is combined besides the weights, if configured: running statistics, momentum."""
        found = list(self.flat.buffers) if self.config.combine_buffers else []
        if self.config.optim.combine and self.config.strategy != "centralized":
            state = self.optimiser.state[self.flat.w].values()
            found += [t for t in state if isinstance(t, Tensor) and t.shape == self.flat.w.shape]
        return found

    def _state_or(self, centroid: Message | None) -> Tensor:
        return self.flat.state() if centroid is None else self._tensor(centroid)

    def _tensor(self, message: Message) -> Tensor:
        return torch.from_numpy(message).to(self.device)

    def _now(self) -> float:
        if self.spec.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
