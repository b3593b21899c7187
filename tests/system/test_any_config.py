"""Whatever a file says, it runs or is refused in one line: no other exception, no hang."""

import collections
import copy
import datetime
import json
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from raydist import run_experiment
from raydist.config.experiment import Experiment
from raydist.config.fields import tables_in
from raydist.config.point import folder_name
from raydist.config.study import Study, from_tree, parse_overrides, read
from raydist.engine.plan import make_plan
from raydist.errors import InputError

EVALUATE = {"every": 1, "validation_images": 8, "test_images": 8, "pgd": [1], "autoattack": 0}
SMALL = [
    {
        "topology": {"kind": "ring", "agents": 3},
        "rounds": 2,
        "data": {"set": "digits", "batch": 4},
        "model": {"name": "linear"},
        "attack": {"steps": 1},
        "evaluate": EVALUATE,
    },
    {
        "topology": {"kind": "path", "agents": 2},
        "rounds": 1,
        "dtype": "float64",
        "data": {"set": "quadratic", "centers": [[0.0], [1.0]], "hessian": [1.0]},
        "model": {"name": "point"},
        "loss": {"name": "quadratic"},
        "threat": {"eps": 0.1},
    },
]
NAMES = [
    *("ring", "star", "torus", "edges", "erdos-renyi", "random-regular", "watts-strogatz", "grid"),
    *("digits", "quadratic", "linear", "small-cnn", "point", "pgd_at", "trades", "mart"),
    *("wasserstein", "pgd", "fgsm", "kl_pgd", "sgd", "adam", "deat", "ema", "swa", "cosine"),
    *("linear", "constant", "piecewise", "iid", "dirichlet", "shards", "quantity", "averaging"),
    *("uniform", "l2", "linf", "float64", "all", "centralized", "local", "heal", "train"),
]
ODD = st.one_of(
    st.sampled_from(
        [
            *(0, 1, 2, 3, -1, 2**31, 2**63, 10**30, 10**400, -(10**400)),
            *(0.0, -0.0, 0.5, 1.0, 1e-3, 5e-324, 1e-300, 1e30, 1e308, -1e308),
            *(float("nan"), float("inf"), float("-inf"), True, False),
            *("", " ", "8/255", "1/0", "1e999999999", "1e-999999999", "-1/3", "nan", "inf"),
            *("../../x", "/etc/passwd", "a/b", "..", "~", "x" * 5000, "x" * 5000 + ".toml"),
            *("../x.toml", "a\nb", "\x1b[31mred", "\x00", "\x00.toml", "é", "日本", "\U0001f642"),
            *(":", "a:", ":b", "a:b:c", ".a:b", "a\nb:c", "math:gcd", "math:pi", "builtins:dict"),
            *([], [[]], [[[]]], [1, [2]], ["a", 1], [0.5, 0.25], [1e308, 1e308], [None]),
            *({}, {"": 1}, {"name": 3}, {"name": "x"}, {"a": {"b": {"c": 1}}}, {"kind": "ring"}),
            *({"uniform": [0, 10**400]}, {"choice": [[], {}]}, {"loguniform": [1e-3, 1e-1]}),
            datetime.date(2020, 1, 1),
            datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
            datetime.time(1, 2),
            json.loads("[" * 200 + "]" * 200),
        ]
    ),
    st.sampled_from(NAMES),
    st.integers(-3, 8),
    st.floats(0, 1),
    st.lists(st.one_of(st.integers(-2, 5), st.floats(), st.text(max_size=3)), max_size=3),
    st.lists(st.lists(st.integers(-1, 3), max_size=3), max_size=4),
    st.text(max_size=8),
    st.dictionaries(st.text(max_size=5), st.integers(-1, 3), max_size=2),
)


def plausible(annotation):
    """Values of the type of a field, large and small ones, and tables of them."""
    inner, kind = typing.get_args(annotation), typing.get_origin(annotation)
    if kind is typing.Annotated:
        return plausible(inner[0])
    if kind is typing.Literal:
        return st.sampled_from(inner)
    if kind is list:
        return st.lists(plausible(inner[0]), max_size=4)
    if kind is dict:
        return st.dictionaries(st.sampled_from(["a", "n", ""]), st.integers(0, 3), max_size=2)
    if inner:
        return st.one_of(plausible(each) for each in inner if each is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {name: plausible(f.annotation) for name, f in annotation.model_fields.items()}
        return st.fixed_dictionaries({}, optional=fields)
    large = st.sampled_from([-1, 10**4, 10**6, 2**31, 2**63, 10**30])
    return {
        bool: st.booleans(),
        int: st.one_of(st.integers(0, 4), st.integers(0, 4), large),
        float: st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-300, 1e-9, 2.0, 1e9, 1e300])),
        str: st.sampled_from(NAMES),
    }.get(annotation, ODD)


