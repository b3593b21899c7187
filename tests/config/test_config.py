"""The typed experiment: defaults, budgets, the digest, and one clear line for every wrong value."""

import enum
import itertools
import json
import math
import types
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raydist.config.experiment import Experiment, validate
from raydist.config.fields import fields_in, parse_budget, tables_in
from raydist.config.study import Study, from_tree
from raydist.errors import InputError

QUADRATIC = {
    "data": {"set": "quadratic", "centers": [[0.0], [1.0], [2.0]], "hessian": [1.0]},
    "model": {"name": "point"},
    "loss": {"name": "quadratic"},
}


class Shade(enum.IntEnum):
    DARK = 2


class Tone(str, enum.Enum):  # ruff: ignore[replace-str-enum] (the form before Python 3.11)
    LOUD = "loud"


def tree(**tables):
    return {"topology": {"kind": "ring", "agents": 3}, "rounds": 5} | tables


def nested(key, value):
    """The tree with one dotted key set."""
    result = tree()
    if key.startswith("stop.fosc."):
        result["stop"] = {"fosc": {"threshold": 1.0, "relative": 2.0}}  # one of them is needed
    *parents, last = key.split(".")
    table = result
    for parent in parents:
        table[parent] = dict(table.get(parent, {}))
        table = table[parent]
    table[last] = value
    return result


def leaves(table=Experiment, prefix=""):
    """The dotted keys of all fields that are not tables themselves."""
    for name, field in fields_in(table).items():
        if [*tables_in(field.annotation)] and name not in ("agents", "transforms"):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:  # those two have a table for each agent
            yield prefix + name


def complaint(values):
    with pytest.raises(InputError) as caught:
        validate(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8/255", 8 / 255),
        (" 8/255 ", 8 / 255),
        ("0.5", 0.5),
        ("1e-2", 0.01),
        ("0", 0.0),
        (0, 0.0),
        (1, 1.0),
        (0.03, 0.03),
    ],
)
def test_budgets_are_numbers_or_fractions(written, value):
    assert parse_budget(written) == value
    assert validate(tree(threat={"eps": written})).threat.eps == value


def test_what_is_not_written_has_the_papers_defaults():
    config = validate(tree())
    assert (config.strategy, config.seed, config.dtype) == ("diffusion", 0, "float32")
    assert (config.threat.norm, config.threat.eps) == ("linf", 8 / 255)
    assert (config.attack.steps, config.loss.name, config.optim.lr) == (10, "pgd_at", 0.1)
    assert (config.evaluate.pgd, config.evaluate.autoattack) == ([10, 20], "all")
    assert config.combine_buffers and config.stop.fosc is None


@pytest.mark.parametrize("mode", ["python", "json"])
def test_a_dumped_experiment_reads_back_equal(mode):
    config = validate(tree(**QUADRATIC, stop={"fosc": {"threshold": 0.5, "on": "train"}}))
    dumped = config.model_dump(mode=mode)
    assert validate(dumped) == config
    assert validate(json.loads(json.dumps(dumped))).digest() == config.digest()


def test_experiments_are_frozen():
    config = validate(tree())
    with pytest.raises(ValidationError):
        config.rounds = 7
    with pytest.raises(ValidationError):
        config.threat.eps = 0.5


