import re
import sys
import tomllib
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from raydist.lookup import resolve
from raydist.network import weights
from raydist.network.topology import FIXED, RANDOM, build, check_connected, names, neighbours, title
from raydist.seeding import Purpose, seed_for

FILES = sorted((Path(__file__).parents[2] / "topologies").glob("*.toml"))


def pairs(graph):
    return {frozenset(edge) for edge in graph.edges}


def row_major(graph):
    rows, cols = max(graph)
    assert rows * (cols + 1) + cols == len(graph) - 1
    return nx.relabel_nodes(graph, {(i, j): i * (cols + 1) + j for i, j in graph})


REFERENCE = [
    ("ring", 16, {}, nx.cycle_graph(16)),
    ("ring", 2, {}, nx.path_graph(2)),
    ("ring", 1, {}, nx.empty_graph(1)),
    ("path", 7, {}, nx.path_graph(7)),
    ("path", 1, {}, nx.empty_graph(1)),
    ("star", 9, {}, nx.star_graph(8)),
    ("star", 1, {}, nx.empty_graph(1)),
    ("complete", 6, {}, nx.complete_graph(6)),
    ("complete", 1, {}, nx.empty_graph(1)),
    ("grid", 12, {}, row_major(nx.grid_2d_graph(3, 4))),
    ("grid", 12, {"rows": 6}, row_major(nx.grid_2d_graph(6, 2))),
    ("grid", 7, {}, nx.path_graph(7)),
    ("torus", 16, {}, row_major(nx.grid_2d_graph(4, 4, periodic=True))),
    ("torus", 15, {"rows": 5, "cols": 3}, row_major(nx.grid_2d_graph(5, 3, periodic=True))),
    ("torus", 32, {"cols": 8}, row_major(nx.grid_2d_graph(4, 8, periodic=True))),
    ("hypercube", 1, {}, nx.empty_graph(1)),
    ("hypercube", 2, {}, nx.path_graph(2)),
    (
        "hypercube",
        16,
        {},
        nx.convert_node_labels_to_integers(nx.hypercube_graph(4), ordering="sorted"),
    ),
    ("edges", 3, {"edges": [[0, 1], [1, 2]]}, nx.path_graph(3)),
    ("edges", 3, {"edges": [[0, 1], [1, 0], [2, 1]]}, nx.path_graph(3)),
    ("networkx:wheel_graph", 6, {}, nx.wheel_graph(6)),
]
PARAMS = {
    "edges": {"edges": [[k, k + 1] for k in range(15)]},
    "erdos-renyi": {"p": 0.3},
    "random-regular": {"degree": 4},
    "watts-strogatz": {"neighbours": 4, "p": 0.2},
}


@pytest.mark.parametrize("kind, agents, params, reference", REFERENCE)
def test_adjacency_equals_networkx(kind, agents, params, reference):
    graph = build(kind, agents, **params)
    assert list(graph) == list(range(agents))
    assert pairs(graph) == pairs(reference)


def test_torus_wraps_within_its_row_and_column():
    rows, cols = 4, 8
    for k, graph in ((k, build("torus", 32, rows=rows, cols=cols)) for k in range(32)):
        i, j = divmod(k, cols)
        beside = {i * cols + (j + 1) % cols, i * cols + (j - 1) % cols}
        above = {(i + 1) % rows * cols + j, (i - 1) % rows * cols + j}
        assert set(neighbours(graph, k)) == {k} | beside | above


@pytest.mark.parametrize("kind", [*FIXED, *RANDOM])
def test_every_kind_is_connected_numbered_and_repeatable(kind):
    graph = build(kind, 16, seed=3, **PARAMS.get(kind, {}))
    again = build(kind.replace("-", "_"), 16, seed=3, **PARAMS.get(kind, {}))
    assert list(graph) == list(range(16))
    assert list(graph.edges) == list(again.edges)
    assert all(k in neighbours(graph, k) for k in graph)
    assert not list(nx.selfloop_edges(graph))
    check_connected(graph)


