"""How the messages of a round travel between actors: as objects of Ray, or on a board.

Another way is another class of the same contract, named in `EXCHANGES` and in the configuration.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from raydist.engine.agent.agent import Info
from raydist.engine.pool.edges import Edges

BATCH_SECONDS = 1.0  # of a call with a board: it costs some milliseconds, and a snapshot waits
MOST_ROUNDS = 1000


class Exchange(ABC):
    """The rounds of actors that are all at the same one, and what they send one another.

    Attributes:
        name: as the configuration has it.
        batch: how many rounds it would like to be told at a time.
    """

    name: str
    batch = 1

    def __init__(
        self, actors: Sequence[Any], edges: Sequence[Edges], wait: Callable[[list[Any]], Any]
    ) -> None:
        """Nothing is on its way.

        Args:
            actors: all of them.
            edges: of each, to and from others.
            wait: for the values of references, or for what they raise.
        """
        self._actors, self._edges, self._wait = actors, edges, wait

    @abstractmethod
    def step(self, n: int, noisy: Sequence[bool]) -> list[Any]:
        """Submit rounds, as `Pool.step`; one reference for each actor."""

    @abstractmethod
    def collect(self, found: list[Any]) -> list[list[Info]]:
        """From the values of what `step` returned, what each agent measured in each round."""

    @abstractmethod
    def close(self, n: int) -> list[Any]:
        """Submit the combination of round n; one reference for each actor."""


class ObjectExchange(Exchange):
    """A round is a call, which gets the messages of the round before by reference."""

    name = "objects"

    def __init__(self, *inputs: Any) -> None:
        """Nothing is on its way; arguments as of `Exchange`."""
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
        """From the values of the one round."""
        return [list(chain(*found))]

    def close(self, n: int) -> list[Any]:
        """Submit the combination of what was sent."""
        pairs = zip(self._actors, self._receive(), strict=True)
        return [actor.close.remote(n, *inbox) for actor, inbox in pairs]

    def _receive(self) -> list[list[Any]]:
        """Take the messages that wait for each actor; none after a round was closed."""
        messages, self._messages = self._messages, {}
        return [[messages[l] for l in edges.into] if messages else [] for edges in self._edges]


class BoardExchange(Exchange):
    """Actors of one node read and write shared memory; a call is rounds of about a second."""

    name = "board"
    _joined = False

    def step(self, n: int, noisy: Sequence[bool]) -> list[Any]:
        """Submit rounds; before the first ones all actors join a new board."""
        if not self._joined:
            self._join()
        return [actor.run.remote(n, list(noisy)) for actor in self._actors]

    def collect(self, found: list[Any]) -> list[list[Info]]:
        """From the values of some rounds, whose duration says how many the next call may have."""
        seconds = max(taken for taken, _ in found)
        rounds = [list(chain(*infos)) for infos in zip(*(i for _, i in found), strict=True)]
        fitting = int(BATCH_SECONDS * len(rounds) / max(seconds, 1e-6))
        self.batch = max(1, min(fitting, 4 * len(rounds), MOST_ROUNDS))
        return rounds

    def close(self, n: int) -> list[Any]:
        """Submit the combination of what stands on the board."""
        return [actor.close_on_board.remote(n) for actor in self._actors]

    def _join(self) -> None:
        first, *others = self._actors
        made = first.make_board.remote(len(self._actors))
        self._wait([made, *(actor.join_board.remote(made, i) for i, actor in enumerate(others, 1))])
        self._wait([first.hide_board.remote()])
        self._joined = True


EXCHANGES: dict[str, type[Exchange]] = {each.name: each for each in (ObjectExchange, BoardExchange)}
