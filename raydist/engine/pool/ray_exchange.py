"""Exchange of a round's messages between actors: as objects of Ray, or on a board.

To add a way, write a class of the same contract, and name it in `EXCHANGES` and the configuration.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from raydist.engine.agent.agent import Info
from raydist.engine.pool.edges import Edges

BATCH_SECONDS = 1.0  # length of a call with a board: it costs milliseconds, and a snapshot waits
MOST_ROUNDS = 1000


class Exchange(ABC):
    """Rounds of actors that are all at the same round, and their messages to one another.

    Attributes:
        name: the exchange's name in the configuration.
        batch: number of rounds that it prefers per call of `step`.
    """

    name: str
    batch = 1

    def __init__(
        self, actors: Sequence[Any], edges: Sequence[Edges], wait: Callable[[list[Any]], Any]
    ) -> None:
        """Begin with no round submitted.

        Args:
            actors: all actors.
            edges: the edges of each actor, to and from others.
            wait: a function that waits for references, and returns their values or raises.
        """
        self._actors, self._edges, self._wait = actors, edges, wait

    @abstractmethod
    def step(self, n: int, noisy: Sequence[bool]) -> list[Any]:
        """Submit rounds, as `Pool.step`; one reference for each actor."""

    @abstractmethod
    def collect(self, found: list[Any]) -> list[list[Info]]:
        """Extract each round's measurements of each agent from the values of `step`."""

    @abstractmethod
    def close(self, n: int) -> list[Any]:
        """Submit the combination of round n; one reference for each actor."""


class ObjectExchange(Exchange):
    """Exchange by objects: one call per round gets the previous messages by reference."""

    name = "objects"

    def __init__(self, *inputs: Any) -> None:
        """Begin with no round submitted; arguments as in `Exchange`."""
        super().__init__(*inputs)
        self._messages: dict[int, Any] = {}
        self._steps = [
            actor.step.options(num_returns=len(edges.out) + 1)
            for actor, edges in zip(self._actors, self._edges, strict=True)
        ]

    def step(self, n: int, noisy: Sequence[bool]) -> list[Any]:
        """Submit one round."""
        inboxes, infos = self._receive(), []
        for step, edges, inbox in zip(self._steps, self._edges, inboxes, strict=True):
            replies = step.remote(n, *noisy, *inbox)
            *messages, info = replies if edges.out else [replies]
            self._messages |= zip(edges.out, messages, strict=True)
            infos.append(info)
        return infos

    def collect(self, found: list[Any]) -> list[list[Info]]:
        """Extract the measurements of the one round."""
        return [list(chain(*found))]

    def close(self, n: int) -> list[Any]:
        """Submit the combination of the sent messages."""
        pairs = zip(self._actors, self._receive(), strict=True)
        return [actor.close.remote(n, *inbox) for actor, inbox in pairs]

    def _receive(self) -> list[list[Any]]:
        """Take the messages that wait for each actor; none after a round was closed."""
        messages, self._messages = self._messages, {}
        return [[messages[l] for l in edges.into] if messages else [] for edges in self._edges]


class BoardExchange(Exchange):
    """Exchange by shared memory on one node: one call covers rounds of about a second."""

    name = "board"
    _joined = False

    def step(self, n: int, noisy: Sequence[bool]) -> list[Any]:
        """Submit rounds; before the first ones all actors join a new board."""
        if not self._joined:
            self._join()
        return [actor.run.remote(n, list(noisy)) for actor in self._actors]

    def collect(self, found: list[Any]) -> list[list[Info]]:
        """Extract measurements; set the next call's number of rounds by the time these took."""
        seconds = max(taken for taken, _ in found)
        rounds = [list(chain(*infos)) for infos in zip(*(i for _, i in found), strict=True)]
        fitting = int(BATCH_SECONDS * len(rounds) / max(seconds, 1e-6))
        self.batch = max(1, min(fitting, 4 * len(rounds), MOST_ROUNDS))
        return rounds

    def close(self, n: int) -> list[Any]:
        """Submit the combination of the messages on the board."""
        return [actor.close_on_board.remote(n) for actor in self._actors]

    def _join(self) -> None:
        first, *others = self._actors
        made = first.make_board.remote(len(self._actors))
        self._wait([made, *(actor.join_board.remote(made, i) for i, actor in enumerate(others, 1))])
        self._wait([first.hide_board.remote()])
        self._joined = True


EXCHANGES: dict[str, type[Exchange]] = {each.name: each for each in (ObjectExchange, BoardExchange)}