@pytest.mark.parametrize("kind", RANDOM)
def test_random_kinds_depend_on_the_seed_only(kind):
    graphs = [build(kind, 16, seed=seed, **PARAMS[kind]) for seed in range(4)]
    assert len({frozenset(pairs(graph)) for graph in graphs}) == 4


def test_random_kinds_draw_from_networkx_with_the_derived_seed():
    draw = seed_for(Purpose.GRAPH, 5)
    expected = {
        "erdos-renyi": nx.erdos_renyi_graph(16, 0.5, seed=draw),
        "random-regular": nx.random_regular_graph(4, 16, seed=draw),
        "watts-strogatz": nx.watts_strogatz_graph(16, 4, 0.2, seed=draw),
    }
    for kind, graph in expected.items():
        params = {"p": 0.5} if kind == "erdos-renyi" else PARAMS[kind]
        assert pairs(build(kind, 16, seed=5, **params)) == pairs(graph)


def test_a_disconnected_draw_is_followed_by_the_next_one():
    draws = [
        nx.gnp_random_graph(16, 0.15, seed=seed_for(Purpose.GRAPH, 0, round=n)) for n in range(99)
    ]
    first = next(n for n, graph in enumerate(draws) if nx.is_connected(graph))
    assert first > 0
    assert pairs(build("erdos-renyi", 16, p=0.15)) == pairs(draws[first])


@pytest.mark.parametrize("degree", [3, 7, 8, 12, 15])  # from 8 on by the edges that are missing
def test_random_regular_is_regular(degree):
    graph = build("random-regular", 16, degree=degree)
    assert {len(neighbours(graph, k)) for k in range(16)} == {degree + 1}


def test_neighbours_of_a_directed_graph_are_those_from_whom_k_receives():
    graph = build("edges", 3, edges=[[0, 1], [2, 1], [1, 0]], directed=True)
    assert [neighbours(graph, k) for k in range(3)] == [[0, 1], [0, 1, 2], [2]]
    with pytest.raises(nx.NetworkXError):
        neighbours(graph, 3)


