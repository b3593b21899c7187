"""Data parallel: one worker's part of a centralized run, all agents of a worker on one model.

Every worker runs the same driver. Worker w plays the agents {k : k mod W = w}, each on its own
batch; the mean gradient over all K agents is one all-reduce, and every worker makes the same step.
Plain `torch.distributed`; `raydist.engine.ray_train` starts the workers.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raydist.engine.agent import Agent, Info, Message
from raydist.engine.flat import spread
from raydist.engine.plan import Plan
from raydist.engine.pool import LocalPool, centroid_files
from raydist.engine.spec import agent_file
from raydist.measure.masks import Masks
from raydist.measure.trained import Sums

T = TypeVar("T")


class ParallelPool(LocalPool):
    """The agents of this worker. The workers call its methods together, in the same order.

    They give all workers the same values, so that the drivers decide alike.
    """

    def __init__(self, plan: Plan, threads: int = 1, cuda: bool = False) -> None:
        """Build this worker's agents; the process group exists.

        Args:
            plan: the run; its strategy is centralized.
            threads: CPU threads of this worker.
            cuda: whether it computes on a GPU.
        """
        self._threads_each, self._cuda = threads, cuda
        super().__init__(plan)

    def reset(self, plan: Plan) -> None:
        """As `Pool.reset`."""
        self._plan, held = plan, plan.held()
        self.agents: list[Agent] = []
        for spec in plan.specs(self._threads_each, self._cuda)[dist.get_rank() :: _workers()]:
            alone = replace(spec, neighbours=(spec.agent,), weights=(1.0,))
            flat = self.agents[0].flat if self.agents else None
            self.agents.append(Agent(alone, plan.share(spec.agent), held, flat))

    def step(self, n: int, noisy: bool = False) -> list[Info]:
        """As `Pool.step`; the round is done, and closed, when it returns."""
        first = self.agents[0]
        infos: list[Info] = []
        flat = first.flat
        before = flat.state()[flat.w.numel() :]  # running statistics: every agent begins with these
        total: Tensor | None = None
        for agent in self.agents:
            spread(before, flat.buffers)
            message, info = agent.adapt(n, noisy)
            del info["bytes_sent"]  # what an all-reduce sends is its library's affair
            sent = torch.from_numpy(message).to(first.device)
            total = sent if total is None else total.add_(sent)
            infos.append(info)
        assert total is not None
        began = time.perf_counter()
        mean = self._sum(total) / self._plan.agents
        flat.grad.copy_(mean[: flat.w.numel()])
        spread(mean[flat.w.numel() :], flat.buffers)
        first.combine(n)  # alone with the mean gradient: it steps with that
        for agent in self.agents:
            agent.open, agent.seconds_combine = False, time.perf_counter() - began
        return self._gather(infos)

    def close(self, n: int) -> None:
        """As `Pool.close`: a round ends with its step."""

    def learn_sensitivity(self, n: int) -> None:
        """As `Pool.learn_sensitivity`."""
        own = self.agents[0].add_power(*[agent.power(n) for agent in self.agents])
        power = self._sum(torch.from_numpy(own).to(self.agents[0].device)).cpu().numpy()
        for agent in self.agents:
            agent.learn_sensitivity(power)

    def measure(self, n: int) -> list[tuple[Info, Sums]]:
        """As `Pool.measure`."""
        return self._gather(super().measure(n))

    def evaluate(self, *which: str) -> list[Masks]:
        """As `Pool.evaluate`."""
        return self._gather(super().evaluate(*which))

    def save(self, folder: Path, n: int) -> None:
        """As `Pool.save`; this worker writes all of them, since all are one model."""
        first = self.agents[0]
        for k in range(self._plan.agents):
            first.save(str(folder / agent_file(k)))
        for name, which in centroid_files(first.spec, n).items():
            first.save(str(folder / name), self._centroid(which))

    def states(self) -> list[Message]:
        """As `Pool.states`."""
        return [self._centroid()] * self._plan.agents

    def _centroid(self, which: str = "now") -> Message:
        """What every agent holds."""
        return self.agents[0].state(which)

    def _sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def _gather(self, own: list[T]) -> list[T]:
        """What all agents have, in order, from the parts of all workers."""
        parts: list[Any] = [None] * _workers()
        dist.all_gather_object(parts, own)
        return [parts[k % len(parts)][k // len(parts)] for k in range(self._plan.agents)]


def _workers() -> int:
    return dist.get_world_size()