# Another value for every field on which the result depends.
CHANGED = {
    "strategy": "consensus",
    "topology.kind": "path",
    "topology.agents": 4,
    "topology.seed": 1,
    "topology.weights": "averaging",
    "topology.rows": 2,  # a parameter of the kind
    "rounds": 6,
    "seed": 1,
    "dtype": "float64",
    "precision": "bf16",
    "channels_last": True,
    "compile": True,
    "cuda_graphs": True,
    "combine_buffers": False,
    "data.set": "mnist",
    "data.batch": 16,
    "data.validation": 0.2,
    "data.augment": "crop",
    "model.name": "lenet",
    "model.width": 2.0,
    "threat.norm": "l2",
    "threat.eps": "4/255",
    "threat.agents": [{}, {"eps": "4/255"}, {}],
    "threat.schedule.name": "linear",
    "attack.name": "fgsm",
    "attack.steps": 7,
    "attack.alpha": "1/255",
    "attack.start": "zero",
    "attack.restarts": 2,
    "loss.name": "trades",
    "awp.gamma": 0.01,
    "telemetry.every": 10,
    "periods": [0.5],
    "average.name": "swa",
    "average.start": 0.5,
    "optim.name": "adam",
    "optim.combine": True,
    "data.partition.name": "dirichlet",
    "data.transforms": [{}, {"rotate": 15.0}, {}],
    "optim.lr": 0.2,
    "optim.momentum": 0.9,
    "optim.weight_decay": 5e-4,
    "optim.schedule.name": "cosine",
    "evaluate.every": 2,
    "evaluate.validation_images": 256,
    "evaluate.test_images": 100,
    "evaluate.pgd": [10],
    "evaluate.autoattack": 0,
    "evaluate.attacks": ["apgd-dlr", "square1000"],
    "evaluate.hessian": 64,
    "evaluate.agents": True,
    "evaluate.excess_risk": 64,
    "evaluate.subspace": 4,
    "evaluate.batch": 128,
    "stop.fosc": {"threshold": 0.5},
}
# Fields that mean something only beside others: changed together with them.
TOGETHER = {
    "engine": [{"strategy": "centralized", "engine": each} for each in ("agents", "train")],
    "epochs": [{"rounds": None, "epochs": n} for n in (1, 2)],
    "loss.beta": [{"loss": {"name": "trades", "beta": n}} for n in (1, 2)],
    **{
        f"{table}.params": [{table: {key: "a:b", "params": {"a": n}}} for n in (1, 2)]
        for table, key in {
            "attack": "name",
            "data": "set",
            "loss": "name",
            "model": "name",
            "optim": "name",
        }.items()
    },
    **{
        f"{outer}.{inner}.params": [
            {outer: {inner: {"name": "a:b", "params": {"a": n}}}} for n in (1, 2)
        ]
        for outer, inner in (("data", "partition"), ("optim", "schedule"), ("threat", "schedule"))
    },
    "model.start": [QUADRATIC | {"model": {"name": "point", "start": [n]}} for n in (0.0, 1.0)],
    "optim.nesterov": [{"optim": {"momentum": 0.9, "nesterov": n}} for n in (False, True)],
    "threat.schedule.eps_max": [
        {"threat": {"schedule": {"name": "linear", "eps_max": n}}} for n in (0.1, 0.2)
    ],
    "threat.schedule.eps_min": [
        {"threat": {"schedule": {"name": "linear", "eps_min": n}}} for n in (0.0, 0.01)
    ],
    "threat.schedule.per": [
        {"threat": {"schedule": {"name": "linear", "per": n}}} for n in ("round", "epoch")
    ],
    "data.partition.alpha": [
        {"data": {"partition": {"name": "dirichlet", "alpha": n}}} for n in (0.1, 0.2)
    ],
    "data.partition.shards": [
        {"data": {"partition": {"name": "shards", "shards": n}}} for n in (1, 2)
    ],
    **{
        f"loss.{key}": [{"loss": {"name": "wasserstein", key: n}} for n in values]
        for key, values in {
            "gamma": (0.5, 1.0),
            "delta": (0.1, 0.2),
            "eta": (0.1, 1.0),
            "order": ("2", "inf"),
        }.items()
    },
    **{
        f"model.{key}": [{"model": {"checkpoint": "a.pt"} | {key: n}} for n in values]
        for key, values in {
            "checkpoint": ("a.pt", "b.pt"),
            "key_map": ("", "published"),
            "reset_last": (False, True),
            "noise": (0.0, 0.1),
        }.items()
    },
    "stop.on_instability": [
        {"stop": {"fosc": {"threshold": 1.0}, "on_instability": n}} for n in ("heal", "watch")
    ],
    **{
        f"stop.remedy.{key}": [{"stop": {"remedy": {key: n}}} for n in values]
        for key, values in {
            "amount": (0.1, 0.2),
            "how": ("std", "variance"),
            "batches": (5, 10),
        }.items()
    },
    "average.decay": [{"average": {"decay": n}} for n in (0.9, 0.99)],
    "optim.k1": [{"optim": {"name": "deat", "k1": n}} for n in (0.5, 1.0)],
    "optim.k2": [{"optim": {"name": "deat", "k2": n}} for n in (0.5, 0.6)],
    "optim.normalise": [{"optim": {"name": "deat", "normalise": n}} for n in (True, False)],
    "data.centers": [
        QUADRATIC | {"data": QUADRATIC["data"] | {"centers": [[n], [1], [2]]}} for n in (1, 2)
    ],
    "data.hessian": [QUADRATIC | {"data": QUADRATIC["data"] | {"hessian": [n]}} for n in (1, 2)],
    "data.noise": [QUADRATIC | {"data": QUADRATIC["data"] | {"noise": n}} for n in (0, 1)],
} | {
    f"optim.schedule.{key}": [{"optim": {"schedule": common | {key: n}}} for n in values]
    for key, common, values in (
        ("milestones", {"name": "piecewise"}, ([0.5], [0.6])),
        ("factor", {"name": "piecewise", "milestones": [0.5]}, (0.1, 0.2)),
        ("final", {"name": "cosine"}, (0.0, 0.1)),
    )
}
TOGETHER |= {
    f"stop.fosc.{key}": [{"stop": {"fosc": {"threshold": 1.0, key: n}}} for n in values]
    for key, values in {
        "threshold": (1.0, 2.0),
        "relative": (2.0, 3.0),
        "patience": (1, 2),
        "warmup": (0, 1),
        "on": ("validation", "train"),
        "form": ("published", "box"),
        "adv_above_clean": (False, True),
    }.items()
}
SAME = {  # where it runs, and where the files lie
    "data.root": "/elsewhere",
    "data.download": True,
    "agent.cpus": 0.5,
    "agent.gpus": 0.25,
    "agent.per_actor": 4,
    "exchange": "board",
    "snapshot.every": 7,
    "snapshot.seconds": 1.5,
    "snapshot.keep": 3,
    "snapshot.path": "memory://snapshots",
    "snapshot.recoveries": 9,
}