@pytest.mark.parametrize(
    "kind, agents, params, message",
    [
        ("rnig", 4, {}, 'kind is "rnig", expected one of ring, path,'),
        ("sphere", 4, {}, 'kind is "sphere", expected one of ring, path,'),
        ("erdos_reny", 4, {}, 'or "package.module:function": write "erdos-renyi"'),
        ("ring", 0, {}, "agents is 0, expected an integer of at least 1"),
        ("ring", 4.0, {}, "agents is 4.0, expected an integer"),
        ("ring", 4, {"p": 0.1}, "got an unexpected keyword argument 'p'; its parameters: none"),
        ("erdos-renyi", 4, {}, "missing a required argument: 'p'; its parameters: p"),
        ("torus", 9, {"row": 3}, "unexpected keyword argument 'row'; its parameters: rows, cols"),
        ("erdos-renyi", 4, {"p": 1.5}, "p is 1.5, expected a probability in [0, 1]"),
        ("erdos-renyi", 4, {"p": "0.3"}, "p is '0.3', expected a probability"),
        ("erdos-renyi", 9, {"p": 0.0}, "none of 100 draws of erdos-renyi with 9 agents"),
        ("random-regular", 6, {"degree": 1}, "none of 100 draws of random-regular"),
        ("random-regular", 5, {"degree": 3}, "no graph of 5 agents has degree 3 everywhere"),
        ("random-regular", 4, {"degree": 4}, "expected degree < agents"),
        ("random-regular", 4, {"degree": 0}, "degree is 0, expected an integer of at least 1"),
        ("watts-strogatz", 8, {"neighbours": 3, "p": 0.1}, "expected an even number below"),
        ("watts-strogatz", 4, {"neighbours": 4, "p": 0.1}, "expected an even number below"),
        ("grid", 12, {"rows": 5}, "rows x cols is 5 x 2 = 10: choose agents = rows * cols"),
        ("grid", 12, {"rows": 3, "cols": 3}, "agents is 12, rows x cols is 3 x 3 = 9"),
        ("grid", 12, {"cols": 0}, "cols is 0, expected an integer of at least 1"),
        ("torus", 8, {}, "a torus of 8 agents would be 2 x 4, expected both sides >= 3"),
        ("torus", 13, {}, "would be 1 x 13"),
        ("hypercube", 12, {}, "expected a power of two: write agents = 8 or 16"),
        ("edges", 3, {"edges": [[0, 3]]}, "edge [0, 3] is not a pair [l, k] of two different"),
        ("edges", 3, {"edges": [[1, 1]]}, "edge [1, 1] is not a pair"),
        ("edges", 3, {"edges": [[0, 1, 2]]}, "edge [0, 1, 2] is not a pair"),
        ("edges", 3, {"edges": [[-1, 0]]}, "in 0..2"),
        ("edges", 3, {"edges": [0, 1]}, "edge 0 is not a pair"),
        ("edges", 3, {"edges": 1}, "edges is 1, expected a list of pairs"),
        ("edges", 2, {"edges": [[0, 1]], "directed": "no"}, "directed is 'no', expected true or"),
        ("erdos-renyi", 4, {"p": 0.5, "seed": -1}, "seed is -1, expected an integer of at least 0"),
        ("networkx:star_graph", 4, {}, "gave 5 nodes, expected one for each of 4 agents"),
        ("math:sqrt", 4, {}, "gave float, expected a networkx graph"),
        ("networkx:barbell_graph", 4, {"k": 1}, 'topology "networkx:barbell_graph": missing a'),
    ],
)
def test_what_is_wrong_is_said(kind, agents, params, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(kind, agents, **params)


@pytest.mark.parametrize(
    "edges, directed, message",
    [
        ([[0, 1], [1, 2], [3, 4]], False, "agents 3, 4 are cut off from agent 0: no way there"),
        ([[0, 1], [1, 2], [2, 3]], False, "agent 4 is cut off from agent 0"),
        ([[0, 1], [1, 0], [1, 2], [3, 0], [0, 4], [4, 0]], True, "agents 2, 3 are cut off"),
    ],
)
def test_agents_that_are_cut_off_are_named(edges, directed, message):
    with pytest.raises(ValueError, match=message):
        check_connected(build("edges", 5, edges=edges, directed=directed))


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A current directory of our own, out of which the import path is left as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_graphs_")]:
        del sys.modules[name]


def test_own_function_in_the_current_directory(in_folder):
    (in_folder / "my_graphs_a.py").write_text(
        "import networkx as nx\n"
        "def lollipop(agents, tail=1):\n"
        "    graph = nx.MultiGraph()\n"
        "    graph.add_edges_from([('c', 'a'), ('a', 'b'), ('a', 'b'), ('a', 'a')])\n"
        "    return graph\n"
        "def arrows(agents):\n"
        "    return nx.DiGraph([('b', 'a'), ('a', 3)])\n"
    )
    graph = build("my_graphs_a:lollipop", 3, seed=7, tail=2)
    assert type(graph) is nx.Graph  # c, a, b in the graph's order; doubled edge and self-loop gone
    assert sorted(graph.edges) == [(0, 1), (1, 2)]
    arrows = build("my_graphs_a:arrows", 3)
    assert sorted(arrows.edges) == [(0, 1), (1, 2)]
    assert arrows.is_directed()
    with pytest.raises(ValueError, match=r"argument 'head'; its parameters: tail"):
        build("my_graphs_a:lollipop", 3, head=1)


def zoo(agents, folder="."):
    """As the Internet Topology Zoo has its graphs."""
    file = Path(folder) / "zoo.graphml"
    nx.write_graphml(nx.path_graph(agents), file)
    return nx.read_graphml(file)


def towns(agents):
    return nx.Graph([("Paris", "Rome"), ("Rome", "Bern"), ("Oslo", "Lima")])


def whole_numbers(agents):
    return nx.Graph([(2, 7), (7, 10), (10, 1)])


def test_names_keep_the_graphs_own_order(tmp_path):
    graph = build(f"{__name__}:zoo", 12, folder=str(tmp_path))
    assert sorted(graph.edges) == [(k, k + 1) for k in range(11)]  # agent 2 is node "2", not "10"
    assert names(graph) == [str(k) for k in range(12)]
    assert names(build(f"{__name__}:towns", 5)) == ["Paris", "Rome", "Bern", "Oslo", "Lima"]


def test_numbers_of_nodes_are_in_increasing_order():
    graph = build(f"{__name__}:whole_numbers", 4)
    assert names(graph) == ["1", "2", "7", "10"]
    assert sorted(graph.edges) == [(0, 3), (1, 2), (2, 3)]


def test_messages_name_agents_by_number_and_name():
    graph = build(f"{__name__}:towns", 5)
    assert [title(graph, 1), title(build("ring", 3), 1)] == ["agent 1 (Rome)", "agent 1"]
    with pytest.raises(
        ValueError, match=r"^agents 3 \(Oslo\), 4 \(Lima\) are cut .* 0 \(Paris\): no"
    ):
        check_connected(graph)
    A = np.full((5, 5), 0.2)
    with pytest.raises(ValueError, match=r"agent 2 \(Bern\) gives .* to agent 0 \(Paris\), which"):
        weights.build(A, graph)
    with pytest.raises(ValueError, match=r"agents 3 \(Oslo\), 4 \(Lima\) are cut off"):
        weights.build("metropolis", graph)


def test_a_long_list_of_agents_is_shortened():
    with pytest.raises(
        ValueError, match=r"^agents 1, 2, .*, 12 and 7 more are cut off from agent 0"
    ):
        check_connected(build("edges", 20, edges=[]))


def test_resolve_errors(in_folder):
    (in_folder / "my_graphs_b.py").write_text("import nowhere_to_be_found\n")
    (in_folder / "my_graphs_c.py").write_text("def f(:\n")
    (in_folder / "my_graphs_d.py").write_text("size = 3\n")
    for name, message in {
        "ring": '"ring" names no function: write "package.module:function"',
        "math:": "names no function",
        ":gcd": "names no function",
        "my_graphs_z:f": "module my_graphs_z does not import (ModuleNotFoundError: No module",
        "my_graphs_b:f": "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        "my_graphs_c:f": "does not import (SyntaxError: ",
        "my_graphs_d:f": "my_graphs_d.py) has no f: check the spelling",
        "my_graphs_d:size": "is not a function, it is of type int",
        "math:nothing": "has no nothing",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            resolve(name)


def test_resolve_leaves_an_import_path_with_the_current_directory_alone(in_folder, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    before = list(sys.path)
    assert resolve("os.path:join") is __import__("os").path.join
    assert sys.path == before


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_topology_file_builds_and_passes_the_checks(file):
    text = file.read_text()
    assert text.startswith("# ")
    table = tomllib.loads(text)
    rule = table.pop("weights", "metropolis")
    graph = build(table.pop("kind"), table.pop("agents"), table.pop("seed", 0), **table)
    assert file.stem.endswith(str(len(graph)))
    check_connected(graph)
    assert weights.is_doubly_stochastic(weights.build(rule, graph))
    assert weights.mixing_rate(weights.build(rule, graph)) < 0.99


def test_the_topology_files_are_there():
    names = "complete16 erdos16 grid16 hypercube16 path8 ring16 ring8 star16 torus16"
    assert set(names.split()) <= {file.stem for file in FILES}


def test_numbers_of_numpy_are_numbers():
    assert len(build("grid", np.int64(6), rows=np.int64(2))) == 6
