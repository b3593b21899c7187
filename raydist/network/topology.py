"""Graphs of agents: who talks to whom, from a kind, an edge list or the user's own function.

Agents are the nodes 0..K-1. In a directed graph the edge l -> k means that k receives from l.
Edges from an agent to itself are left out: every agent is its own neighbour anyway. The user's own
names and weights are attributes: `name` of a node, `weight` of an edge, and of a node with an edge
to itself.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import networkx as nx

from raydist.lookup import named
from raydist.seeding import Purpose, seed_for

SHOWN = 12  # agents that a message names
TRIES = 100  # draws of a random graph before we give up on a connected one


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}")
    return int(value)


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"p is {value!r}, expected a probability in [0, 1]")
    return float(value)


def _star(agents: int) -> nx.Graph:
    return nx.star_graph(agents - 1)  # agent 0 and its leaves


def _sides(agents: int, rows: int | None, cols: int | None) -> tuple[int, int]:
    """Rows and columns: as given, or the most square factorisation of the number of agents."""
    for name, side in (("rows", rows), ("cols", cols)):
        if side is not None:
            _integer(name, side, 1)
    square = next(r for r in range(math.isqrt(agents), 0, -1) if agents % r == 0)
    if rows is None:
        rows = agents // cols if cols else square
    if cols is None:
        cols = agents // rows
    if rows * cols != agents:
        raise ValueError(
            f"agents is {agents}, rows x cols is {rows} x {cols} = {rows * cols}: "
            "choose agents = rows * cols"
        )
    return rows, cols


def _grid(agents: int, *, rows: int | None = None, cols: int | None = None) -> nx.Graph:
    return nx.grid_2d_graph(*_sides(agents, rows, cols))


def _torus(agents: int, *, rows: int | None = None, cols: int | None = None) -> nx.Graph:
    rows, cols = _sides(agents, rows, cols)
    if min(rows, cols) < 3:
        raise ValueError(
            f"a torus of {agents} agents would be {rows} x {cols}, expected both sides >= 3: "
            'choose other agents, rows and cols, or kind = "grid"'
        )
    return nx.grid_2d_graph(rows, cols, periodic=True)


def _hypercube(agents: int) -> nx.Graph:
    if agents & (agents - 1):
        below = 1 << (agents.bit_length() - 1)
        raise ValueError(
            f"a hypercube of {agents} agents does not exist, expected a power of two: "
            f"write agents = {below} or {2 * below}"
        )
    graph = nx.empty_graph(agents)
    bits = [1 << i for i in range(agents.bit_length() - 1)]
    graph.add_edges_from((k, k ^ bit) for k in range(agents) for bit in bits)
    return graph


def _edges(
    agents: int, *, edges: Iterable[Sequence[int]], directed: bool = False
) -> nx.Graph | nx.DiGraph:
    if not isinstance(directed, bool):
        raise ValueError(f"directed is {directed!r}, expected true or false")
    if not isinstance(edges, Iterable):
        raise ValueError(f"edges is {edges!r}, expected a list of pairs: write [[0, 1], [1, 2]]")
    graph = nx.empty_graph(agents, create_using=nx.DiGraph if directed else nx.Graph)
    for edge in edges:
        pair = list(edge) if isinstance(edge, list | tuple) else []
        ends = {k for k in pair if isinstance(k, int) and 0 <= k < agents}
        if len(pair) != 2 or len(ends) != 2:
            raise ValueError(
                f"edge {edge!r} is not a pair [l, k] of two different agents in 0..{agents - 1} "
                "(every agent is its own neighbour without an edge)"
            )
        graph.add_edge(*pair)
    return graph


def _erdos_renyi(agents: int, *, seed: int, p: float) -> nx.Graph:
    return nx.gnp_random_graph(agents, _probability(p), seed=seed)


def _random_regular(agents: int, *, seed: int, degree: int) -> nx.Graph:
    if _integer("degree", degree, 1) >= agents or agents * degree % 2:
        raise ValueError(
            f"no graph of {agents} agents has degree {degree} everywhere: "
            "expected degree < agents, and agents * degree even"
        )
    others = agents - 1 - degree  # a dense one is drawn by the edges that it has not
    if others < degree:
        return nx.complement(nx.random_regular_graph(others, agents, seed=seed))
    return nx.random_regular_graph(degree, agents, seed=seed)


def _watts_strogatz(agents: int, *, seed: int, neighbours: int, p: float) -> nx.Graph:
    if _integer("neighbours", neighbours, 2) >= agents or neighbours % 2:
        raise ValueError(
            f"neighbours is {neighbours}, expected an even number below agents = {agents}: "
            "half of them lie on each side of the ring"
        )
    return nx.watts_strogatz_graph(agents, neighbours, _probability(p), seed=seed)


FIXED: dict[str, Callable[..., Any]] = {
    "ring": lambda agents: nx.cycle_graph(agents),
    "path": lambda agents: nx.path_graph(agents),
    "star": _star,
    "complete": lambda agents: nx.complete_graph(agents),
    "grid": _grid,
    "torus": _torus,
    "hypercube": _hypercube,
    "edges": _edges,
}
RANDOM: dict[str, Callable[..., Any]] = {
    "erdos-renyi": _erdos_renyi,
    "random-regular": _random_regular,
    "watts-strogatz": _watts_strogatz,
}


def build(kind: str, agents: int, seed: int = 0, **params: Any) -> nx.Graph | nx.DiGraph:
    """The graph of `agents` agents of one kind.

    Grid and torus number their agents row by row; agents of a hypercube are neighbours if their
    numbers differ in one bit; agent 0 is the centre of a star. Erdos-Renyi, random regular and
    Watts-Strogatz graphs are drawn again until they are connected. `edges` and the user's own
    functions may give a disconnected graph: see `check_connected`.

    Args:
        kind: ring, path, star, complete, grid (rows, cols), torus (rows, cols), hypercube,
            edges (edges, directed), erdos-renyi (p), random-regular (degree), watts-strogatz
            (neighbours, p), underscores allowed; or "package.module:function", called as
            function(agents, **params).
        agents: K ≥ 1.
        seed: ≥ 0, decides a random kind together with the parameters; other kinds ignore it.
        params: the parameters in brackets. edges: pairs [l, k]; directed: whether only k receives
            from l (False); rows and cols: the most square factorisation unless given.

    Returns:
        A `networkx.Graph` or `DiGraph` with nodes 0..K-1 in this order, whose `name` is the user's
        own (see `names`). Nodes that are integers become agents in increasing order, all others in
        the graph's own order. Edges have a `weight` where the user's have one.

    Raises:
        ValueError: the kind is unknown, or its parameters do not fit.

    Example:
        >>> sorted(build("ring", 4).edges)
        [(0, 1), (0, 3), (1, 2), (2, 3)]
        >>> sorted(build("networkx:wheel_graph", 4).edges)
        [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    """
    agents, seed = _integer("agents", agents, 1), _integer("seed", seed, 0)
    name = kind.replace("_", "-")
    if name in RANDOM:
        draw = RANDOM[name]
        _check_params(kind, draw, agents, params | {"seed": seed})
        seeds = (seed_for(Purpose.GRAPH, seed, round=n) for n in range(TRIES))
        draws = (_numbered(kind, draw(agents, seed=s, **params), agents) for s in seeds)
        connected = next((graph for graph in draws if nx.is_connected(graph)), None)
        if connected is None:
            raise ValueError(
                f"none of {TRIES} draws of {name} with {agents} agents and {params} is connected: "
                "choose parameters that give more edges"
            )
        return connected
    builder = named(FIXED | RANDOM, kind if ":" in kind else name, "kind")
    _check_params(kind, builder, agents, params)
    return _numbered(kind, builder(agents, **params), agents)


def _check_params(
    kind: str, builder: Callable[..., Any], agents: int, params: dict[str, Any]
) -> None:
    """Raise ValueError if `builder(agents, **params)` lacks a parameter or has one too many."""
    signature = inspect.signature(builder)
    try:
        signature.bind(agents, **params)
    except TypeError as error:
        known = ", ".join(name for name in list(signature.parameters)[1:] if name != "seed")
        raise ValueError(
            f'topology "{kind}": {error}; its parameters: {known or "none"}'
        ) from error


def _numbered(kind: str, graph: Any, agents: int) -> nx.Graph | nx.DiGraph:
    """The same edges between the nodes 0..K-1, in this order, without self-loops."""
    if not isinstance(graph, nx.Graph):
        raise ValueError(
            f'topology "{kind}" gave {type(graph).__name__}, expected a networkx graph'
        )
    if len(graph) != agents:
        raise ValueError(
            f'topology "{kind}" gave {len(graph)} nodes, expected one for each of {agents} agents'
        )
    whole = all(isinstance(node, Integral) for node in graph)
    nodes = sorted(graph) if whole else list(graph)  # "10" sorts before "2"
    agent = {node: k for k, node in enumerate(nodes)}
    numbered = nx.DiGraph() if graph.is_directed() else nx.Graph()
    numbered.add_nodes_from((k, {"name": str(node)}) for node, k in agent.items())
    for a, b, weight in graph.edges(data="weight"):
        l, k = agent[a], agent[b]
        if l != k:
            known = numbered.edges.get((l, k))
            numbered.add_edge(l, k, **_weight(weight, {} if known is None else known))
        else:
            numbered.add_node(k, **_weight(weight, numbered.nodes[k]))
    return numbered


def _weight(weight: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The attribute of an edge, which adds to that of an edge beside it."""
    both = isinstance(weight, Real) and isinstance(known.get("weight"), Real)
    total = weight + known["weight"] if both else weight
    return {} if weight is None else {"weight": total}


def names(graph: nx.Graph | nx.DiGraph) -> list[str]:
    """The user's own names of the agents 0..K-1; their numbers where there are none.

    Args:
        graph: a graph with nodes 0..K-1.

    Returns:
        K names.

    Example:
        >>> names(build("ring", 3))
        ['0', '1', '2']
    """
    return [str(graph.nodes[k].get("name", k)) for k in range(len(graph))]


def title(graph: nx.Graph | nx.DiGraph, k: int) -> str:
    """Title of agent k in messages: its number, and its name if it has another one."""
    name = str(graph.nodes[k].get("name", k))
    return f"agent {k}" if name == str(k) else f"agent {k} ({name})"


def neighbours(graph: nx.Graph | nx.DiGraph, k: int) -> list[int]:
    """The neighbourhood N_k: agent k and all agents from which k receives, in increasing order.

    Args:
        graph: a graph with nodes 0..K-1; an edge l -> k of a directed one means that k receives.
        k: the agent.

    Returns:
        The n_k agents of N_k.

    Example:
        >>> neighbours(build("ring", 6), 0)
        [0, 1, 5]
    """
    others = graph.predecessors(k) if graph.is_directed() else graph.neighbors(k)
    return sorted({k, *others})


def check_connected(graph: nx.Graph | nx.DiGraph) -> None:
    """Check that information travels from every agent to every other one.

    Args:
        graph: the graph; a directed one must be strongly connected.

    Raises:
        ValueError: some agents are cut off; the message names them.
    """
    if graph.is_directed():
        reached = nx.descendants(graph, 0) & nx.ancestors(graph, 0) | {0}
        how = "no way there, or none back"
    else:
        reached = nx.node_connected_component(graph, 0)
        how = "no way there"
    cut = [title(graph, k) for k in sorted(set(graph) - reached)]
    if cut:
        who = ", ".join(cut[:SHOWN]) + (f" and {len(cut) - SHOWN} more" if cut[SHOWN:] else "")
        who = who.replace(", agent ", ", ").replace("agent ", "agents ", 1) if cut[1:] else who
        raise ValueError(
            f"{who} {'are' if cut[1:] else 'is'} cut off from {title(graph, 0)}: {how}, expected a "
            "connected graph; add an edge"
        )
