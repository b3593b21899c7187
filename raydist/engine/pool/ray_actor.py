"""What an actor of the Ray pool is: agents in a process of their own.

What they hear from others comes as arguments of a call for each round (objects), or stands on a
board, and then one call is many rounds.
"""

import os
import time
import warnings
from typing import Any

import ray
import torch
from ray.util import get_node_ip_address

from raydist.engine.agent.agent import Info, Message
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.agent.task import Split
from raydist.engine.pool.board import Board, Size, room_for
from raydist.engine.pool.edges import Edges
from raydist.engine.pool.group import Group


class Actor(Group):
    """Agents in a process of their own."""

    def __init__(
        self,
        specs: list[AgentSpec],
        shares: list[Split | None],
        held: dict[str, Split],
        edges: Edges,
    ) -> None:
        """Build the agents at round 0.

        Args:
            specs: as of `Group`.
            shares: as of `Group`.
            held: as of `Group`.
            edges: to and from other actors.
        """
        self._specs = specs  # what it is called, also where it cannot be built
        # What arrives is a read-only view of the object store, and is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._board: Board | None = None
        self.build(specs, shares, held)
        if len(self.agents) == 1:
            self.agents[0].send_its_own()
        self._edges = edges

    def reset(self, *inputs: Any) -> None:
        """Begin another run in the same process."""
        self.each("settle")
        self.leave_board()
        self.__init__(*inputs)  # type: ignore[misc]

    def __repr__(self) -> str:
        """What Ray's logs and dashboard call it."""
        first, last = self._specs[0], self._specs[-1]
        return first.title if first is last else f"agents {first.agent} to {last.agent}"

    def where(self) -> str:
        """The process that it is, and the file in which Ray keeps what it says."""
        node: str = get_node_ip_address()  # type: ignore[no-untyped-call]
        said = os.path.realpath("/proc/self/fd/2")
        return f"{self!r}: process {os.getpid()} on {node}, what it says is in {said}"

    def ping(self) -> None:
        """Nothing: who answers is there, and has done all that it was told before."""

    def node(self) -> str:
        """Of the cluster, where it is."""
        return str(ray.get_runtime_context().get_node_id())

    def step(self, n: int, noisy: bool, *received: Message) -> Any:
        """Finish round n − 1, unless it was closed, and adapt in round n.

        Args:
            n: the round.
            noisy: as in `Agent.adapt`.
            *received: the messages of round n − 1 from `edges.into`; none if it was closed.

        Returns:
            The messages of `edges.out`, and behind them what each agent measured.
        """
        if self.open:
            self.close(n - 1, *received)
        infos = self.adapt(n, noisy)
        messages = self.sent(self._edges.out)
        return (*messages, infos) if messages else infos

    def close(self, n: int, *received: Message) -> None:
        """Finish round n with what was received."""
        tensors = map(torch.from_numpy, received)
        self.combine(n, dict(zip(self._edges.into, tensors, strict=True)))

    def close_on_board(self, n: int) -> None:
        """Finish round n with what stands on the board."""
        board = self._joined()
        board.wait(self._edges.senders, n)
        self.combine(n, {l: board.slot(l, n) for l in self._edges.into})

    def has_room(self, groups: int) -> bool:
        """Whether `make_board` finds room for a board on this node."""
        return room_for(self._board_size(groups)) is not None

    def make_board(self, groups: int) -> tuple[str, Size]:
        """A board for the actors of this node, joined by this one, which is the first.

        Args:
            groups: how many actors there are.

        Returns:
            Where it lies, and its size.
        """
        self.leave_board()
        size = self._board_size(groups)
        self._board = Board.create(size)
        self._board.publish(self.agents[0].round)
        return self._board.path, size

    def _board_size(self, groups: int) -> Size:
        first = self.agents[0]
        return Size(groups, first.config.topology.agents, first.message_size(), first.sent.dtype)

    def join_board(self, made: tuple[str, Size], mine: int) -> None:
        """Use the board that `make_board` made, as actor `mine`."""
        self.leave_board()
        path, size = made
        self._board = Board.join(path, mine, size)
        self._board.publish(self.agents[0].round)

    def hide_board(self) -> None:
        """All have joined."""
        self._joined().hide()

    def leave_board(self) -> None:
        """Leave the board, if there is one."""
        if self._board is not None:
            self._board.leave()
        self._board = None

    def _joined(self) -> Board:
        assert self._board is not None
        return self._board

    def run(self, n: int, noisy: list[bool]) -> tuple[float, list[list[Info]]]:
        """Rounds with a board.

        Args:
            n: the first one.
            noisy: of each, as in `Agent.adapt`.

        Returns:
            How long it took, in seconds; and of each round what each agent measured.
        """
        board, began, infos = self._joined(), time.monotonic(), []
        try:
            for m, noise in enumerate(noisy, n):
                if self.open:
                    self.close_on_board(m - 1)
                board.wait(self._edges.readers, m - 1)  # they no longer read round m - 2
                for agent in self.agents:
                    agent.sent = board.slot(agent.spec.agent, m)
                infos.append(self.adapt(m, noise))
                board.publish(m)
        except BaseException:
            board.abort()
            raise
        return time.monotonic() - began, infos
