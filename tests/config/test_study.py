"""A study from its file: merge order, overrides, axes, and every file that the project ships."""

import itertools
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydist.config.axes import SPACES, check_axis, ends
from raydist.config.point import folder_name, label
from raydist.config.study import Study, from_tree, parse_overrides, read
from raydist.engine.plan import make_plan
from raydist.errors import InputError
from raydist.network import topology, weights

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.toml"))
TOPOLOGIES = sorted((ROOT / "topologies").glob("*.toml"))
RING = {"kind": "ring", "agents": 4}
BASE = {"topology": RING, "rounds": 3}
EPS = "threat.eps"


def study(axes=None, overrides=None, **base):
    return from_tree({"base": BASE | base, "axes": axes or {}}, overrides)


def test_the_command_line_wins_over_the_axis_over_the_base_over_the_default():
    assert study().experiment({}).optim.lr == pytest.approx(0.1)
    base = study(optim={"lr": 2})
    assert base.experiment({}).optim.lr == 2
    assert base.experiment({"optim.lr": 3}).optim.lr == 3
    over = study(optim={"lr": 2}, overrides={"optim.lr": 4})
    assert over.experiment({}).optim.lr == 4
    assert over.experiment({"optim.lr": 3}).optim.lr == 4


def test_one_key_of_a_table_leaves_the_others():
    config = study(optim={"lr": 0.2, "momentum": 0.9}).experiment({"optim.lr": 0.3})
    assert (config.optim.lr, config.optim.momentum) == (0.3, 0.9)
    config = study(overrides={"topology.agents": 8}).experiment({"topology.kind": "path"})
    assert (config.topology.kind, config.topology.agents) == ("path", 8)


@pytest.mark.parametrize(
    ("bare", "key", "value"),
    [
        ({"loss": "trades"}, "loss.beta", 3.0),
        ({"data": "mnist"}, "data.batch", 8),
        ({"optim": {"schedule": "cosine"}}, "optim.schedule.final", 0.01),
        ({"data": {"partition": "dirichlet"}}, "data.partition.alpha", 0.1),
        ({"average": "ema"}, "average.decay", 0.9),
        ({"strategy": "local"}, "strategy.name", "consensus"),
    ],
)
def test_a_key_of_a_table_that_is_written_as_its_name_can_be_set(bare, key, value):
    base = {"topology": {"kind": "ring", "agents": 4}, "rounds": 2}
    found = from_tree({"base": base | bare}, {key: value}).only().model_dump()
    for part in key.removesuffix("strategy.name").split("."):
        found = found[part or "strategy"]
    assert found == value


def test_a_point_leaves_the_study_as_it_was():
    one = study(optim={"lr": 0.2}, axes={"optim.lr": [0.3, 0.4]})
    before = one.to_json()
    assert [one.experiment(point).optim.lr for point in one.corners()] == [0.3, 0.4]
    assert one.to_json() == before


def test_a_file_without_base_is_read_like_one_with(tmp_path):
    body = 'topology = { kind = "ring", agents = 4 }\nrounds = 3\n'
    (tmp_path / "flat.toml").write_text(body + "[axes]\nseed = [0, 1]\n")
    (tmp_path / "deep.toml").write_text("[base]\n" + body + "[axes]\nseed = [0, 1]\n")
    flat, deep = read(tmp_path / "flat.toml"), read(tmp_path / "deep.toml")
    assert (flat.name, deep.name) == ("flat", "deep")
    assert (flat.base, flat.axes) == (deep.base, deep.axes) == (BASE, {"seed": [0, 1]})


def test_the_stop_table_belongs_to_every_trial():
    one = from_tree({"base": BASE, "stop": {"fosc": {"threshold": 2}}})
    assert one.only().stop.fosc.threshold == 2


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("optim.lr=1e-3", "optim.lr", 1e-3),
        ("rounds=5", "rounds", 5),
        ("strategy=diffusion", "strategy", "diffusion"),
        ('strategy="diffusion"', "strategy", "diffusion"),
        ("threat.eps=8/255", EPS, "8/255"),
        ("combine_buffers=false", "combine_buffers", False),
        ("evaluate.pgd=[10, 50]", "evaluate.pgd", [10, 50]),
        ("optim={ lr = 0.3 }", "optim", {"lr": 0.3}),
        (" seed = 3 ", "seed", 3),
        ("data.root=/a=b", "data.root", "/a=b"),
        ("data.root=", "data.root", ""),
        ("optim.lr=1\nrounds = 9", "optim.lr", "1\nrounds = 9"),  # one setting sets one key
    ],
)
def test_settings_are_toml_and_a_bare_word_is_a_string(pair, key, value):
    assert parse_overrides([pair]) == {key: value}


@pytest.mark.parametrize("pair", ["rounds", "=3", ".lr=3", "optim.=3", "a..b=3", "a b=3", ""])
def test_what_is_no_setting_says_so(pair):
    with pytest.raises(InputError, match=r"is not a setting: write section\.key=value"):
        parse_overrides([pair])