def leaves(table=Experiment, prefix=""):
    """The dotted keys of all fields, and values of their types; of tables some as a whole, too."""
    for name, field in (f for member in tables_in(table) for f in member.model_fields.items()):
        if [*tables_in(field.annotation)]:
            yield from leaves(field.annotation, f"{prefix}{name}.")
        if name in ("agents", "transforms") or not [*tables_in(field.annotation)]:
            yield prefix + name, plausible(field.annotation)
        elif prefix == "":
            yield name, plausible(field.annotation)


def assignments(fields):
    return st.sampled_from(fields).flatmap(lambda f: st.tuples(st.just(f[0]), f[1]))


OF_GRAPHS = {"p": float, "degree": int, "neighbours": int, "rows": int, "cols": int, "edges": None}
FIELDS = [*leaves(), *((f"topology.{name}", plausible(t)) for name, t in OF_GRAPHS.items())]
AXES = [(f"axes.{name}", st.lists(values, max_size=3)) for name, values in FIELDS]
OTHERS = ["name", "base", "axes", "search", "search.samples", "axes.nope", "axes.", "x", "a.b"]
ANYTHING = st.tuples(st.one_of(st.sampled_from([*OTHERS, *dict(FIELDS)]), st.text(max_size=6)), ODD)


def put(tree, key, value):
    *parents, last = key.split(".", 1) if key.startswith("axes.") else key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


@st.composite
def trees(draw):
    """A small experiment with some keys set to something else, or taken away."""
    tree = copy.deepcopy(draw(st.sampled_from(SMALL)))
    for kind in draw(
        st.lists(st.sampled_from([FIELDS] * 5 + [AXES, ANYTHING]), min_size=1, max_size=3)
    ):
        put(tree, *draw(kind if kind is ANYTHING else assignments(kind)))
    if draw(st.integers(0, 19)) == 0:
        tree.pop(draw(st.sampled_from(list(tree))))
    return copy.deepcopy(tree)


def tiny(config):
    """Done in a moment."""
    return (
        (config.rounds or 9) <= 3
        and config.topology.agents <= 4
        and max(config.attack.steps, *config.evaluate.pgd, 1) <= 8
        and getattr(config.attack, "restarts", 1) <= 8
        and config.data.batch <= 32
        and config.evaluate.autoattack == 0
        and isinstance(config.evaluate.test_images, int)
        and config.evaluate.test_images <= 32
        and getattr(config.model, "width", 1) <= 2
        and config.model.name in ("linear", "point", "small-cnn")
    )


def outcome(tree, run=True):
    """The points of a study that can run; its only one, if it is small, is run."""
    study = from_tree(tree)
    points = list(study.corners())
    for point in points[:3]:
        plan = make_plan(study.experiment(point))
        plan.describe()
    Study.from_json(study.to_json())
    for point in points:
        assert "/" not in folder_name(point) and len(folder_name(point).encode()) < 200
    config = study.experiment(points[0])
    if run and tiny(config):
        return run_experiment(config).final["status"]
    return "valid"


def test_any_config_runs_or_is_refused_in_one_line(empty_folder):
    ends = collections.Counter()

    @given(trees())
    @settings(
        max_examples=150, deadline=20_000, suppress_health_check=list(HealthCheck), derandomize=True
    )
    def each(tree):
        try:
            status = outcome(tree)
        except InputError as error:
            status = "refused"
            assert str(error).isprintable() and 0 < len(str(error)) < 1000
        ends[status] += 1
        assert not list(empty_folder.iterdir())

    each()
    assert {*ends} <= {"refused", "valid", "completed", "stopped", "diverged"}
    # neither all refused nor all taken
    assert min(ends["refused"], ends["completed"]) >= 8
    assert outcome(SMALL[0]) == "completed"


@given(st.one_of(st.text(), st.binary(), st.text(alphabet="[]={}\"'.\n ax1#")))
@settings(max_examples=150, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_file_is_read_or_refused_in_one_line(tmp_path, text):
    file = tmp_path / "x.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    try:
        read(file)
    except InputError as error:
        assert str(error).isprintable()


@given(st.text(), ODD)
def test_any_setting_is_understood_or_refused_in_one_line(key, value):
    try:
        from_tree(SMALL[0], parse_overrides([f"{key}={value}"]))
    except InputError as error:
        assert str(error).isprintable()


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return tmp_path