def test_the_lists_above_name_every_field():
    assert {*CHANGED, *TOGETHER, *SAME} - {"topology.rows", "stop.fosc"} == {*leaves()}


@pytest.mark.parametrize("key", CHANGED)
def test_the_digest_tells_apart_what_matters(key):
    assert validate(nested(key, CHANGED[key])).digest() != validate(tree()).digest()


@pytest.mark.parametrize("key", TOGETHER)
def test_the_digest_tells_apart_what_matters_beside_others(key):
    first, second = (validate(tree(**tables)).digest() for tables in TOGETHER[key])
    assert first != second


@pytest.mark.parametrize("key", SAME)
def test_the_digest_does_not_depend_on_where_it_runs(key):
    assert validate(nested(key, SAME[key])).digest() == validate(tree()).digest()


def test_the_digest_does_not_depend_on_how_it_is_written():
    one = tree(optim={"lr": 1, "momentum": 0.5}, threat={"eps": "51/255"}, seed=0)
    other = dict(reversed(tree(threat={"eps": 0.2}, optim={"momentum": 0.5, "lr": 1.0}).items()))
    digest = validate(one).digest()
    assert digest == validate(other).digest()
    assert len(digest) == 12 and set(digest) <= set("0123456789abcdef")


# Every field with every kind of wrong value: accepted, or refused in one readable line.
ODD = [-1, 0.5, math.nan, math.inf, "x", "", True, [], [[]], ["a"], {}, {"a": 1}, 10**6, None]
INTERNAL = ("Input should", "function-", "list[", "dictionary", "instance of", "str is", "Value er")


