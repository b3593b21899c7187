"""Where the agents live: one interface, two pools.

`LocalPool` runs them in this process, in order: for the debugger and the tests, and as the
reference for `raydist.engine.pool.ray_pool.RayPool`, which runs each as an actor. Same seed, same
weights, bit for bit on the CPU.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raydist.engine.agent.agent import Agent, Info, Message
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.agent.validation import Sums
from raydist.engine.agent.verdicts import Verdicts
from raydist.engine.plan import Plan
from raydist.engine.pool.group import Group
from raydist.errors import AgentError, raised

P = ParamSpec("P")
T = TypeVar("T")
Pending = Any  # what `step` returns: infos, or references to them


class Pool(Protocol):
    """Agents that run rounds together. Rounds are submitted in order and collected later."""

    @property
    def batch(self) -> int:
        """How many rounds it would like to be told at a time."""

    @property
    def exchange(self) -> str:
        """How messages travel: "memory", "objects" or "board"."""

    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> Pending:
        """Submit rounds of all agents; messages travel along the edges.

        Args:
            n: the first one; that before it has been submitted, or closed.
            noisy: of each of them, whether the inputs get Gaussian noise first.
        """

    def collect(self, pending: Pending) -> list[list[Info]]:
        """Wait for what was submitted in one call; of each round, what each agent measured."""

    def close(self, n: int) -> None:
        """Combine round n at all agents, so that their state can be read."""

    def learn_sensitivity(self, n: int) -> None:
        """After the closed round n, give all agents the sensitivity Υ of the whole network."""

    def measure(self, n: int) -> list[tuple[Info, Sums]]:
        """The state after the closed round n: of each agent, and its part of the validation."""

    def evaluate(self, *which: str) -> list[Verdicts]:
        """Verdicts on test images, of the centroid of the states `which` (as in `Agent.state`).

        Each agent judges one part. Several: their ensemble. None: each agent's own model on all.
        """

    def save(self, folder: str, n: int) -> None:
        """Write the models of all agents and of the centroid, after the closed round n.

        Args:
            folder: a path or an fsspec URL that every agent reaches.
            n: the round.
        """

    def snapshot(self, n: int, url: str) -> None:
        """Begin to write the state after the closed round n, in the background."""

    def settle(self) -> list[str]:
        """Wait until no agent writes; of each, why it could not write its last part, or ""."""

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """The state of a snapshot to all agents; of each, why it cannot be used, or ""."""

    def reset(self, plan: Plan) -> None:
        """All agents as new ones, at round 0 of a plan of the same shape."""

    def revive(self) -> None:
        """Put new agents, at round 0, in the place of dead ones; forget the open round."""

    def states(self) -> list[Message]:
        """w_k and running statistics of every agent, in the order of its model's tensors."""

    def shutdown(self) -> None:
        """Give everything back."""


def _told(
    method: Callable[Concatenate["LocalPool", P], T],
) -> Callable[Concatenate["LocalPool", P], T]:
    """What an agent raises in a method ends the run as it does in an actor."""

    @wraps(method)
    def run(pool: "LocalPool", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(pool, *args, **kwargs)
        except AgentError:
            raise
        except Exception as error:
            raise raised(pool.busy, error) from error

    return run


class LocalPool:
    """All agents in this process, one after the other."""

    batch, exchange = 1, "memory"

    def __init__(self, plan: Plan) -> None:
        """Build the agents of a plan."""
        self._threads = torch.get_num_threads()
        self.reset(plan)

    def reset(self, plan: Plan) -> None:
        """As `Pool.reset`."""
        specs = plan.specs(threads=1, cuda=_use_cuda(plan))
        try:
            self._group = Group(specs, map(plan.share, range(plan.agents)), plan.held())
        except Exception as error:
            raise raised("an agent could not start", error) from error

    @property
    def busy(self) -> str:
        """The agent that works, or worked last, as messages call it."""
        return self._group.busy

    @property
    def agents(self) -> list[Agent]:
        """The agents, in their order."""
        return self._group.agents

    @_told
    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> list[list[Info]]:
        """As `Pool.step`; the rounds are done when it returns."""
        infos = []
        for m, noise in enumerate(noisy, n):
            if self._group.open:
                self.close(m - 1)
            infos.append(self._group.adapt(m, noise))
        return infos

    def collect(self, pending: list[list[Info]]) -> list[list[Info]]:
        """As `Pool.collect`."""
        return pending

    @_told
    def close(self, n: int) -> None:
        """As `Pool.close`."""
        self._group.combine(n, {})

    @_told
    def learn_sensitivity(self, n: int) -> None:
        """As `Pool.learn_sensitivity`."""
        self._group.learn_sensitivity(self._group.add_powers(self._group.powers(n)))

    @_told
    def measure(self, n: int) -> list[tuple[Info, Sums]]:
        """As `Pool.measure`."""
        return self._group.measure(n, self._centroid())

    @_told
    def evaluate(self, *which: str) -> list[Verdicts]:
        """As `Pool.evaluate`."""
        return self._group.evaluate(*map(self._centroid, which))

    @_told
    def save(self, folder: str, n: int) -> None:
        """As `Pool.save`."""
        self._group.save(folder)
        for name, which in centroid_files(self.agents[0].spec, n).items():
            self._group.save_centroid(folder, name, self._centroid(which))

    def snapshot(self, n: int, url: str) -> None:
        """As `Pool.snapshot`."""
        self._group.snapshot(n, url)

    def settle(self) -> list[str]:
        """As `Pool.settle`."""
        return self._group.settle()

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """As `Pool.restore`."""
        return self._group.restore(n, url, checksums)

    def revive(self) -> None:
        """As `Pool.revive`; nobody dies alone here."""

    def states(self) -> list[Message]:
        """As `Pool.states`."""
        return self._group.states()

    def shutdown(self) -> None:
        """As `Pool.shutdown`; the process gets its number of threads back."""
        self.settle()
        torch.set_num_threads(self._threads)

    def _centroid(self, which: str = "now") -> Message:
        return self._group.centroid(None, which)


def centroid_files(spec: AgentSpec, n: int) -> dict[str, str]:
    """The files of the centroid after round n and which state of the agents each is the mean of.

    Args:
        spec: of any agent.
        n: the last round.

    Returns:
        Name -> state: the present one; the average, if there is one; the ends of the periods, if
        the schedules have several.
    """
    config = spec.config
    files = {"centroid": "now"} | ({"average": "average"} if config.average else {})
    if config.periods:
        files |= {f"snapshot-{i}": f"snapshot-{i}" for i in range(spec.times.ended(n))}
    return {f"{name}.safetensors": which for name, which in files.items()}


def parameters_of(states: Sequence[Message], parameters: int) -> NDArray[np.float64]:
    """The weights (K, P) in the states of all agents, without running statistics."""
    return np.stack([state[:parameters] for state in states]).astype(np.float64)


def _use_cuda(plan: Plan) -> bool:
    return plan.config.agent.gpus != 0 and torch.cuda.is_available()
