"""Edges between groups of agents: messages that leave a group, and messages that enter it."""

from collections.abc import Sequence
from typing import NamedTuple

from raydist.engine.agent.spec import AgentSpec


class Edges(NamedTuple):
    """The edges of the graph that cross the border of a group.

    Attributes:
        into: the other groups' agents that send to this group, ascending.
        out: this group's agents that send to other groups, ascending.
        senders: the numbers of the groups with agents of `into`.
        readers: the numbers of the groups that read from `out`.
    """

    into: tuple[int, ...]
    out: tuple[int, ...]
    senders: tuple[int, ...]
    readers: tuple[int, ...]


def edges_between(specs: Sequence[AgentSpec], groups: Sequence[range]) -> list[Edges]:
    """The edges of each group.

    Args:
        specs: the specifications of all agents.
        groups: the agents of each group.

    Returns:
        The edges, in the order of the groups.
    """
    into = [
        sorted({l for k in group for l in specs[k].neighbours if l not in group})
        for group in groups
    ]
    home = {k: g for g, group in enumerate(groups) for k in group}
    out: list[set[int]] = [set() for _ in groups]
    readers: list[set[int]] = [set() for _ in groups]
    for g, senders in enumerate(into):
        for l in senders:
            out[home[l]].add(l)
            readers[home[l]].add(g)
    return [
        Edges(
            tuple(into[g]),
            tuple(sorted(out[g])),
            tuple(sorted({home[l] for l in into[g]})),
            tuple(sorted(readers[g])),
        )
        for g in range(len(groups))
    ]