@pytest.mark.parametrize("key", sorted(leaves()))
def test_a_wrong_value_is_told_in_one_line_that_names_its_key(key):
    refused = 0
    for value in ODD:
        try:
            validate(nested(key, value))
        except InputError as error:
            line, refused = str(error), refused + 1
            assert key in line and "\n" not in line, line
            assert not any(word in line for word in INTERNAL), line
            assert " more)" not in line, line  # one problem is one problem
    assert refused >= 2  # for most of these values no field has a use


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (tree(seed=-1), "seed is -1, expected 0 or more"),
        (tree(seed=1.5), "seed is 1.5, expected a whole number"),
        (tree(seed=True), "seed is true, expected a number"),
        (tree(rounds="many"), 'rounds is "many", expected a whole number'),
        (tree(rounds=0), "rounds is 0, expected a number above 0"),
        (tree(optim={"lr": math.nan}), "optim.lr is nan, expected a finite number"),
        (tree(optim={"lr": math.inf}), "optim.lr is inf, expected a finite number"),
        (tree(optim={"lr": -0.1}), "optim.lr is -0.1, expected 0 or more"),
        (tree(optim={"momentum": 1}), "optim.momentum is 1, expected a number below 1"),
        (tree(data={"validation": 0.7}), "data.validation is 0.7, expected 0.5 or less"),
        (tree(data={"set": 3}), "data.set is 3, expected a string"),
        (tree(combine_buffers=3), "combine_buffers is 3, expected true or false"),
        (tree(evaluate={"pgd": 10}), "evaluate.pgd is 10, expected a list"),
        (tree(evaluate={"pgd": [10, 0]}), "evaluate.pgd[1] is 0, expected a number above 0"),
        (
            tree(evaluate={"test_images": "some"}),
            'evaluate.test_images is "some", expected "all" or a whole number, 0 or more',
        ),
        (
            tree(optim={"schedule": 3}),
            "optim.schedule is 3, expected a table with keys such as "
            "name, milestones, factor, final, params",
        ),
        (
            tree(optim={"schedule": "cosin"}),
            'optim.schedule.name is "cosin", expected one of constant, piecewise, cosine or '
            '"package.module:function": write "cosine"',
        ),
        (
            tree(optim={"schedule": "piecewise"}),
            "optim.schedule.milestones is missing: write milestones = [0.5, 0.75]",
        ),
        (
            tree(optim={"schedule": {"final": 0.1}}),
            'optim.schedule.final belongs to cosine, not to "constant": remove it',
        ),
        (
            tree(loss={"beta": 3.0}),
            'loss.beta belongs to trades, mart, wasserstein, not to "pgd_at": remove it',
        ),
        (
            tree(loss="trades", attack={"start": "zero"}),
            'attack.start belongs to pgd, fgsm, not to "kl_pgd": remove it',
        ),
        (
            tree(optim={"name": "adam", "momentum": 0.9, "nesterov": True}),
            'optim.momentum belongs to sgd, not to "adam": remove it',
        ),
        (tree(restarts=[0.5]), "restarts is called periods now: write periods = [0.5, 0.75]"),
        (
            tree(loss={"name": "trades", "awp": 0.005}),
            "loss.awp is called awp.gamma now: write awp = { gamma = 0.005 }",
        ),
        (
            tree(evaluate={"images": 8}),
            "evaluate.images is called evaluate.validation_images now: "
            "write evaluate.validation_images = 512",
        ),
        (
            tree(evaluate={"test": 8}),
            "evaluate.test is called evaluate.test_images now: write evaluate.test_images = 360",
        ),
        (tree(telemetry=50), "telemetry is 50, expected a table: write telemetry = { every = 50 }"),
        (
            tree(periods=[0.5, 0.25]),
            "periods is [0.5, 0.25], expected increasing fractions of the run: write [0.5, 0.75]",
        ),
        (
            tree(evaluate={"every": 0}),
            "evaluate.every is 0, expected a whole number of rounds, 1 or more, or a fraction of "
            "the run below 1",
        ),
        (
            tree(strategy="difusion"),
            'strategy is "difusion", expected one of centralized, consensus, diffusion, local or '
            '"package.module:name": write "diffusion"',
        ),
        (
            tree(data={"partition": "x"}),
            'data.partition.name is "x", expected one of iid, dirichlet, shards, quantity '
            'or "package.module:function"',
        ),
        (tree(roundz=5), "roundz is not a known key: did you mean rounds?"),
        (tree(data={"btach": 5}), "data.btach is not a known key: did you mean batch?"),
        (
            tree(stop={"fosc": {"treshold": 1}}),
            "stop.fosc.treshold is not a known key: did you mean threshold?",
        ),
        (tree(epsilon=1), "epsilon is not a known key: did you mean threat.eps?"),
        (tree(threat={"epsilon": 1}), "threat.epsilon is not a known key: did you mean eps?"),
        (tree(lr=1), "lr is not a known key: did you mean optim.lr?"),
        (
            tree(batch_size=1),
            "batch_size is not a known key: did you mean data.batch or evaluate.batch?",
        ),
        (
            tree(threat={"steps": 1}),
            "threat.steps is not a known key: did you mean attack.steps?",
        ),
        (
            tree(threat={"zzz": 1}),
            "threat.zzz is not a known key: known here are norm, eps, schedule, agents",
        ),
        ({"rounds": 5}, 'topology is missing: write topology = "topologies/ring8.toml"'),
        (tree(topology={"agents": 3}), 'topology.kind is missing: write kind = "ring"'),
        (tree(topology={"kind": "ring"}), "topology.agents is missing: write agents = 8"),
        (
            {"rounds": 5, "topolgy": {"kind": "ring", "agents": 3}},
            "topolgy is not a known key: did you mean topology?",
        ),
        (tree(epochs=1), "rounds and epochs are both given: remove one"),
        (tree(rounds=None), "neither rounds nor epochs is given: write rounds = 100"),
        (tree(seed=-1, dtype=3), "seed is -1, expected 0 or more (and 1 more)"),
        (
            tree(topology={"kind": "ring", "agents": 3, "weights": [["a"]]}),
            "topology.weights is [['a']], expected the name of a rule or the matrix as a list of "
            "rows",
        ),
        (
            tree(topology={"kind": "ring", "agents": 3, "weights": [[1, 0, 0], [1]]}),
            "topology.weights has rows of 1 and of 3 numbers, expected the same length: write one "
            "number for each column",
        ),
        (
            tree(data={"set": "quadratic", "centers": [[1]], "hessian": ["a"]}),
            "data.hessian is ['a'], expected a list of finite numbers, or one such list for each "
            "agent",
        ),
        (
            tree(**QUADRATIC | {"data": QUADRATIC["data"] | {"partition": "iid"}}),
            'data.partition does not belong to "quadratic": remove it',
        ),
        (
            tree(model={"start": [0.0]}),
            'model.start belongs to point, not to "small-cnn": remove it',
        ),
        (
            tree(data={"hessian": [1]}),
            'data.hessian belongs to quadratic, not to "digits": remove it',
        ),
        (
            tree(loss={"params": {"a": 1}}),
            'loss.params belongs to your own "package.module:function", not to "pgd_at": remove it',
        ),
    ],
)
def test_messages(values, line):
    assert complaint(values) == line


