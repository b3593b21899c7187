"""The agents of one process: what they send one another stays in its memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from raydist.engine.agent.agent import Agent, Info, Message
from raydist.engine.agent.passes import Streams
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.agent.task import Split
from raydist.engine.agent.validation import Sums
from raydist.engine.agent.verdicts import Verdicts
from raydist.engine.snapshot.shard import Shards
from raydist.storage import agent_file


class Group:
    """Some agents of a run, in ascending order; a round of theirs is one after the other.

    Attributes:
        agents: they.
        shards: of each agent, its parts of the snapshots.
        busy: the one that works, or worked last, as messages call it.
    """

    def __init__(
        self,
        specs: Sequence[AgentSpec],
        shares: Iterable[Split | None],
        held: dict[str, Split],
        one_model: bool = False,
    ) -> None:
        """Build the agents at round 0.

        Args:
            specs: as of `Agent`, of each.
            shares: as of `Agent`, of each.
            held: as of `Agent`.
            one_model: whether all of them use the first one's model.
        """
        self.agents: list[Agent] = []
        for spec, share in zip(specs, shares, strict=True):
            flat = self.agents[0].flat if one_model and self.agents else None
            self.agents.append(Agent(spec, share, held, flat))
            self.agents[-1].start = self.agents[0].start  # all begin there
        self.shards = [Shards(agent) for agent in self.agents]
        self.busy = self.agents[0].spec.title
        self._sent: dict[int, Tensor] = {}
        self._lanes = Streams(self.agents[0].device)

    def _each(self) -> Iterator[Agent]:
        """The agents, each while it works."""
        for agent in self.agents:
            self.busy = agent.spec.title
            yield agent

    @property
    def open(self) -> bool:
        """Whether the last round waits for the neighbours' messages."""
        return self.agents[0].open

    def adapt(self, n: int, noisy: bool) -> list[Info]:
        """Round n of every agent, up to what it sends; as `Agent.adapt`."""
        told = []
        for i, agent in enumerate(self._each()):
            with self._lanes.lane(i):
                self._sent[agent.spec.agent], tell = agent.adapt(n, noisy)
            told.append(tell)
        self._lanes.join()
        return [tell() for tell in told]  # none waits for the device before all have their work

    def combine(self, n: int, received: Mapping[int, Tensor]) -> None:
        """Finish round n at every agent, as `Agent.combine`.

        Args:
            n: the round that is open.
            received: what other agents than these sent, by their numbers.
        """
        known = {**self._sent, **received}
        for agent in self._each():
            agent.combine(n, *[known[l] for l in agent.spec.others if l in known])

    def sent(self, agents: Iterable[int]) -> list[Message]:
        """What some of the agents sent last; buffers that the next round writes again."""
        return [self._sent[k].cpu().numpy() for k in agents]

    def centroid(self, total: Message | None, which: str) -> Message:
        """As `Agent.add`, of all agents in their order."""
        for agent in self._each():
            total = agent.add(total, which)
        assert total is not None
        return total

    def states(self) -> list[Message]:
        """The state of every agent, in the order of its model's tensors."""
        flats = [agent.flat for agent in self._each()]
        return [flat.model_order(flat.state()).cpu().numpy() for flat in flats]

    def powers(self, n: int) -> list[Message]:
        """As `Agent.power`, of every agent."""
        return [agent.power(n) for agent in self._each()]

    def add_powers(self, *powers: Sequence[Message]) -> Message:
        """The sum of all agents' parts, which come group by group."""
        total: Message = np.sum([power for group in powers for power in group], axis=0)
        return total

    def learn_sensitivity(self, power: Message) -> None:
        """As `Agent.learn_sensitivity`, of every agent."""
        for agent in self._each():
            agent.learn_sensitivity(power)

    def measure(self, n: int, centroid: Message) -> list[tuple[Info, Sums]]:
        """As `Agent.measure`, of every agent."""
        return [agent.measure(n, centroid) for agent in self._each()]

    def evaluate(self, *centroids: Message) -> list[Verdicts]:
        """As `Agent.evaluate`, of every agent."""
        return [agent.evaluate(*centroids) for agent in self._each()]

    def save(self, folder: str) -> None:
        """Write the model of every agent into a folder, a path or URL."""
        for agent in self._each():
            agent.save(folder, agent_file(agent.spec.agent))

    def save_centroid(self, folder: str, name: str, centroid: Message) -> None:
        """Write a centroid, given its state."""
        self.agents[0].save(folder, name, centroid)

    def snapshot(self, n: int, url: str) -> None:
        """As `Shards.write`, of every agent."""
        for shards, _ in zip(self.shards, self._each(), strict=True):
            shards.write(n, url)

    def settle(self) -> list[str]:
        """As `Shards.settle`, of every agent."""
        return [shards.settle() for shards in self.shards]

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """As `Shards.restore`, of every agent."""
        pairs = zip(self.shards, checksums, strict=True)
        return [shards.restore(n, url, sha256) for shards, sha256 in pairs]
