import math
import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydist.network import weights
from raydist.network.topology import build, names

TORUS = [(3, 3), (3, 4), (4, 4), (4, 8), (5, 7)]


def torus_rate(rows, cols):
    modes = [
        abs(1 + 2 * math.cos(2 * math.pi * i / rows) + 2 * math.cos(2 * math.pi * j / cols)) / 5
        for i in range(rows)
        for j in range(cols)
        if i or j
    ]
    return max(modes)


RATES = [
    *[("complete", K, 0.0) for K in (1, 2, 5, 16)],
    *[("star", K, 1 - 1 / K) for K in (3, 8, 16)],
    *[("ring", K, 1 / 3 + 2 / 3 * math.cos(2 * math.pi / K)) for K in (5, 8, 16, 33)],
    *[("path", K, 1 / 3 + 2 / 3 * math.cos(math.pi / K)) for K in (3, 8, 16)],
    *[("hypercube", 2**d, (d - 1) / (d + 1)) for d in (1, 2, 3, 4, 6)],
]


@st.composite
def connected_graphs(draw):
    """A random tree and some more edges."""
    K = draw(st.integers(1, 10))
    edges = [[draw(st.integers(0, k - 1)), k] for k in range(1, K)]
    agent = st.integers(0, K - 1)
    more = draw(st.lists(st.tuples(agent, agent), max_size=15)) if K > 1 else []
    return build("edges", K, edges=edges + [[l, k] for l, k in more if l != k])


@pytest.mark.parametrize("kind, agents, rate", RATES)
def test_mixing_rate_of_metropolis_weights_in_closed_form(kind, agents, rate):
    A = weights.metropolis(build(kind, agents))
    assert weights.mixing_rate(A) == pytest.approx(rate, abs=1e-13)
    assert weights.spectral_gap(A) == pytest.approx(1 - rate, abs=1e-13)


@pytest.mark.parametrize("rows, cols", TORUS)
def test_mixing_rate_of_the_torus(rows, cols):
    A = weights.metropolis(build("torus", rows * cols, rows=rows, cols=cols))
    assert weights.mixing_rate(A) == pytest.approx(torus_rate(rows, cols), abs=1e-13)


def test_mixing_rate_counts_negative_eigenvalues_and_repeated_ones():
    assert weights.mixing_rate(np.array([[0.1, 0.9], [0.9, 0.1]])) == pytest.approx(0.8)
    assert weights.mixing_rate(np.eye(3)) == pytest.approx(1)


def test_mixing_rate_of_a_matrix_that_is_not_symmetric():
    A = np.array([[0.9, 0.3], [0.1, 0.7]])  # eigenvalues 1 and trace - 1
    assert weights.mixing_rate(A) == pytest.approx(0.6, abs=1e-14)


@pytest.mark.parametrize("rule", [weights.metropolis, weights.averaging, weights.uniform])
def test_two_edges_between_two_agents_are_one(rule):
    twice = nx.MultiGraph([(0, 1), (0, 1), (1, 2)])
    np.testing.assert_array_equal(rule(twice), rule(nx.path_graph(3)))


def test_metropolis_weight_by_weight():
    graph = build("edges", 4, edges=[[0, 1], [0, 2], [0, 3], [1, 2]])
    expected = np.array([[3, 3, 3, 3], [3, 5, 4, 0], [3, 4, 5, 0], [3, 0, 0, 9]]) / 12
    np.testing.assert_allclose(weights.metropolis(graph), expected, atol=1e-15)


def test_averaging_divides_columns():
    graph = build("edges", 3, edges=[[0, 1], [2, 1], [1, 0], [1, 2]], directed=True)
    expected = [[1 / 2, 1 / 3, 0], [1 / 2, 1 / 3, 1 / 2], [0, 1 / 3, 1 / 2]]
    np.testing.assert_allclose(weights.averaging(graph), expected, atol=1e-15)


