"""Pools of agents: one interface, and the pool in this process.

`LocalPool` runs them in this process, in order: for the debugger and the tests, and as the
reference for `raydist.engine.pool.ray_pool.RayPool`, which runs each as an actor. Same seed, same
weights, bit for bit on the CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raydist.engine.agent.agent import Info, Message
from raydist.engine.agent.validation import Sums
from raydist.engine.agent.verdicts import Verdicts
from raydist.engine.plan import Plan
from raydist.engine.pool.group import Group
from raydist.errors import AgentError, raised

P = ParamSpec("P")
T = TypeVar("T")
Pending = Any  # result of `step`: infos, or references to them


class Pool(ABC):
    """Agents that run rounds together.

    A pool is three verbs: `step`, `collect` and `close` run rounds, which are submitted in order
    and collected later; `each` calls a method of every agent; `centroid` goes through all of them.
    All other requests to agents are built from these verbs here, once for every pool.
    """

    _plan: Plan

    @property
    @abstractmethod
    def exchange(self) -> str:
        """Way in which messages travel: "memory", "objects" or "board"."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Number of rounds that the pool prefers per call of `step`."""

    @abstractmethod
    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> Pending:
        """Submit rounds of all agents; messages travel along the edges.

        Args:
            n: the first round; the round before it is submitted or closed.
            noisy: one flag per round, True to add Gaussian noise to the inputs first.
        """

    @abstractmethod
    def collect(self, pending: Pending) -> list[list[Info]]:
        """Wait for the rounds of one call; return each round's measurements of each agent."""

    @abstractmethod
    def close(self, n: int) -> None:
        """Combine round n at all agents, so that their state can be read."""

    @abstractmethod
    def each(self, method: str, *args: Any, wait: bool = True) -> list[Any]:
        """Call a method of every agent.

        Args:
            method: the name of a method of `StoredAgent`.
            *args: the arguments, the same for all agents; a result of `centroid` may be one.
            wait: True to wait for the answers; else the next call that waits tells of failures.

        Returns:
            The answer of each agent, in their order; empty without `wait`.
        """

    @abstractmethod
    def centroid(self, which: str = "now") -> Any:
        """Mean of a state over all agents (`Agent.add`), or a reference to it."""

    @abstractmethod
    def reset(self, plan: Plan) -> None:
        """Put all agents, as new ones, at round 0 of a plan of the same shape."""

    @abstractmethod
    def revive(self) -> None:
        """Put new agents, at round 0, in the place of dead ones; forget the open round."""

    @abstractmethod
    def shutdown(self) -> None:
        """Release all resources."""

    def learn_sensitivity(self, n: int) -> None:
        """Give all agents the sensitivity Υ of the whole network, after the closed round n."""
        power = np.sum(self.each("power", n), axis=0)
        self.each("learn_sensitivity", power, wait=False)

    def measure(self, n: int) -> list[tuple[Info, Sums]]:
        """Measure the state after the closed round n: each agent, and its part of validation."""
        return self.each("measure", n, self.centroid())

    def evaluate(self, *which: str) -> list[Verdicts]:
        """Judge models on test images.

        Args:
            *which: the state (as in `Agent.state`) whose centroid each agent judges on its part of
                the images; several: the centroids' ensemble; none: each agent's own model on all.

        Returns:
            The verdicts of each agent.
        """
        return self.each("evaluate", *map(self.centroid, which))

    def save(self, folder: str, n: int) -> None:
        """Write the models of all agents and of the centroid, after the closed round n.

        Args:
            folder: a path or an fsspec URL that every agent reaches.
            n: the round.
        """
        files = centroid_files(self._plan, n)
        self.each("save_models", folder, list(files), *map(self.centroid, files.values()))

    def snapshot(self, n: int, url: str) -> None:
        """Begin to write the state after the closed round n, in the background."""
        self.each("snapshot", n, url, wait=False)

    def settle(self) -> list[str]:
        """Wait until no agent writes; return each agent's error in its last part, or ""."""
        return self.each("settle")

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """Give all agents the state of a snapshot; return each agent's refusal, or ""."""
        return self.each("restore", n, url, checksums)

    def states(self) -> list[Message]:
        """State of every agent, w_k and running statistics, in the order of the model's tensors."""
        return self.each("ordered_state")


def _told(
    method: Callable[Concatenate["LocalPool", P], T],
) -> Callable[Concatenate["LocalPool", P], T]:
    """Decorate a method: an agent's exception ends the run as it does in an actor."""

    @wraps(method)
    def run(pool: "LocalPool", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(pool, *args, **kwargs)
        except AgentError:
            raise
        except Exception as error:
            raise raised(pool.busy, error) from error

    return run


class LocalPool(Group, Pool):
    """All agents in this process, one after the other: a round is done when `step` returns."""

    batch, exchange = 1, "memory"

    def __init__(self, plan: Plan) -> None:
        """Build the agents of a plan."""
        self._threads = torch.get_num_threads()
        self.reset(plan)

    def reset(self, plan: Plan) -> None:
        """Build the agents anew."""
        self._plan = plan
        specs = plan.specs(threads=1, cuda=_use_cuda(plan))
        try:
            self.build(specs, map(plan.share, range(plan.agents)), plan.held())
        except Exception as error:
            raise raised("an agent could not start", error) from error

    @_told
    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> Pending:
        """Run the rounds; they are done when it returns."""
        infos = []
        for m, noise in enumerate(noisy, n):
            if self.open:
                self.combine(m - 1, {})
            infos.append(self.adapt(m, noise))
        return infos

    def collect(self, pending: list[list[Info]]) -> list[list[Info]]:
        """Return the result of `step` unchanged."""
        return pending

    @_told
    def close(self, n: int) -> None:
        """Combine round n."""
        self.combine(n, {})

    @_told
    def each(self, method: str, *args: Any, wait: bool = True) -> list[Any]:
        """Call a method of every agent; all have answered when it returns."""
        return super().each(method, *args)

    @_told
    def centroid(self, which: str = "now") -> Message:
        """Mean of a state over all agents, as a vector."""
        return self.add(None, which)

    def revive(self) -> None:
        """Do nothing, because an agent cannot die without this process."""

    def shutdown(self) -> None:
        """Wait until no agent writes; reset the process's number of threads."""
        super().each("settle")
        torch.set_num_threads(self._threads)


def centroid_files(plan: Plan, n: int) -> dict[str, str]:
    """Files of the centroid after round n, and the agents' state that each averages.

    Args:
        plan: the run.
        n: the last round.

    Returns:
        Name -> state: the present one; the average, if configured; the ends of the periods, if the
        schedules have several.
    """
    config = plan.config
    files = {"centroid": "now"} | ({"average": "average"} if config.average else {})
    if config.periods:
        files |= {f"snapshot-{i}": f"snapshot-{i}" for i in range(plan.times.ended(n))}
    return {f"{name}.safetensors": which for name, which in files.items()}


def parameters_of(states: Sequence[Message], parameters: int) -> NDArray[np.float64]:
    """The weights (K, P) in the states of all agents, without running statistics."""
    return np.stack([state[:parameters] for state in states]).astype(np.float64)


def _use_cuda(plan: Plan) -> bool:
    return plan.config.agent.gpus != 0 and torch.cuda.is_available()
