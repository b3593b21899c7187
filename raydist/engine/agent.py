"""An agent: a plain object that adapts on its own data and combines what its neighbours send.

Its whole state travels as one flat vector: the parameters, and behind them BatchNorm's running
statistics. Every method is fenced by the round: called out of order, it refuses to work.
"""

import copy
import os
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from raydist.engine.flat import FlatModel, join, spread
from raydist.engine.local_step import LocalStep
from raydist.engine.measurer import Measurer
from raydist.engine.shard import Shards
from raydist.engine.spec import AgentSpec
from raydist.engine.task import Split, build_model, image_task, quadratic_task
from raydist.learning.average import Ensemble, RunningAverage
from raydist.measure import masks, trained
from raydist.network import strategy

Message = NDArray[np.floating[Any]]
Info = dict[str, float]


class Agent:
    """One learner k with its own data, model and optimiser."""

    def __init__(
        self,
        spec: AgentSpec,
        share: Split | None,
        held: dict[str, Split],
        flat: FlatModel | None = None,
    ) -> None:
        """Build the agent at round 0.

        Args:
            spec: who it is and what it shall do.
            share: its private training images and labels (None for the quadratic task).
            held: the "validation" and "test" splits, common to all agents.
            flat: another agent's model, to use that; default: one of its own.
        """
        torch.set_num_threads(spec.threads)
        self.spec, self.config = spec, spec.config
        self.device = torch.device("cuda" if spec.cuda else "cpu")
        self.flat = flat or FlatModel(
            build_model(self.config, spec.shape, spec.classes).to(self.device)
        )
        self.measurer = Measurer(
            self.config, spec.agent, share, held, spec.scale, spec.classes, self.device
        )
        self.start = self.flat.w.detach().clone()
        self.average: RunningAverage | None = None
        if self.config.average:
            self.average = RunningAverage(self.flat.state(), self.config.average_decay())
        self.snapshots: list[Tensor] = []
        task = (
            quadratic_task(self.config, spec.agent, self.device)
            if share is None
            else image_task(self.config, spec.agent, share, spec.scale, self.device)
        )
        self.local = LocalStep(self.config, spec.agent, spec.rounds, spec.epoch, task, self.flat)
        self.round, self.open = 0, False
        self.sent = self.flat.w.detach()
        self.seconds_combine = 0.0
        self.shards = Shards(self)

    def step(self, n: int, noisy: bool, *messages: Message) -> tuple[Message, Info]:
        """Finish round n − 1 with what the neighbours sent, then adapt in round n.

        Args:
            n: the round, one more than the last.
            noisy: as in `adapt`.
            messages: m_l(n−1) of the neighbours other than k, in ascending order; none if that
                round was already finished by `combine`.

        Returns:
            m_k(n), one contiguous vector; and what was measured.
        """
        if self.open:
            self.combine(n - 1, *messages)
        return self.adapt(n, noisy)

    def adapt(self, n: int, noisy: bool = False) -> tuple[Message, Info]:
        """Attack a fresh batch, take the gradient there, make the local step φ = w − μ ∇̂J(w).

        Args:
            n: the round.
            noisy: whether the inputs get Gaussian noise first (`stop.remedy`).

        Returns:
            The message m_k(n) and what was measured: loss, grad_norm, fosc, lr, eps, times, bytes.

        Raises:
            RuntimeError: if n is not the next round.
        """
        if self.open or n != self.round + 1:
            raise RuntimeError(f"agent {self.spec.agent} is at round {self.round}, not before {n}")
        clock = [self._now()]
        batch = self.local.attack(n, noisy)
        clock.append(self._now())
        w = self.flat.w.detach().clone()
        measured = self.local.gradient(batch)
        telemetry = self.config.telemetry
        closer = self.local.look_closer(batch, n) if telemetry and n % telemetry == 0 else dict
        gradient = self.flat.grad
        if self.config.strategy != "centralized":  # that one steps with the mean gradient
            self.local.step(n)
        measured |= closer()
        self.sent = strategy.message(self.config.strategy, w, self.flat.w.detach(), gradient)
        message = self._outgoing().cpu().numpy().copy()
        clock.append(self._now())
        self.round, self.open = n, True
        info = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
        if self.local.upsilon:
            info["sensitivity"] = self.local.upsilon
        return message, info | {
            "lr": self.local.lr(n),
            "eps": batch.threat.eps,
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
                self.local.step(n)
            else:
                self.flat.w.copy_(strategy.update(mixed[:size], self.flat.w, self.sent))
        spread(mixed[size:], self._companions())
        self._remember(n)
        self.open = False
        self.seconds_combine = self._now() - began

    def state(self, which: str = "now") -> Message:
        """One vector: parameters and running statistics.

        Args:
            which: "now"; "average", over the run; "snapshot-i", at the end of the i-th period.

        Returns:
            The state, (S,).
        """
        if which == "now":
            return self.flat.state().cpu().numpy()
        if which == "average":
            assert self.average is not None
            return self.average.value.cpu().numpy()
        return self.snapshots[int(which.removeprefix("snapshot-"))].cpu().numpy()

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
            excess risk (quadratic task, or `evaluate.excess_risk`), and that of the centroid, whose
            mean over the agents the driver takes. Of the centroid, on this agent's part of the
            validation images: sums that the driver adds up.

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
            risk = self.measurer.quadratic.excess_risk
            own["excess_risk"] = risk(w.cpu().double().numpy())
            own["centroid_excess_risk"] = risk(center.cpu().double().numpy())
            return own, {}
        measured = self.config.evaluate.excess_risk > 0
        if measured:
            own["excess_risk"] = self.measurer.excess_risk(self.flat.module)
        with self.flat.holding(center) as model:
            if measured:
                own["centroid_excess_risk"] = self.measurer.excess_risk(model, [self.spec.agent])
            return own, self.measurer.validate(model, n)

    def evaluate(self, *centroids: Message) -> masks.Masks:
        """Per-image verdicts on test images.

        Args:
            *centroids: judge this model on this agent's part of the images; several: the ensemble
                of them; none: the agent's own model on all images.

        Returns:
            The verdicts.
        """
        if len(centroids) > 1:
            members = []
            for centroid in centroids:
                with self.flat.holding(self._tensor(centroid)) as model:
                    members.append(copy.deepcopy(model))
            return self.measurer.judge(Ensemble(members), shared=True)
        with self.flat.holding(self._state_or(*centroids)) as model:
            return self.measurer.judge(model, shared=bool(centroids))

    def power(self, n: int) -> Message:
        """This agent's part of the network's sensitivity after round n (`LocalStep.power`)."""
        return self.local.power(n).cpu().numpy()

    def add_power(self, *powers: Message) -> Message:
        """The sum of all agents' parts."""
        total: Message = np.sum(powers, axis=0)
        return total

    def learn_sensitivity(self, power: Message) -> None:
        """Take in the network's sensitivity."""
        self.local.learn_sensitivity(self._tensor(power))

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

    def _remember(self, n: int) -> None:
        """The state after round n joins the average, and is kept at the end of a period."""
        table, ends = self.config.average, self.config.period_ends(self.spec.rounds)
        if self.average and table and n >= table.start * self.spec.rounds:
            self.average.add(self.flat.state())
        if self.config.restarts and n in ends:
            self.snapshots.append(self.flat.state())

    def _outgoing(self) -> Tensor:
        """m_k, and behind it what travels with it."""
        return join(self.sent, self._companions())

    def _companions(self) -> list[Tensor]:
        """What is combined besides the weights, if configured: running statistics, momentum."""
        found = list(self.flat.buffers) if self.config.combine_buffers else []
        if self.config.optim.combine and self.config.strategy != "centralized":
            found += self.local.state()
        return found

    def _state_or(self, centroid: Message | None = None) -> Tensor:
        return self.flat.state() if centroid is None else self._tensor(centroid)

    def _tensor(self, message: Message) -> Tensor:
        return torch.from_numpy(message).to(self.device)

    def _now(self) -> float:
        if self.spec.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
