"""Combination matrices: A[l, k] is the weight that agent k gives to agent l.

The columns of A sum to 1 (left-stochastic), and the stacked update of all agents is `A.T @ W`.
The neighbourhood N_k includes k, so n_k is one more than the degree of k.
"""

from collections.abc import Sequence
from numbers import Real

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from raydist.lookup import OWN, named
from raydist.network.topology import check_connected, title

Array = NDArray[np.float64]

TOLERANCE = 1e-8  # on the sums of a matrix that a user wrote down


def _links(graph: nx.Graph | nx.DiGraph) -> Array:
    """One where l belongs to N_k (row l, column k), the diagonal included, else zero."""
    links: Array = nx.to_numpy_array(graph, nodelist=range(len(graph)), weight=None)
    np.fill_diagonal(links, 1.0)
    return np.minimum(links, 1.0)


def _rest_on_diagonal(A: Array) -> Array:
    """A with a_kk = 1 − Σ_{l ≠ k} a_lk."""
    np.fill_diagonal(A, 0.0)
    np.fill_diagonal(A, 1.0 - A.sum(axis=0))
    return A


def metropolis(graph: nx.Graph | nx.DiGraph) -> Array:
    """The Metropolis rule: symmetric and doubly stochastic, from local degrees alone.

    a_lk = 1 / max(n_l, n_k) for neighbours l ≠ k, and a_kk = 1 − Σ_{l ≠ k} a_lk, where n_k counts
    k itself: 1 / (1 + max(deg_l, deg_k)), as in arXiv:2509.11337.

    Args:
        graph: undirected, or directed with every edge in both directions; nodes 0..K-1.

    Returns:
        A, shape (K, K).

    Raises:
        ValueError: an edge goes one way only.

    Example:
        >>> import networkx as nx
        >>> metropolis(nx.star_graph(2)).round(2).tolist()
        [[0.33, 0.33, 0.33], [0.33, 0.67, 0.0], [0.33, 0.0, 0.67]]
    """
    links = _links(graph)
    one_way = np.argwhere(links > links.T)
    if one_way.size:
        ends = one_way[0].tolist()
        raise ValueError(
            f"metropolis weights need edges in both directions, {ends} goes one way only: "
            f'add {ends[::-1]} or write weights = "averaging"'
        )
    n = links.sum(axis=0)
    return _rest_on_diagonal(links / np.maximum.outer(n, n))


def averaging(graph: nx.Graph | nx.DiGraph) -> Array:
    """The averaging rule: a_lk = 1 / n_k for l in N_k, left-stochastic only.

    Agents with more neighbours count more: the Perron vector of an undirected graph is
    p_k = n_k / Σ_l n_l.

    Args:
        graph: directed or not, nodes 0..K-1.

    Returns:
        A, shape (K, K).
    """
    links = _links(graph)
    A: Array = links / links.sum(axis=0)
    return A


def uniform(graph: nx.Graph | nx.DiGraph) -> Array:
    """The maximum-degree rule: a_lk = 1 / max_j n_j for neighbours l ≠ k, the rest on a_kk.

    One weight for all edges, 1 / (1 + maximum degree). Doubly stochastic for undirected graphs,
    and for directed ones in which every agent sends to as many as it receives from.

    Args:
        graph: directed or not, nodes 0..K-1.

    Returns:
        A, shape (K, K).
    """
    links = _links(graph)
    return _rest_on_diagonal(links / links.sum(axis=0).max())


def edge_weights(graph: nx.Graph | nx.DiGraph) -> Array:
    """The weights that stand on the user's edges: a_lk = w(l, k), the rest on a_kk.

    A weight on the edge of an agent to itself is a_kk.

    Args:
        graph: directed or not, nodes 0..K-1; the attribute `weight` of each edge is in [0, 1], and
            those of an agent's neighbourhood sum to 1 or, without its own, to less.

    Returns:
        A, shape (K, K).

    Raises:
        ValueError: an edge has no such weight, or an agent's sum to more than 1.

    Example:
        >>> import networkx as nx
        >>> edge_weights(nx.Graph([(0, 1, {"weight": 0.25})])).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    for l, k, weight in graph.edges(data="weight"):
        if weight is None:
            raise ValueError(
                f"edge {[l, k]} has no weight, expected one on each edge: give it the attribute "
                'weight, or write weights = "metropolis"'
            )
        if isinstance(weight, bool) or not isinstance(weight, Real) or not float(weight) >= 0:
            raise ValueError(f"edge {[l, k]} has the weight {weight!r}, expected a number ≥ 0")
    A: Array = nx.to_numpy_array(graph, nodelist=range(len(graph)))
    sums = A.sum(axis=0)
    heaviest = int(sums.argmax())
    if sums[heaviest] > 1 + TOLERANCE:
        raise ValueError(
            f"the edges to {title(graph, heaviest)} weigh {sums[heaviest]:g} together, expected 1 "
            f"or less (each is the weight that its end gives to its start): divide all weights by "
            f'{sums[heaviest]:g}, or write weights = "metropolis"'
        )
    own = [graph.nodes[k].get("weight") for k in range(len(graph))]
    rest = np.maximum(1.0 - sums, 0.0)
    np.fill_diagonal(A, [r if w is None else w for r, w in zip(rest, own, strict=True)])
    return A


RULES = {
    "metropolis": metropolis,
    "averaging": averaging,
    "uniform": uniform,
    "edge-weights": edge_weights,
}


def unused(rule: str | Sequence[Sequence[float]] | Array, graph: nx.Graph | nx.DiGraph) -> bool:
    """Check whether a rule ignores weights of the graph's edges that are not all 1."""
    found = [weight for _, _, weight in graph.edges(data="weight", default=1)]
    found += [weight for _, weight in graph.nodes(data="weight", default=1)]
    looks = isinstance(rule, str) and (rule == "edge-weights" or ":" in rule)  # or may do so
    return not looks and any(w != 1 for w in found)