def test_a_directed_edge_carries_weight_one_way():
    graph = build("edges", 3, edges=[[0, 1], [1, 2], [2, 0]], directed=True)
    expected = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]]) / 2  # k = 1 hears l = 0
    np.testing.assert_array_equal(weights.averaging(graph), expected)
    np.testing.assert_array_equal(weights.uniform(graph), expected)
    weights.check(expected, graph)


def test_uniform_uses_the_maximum_degree():
    graph = build("star", 4)
    expected = np.array([[1, 1, 1, 1], [1, 3, 0, 0], [1, 0, 3, 0], [1, 0, 0, 3]]) / 4
    np.testing.assert_allclose(weights.uniform(graph), expected, atol=1e-15)
    more_out = build("edges", 3, edges=[[0, 1], [0, 2], [1, 2], [2, 0]], directed=True)
    expected = np.array([[2, 1, 1], [0, 2, 1], [1, 0, 1]]) / 3  # 0 is heard by two, and hears one
    np.testing.assert_allclose(weights.uniform(more_out), expected, atol=1e-15)


def test_metropolis_takes_a_directed_graph_with_both_directions():
    ring = build("ring", 5)
    np.testing.assert_array_equal(weights.metropolis(ring.to_directed()), weights.metropolis(ring))
    with pytest.raises(ValueError, match=r"\[0, 1\] goes one way only: add \[1, 0\] or write"):
        weights.metropolis(build("edges", 2, edges=[[0, 1]], directed=True))


@pytest.mark.parametrize("rule", weights.RULES)
@settings(max_examples=60)
@given(graph=connected_graphs(), seed=st.integers(0, 2**32))
def test_contract_of_every_rule(rule, graph, seed):
    draw = np.random.default_rng(seed)
    for edge in graph.edges.values():
        edge["weight"] = draw.uniform(0.5, 1) / len(graph)
    A = weights.build(rule, graph)  # checks: columns, support, connected, primitive
    K = len(graph)
    assert A.shape == (K, K)
    assert A.dtype == np.float64
    np.testing.assert_allclose(A.sum(axis=0), 1, atol=1e-14)
    assert (A.diagonal() > 0).all()
    linked = np.array([[l == k or graph.has_edge(l, k) for k in range(K)] for l in range(K)])
    np.testing.assert_array_equal(A > 0, linked)
    p = weights.perron(A)
    np.testing.assert_allclose(A @ p, p, atol=1e-13)
    assert p.sum() == pytest.approx(1, abs=1e-13)
    assert (p > 0).all()
    # the Perron vector is where the weights lead
    np.testing.assert_allclose(np.linalg.matrix_power(A, 5000), np.tile(p, (K, 1)).T, atol=1e-9)


@pytest.mark.parametrize("rule", ["metropolis", "uniform"])
@settings(max_examples=60)
@given(graph=connected_graphs(), seed=st.integers(0, 2**32))
def test_symmetric_rules_keep_the_mean_and_contract(rule, graph, seed):
    A = weights.RULES[rule](graph)
    np.testing.assert_array_equal(A, A.T)
    assert weights.is_doubly_stochastic(A)
    np.testing.assert_allclose(weights.perron(A), 1 / len(A), atol=1e-13)
    W = np.random.default_rng(seed).normal(size=(len(A), 3))
    combined = A.T @ W
    np.testing.assert_allclose(combined.mean(axis=0), W.mean(axis=0), atol=1e-13)
    before, after = (np.linalg.norm(X - X.mean(axis=0)) for X in (W, combined))
    assert after <= weights.mixing_rate(A) * before + 1e-12


@pytest.mark.parametrize("agents", [5, 16])
def test_the_slowest_mode_contracts_exactly_at_the_mixing_rate(agents):
    A = weights.metropolis(build("ring", agents))
    slow = np.cos(2 * np.pi * np.arange(agents) / agents)
    np.testing.assert_allclose(A.T @ slow, weights.mixing_rate(A) * slow, atol=1e-14)


