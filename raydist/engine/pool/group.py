"""The agents of one process, whose messages to one another stay in its memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from raydist.engine.agent.agent import Info, Message
from raydist.engine.agent.passes import Streams
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.agent.task import Split
from raydist.engine.snapshot.shard import StoredAgent


class Group:
    """Some agents of a run, in ascending order, which work one after the other.

    Attributes:
        agents: the agents.
        busy: title of the agent that works, or worked last.
    """

    agents: list[StoredAgent]
    busy: str

    def build(
        self,
        specs: Sequence[AgentSpec],
        shares: Iterable[Split | None],
        held: dict[str, Split],
        one_model: bool = False,
    ) -> None:
        """Build the agents at round 0, in place of earlier ones.

        Args:
            specs: the specification of each agent.
            shares: the private training images and labels of each agent (None: quadratic task).
            held: the splits common to all agents.
            one_model: True to let all agents use the first agent's model.
        """
        self.agents = []
        for spec, share in zip(specs, shares, strict=True):
            flat = self.agents[0].flat if one_model and self.agents else None
            self.agents.append(StoredAgent(spec, share, held, flat))
            self.agents[-1].start = self.agents[0].start  # all begin there
        self.busy = self.agents[0].spec.title
        self._sent: dict[int, Tensor] = {}
        self._lanes = Streams(self.agents[0].device)

    def each(self, method: str, *args: Any) -> list[Any]:
        """Call a method of each agent; return the answers in the agents' order."""
        return [getattr(agent, method)(*args) for agent in self._working()]

    def add(self, total: Message | None, which: str) -> Message:
        """Pass a sum through all agents in their order, as `Agent.add`."""
        for agent in self._working():
            total = agent.add(total, which)
        assert total is not None
        return total

    def _working(self) -> Iterator[StoredAgent]:
        """Yield each agent for its work, and note it as busy."""
        for agent in self.agents:
            self.busy = agent.spec.title
            yield agent

    @property
    def open(self) -> bool:
        """Tell if the last round waits for the neighbours' messages."""
        return self.agents[0].open

    def adapt(self, n: int, noisy: bool) -> list[Info]:
        """Call `Agent.adapt` in round n at every agent; return the measurements."""
        told = []
        for i, agent in enumerate(self._working()):
            with self._lanes.lane(i):
                self._sent[agent.spec.agent], tell = agent.adapt(n, noisy)
            told.append(tell)
        self._lanes.join()
        return [tell() for tell in told]  # none waits for the device before all have their work

    def combine(self, n: int, received: Mapping[int, Tensor]) -> None:
        """Finish round n at every agent, as `Agent.combine`.

        Args:
            n: the round that is open.
            received: the messages of agents outside the group, by agent number.
        """
        known = {**self._sent, **received}
        for agent in self._working():
            agent.combine(n, *[known[l] for l in agent.spec.others if l in known])

    def sent(self, agents: Iterable[int]) -> list[Message]:
        """Last messages of some of the agents, in buffers that the next round overwrites."""
        return [self._sent[k].cpu().numpy() for k in agents]