def build(rule: str | Sequence[Sequence[float]] | Array, graph: nx.Graph | nx.DiGraph) -> Array:
    """The combination matrix of a graph, by a rule's name or as a user wrote it, checked.

    Args:
        rule: a name in `RULES`, or "package.module:function", called as function(graph); or A
            itself, shape (K, K).
        graph: the graph that A must fit, nodes 0..K-1.

    Returns:
        A, shape (K, K), float64.

    Raises:
        ValueError: the rule is unknown, or `check` finds fault with A.
    """
    if isinstance(rule, str):
        rule = named(RULES, rule, "weights", ("the matrix itself", OWN))(graph)
    try:
        A = np.array(rule, dtype=np.float64)
    except (TypeError, ValueError) as error:
        size = len(graph)
        raise ValueError(
            f"weights is no matrix ({error}): write {size} rows of {size} numbers"
        ) from error
    check(A, graph)
    return A


def check(A: Array, graph: nx.Graph | nx.DiGraph | None = None) -> None:
    """Check that repeated combination makes all agents agree.

    That is: A is square, finite, not negative, its columns sum to 1, and it is primitive (some
    power of it is positive: the graph of its weights is connected and not periodic).

    Args:
        A: the combination matrix, shape (K, K).
        graph: if given, A has K rows and no weight between agents that are not neighbours.

    Raises:
        ValueError: one of these does not hold; the message names the entry, column or agents.
    """
    _check_stochastic(A)
    if graph is not None:
        if len(graph) != len(A):
            raise ValueError(
                f"weights has {len(A)} rows, expected one for each of {len(graph)} agents"
            )
        stray = np.argwhere((A > 0) & (_links(graph) == 0))
        if stray.size:
            l, k = stray[0].tolist()
            raise ValueError(
                f"{title(graph, k)} gives weight {A[l, k]:g} to {title(graph, l)}, which is not "
                f"its neighbour: add the edge [{l}, {k}] or write 0"
            )
    support = nx.from_numpy_array(A > 0, create_using=nx.DiGraph)
    support.add_nodes_from([] if graph is None else graph.nodes(data=True))  # their names
    check_connected(support)
    if not nx.is_aperiodic(support):
        raise ValueError(
            "weights is periodic, not primitive: no agent gives weight to itself, so groups of "
            "agents swap their models for ever without agreeing; give some agent a_kk > 0"
        )


def _check_stochastic(A: Array) -> None:
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not A.size:
        raise ValueError(f"weights has shape {A.shape}, expected (K, K) for K agents")
    for bad, expected in ((~np.isfinite(A), "a finite number"), (A < 0, "a weight ≥ 0")):
        if bad.any():
            l, k = np.argwhere(bad)[0].tolist()
            raise ValueError(f"weights[{l}][{k}] is {A[l, k]}, expected {expected}")
    sums = A.sum(axis=0)
    k = int(np.abs(sums - 1).argmax())
    if abs(sums[k] - 1) > TOLERANCE:
        rows_do = np.allclose(A.sum(axis=1), 1, rtol=0, atol=TOLERANCE)
        remedy = (
            "the rows do, so transpose the matrix" if rows_do else "divide each column by its sum"
        )
        raise ValueError(
            f"column {k} of weights sums to {sums[k]:.10g}, expected 1 (A[l][k] is the weight that "
            f"agent k gives to agent l): {remedy}"
        )


def is_doubly_stochastic(A: Array) -> bool:
    """Check that no weight is negative and that the rows and columns of A sum to 1."""
    sums = np.concatenate([A.sum(axis=0), A.sum(axis=1)])
    return bool((A >= 0).all() and np.allclose(sums, 1, rtol=0, atol=TOLERANCE))


def mixing_rate(A: Array) -> float:
    """The mixing rate ρ = |λ_2(A)|, the second largest modulus of an eigenvalue.

    With symmetric A, one combination shrinks the root of the disagreement by ρ or more.

    Args:
        A: left-stochastic, shape (K, K).

    Returns:
        ρ in [0, 1]; 0 for one agent, 1 if the agents never agree.

    Example:
        >>> import networkx as nx
        >>> round(mixing_rate(metropolis(nx.star_graph(3))), 12)  # 1 - 1/K
        0.75
    """
    symmetric = np.array_equal(A, A.T)  # its eigenvalues are found to the last digits
    moduli = np.sort(np.abs(np.linalg.eigvalsh(A) if symmetric else np.linalg.eigvals(A)))
    return float(moduli[-2]) if len(A) > 1 else 0.0


def spectral_gap(A: Array) -> float:
    """The spectral gap 1 − ρ, with ρ and A as in `mixing_rate`."""
    return 1.0 - mixing_rate(A)


def perron(A: Array) -> Array:
    """The Perron vector: A p = p with Σ_k p_k = 1, the weight of each agent in the long run.

    Args:
        A: left-stochastic and primitive, shape (K, K).

    Returns:
        p, shape (K,), positive; 1/K everywhere if A is doubly stochastic.

    Example:
        >>> import networkx as nx
        >>> perron(averaging(nx.star_graph(2))).round(3).tolist()
        [0.429, 0.286, 0.286]
    """
    K = len(A)
    system = np.vstack([A - np.eye(K), np.ones(K)])
    p: Array = np.linalg.lstsq(system, np.append(np.zeros(K), 1.0))[0]
    return p