@settings(max_examples=60)
@given(graph=connected_graphs())
def test_perron_vector_of_averaging_counts_neighbours(graph):
    n = np.array([1 + graph.degree(k) for k in range(len(graph))])
    np.testing.assert_allclose(weights.perron(weights.averaging(graph)), n / n.sum(), atol=1e-13)


def weighed(agents, directed=False):
    """Weights on the edges, and on one agent's own."""
    graph = (nx.MultiDiGraph if directed else nx.MultiGraph)()
    graph.add_nodes_from("bac")
    graph.add_edge("a", "b", weight=0.1)
    graph.add_edge("a", "b", weight=0.2)  # beside the first
    graph.add_edge("b", "c", weight=np.float64(0.5))
    graph.add_edge("c", "c", weight=0.5)
    if directed:
        graph.add_edge("c", "a", weight=0.75)
    return graph


def test_edge_weights_are_the_weights_of_the_matrix():
    graph = build(f"{__name__}:weighed", 3)
    assert names(graph) == ["b", "a", "c"]
    expected = [[0.2, 0.3, 0.5], [0.3, 0.7, 0], [0.5, 0, 0.5]]  # columns, and so rows, sum to 1
    np.testing.assert_allclose(weights.build("edge-weights", graph), expected, atol=1e-15)


def test_an_edge_weight_is_what_its_end_gives_to_its_start():
    graph = build(f"{__name__}:weighed", 3, directed=True)
    expected = [[0.7, 0, 0.5], [0.3, 0.25, 0], [0, 0.75, 0.5]]  # b hears a with 0.3, and so on
    np.testing.assert_allclose(weights.build("edge-weights", graph), expected, atol=1e-15)