# Values of NumPy and of Python's library, and what a file would have instead.
TAKEN = [
    (np.int64(3), 3),
    (np.uint8(3), 3),
    (np.float64(0.1), 0.1),
    (np.float32(0.1), 0.10000000149011612),  # exactly what it holds
    (np.float16(0.1), 0.0999755859375),
    (np.bool_(True), True),
    (np.str_("a"), "a"),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.array(0.5), 0.5),
    (np.array(["a", None, 1], dtype=object), ["a", None, 1]),
    (range(3), [0, 1, 2]),
    ((1, (2.5, "x")), [1, [2.5, "x"]]),
    (Path("a") / "b", "a/b"),
    (types.MappingProxyType({"a": np.arange(2)}), {"a": [0, 1]}),
    (Shade.DARK, 2),
    (Tone.LOUD, "loud"),
    (None, None),
]


@pytest.mark.parametrize(("value", "expected"), TAKEN)
@pytest.mark.parametrize("table", ["model", "data", "loss", "topology"])
def test_the_same_values_are_taken_everywhere_and_kept_exactly(table, value, expected):
    own = {"topology": {"kind": "a:b", "agents": 3}, "data": {"set": "a:b"}}
    own = own.get(table, {"name": "a:b"})
    free = {"extra": value} if table == "topology" else {"params": {"extra": value}}
    for door in (validate, lambda values: from_tree(values).experiment({})):
        config = door(tree(**{table: own | free}))
        dump = json.loads(config.model_dump_json())
        found = (dump[table] if table == "topology" else dump[table]["params"])["extra"]
        assert (found, type(found)) == (expected, type(expected))
        assert validate(dump) == config


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("threat.eps", np.float64(8 / 255), 8 / 255),
        ("threat.eps", np.float32(0.1), 0.10000000149011612),
        ("attack.alpha", np.array(0.5), 0.5),
        ("optim.lr", np.float32(0.1), 0.10000000149011612),
        ("topology.agents", np.int8(3), 3),
        ("rounds", np.int64(7), 7),
        ("evaluate.pgd", range(1, 3), [1, 2]),
        ("evaluate.test_images", np.int64(9), 9),
        ("periods", np.array([0.5]), [0.5]),
        ("combine_buffers", np.False_, False),
        ("data.root", Path("sets"), "sets"),
        ("model.checkpoint", Path("a.pt"), "a.pt"),
        ("topology.weights", np.eye(3), np.eye(3).tolist()),
    ],
)
def test_values_of_numpy_are_taken_by_every_field(key, value, expected):
    for config in (validate(nested(key, value)), from_tree({"base": tree()}, {key: value}).only()):
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        assert (found, type(found)) == (expected, type(expected))


