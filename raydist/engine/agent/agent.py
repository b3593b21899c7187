"""An agent: a plain object that adapts on its own data and combines its neighbours' messages.

A message is one flat vector: the parameters, then BatchNorm's running statistics. It lies in one
buffer that every round overwrites. Every method checks the round, and raises if it is called out
of order.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor

from raydist.config.training import Ema
from raydist.engine.agent import validation, verdicts
from raydist.engine.agent.measuring import AgentMeasures
from raydist.engine.agent.passes import Timer
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.agent.step import LocalStep
from raydist.engine.agent.task import Split, build_model
from raydist.engine.agent.tasks import build_task
from raydist.learning.average import Ensemble, RunningAverage
from raydist.network import combination, strategy
from raydist.seeding import Purpose
from raydist.storage import Storage
from raydist.vector import FlatModel

Message = NDArray[np.floating[Any]]
Info = dict[str, float]

BEFORE = "seconds_combine_before"  # of the previous round, which ends when the next begins


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
            spec: the agent's number, neighbours, weights and experiment.
            share: the agent's private training images and labels (None for the quadratic task).
            held: the "validation" and "test" splits, common to all agents.
            flat: another agent's model, to share it; default: a model of its own.
        """
        torch.set_num_threads(spec.threads)
        self.spec, self.config = spec, spec.config
        self.device = torch.device("cuda" if spec.cuda else "cpu")
        self.flat = flat or FlatModel(
            build_model(self.config, spec.shape, spec.classes).to(self.device),
            self.config.channels_last,
        )
        self.measurer = AgentMeasures(
            self.config, spec.agent, share, held, spec.scale, spec.classes, self.device
        )
        self.start = self.flat.w.detach().clone()
        self.average: RunningAverage | None = None
        if table := self.config.average:
            decay = table.decay if isinstance(table, Ema) else None
            self.average = RunningAverage(self.flat.state(), decay)
        self.snapshots: list[Tensor] = []
        task = build_task(self.config, spec.agent, share, spec.scale, self.device)
        self.local = LocalStep(self.config, spec.agent, spec.times, task, self.flat)
        self.strategy = strategy.find(self.config.strategy)
        self.round, self.open = 0, False
        self.sent = self.flat.w.new_empty(self.message_size())
        self.seconds_combine: Callable[[], float] | None = None  # of the last round, until told

    def message_size(self) -> int:
        """Length of the message: m_k and the vectors that travel behind it."""
        size = self.flat.w.numel()
        if self.config.combine_buffers:
            size += self.flat.statistics.numel()
        return size + self._momentum * self.local.vectors() * self.flat.w.numel()

    def send_its_own(self) -> None:
        """Send the weights themselves instead of a copy, if the strategy's message allows it.

        Safe if the receivers read the message before this agent combines. Consensus always copies,
        because its step overwrites the weights.
        """
        kind, size = self.strategy.sends, self.sent.numel()
        own = {"phi": self.flat.state_vector, "gradient": self.flat.grad, "w": self.sent}[kind]
        if size <= own.numel():
            self.sent = own[:size]

    def adapt(self, n: int, noisy: bool = False) -> tuple[Tensor, Callable[[], Info]]:
        """Attack a fresh batch, take the gradient there, make the local step φ = w − μ ∇̂J(w).

        Args:
            n: the round.
            noisy: True to add Gaussian noise to the inputs first (`stop.remedy`).

        Returns:
            The message m_k(n), a buffer that the next call overwrites; and a function that waits
            for the device and returns the measurements: loss, grad_norm, fosc, lr, eps, times,
            bytes, and under `BEFORE` the seconds of the previous combination, if not yet reported.

        Raises:
            RuntimeError: if n is not the next round.
        """
        if self.open or n != self.round + 1:
            raise RuntimeError(f"agent {self.spec.agent} is at round {self.round}, not before {n}")
        clock = Timer(self.device)
        batch = self.local.attack(n, noisy)
        clock.mark()
        sent = self.strategy.sends
        if sent == "w":
            self._send(self.flat.w)
        measured = self.local.gradient(batch)
        every = self.config.telemetry.every
        closer = self.local.look_closer(batch, n) if every and n % every == 0 else dict
        if not self.strategy.steps_together:
            self.local.step(n)
        measured |= closer()
        if sent != "w":
            self._send(self.flat.grad if sent == "gradient" else self.flat.w)
        self._send_companions()
        clock.mark()
        self.round, self.open = n, True
        values = torch.stack(list(measured.values()))
        combining, self.seconds_combine = self.seconds_combine, None
        known = self.local.distributional.report(batch.threat)
        known |= {"lr": self.local.lr(n), "eps": batch.threat.eps}
        size = float(self.sent.nbytes * self.spec.listeners)

        def tell() -> Info:
            attack, adapt = clock.seconds()
            return {
                **dict(zip(measured, values.tolist(), strict=True)),
                **known,
                "seconds_attack": attack,
                "seconds_adapt": adapt,
                "bytes_sent": size,
                **({} if combining is None else {BEFORE: combining()}),
            }

        return self.sent, tell

    def combine(self, n: int, *messages: Tensor) -> None:
        """w⁺ = Σ_l a_lk m_l + (φ − m): the end of round n.

        Args:
            n: the round that is open.
            *messages: m_l(n) of the neighbours other than k, in ascending order.

        Raises:
            RuntimeError: if round n is not open or a message is missing.
        """
        if not self.open or n != self.round or len(messages) != len(self.spec.others):
            raise RuntimeError(f"agent {self.spec.agent} cannot combine round {n}: out of order")
        clock, weights = Timer(self.device), self.spec.weights
        theirs = iter(messages)
        received = [
            self.sent if l == self.spec.agent else next(theirs) for l in self.spec.neighbours
        ]
        if self.spec.cuda:
            received = [m.to(self.device) for m in received]
        companions = self._companions()
        heads = [m[: self.flat.w.numel()] for m in received] if companions else received
        with torch.no_grad():
            if self.strategy.steps_together:
                combination.combine(weights, heads, out=self.flat.grad)
                self.local.step(n)
            else:
                own = self.sent[: self.flat.w.numel()] if self.strategy.sends == "w" else None
                combination.update(weights, heads, self.flat.w, own)
            for part, companion in companions:
                combination.combine(weights, [m[part] for m in received], out=companion)
        self._remember(n)
        self.open = False
        clock.mark()
        self.seconds_combine = clock.total

    def state(self, which: str = "now") -> Message:
        """Parameters and running statistics as one vector.

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

    def ordered_state(self) -> Message:
        """The present state, in the order of its model's tensors, (S,)."""
        return self.flat.model_order(self.flat.state()).cpu().numpy()

    def add(self, total: Message | None, which: str) -> Message:
        """Add w_k / K to a sum, which is the centroid once it has passed through all agents.

        Args:
            total: the sum over the agents before this one; None for the first agent.
            which: the state to sum, named as in `state`.

        Returns:
            The sum with this agent's part, (S,).
        """
        share = 1 / self.config.topology.agents
        state = torch.from_numpy(self.state(which))
        if total is None:
            return (share * state).numpy()
        return torch.from_numpy(total).add(state, alpha=share).numpy()

    def measure(self, n: int, centroid: Message) -> tuple[Info, validation.Sums]:
        """Measure the state after round n.

        Args:
            n: the round, finished.
            centroid: the centroid's vector.

        Returns:
            Numbers of this agent's own state: distance from the start, squared distance from the
            centroid, `seconds_combine` of its last round, `passes` (through its share), excess risk
            (quadratic task, or `evaluate.excess_risk`) and the centroid's excess risk, which the
            driver averages over the agents. Sums of the centroid on this agent's part of the
            validation images, which the driver adds up.

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
        if self.seconds_combine is not None:
            own["seconds_combine"], self.seconds_combine = self.seconds_combine(), None
        found, sums = self.local.task.measure(n, self.flat, center, self.measurer)
        return own | found, sums

    def evaluate(self, *centroids: Message) -> verdicts.Verdicts:
        """Per-image verdicts on test images.

        Args:
            *centroids: the model to judge on this agent's part of the images; several: their
                ensemble; none: the agent's own model, on all images.

        Returns:
            The verdicts.
        """
        if len(centroids) > 1:
            members = []
            for centroid in centroids:
                with self.flat.at(self._tensor(centroid)) as model:
                    members.append(copy.deepcopy(model))
            return self.measurer.judge(Ensemble(members), shared=True)
        with self.flat.at(self._state_or(*centroids)) as model:
            return self.measurer.judge(model, shared=bool(centroids))

    def power(self, n: int) -> Message:
        """This agent's part of the network's sensitivity after round n (`Distributional.power`)."""
        with self.local.border.passing(Purpose.IN_MEASUREMENT, n):
            return self.local.distributional.power(n).cpu().numpy()

    def learn_sensitivity(self, power: Message) -> None:
        """Update Υ with the network's sensitivity."""
        self.local.distributional.learn(self._tensor(power))

    def save(self, folder: str, name: str, centroid: Message | None = None) -> None:
        """Write the model (or the centroid, given its state) as safetensors, whole or not at all.

        Args:
            folder: a path or an fsspec URL.
            name: the file's name.
            centroid: the centroid's vector, to write it instead of the own model.
        """
        with self.flat.at(self._state_or(centroid)) as model:
            tensors = {
                name: value.clone(memory_format=torch.contiguous_format)
                for name, value in model.state_dict().items()
            }
        Storage(folder).write(name, save_tensors(tensors))

    def _remember(self, n: int) -> None:
        """Add the state after round n to the average; keep a copy at the end of a period."""
        table, times = self.config.average, self.spec.times
        if self.average and table and n >= table.start * times.rounds:
            self.average.add(self.flat.state())
        if self.config.periods and n in times.ends:
            self.snapshots.append(self.flat.state())

    @property
    def _momentum(self) -> bool:
        """Tell if the optimiser's vectors travel with the weights."""
        return self.config.optim.combine and not self.strategy.steps_together

    def _send(self, vector: Tensor) -> None:
        _copy(vector.detach(), self.sent[: vector.numel()])

    def _send_companions(self) -> None:
        for part, companion in self._companions():
            _copy(companion, self.sent[part])

    def _companions(self) -> list[tuple[slice, Tensor]]:
        """Vectors combined besides the weights, if configured: running statistics, momentum.

        Returns:
            The slice of the message that holds each vector, and the vector.
        """
        found: list[tuple[slice, Tensor]] = []
        end = self.flat.w.numel()
        if self.sent.numel() == end:  # asked in every round
            return found
        vectors = [self.flat.statistics] if self.config.combine_buffers else []
        vectors += self.local.state() if self._momentum else []
        for vector in vectors:
            begin, end = end, end + vector.numel()
            if end > begin:
                found.append((slice(begin, end), vector))
        return found

    def _state_or(self, centroid: Message | None = None) -> Tensor:
        return self.flat.state() if centroid is None else self._tensor(centroid)

    def _tensor(self, message: Message) -> Tensor:
        return torch.from_numpy(message).to(self.device)


def _copy(vector: Tensor, here: Tensor) -> None:
    """Copy a vector to its place; skip the copy if both are the same memory."""
    if vector.data_ptr() != here.data_ptr():
        here.copy_(vector)
