"""The actor of the Ray pool: agents in a process of their own.

Messages from other actors come as arguments of one call per round (objects), or stand on a board,
so that one call covers many rounds.
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
            specs: the specification of each agent.
            shares: the private training images and labels of each agent (None: quadratic task).
            held: the splits common to all agents.
            edges: the edges to and from other actors.
        """
        self._specs = specs  # gives the actor its name even if it cannot be built
        # The arguments are read-only views of the object store, and are only read.
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
        """Name in Ray's logs and dashboard."""
        first, last = self._specs[0], self._specs[-1]
        return first.title if first is last else f"agents {first.agent} to {last.agent}"

    def where(self) -> str:
        """This actor's process, and the file in which Ray keeps its output."""
        node: str = get_node_ip_address()  # type: ignore[no-untyped-call]
        said = os.path.realpath("/proc/self/fd/2")
        return f"{self!r}: process {os.getpid()} on {node}, what it says is in {said}"

    def ping(self) -> None:
        """Return once all earlier calls are done; proves that the actor lives."""

    def node(self) -> str:
        """Node of the cluster that hosts this actor."""
        return str(ray.get_runtime_context().get_node_id())

    def step(self, n: int, noisy: bool, *received: Message) -> Any:
        """Finish round n − 1, unless it was closed, and adapt in round n.

        Args:
            n: the round.
            noisy: True to add Gaussian noise to the inputs first.
            *received: the messages of round n − 1 from `edges.into`; none if it was closed.

        Returns:
            The messages of `edges.out`, then the measurements of each agent.
        """
        if self.open:
            self.close(n - 1, *received)
        infos = self.adapt(n, noisy)
        messages = self.sent(self._edges.out)
        return (*messages, infos) if messages else infos

    def close(self, n: int, *received: Message) -> None:
        """Finish round n with the received messages."""
        tensors = map(torch.from_numpy, received)
        self.combine(n, dict(zip(self._edges.into, tensors, strict=True)))

    def close_on_board(self, n: int) -> None:
        """Finish round n with the messages on the board."""
        board = self._joined()
        board.wait(self._edges.senders, n)
        self.combine(n, {l: board.slot(l, n) for l in self._edges.into})

    def has_room(self, groups: int) -> bool:
        """Tell if `make_board` finds room for a board on this node."""
        return room_for(self._board_size(groups)) is not None

    def make_board(self, groups: int) -> tuple[str, Size]:
        """Make a board for the actors of this node, and join it as the first.

        Args:
            groups: number of actors.

        Returns:
            The board's path and its size.
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
        """Unlink the board's file, because all actors have joined."""
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
        """Run rounds with a board.

        Args:
            n: the first round.
            noisy: one flag per round, True to add Gaussian noise to the inputs first.

        Returns:
            The seconds that it took; for each round the measurements of each agent.
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