def test_later_settings_win():
    assert parse_overrides(["seed=1", "seed=2"]) == {"seed": 2}


def test_a_grid_runs_every_combination_once():
    axes = {"strategy": ["consensus", "diffusion"], EPS: ["3/255", "8/255"], "seed": [0, 1, 2]}
    one = study(axes)
    points = list(one.corners())
    assert one.trials == len(points) == 12 and one.samples == 1
    assert points == [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    assert len({one.experiment(point).digest() for point in points}) == 12


def test_search_spaces_are_drawn_and_checked_at_their_ends():
    axes = {"seed": [0, 1], "optim.lr": {"loguniform": [1e-3, 1e-1]}, EPS: {"choice": [0.1, 0.2]}}
    one = from_tree({"base": BASE, "axes": axes, "search": {"samples": 7}})
    assert one.spaces == ["optim.lr", EPS]
    assert (one.samples, one.trials) == (7, 14)
    assert {tuple(point.values()) for point in one.corners()} == set(
        itertools.product([0, 1], [1e-3, 1e-1], [0.1, 0.2])
    )


VALUES = {
    "uniform": [0.1, 0.9],
    "loguniform": [1e-3, 1.0],
    "quniform": [0.2, 1.0, 0.2],
    "qloguniform": [2, 8, 2],
    "randint": [0, 4],
    "lograndint": [1, 4],
    "choice": [5, 3],
}


@pytest.mark.parametrize("space", SPACES)
def test_every_space_is_one_of_ray_tune_and_stays_between_its_ends(space):
    from ray import tune

    check_axis("seed", {space: VALUES[space]})
    sample = getattr(tune, space)
    domain = sample(VALUES[space]) if space == "choice" else sample(*VALUES[space])
    drawn, between = domain.sample(size=50), ends({space: VALUES[space]})
    assert min(between) - 1e-9 <= min(drawn) <= max(drawn) <= max(between) + 1e-9
    if "randint" in space or space == "choice":
        assert {*drawn} >= {*between}  # the ends themselves are drawn


@pytest.mark.parametrize(
    ("axis", "line"),
    [
        ([], "axes.seed is empty, expected one value or more: remove it"),
        ([1, 2, 1], "axes.seed holds 1 twice: remove one"),
        (
            3,
            "axes.seed is 3, expected a list or one search space (uniform, loguniform, quniform, "
            "qloguniform, randint, lograndint, choice): write { loguniform = [1e-3, 1e-1] }",
        ),
        ({"uniform": 3}, "axes.seed: uniform is 3, expected [low, high]"),
        ({"uniform": [1]}, "axes.seed: uniform is [1], expected [low, high]"),
        ({"uniform": [2, 1]}, "axes.seed: uniform is [2, 1], expected low < high"),
        ({"uniform": ["a", 1]}, "axes.seed: uniform is ['a', 1], expected finite numbers"),
        ({"loguniform": [0, 1]}, "axes.seed: loguniform is [0, 1], expected 0 < low < high"),
        ({"randint": [0.5, 1]}, "axes.seed: randint is [0.5, 1], expected whole numbers"),
        ({"quniform": [0, 1]}, "axes.seed: quniform is [0, 1], expected [low, high, step]"),
        (
            {"quniform": [0, 1, 0.3]},
            "axes.seed: quniform is [0, 1, 0.3], expected a step > 0 of which low and high are "
            "multiples",
        ),
        ({"choice": []}, "axes.seed: choice is [], expected a list of values"),
    ],
)
def test_wrong_axes(axis, line):
    with pytest.raises(InputError) as caught:
        study({"seed": axis})
    assert str(caught.value) == line


@pytest.mark.parametrize("axis", [{"unform": [0, 1]}, {"uniform": [0, 1], "choice": [1]}, {}, "x"])
def test_an_unknown_search_space_lists_the_known_ones(axis):
    with pytest.raises(InputError, match=r"expected a list or one search space \(uniform, logun"):
        study({"seed": axis})


def test_an_axis_without_quotes_is_told_to_take_them():
    axes = tomllib.loads("optim.lr = [0.1, 0.2]")
    with pytest.raises(InputError, match=r'axes.optim is a table.*write "optim.lr" = \[...\]'):
        study(axes)


def test_an_axis_that_the_command_line_fixes_is_gone():
    axes = {"strategy": ["consensus", "diffusion"], EPS: ["3/255", "8/255"]}
    assert list(study(axes, {EPS: 0.1}).axes) == ["strategy"]
    assert list(study(axes, {"threat": {"eps": 0.1}}).axes) == ["strategy"]
    assert list(study(axes, {"threat.norm": "l2"}).axes) == ["strategy", EPS]
    assert list(study({"data.batch": [1, 2]}, {"data.b": 1}).axes) == ["data.batch"]
    assert study(axes, {EPS: 0.1, "strategy": "local"}).only().strategy == "local"


def test_only_says_which_axes_are_left():
    with pytest.raises(InputError) as caught:
        study({EPS: ["3/255"], "seed": [0]}).only()
    assert str(caught.value) == (
        "this is a study with the axes threat.eps, seed: write threat.eps=3/255 (and so on) to "
        "choose one experiment, or python -m raydist.sweep to run them all"
    )


@pytest.mark.parametrize(
    "tree",
    [
        {"base": BASE, "axes": {"seed": [0, 1], "optim.lr": {"loguniform": [1e-3, 1.0]}}},
        {"base": BASE, "search": {"samples": 3, "max_concurrent": 2, "seed": 1}},
        {"base": BASE, "stop": {"fosc": {"threshold": 0.5}}, "name": "s"},
    ],
)
def test_a_study_survives_json(tree):
    one = from_tree(tree, {"strategy": "local", "topology.weights": "averaging"})
    again = Study.from_json(one.to_json())
    assert again == one
    assert [again.experiment(p) for p in again.corners()] == [
        one.experiment(p) for p in one.corners()
    ]


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '"x"', '{"name": "a", "other": 1}'])
def test_what_is_no_study_in_json_is_refused(text):
    with pytest.raises((ValueError, TypeError)):
        Study.from_json(text)


