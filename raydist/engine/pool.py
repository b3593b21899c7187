"""Where the agents live: one interface, two pools.

`LocalPool` runs them in this process, in order: for the debugger and the tests, and as the
reference for `raydist.engine.ray_pool.RayPool`, which runs each as an actor. Same seed, same
weights, bit for bit on the CPU.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raydist.engine.agent import Agent, Info, Message
from raydist.engine.spec import AgentSpec, agent_file
from raydist.measure.masks import Masks
from raydist.measure.trained import Sums

if TYPE_CHECKING:  # agents need no graphs
    from raydist.engine.plan import Plan

T = TypeVar("T")
Pending = Any  # what `step` returns: infos, or references to them


class AgentError(RuntimeError):
    """An agent raised, or died once too often: says which one and why, in one line."""


class AgentDied(AgentError):
    """An agent is gone: the others can go on with another in its place."""

    def __init__(self, message: str, agent: int | None = None) -> None:
        super().__init__(message)
        self.agent = agent


class Pool(Protocol):
    """Agents that run rounds together. Rounds are submitted in order and collected later."""

    def step(self, n: int, noisy: bool = False) -> Pending:
        """Submit round n of all agents; the messages of round n − 1 travel along the edges."""

    def collect(self, pending: Pending) -> list[Info]:
        """Wait for a submitted round; what each agent measured."""

    def close(self, n: int) -> None:
        """Combine round n at all agents, so that their state can be read."""

    def learn_sensitivity(self, n: int) -> None:
        """After the closed round n, give all agents the sensitivity Υ of the whole network."""

    def measure(self, n: int) -> list[tuple[Info, Sums]]:
        """The state after the closed round n: of each agent, and its part of the validation."""

    def evaluate(self, *which: str) -> list[Masks]:
        """Verdicts on test images, of the centroid of the states `which` (as in `Agent.state`).

        Each agent judges one part. Several: their ensemble. None: each agent's own model on all.
        """

    def save(self, folder: Path, n: int) -> None:
        """Write the models of all agents and of the centroid, after the closed round n."""

    def snapshot(self, n: int, url: str) -> None:
        """Begin to write the state after the closed round n, in the background."""

    def settle(self) -> None:
        """Wait until no agent writes a snapshot any more."""

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """The state of a snapshot to all agents; of each, why it cannot be used, or ""."""

    def reset(self, plan: "Plan") -> None:
        """All agents as new ones, at round 0 of a plan of the same shape."""

    def revive(self) -> None:
        """Put new agents, at round 0, in the place of dead ones; forget the open round."""

    def states(self) -> list[Message]:
        """w_k and running statistics of every agent."""

    def shutdown(self) -> None:
        """Give everything back."""


def inboxes(specs: Sequence[AgentSpec], messages: Sequence[T]) -> list[list[T]]:
    """What each agent receives: the messages of its neighbours, in ascending order, not its own."""
    return [[messages[l] for l in spec.neighbours if l != spec.agent] for spec in specs]


class LocalPool:
    """All agents in this process, one after the other."""

    def __init__(self, plan: "Plan") -> None:
        """Build the agents of a plan."""
        self._threads = torch.get_num_threads()
        self.reset(plan)

    def reset(self, plan: "Plan") -> None:
        """As `Pool.reset`."""
        self._specs = plan.specs(threads=1, cuda=_use_cuda(plan))
        held = plan.held()
        self.agents = [Agent(spec, plan.share(spec.agent), held) for spec in self._specs]
        self._messages: list[Message] | None = None

    def step(self, n: int, noisy: bool = False) -> list[Info]:
        """As `Pool.step`; the round is done when it returns."""
        replies = [
            agent.step(n, noisy, *inbox)
            for agent, inbox in zip(self.agents, self._receive(), strict=True)
        ]
        self._messages = [message for message, _ in replies]
        return [info for _, info in replies]

    def collect(self, pending: list[Info]) -> list[Info]:
        """As `Pool.collect`."""
        return pending

    def close(self, n: int) -> None:
        """As `Pool.close`."""
        for agent, inbox in zip(self.agents, self._receive(), strict=True):
            agent.combine(n, *inbox)

    def learn_sensitivity(self, n: int) -> None:
        """As `Pool.learn_sensitivity`."""
        power = self.agents[0].add_power(*[agent.power(n) for agent in self.agents])
        for agent in self.agents:
            agent.learn_sensitivity(power)

    def measure(self, n: int) -> list[tuple[Info, Sums]]:
        """As `Pool.measure`."""
        centroid = self._centroid()
        return [agent.measure(n, centroid) for agent in self.agents]

    def evaluate(self, *which: str) -> list[Masks]:
        """As `Pool.evaluate`."""
        centroids = [self._centroid(each) for each in which]
        return [agent.evaluate(*centroids) for agent in self.agents]

    def save(self, folder: Path, n: int) -> None:
        """As `Pool.save`."""
        for k, agent in enumerate(self.agents):
            agent.save(str(folder / agent_file(k)))
        for name, which in centroid_files(self._specs[0], n).items():
            self.agents[0].save(str(folder / name), self._centroid(which))

    def snapshot(self, n: int, url: str) -> None:
        """As `Pool.snapshot`."""
        for agent in self.agents:
            agent.shards.write(n, url)

    def settle(self) -> None:
        """As `Pool.settle`."""
        for agent in self.agents:
            agent.shards.settle()

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """As `Pool.restore`."""
        self.revive()
        return [
            agent.shards.restore(n, url, sha256)
            for agent, sha256 in zip(self.agents, checksums, strict=True)
        ]

    def revive(self) -> None:
        """As `Pool.revive`; nobody dies alone here."""
        self._messages = None

    def states(self) -> list[Message]:
        """As `Pool.states`."""
        return [agent.state() for agent in self.agents]

    def shutdown(self) -> None:
        """As `Pool.shutdown`; the process gets its number of threads back."""
        self.settle()
        torch.set_num_threads(self._threads)

    def _centroid(self, which: str = "now") -> Message:
        return self.agents[0].mean(*[agent.state(which) for agent in self.agents])

    def _receive(self) -> list[list[Message]]:
        """The messages that wait, once; none after a round was closed."""
        messages, self._messages = self._messages, None
        return [[] for _ in self._specs] if messages is None else inboxes(self._specs, messages)


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
    if config.restarts:
        ended = sum(end <= n for end in config.period_ends(spec.rounds))
        files |= {f"snapshot-{i}": f"snapshot-{i}" for i in range(ended)}
    return {f"{name}.safetensors": which for name, which in files.items()}


def parameters_of(states: Sequence[Message], parameters: int) -> NDArray[np.float64]:
    """The weights (K, P) in the states of all agents, without running statistics."""
    return np.stack([state[:parameters] for state in states]).astype(np.float64)


def _use_cuda(plan: "Plan") -> bool:
    return plan.config.agent.gpus != 0 and torch.cuda.is_available()
