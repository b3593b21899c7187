"""Data parallel: one worker's part of a centralized run, all agents of a worker on one model.

Every worker runs the same driver. Worker w plays the agents {k : k mod W = w}, each on its own
batch; the mean gradient over all K agents is one all-reduce, and every worker makes the same step.
Plain `torch.distributed`; `raydist.engine.ray_train` starts the workers.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raydist.engine.agent.agent import Info, Message
from raydist.engine.plan import Plan
from raydist.engine.pool.pool import LocalPool, centroid_files
from raydist.storage import agent_file

T = TypeVar("T")


class ParallelPool(LocalPool):
    """The agents of this worker. All workers call its methods together, in the same order.

    Every method returns the same values to all workers, so that their drivers decide alike.
    """

    def __init__(self, plan: Plan, threads: int = 1, cuda: bool = False) -> None:
        """Build this worker's agents; the process group must exist.

        Args:
            plan: the run; its strategy is centralized.
            threads: number of CPU threads of this worker.
            cuda: True if the worker computes on a GPU.
        """
        self._threads_each, self._cuda = threads, cuda
        super().__init__(plan)

    def reset(self, plan: Plan) -> None:
        """Build this worker's agents anew."""
        self._plan = plan
        specs = plan.specs(self._threads_each, self._cuda)[dist.get_rank() :: _workers()]
        shares = [plan.share(spec.agent) for spec in specs]
        alone = [replace(spec, neighbours=(spec.agent,), weights=(1.0,)) for spec in specs]
        self.build(alone, shares, plan.held(), one_model=True)

    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> list[list[Info]]:
        """Run the rounds; they are done, and closed, when it returns."""
        return [self._round(m, noise) for m, noise in enumerate(noisy, n)]

    def _round(self, n: int, noisy: bool) -> list[Info]:
        first, infos = self.agents[0], []
        statistics = first.flat.statistics.clone()
        total = torch.zeros_like(first.sent)
        for agent in self.agents:
            agent.flat.statistics.copy_(statistics)  # every agent begins with these
            sent, tell = agent.adapt(n, noisy)
            info = tell()
            del info["bytes_sent"]  # what an all-reduce sends is its library's affair
            total += sent
            infos.append(info)
        began = time.perf_counter()
        torch.div(self._sum(total), self._plan.agents, out=first.sent)
        first.combine(n)  # alone with the mean gradient: it steps with that
        taken = time.perf_counter() - began
        for agent in self.agents:
            agent.open, agent.seconds_combine = False, None
        for info in infos:
            info["seconds_combine"] = taken
        return self._gather(infos)

    def close(self, n: int) -> None:
        """Do nothing, because a round ends with its step."""

    def each(self, method: str, *args: Any, wait: bool = True) -> list[Any]:
        """Call a method of this worker's agents; every worker gets the answers of all."""
        return self._gather(super().each(method, *args))

    def centroid(self, which: str = "now") -> Message:
        """The centroid, which is the model of every agent."""
        return self.agents[0].state(which)

    def save(self, folder: str, n: int) -> None:
        """Write all models from the calling worker, because all agents share one model."""
        first = self.agents[0]
        for k in range(self._plan.agents):
            first.save(folder, agent_file(k))
        for name, which in centroid_files(self._plan, n).items():
            first.save(folder, name, self.centroid(which))

    def _sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def _gather(self, own: list[T]) -> list[T]:
        """Collect the values of all agents, in their order, from all workers."""
        parts: list[Any] = [None] * _workers()
        dist.all_gather_object(parts, own)
        return [parts[k % len(parts)][k // len(parts)] for k in range(self._plan.agents)]


def _workers() -> int:
    return dist.get_world_size()