values = st.floats(0, 1) | st.integers(-5, 5) | st.sampled_from(["8/255", "a b", "é", "x" * 200])
points = st.dictionaries(st.sampled_from(["optim.lr", EPS, "seed", "data.set"]), values, min_size=1)


@given(points, points)
def test_folders_of_different_points_differ_and_are_fit_for_any_file_system(one, other):
    name = folder_name(one)
    assert name == folder_name(dict(one))
    assert len(name) <= 110 and set(name).isdisjoint('/\\:*?"<>|\0 ') and not name.startswith(".")
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert name != folder_name(other)


def test_the_folder_says_what_is_in_it():
    point = {"strategy": "diffusion", EPS: "8/255", "optim.lr": 0.0123456, "topology": RING}
    assert label(point) == "strategy=diffusion,eps=8-255,lr=0.01235,topology=ring4"
    assert folder_name({}).startswith("trial-")
    assert folder_name({"optim.lr": 0.0123456}) != folder_name({"optim.lr": 0.0123457})


def write_study(folder, axis):
    (folder / "sweeps").mkdir()
    (folder / "topologies").mkdir()
    for kind in ("ring", "path"):
        text = f'kind = "{kind}"\nagents = 4\n'
        (folder / "topologies" / f"{kind}.toml").write_text(text)
    text = f'[base]\ntopology = "topologies/ring.toml"\nrounds = 3\n[axes]\n{axis}\n'
    (folder / "sweeps" / "one.toml").write_text(text)
    return folder / "sweeps" / "one.toml"


FILES = '["topologies/ring.toml", "topologies/path.toml"]'


@pytest.mark.parametrize("axis", [f"topology = {FILES}", f"topology = {{ choice = {FILES} }}"])
def test_topology_files_are_read_in(tmp_path, monkeypatch, axis):
    file = write_study(tmp_path, axis)
    monkeypatch.chdir(tmp_path / "topologies")  # found beside the study, wherever one stands
    one = read(file)
    assert one.base["topology"] == RING
    kinds = [one.experiment(point).topology.kind for point in one.corners()]
    assert kinds == ["ring", "path"]
    over = read(file, ["topology=path.toml"])  # found in the working folder
    assert over.only().topology.kind == "path"
    for source in (tmp_path / "topologies").iterdir():
        source.unlink()
    assert Study.from_json(one.to_json()) == one  # nothing is read again


def test_a_topology_that_is_missing_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_study(tmp_path, "seed = [0]")
    with pytest.raises(InputError) as caught:
        read(file, ["topology=rong.toml"])
    assert str(caught.value) == (
        f"topology rong.toml was not found, looked in {tmp_path}, {tmp_path / 'sweeps'}"
    )


def test_the_project_ships_studies_and_topologies():
    assert len(SWEEPS) >= 3 and len(TOPOLOGIES) >= 9


@pytest.mark.parametrize("file", TOPOLOGIES, ids=lambda file: file.stem)
def test_every_topology_file_gives_a_graph_that_can_agree(file):
    table = study(topology=str(file)).only().topology
    graph = topology.build(table.kind, table.agents, table.seed, **table.model_extra)
    A = weights.build(table.weights, graph)
    assert len(graph) == table.agents == int("".join(filter(str.isdigit, file.stem)))
    assert weights.mixing_rate(A) < 1


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_trial_of_every_study_can_start(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read(file)
    assert one.name == file.stem
    experiments = [one.experiment(point) for point in one.corners()]
    assert len({config.digest() for config in experiments}) == len(experiments)
    probed = {}
    for config in experiments:
        try:
            plan = make_plan(config, probed)
        except InputError as error:
            if "RAYDIST_DATA" in str(error):
                pytest.skip(str(error))
            raise
        assert plan.rounds >= 1 and plan.agents == config.topology.agents