def test_axes_are_lists_arrays_or_ranges():
    axes = {"seed": range(2), "threat.eps": np.array([0.25, 0.5]), "optim.lr": (np.float64(1), 2)}
    study = from_tree({"base": tree(), "axes": axes})
    assert study.axes == {"seed": [0, 1], "threat.eps": [0.25, 0.5], "optim.lr": [1.0, 2]}
    assert Study.from_json(study.to_json()) == study


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (math.inf, "model.params.a is inf, expected a finite number: JSON keeps no other; write"),
        ([1, {"b": math.nan}], "model.params.a[1].b is nan, expected a finite number"),
        (np.float32(-math.inf), "model.params.a is -inf, expected a finite number"),
        (np.array([0.0, math.nan]), "model.params.a[1] is nan, expected a finite number"),
        ({3}, "model.params.a is {3} (set), expected a number, a string, true, false, a list or"),
        (1j, "model.params.a is 1j (complex), expected a number"),
        (np.complex64(1j), "model.params.a is np.complex64(1j) (complex64), expected"),
        (np.longdouble(1) / 3, "(longdouble), expected a number"),
        (
            Fraction(8, 255),
            'expected a number, a string, true, false, a list or a table: write "8/',
        ),
        (
            Decimal("0.1"),
            "(Decimal), expected a number, a string, true, false, a list or a table: w",
        ),
        (b"abc", "model.params.a is b'abc' (bytes), expected"),
        (np.datetime64("2020-01-01"), "(datetime64), expected"),
        (
            torch.zeros(2),
            "(Tensor), expected a number, a string, true, false, a list or a table: wr",
        ),
        (object, "(type), expected"),
        ({1: 2}, "model.params.a has the key 1, expected a string"),
        (2**63, "model.params.a has 64 bits, expected a number below 2^63"),
        (np.uint64(2**63), "model.params.a has 64 bits, expected a number below 2^63"),
        ("\udcff", 'model.params.a is "\\udcff", expected text that UTF-8 can hold'),
        (range(10**12), "model.params.a has 1000000000000 values, expected 1000000 at most"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(value, line):
    found = complaint(tree(model={"name": "a:b", "params": {"a": value}}))
    assert line in found and "\n" not in found
    if isinstance(value, float):
        assert complaint(tree(topology={"kind": "a:b", "agents": 3, "a": value})).startswith(
            f"topology.a is {value}"
        )


@pytest.mark.parametrize(
    ("norm", "eps", "expected"),
    [
        ("linf", 8, 'a fraction of the pixel range in [0, 1]: write "8/255"'),
        ("linf", "8", 'a fraction of the pixel range in [0, 1]: write "8/255"'),
        ("linf", 1.5, 'a fraction of the pixel range in [0, 1]: write "1.5/255"'),
        ("l2", 128, 'an l2 distance in pixels of [0, 1], below 8: write "128/255"'),
    ],
)
def test_whole_grey_values_are_no_budget(norm, eps, expected):
    for table, key in (("threat", "eps"), ("attack", "alpha")):
        values = tree(**({"threat": {"norm": norm}} | {table: {"norm": norm, key: eps}}))
        if table == "attack":
            values["attack"] = {"alpha": eps}
        assert complaint(values) == f"{table}.{key} is {float(eps)}, expected {expected}"


@pytest.mark.parametrize("eps", ["abc", "1/0", "8/", True, [1], None])
def test_what_is_no_number_is_no_budget(eps):
    shown = {True: "true"}.get(eps) if eps is True else f'"{eps}"' if isinstance(eps, str) else eps
    line = f'threat.eps is {shown}, expected a number or a fraction such as "8/255"'
    assert complaint(tree(threat={"eps": eps})) == line


@pytest.mark.parametrize("eps", [-0.1, "-1/255", math.nan, math.inf])
def test_a_budget_is_finite_and_not_negative(eps):
    shown = f'"{eps}"' if isinstance(eps, str) else eps
    line = f'threat.eps is {shown}, expected a finite number ≥ 0: write for example "8/255"'
    assert complaint(tree(threat={"eps": eps})) == line


def test_an_attack_step_without_steps_is_an_oversight():
    line = complaint(tree(attack={"alpha": 0.1, "steps": 0}, threat={"eps": 0.05}))
    assert line.startswith("attack.alpha is 0.1 but attack.steps is 0")
    validate(tree(attack={"alpha": 0.1, "steps": 1}, threat={"eps": 0.05}))


@pytest.mark.parametrize("missing", list(itertools.combinations(QUADRATIC, 1)))
def test_the_parts_of_the_quadratic_task_belong_together(missing):
    tables = {key: table for key, table in QUADRATIC.items() if key not in missing}
    line = complaint(tree(**tables))
    assert 'data.set = "quadratic"' in line and "belong together" in line