def weights_of(*values):
    graph = nx.Graph()
    graph.add_edges_from((k, k + 1, {"weight": w}) for k, w in enumerate(values))
    return graph


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, None), r"edge [1, 2] has no weight, expected one on each edge"),
        ((0.5, "0.5"), "edge [1, 2] has the weight '0.5', expected a number ≥ 0"),
        ((-0.5, 0.5), "edge [0, 1] has the weight -0.5, expected a number ≥ 0"),
        ((math.nan, 0.5), "edge [0, 1] has the weight nan, expected a number ≥ 0"),
        ((3, 1), "the edges to agent 1 weigh 4 together, expected 1 or less"),
    ],
)
def test_edge_weights_that_are_none_are_refused(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.build("edge-weights", weights_of(*values))


def test_own_weights_that_miss_one_are_told():
    graph = weights_of(0.5)
    graph.nodes[1]["weight"] = 0.3  # as `build` has the edge of an agent to itself
    with pytest.raises(ValueError, match=re.escape("column 1 of weights sums to 0.8, expected 1")):
        weights.build("edge-weights", graph)


@pytest.mark.parametrize(
    ("rule", "values", "unused"),
    [
        *[(rule, (0.5, 0.25), rule != "edge-weights") for rule in weights.RULES],
        ([[1, 0], [0, 1]], (0.5,), True),
        ("metropolis", (1, 1.0), False),  # as if there were none
        ("metropolis", (1, 2), True),
        ("metropolis", ("a", 1), True),
    ],
)
def test_weights_that_a_rule_does_not_look_at(rule, values, unused):
    assert weights.unused(rule, weights_of(*values)) is unused
    assert not weights.unused(rule, nx.path_graph(3))


def test_averaging_is_doubly_stochastic_on_regular_graphs_only():
    assert weights.is_doubly_stochastic(weights.averaging(build("ring", 6)))
    star = weights.averaging(build("star", 6))
    assert not weights.is_doubly_stochastic(star)
    assert not weights.is_doubly_stochastic(star.T)  # rows that sum to 1, columns that do not
    assert not weights.is_doubly_stochastic(np.array([[2.0, -1.0], [-1.0, 2.0]]))


def test_own_matrix_is_taken_as_it_is_and_copied():
    own = np.array([[0.25, 0.75], [0.75, 0.25]])
    A = weights.build(own, build("path", 2))
    np.testing.assert_array_equal(A, own)
    assert not np.shares_memory(A, own)
    np.testing.assert_array_equal(
        weights.build([[0.5, 1], [0.5, 0]], build("path", 2))[0], [0.5, 1]
    )


def test_own_matrix_may_leave_an_edge_without_weight():
    no_direct_link = [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    np.testing.assert_array_equal(
        weights.build(no_direct_link, build("complete", 3)), no_direct_link
    )


def swap_ring(K):
    return (np.roll(np.eye(K), 1, axis=0) + np.roll(np.eye(K), -1, axis=0)) / 2


def test_a_ring_without_own_weights_passes_if_it_is_odd():
    weights.check(swap_ring(5), build("ring", 5))
    assert weights.mixing_rate(swap_ring(6)) == pytest.approx(1, abs=1e-14)


BAD = [
    ("metropolish", 'weights is "metropolish", expected one of metropolis, averaging,'),
    ([[1.0, 0.0], [0.5]], "weights is no matrix ("),
    ([["a", "b"], ["c", "d"]], "write 4 rows of 4 numbers"),
    (np.full((4, 3), 1 / 4), "weights has shape (4, 3), expected (K, K)"),
    ([], "weights has shape (0,)"),
    (np.full((3, 3), 1 / 3), "weights has 3 rows, expected one for each of 4 agents"),
    (np.diag([1, 1, np.nan, 1]), "weights[2][2] is nan, expected a finite number"),
    (np.eye(4) + np.diag([1.0, 0, 0], 1) - np.diag([1.0, 0, 0], -1), "weights[1][0] is -1.0"),
    (np.full((4, 4), 0.24), "column 0 of weights sums to 0.96, expected 1"),
    (np.diag([1, 1, 1, 0.5]), "column 3 of weights sums to 0.5"),
    (np.diag([1 - 1e-15, 1.25, 1, 1]), "column 1 of weights sums to 1.25"),
    (weights.averaging(nx.star_graph(3)).T, "the rows do, so transpose the matrix"),
    (np.full((4, 4), 1 / 4), "agent 2 gives weight 0.25 to agent 0, which is not its neighbour"),
    (np.eye(4), "agents 1, 2, 3 are cut off from agent 0"),
    (np.kron(np.eye(2), np.full((2, 2), 0.5)), "agents 2, 3 are cut off from agent 0"),
    (swap_ring(4), "weights is periodic, not primitive"),
    (np.roll(np.eye(4), 1, axis=0), "give some agent a_kk > 0"),
]


@pytest.mark.parametrize("rule, message", BAD)
def test_what_is_wrong_is_said(rule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.build(rule, build("ring", 4))


def test_columns_that_miss_one_are_told_to_be_divided_by_their_sum():
    with pytest.raises(ValueError, match="divide each column by its sum"):
        weights.check(np.full((2, 2), 0.4))


def test_check_without_a_graph_allows_any_support():
    weights.check(np.full((4, 4), 1 / 4))
    weights.check(np.ones((1, 1)))


def test_rules_on_a_disconnected_graph_are_refused_by_build_only():
    graph = build("edges", 4, edges=[[0, 1], [2, 3]])
    assert weights.mixing_rate(weights.metropolis(graph)) == pytest.approx(1)
    with pytest.raises(ValueError, match="agents 2, 3 are cut off"):
        weights.build("metropolis", graph)


def test_a_rule_of_ones_own():
    graph = build("ring", 4)
    np.testing.assert_allclose(weights.build("helpers_foreign:lazy_rule", graph)[0, 0], 2 / 3)
    with pytest.raises(ValueError, match="column 0 of weights sums to 3"):
        weights.build("helpers_foreign:careless_rule", graph)
