"""Wrong input: one clear line on stderr, exit code 2, nothing started and nothing left behind."""

import itertools
import os
import re
import subprocess
import sys

import pytest

import raydist.engine.cluster.session
import raydist.engine.driver
import raydist.run
import raydist.sweep
from raydist import cli
from raydist.config.experiment import Experiment, validate
from raydist.engine.cluster.layout import layout
from raydist.errors import InputError

COMMANDS = {"sweep": raydist.sweep, "run": raydist.run}
GOOD = {
    "rounds": "2",
    "topology.kind": '"ring"',
    "topology.agents": "4",
    "model.name": '"linear"',
    "evaluate.validation_images": "16",
    "evaluate.test_images": "16",
    "evaluate.autoattack": "0",
}
QUADRATIC = {
    "data.set": '"quadratic"',
    "data.centers": "[[0], [1], [2], [3]]",
    "data.hessian": "[1]",
    "model.name": '"point"',
    "loss.name": '"quadratic"',
    "threat.eps": "0",
}
KINDS = (
    "ring, path, star, complete, grid, torus, hypercube, edges, erdos-renyi, random-regular, "
    'watts-strogatz or "package.module:function"'
)
DATA_SETS = (
    'digits, mnist, fashion-mnist, cifar10, cifar100, svhn, quadratic or "package.module:function"'
)
MODELS = (
    "linear, small-cnn, lenet, resnet-18, preact-resnet-18, senet-18, wrn-16-4, wrn-28-10, "
    'wrn-34-10, vgg-16, point or "package.module:function"'
)
OWN = """
import networkx as nx
import torch

number = 3

def data(**params):
    return [1, 2]

def crooked_data():
    x = torch.zeros(4, 8, 8).numpy()
    return {"train": (x, [0, 1, 2, 3]), "test": (x, [0, 1, 2, 3])}

def graph(agents):
    return [[0, 1]]

def small_graph(agents):
    return nx.path_graph(agents - 1)

def model(shape, classes):
    return 3

def broken_model(shape, classes):
    raise KeyError("depth")

def one_logit(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))

def wrong_size(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, classes))

def without_parameters(shape, classes):
    return torch.nn.Flatten()

def loss(model, x, x_adv, y):
    return 1.0

def each_loss(model, x, x_adv, y):
    return torch.nn.functional.cross_entropy(model(x), y, reduction="none")

def detached_loss(model, x, x_adv, y):
    return model(x).mean().detach()

def broken_loss(model, x, x_adv, y):
    raise IndexError
"""
numbers = itertools.count()


def toml(changes=(), **more):
    """A good file with some keys changed; None removes one."""
    keys = GOOD | dict(changes) | more
    return "".join(f"{key} = {value}\n" for key, value in keys.items() if value is not None)


def files_in(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.fixture
def complaint(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder of its own and returns its one line on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYDIST_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the working folder is added to it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def started(*args, **kwargs):
        raise AssertionError("the run was started")

    monkeypatch.setattr(raydist.engine.cluster.session, "ray_session", started)
    monkeypatch.setattr(raydist.engine.driver, "train", started)

    def run(name, *arguments):
        before = files_in(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.run(COMMANDS[name].main)
        captured = capsys.readouterr()
        assert left.value.code == 2, captured
        assert files_in(tmp_path) == before
        assert captured.err.startswith("raydist: ") and captured.err.count("\n") == 1
        assert captured.out == ""
        return captured.err.removeprefix("raydist: ").removesuffix("\n")

    return run


def complaints(complaint, tmp_path, text, *settings):
    """The line of both commands about a file."""
    (tmp_path / "study.toml").write_text(text)
    line, again = (complaint(name, "study.toml", *settings) for name in COMMANDS)
    assert line == again
    return line


CASES = {
    "fraction": (
        {"threat.eps": "8"},
        'threat.eps is 8.0, expected a fraction of the pixel range in [0, 1]: write "8/255"',
    ),
    "step": (
        {"attack.alpha": "2"},
        'attack.alpha is 2.0, expected a fraction of the pixel range in [0, 1]: write "2/255"',
    ),
    "l2": (
        {"threat.eps": "128", "threat.norm": '"l2"'},
        "threat.eps is 128.0, expected an l2 distance in pixels of [0, 1], below 8: "
        'write "128/255"',
    ),
    "negative eps": (
        {"threat.eps": "-0.1"},
        'threat.eps is -0.1, expected a finite number ≥ 0: write for example "8/255"',
    ),
    "NaN": ({"optim.lr": "nan"}, "optim.lr is nan, expected a finite number"),
    "infinite": ({"optim.lr": "inf"}, "optim.lr is inf, expected a finite number"),
    "negative": ({"optim.lr": "-1"}, "optim.lr is -1, expected 0 or more"),
    "no number": (
        {"threat.eps": '"abc"'},
        'threat.eps is "abc", expected a number or a fraction such as "8/255"',
    ),
    "no attack": (
        {"attack.alpha": "0.1", "attack.steps": "0", "threat.eps": "0.05"},
        "attack.alpha is 0.1 but attack.steps is 0, so nothing would be attacked: write "
        "attack.steps = 10, or threat.eps = 0 to train without an attack",
    ),
    "key": ({"roundz": "3"}, "roundz is not a known key: did you mean rounds?"),
    "key in a table": ({"data.btach": "3"}, "data.btach is not a known key: did you mean batch?"),
    "key in a table's table": (
        {"optim.schedule.nam": "3"},
        "optim.schedule.nam is not a known key: did you mean name?",
    ),
    "key in an optional table": (
        {"stop.fosc.treshold": "3"},
        "stop.fosc.treshold is not a known key: did you mean threshold?",
    ),
    "table": ({"axs.seed": "[0]"}, "axs is not a known key: did you mean axes?"),
    "far from any key": (
        {"threat.zzz": "3"},
        "threat.zzz is not a known key: known here are norm, eps, schedule, agents",
    ),
    "type": ({"seed": '"a"'}, 'seed is "a", expected a whole number'),
    "no table": (
        {"optim": "3"},
        "optim is 3, expected a table with keys such as name, lr, weight_decay, combine, "
        "schedule, momentum, nesterov, k1, k2, normalise, params",
    ),
    "no topology": (
        {"topology.kind": None, "topology.agents": None},
        'topology is missing: write topology = "topologies/ring8.toml"',
    ),
    "no kind": ({"topology.kind": None}, 'topology.kind is missing: write kind = "ring"'),
    "rounds and epochs": (
        {"epochs": "1"},
        "rounds and epochs are both given: remove one",
    ),
    "neither": ({"rounds": None}, "neither rounds nor epochs is given: write rounds = 100"),
    "torus": (
        {"topology.kind": '"torus"', "topology.rows": "3", "topology.cols": "3"},
        "topology.agents is 4, rows x cols is 3 x 3 = 9: choose agents = rows * cols",
    ),
    "hypercube": (
        {"topology.kind": '"hypercube"', "topology.agents": "6"},
        "topology: a hypercube of 6 agents does not exist, expected a power of two: "
        "write agents = 4 or 8",
    ),
    "cut off": (
        {"topology.kind": '"edges"', "topology.edges": "[[0, 1], [2, 3]]"},
        "topology: agents 2, 3 are cut off from agent 0: no way there, expected a connected graph; "
        "add an edge",
    ),
    "kind": (
        {"topology.kind": '"rong"'},
        f'topology.kind is "rong", expected one of {KINDS}: write "ring"',
    ),
    "parameter of a kind": (
        {"topology.rows": "2"},
        "topology \"ring\": got an unexpected keyword argument 'rows'; its parameters: none",
    ),
    "probability": (
        {"topology.kind": '"erdos-renyi"', "topology.p": "nan"},
        "topology: p is nan, expected a probability in [0, 1]",
    ),
    "rows that sum to 1": (
        {"topology.agents": "3", "topology.weights": "[[0.5, 0.5, 0], [0.2, 0.5, 0.3], [0, 0, 1]]"},
        "topology: column 0 of weights sums to 0.7, expected 1 (A[l][k] is the weight that agent k "
        "gives to agent l): the rows do, so transpose the matrix",
    ),
    "not primitive": (
        {
            "topology.weights": "[[0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], "
            "[0.5, 0, 0.5, 0]]"
        },
        "topology.weights is periodic, not primitive: no agent gives weight to itself, so groups "
        "of agents swap their models for ever without agreeing; give some agent a_kk > 0",
    ),
    "no matrix": (
        {"topology.weights": "[[1, 0], [1]]"},
        "topology.weights has rows of 1 and of 2 numbers, expected the same length: write one "
        "number for each column",
    ),
    "rule": (
        {"topology.weights": '"metropolish"'},
        'topology.weights is "metropolish", expected one of metropolis, averaging, uniform, '
        'edge-weights or the matrix itself or "package.module:function": write "metropolis"',
    ),
    "centers": (
        QUADRATIC | {"data.centers": "[[0], [1], [2]]"},
        "data.centers has 3 points for topology.agents = 4: write one center per agent",
    ),
    "coordinates": (
        QUADRATIC | {"model.start": "[0, 0]"},
        "model.start has 2 numbers, expected 1, as many as each of data.centers",
    ),
    "norm of the quadratic task": (
        QUADRATIC | {"threat.norm": '"l2"', "threat.eps": "0.1"},
        'threat.norm is "l2", expected "linf" for data.set = "quadratic"',
    ),
    "batch": (
        {"data.batch": "1000"},
        "data.batch is 1000, but an agent's share is 323 of 1293 training images "
        "(topology.agents = 4): write data.batch = 323 or less",
    ),
    "model": (
        {"model.name": '"resnet18"'},
        f'model.name is "resnet18", expected one of {MODELS}: write "resnet-18"',
    ),
    "loss": (
        {"loss.name": '"trade"'},
        'loss.name is "trade", expected one of standard, pgd_at, trades, mart, wasserstein, '
        'quadratic or "package.module:function": write "trades"',
    ),
    "strategy": (
        {"strategy": '"difusion"'},
        'strategy is "difusion", expected one of centralized, consensus, diffusion, local or '
        '"package.module:name": write "diffusion"',
    ),
    "data set": (
        {"data.set": '"cifar11"'},
        f'data.set is "cifar11", expected one of {DATA_SETS}: write "cifar10"',
    ),
    "precision of AutoAttack": (
        {"dtype": '"float64"', "evaluate.autoattack": "8"},
        'evaluate.autoattack needs dtype = "float32", not "float64": write evaluate.autoattack = 0',
    ),
    "precision below the dtype": (
        {"dtype": '"float64"', "precision": '"bf16"', "evaluate.autoattack": "0"},
        'precision is "bf16", which computes with less than dtype = "float64": remove one',
    ),
    "TF32 in channels_last": (
        {"precision": '"tf32"', "channels_last": "true", "evaluate.autoattack": "0"},
        'precision is "tf32", which fails on GPUs with channels_last = true (cuDNN, seen on '
        "an H200): remove one",
    ),
    "precision": (
        {"precision": '"bfloat16"'},
        'precision is "bfloat16", expected one of float32, tf32, bf16: write "bf16"',
    ),
    "image": (
        {"evaluate.validation_images": "3"},
        "evaluate.validation_images is 3, expected 4 or more",
    ),
    "name": (
        {"name": '"../a"'},
        "name is \"../a\", expected letters, digits, '_', '-' and '.', at most 60: it names a "
        "folder",
    ),
    "empty axis": (
        {"axes.seed": "[]"},
        "axes.seed is empty, expected one value or more: remove it",
    ),
    "repeated axis": ({"axes.seed": "[1, 2, 1]"}, "axes.seed holds 1 twice: remove one"),
    "search space": (
        {"axes.seed": "{ unform = [0, 1] }"},
        "axes.seed is {'unform': [0, 1]}, expected a list or one search space (uniform, "
        "loguniform, quniform, qloguniform, randint, lograndint, choice): "
        "write { loguniform = [1e-3, 1e-1] }",
    ),
    "axis without quotes": (
        {"axes.optim.lr": "[0.1, 0.2]"},
        'axes.optim is a table, expected a dotted key in quotes: write "optim.lr" = [...]',
    ),
    "axes": ({"axes": "3"}, "axes is 3, expected a table: write [axes]"),
    "axes of one value": (
        {"axes.optim": "[{ lr = 0.1 }]", 'axes."optim.lr"': "[0.1, 0.2]"},
        "axes.optim and axes.optim.lr set the same value: remove one",
    ),
    "exponent": (
        {"threat.eps": '"1e999999999"'},
        'threat.eps is "1e999999999", expected a finite number ≥ 0: write for example "8/255"',
    ),
    "large": ({"optim.lr": "1e300"}, "optim.lr is 1e+300, expected a number below 1e+30"),
    "bits": ({"seed": "0x" + "f" * 5000}, "seed has 20000 bits, expected a number below 2^63"),
    "date": (
        {"model.params.day": "2020-01-01"},
        "model.params.day is datetime.date(2020, 1, 1) (date), expected a number, a string, true, "
        "false, a list or a table",
    ),
    "nested": (
        {"model.params.a": "[" * 40 + "]" * 40},
        f"model.params.a{'[0]' * 18} is nested too deeply, expected at most 20 levels",
    ),
    "agents": ({"topology.agents": "10000"}, "topology.agents is 10000, expected 4096 or less"),
    "milestones": (
        {
            "optim.schedule.name": '"piecewise"',
            "optim.schedule.milestones": "[0.75, 0.5]",
        },
        "optim.schedule.milestones is [0.75, 0.5], expected increasing fractions of the run: "
        "write [0.5, 0.75]",
    ),
    "periods": (
        {"periods": "[0.9]"},
        "periods is [0.9], expected fractions of 2 rounds that lie a round apart: remove some",
    ),
    "control characters": (
        {"strategy": '"a\\u001b[31m"'},
        'strategy is "a\\u001b[31m", expected one of centralized, consensus, diffusion, local or '
        '"package.module:name"',
    ),
    "a key of two lines": (
        {'"a\\nb"': "1"},
        f"a\\nb is not a known key: known here are name, base, axes, stop, search, "
        f"{', '.join(Experiment.model_fields)}",
    ),
    "search": ({"search.sampels": "3"}, "search.sampels is not a known key: did you mean samples?"),
    "base": ({"base.seed": "3"}, "rounds stands beside [base]: move it into [base]"),
    "topology file": (
        {"topology.kind": None, "topology.agents": None, "topology": '"study.toml/x.toml"'},
        "topology study.toml/x.toml was not found, looked in HERE, ABOVE",
    ),
    "topology of another type": (
        {"topology.kind": None, "topology.agents": None, "topology": "3"},
        'topology is 3, expected a file or a table: write topology = "topologies/ring8.toml" or '
        'topology = { kind = "ring", agents = 8 }',
    ),
    "missing data": (
        {"data.set": '"mnist"', "data.root": '"sets"'},
        "data: no train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], "
        "t10k-images-idx3-ubyte[.gz], t10k-labels-idx1-ubyte[.gz] in HERE/sets/MNIST/raw: set "
        "data.root or RAYDIST_DATA to the folder that holds the data sets, or data.download = true",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_file(complaint, tmp_path, case):
    changes, line = CASES[case]
    line = line.replace("HERE", str(tmp_path)).replace("ABOVE", str(tmp_path.parent))
    assert complaints(complaint, tmp_path, toml(changes)) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rounds = [", "Invalid value (at line 1, the last)"),
        ("seed = 1\nrounds = 1e\n", "Expected newline or end of document after a statement (at l"),
        ("rounds = 1\nrounds = 2\nseed = 3\n", "Cannot overwrite a value (at line 2, column 11)"),
    ],
)
def test_invalid_toml_names_the_line(complaint, tmp_path, text, line):
    found = complaints(complaint, tmp_path, text)
    assert found.startswith(f"study.toml is not valid TOML: {line}") and "line" in found


def test_files_that_cannot_be_read(complaint, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture.toml").write_bytes(b'a = "\xff\xd8"')
    for name in COMMANDS:
        assert complaint(name, "no.toml") == "no.toml cannot be read: No such file or directory"
        assert complaint(name, "folder") == "folder cannot be read: Is a directory"
        assert complaint(name, "picture.toml") == (
            "picture.toml cannot be read: byte 5 is not UTF-8 text, expected a TOML file"
        )


def test_what_would_take_for_ever_is_answered(complaint, tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    line = "pipe.toml cannot be read: it is a pipe or device, expected a file"
    assert complaint("run", "pipe.toml") == line
    deep = ".".join("a" * 100_000)
    assert complaints(complaint, tmp_path, f"{toml()}\n{deep} = 1").endswith("too many parts")
    for key in (f"axes.{'.'.join('a' * 90)}", f'axes."{deep}"'):
        text = toml() + f"\n{key} = [1, 2]"
        assert re.search(r"too many parts|nested too deeply", complaints(complaint, tmp_path, text))
    (tmp_path / "study.toml").write_text(toml())
    assert "nested too deeply" in complaint("run", "study.toml", f"{deep[:60_001]}=1")


@pytest.mark.parametrize(
    "axes",
    [{"seed": [*range(400_000)]}, {"seed": [*range(800)], "optim.lr": [*range(1, 501)]}],
)
def test_more_trials_than_a_driver_can_hold_are_refused(axes):
    tree = {"topology": {"kind": "ring", "agents": 4}, "rounds": 2}
    with pytest.raises(InputError, match="the axes make 400,000 trials, expected at most 100,000"):
        raydist.run_sweep({"base": tree, "axes": axes})


@pytest.mark.parametrize("config", [[1], None, 3, ("a",)])
def test_what_is_no_table_is_told(config):
    for function in (raydist.run_experiment, raydist.run_sweep):
        with pytest.raises(raydist.InputError, match="is no study and no experiment, expected a"):
            function(config)
    with pytest.raises(InputError, match=r"^the experiment is .*, expected a table"):
        validate(config)


def test_paths_that_no_file_has(complaint, tmp_path):
    assert complaint("run", "x" * 300).endswith("x cannot be read: File name too long")
    for path in ("x" * 300, "\\u0000"):
        text = toml({"topology.kind": None, "topology.agents": None, "topology": f'"{path}.toml"'})
        assert "was not found" in complaints(complaint, tmp_path, text)


def test_numbers_and_tables_that_python_does_not_take(complaint, tmp_path):
    for line in (f"seed = {'1' * 5000}", f"model.params.a = {'[' * 9000}{']' * 9000}"):
        assert complaints(complaint, tmp_path, toml() + line).startswith("study.toml cannot be rea")


def test_a_wrong_topology_file(complaint, tmp_path):
    (tmp_path / "ring.toml").write_text("kind = ")
    text = toml({"topology.kind": None, "topology.agents": None, "topology": '"ring.toml"'})
    assert complaints(complaint, tmp_path, text).startswith(f"{tmp_path}/ring.toml is not valid")


def own(part, name):
    """The changes that name a function of the user's module, and the module's text."""
    module = f"own_{next(numbers)}"  # each imported once
    key = {"data": "data.set", "topology": "topology.kind"}.get(part, f"{part}.name")
    return module, {key: f'"{module}:{name}"'}


@pytest.mark.parametrize(
    ("part", "name", "line"),
    [
        ("model", "model", 'model "OWN:model" returned a int, expected a torch.nn.Module'),
        ("model", "broken_model", "model: KeyError: 'depth'"),
        (
            "model",
            "one_logit",
            'model "OWN:one_logit" returned (2, 1) for 2 images, expected logits of shape (2, 10)',
        ),
        (
            "model",
            "wrong_size",
            'model "OWN:wrong_size" does not take images of shape (1, 8, 8): RuntimeError: ',
        ),
        (
            "model",
            "without_parameters",
            'model "OWN:without_parameters" has no parameters to train',
        ),
        (
            "data",
            "data",
            'data set "OWN:data" returned list, expected a raydist.learning.data.Data or a dict '
            'with "train" and "test", each a pair (x, y)',
        ),
        (
            "data",
            "crooked_data",
            "data: train x is float32 of shape (4, 8, 8), expected uint8 or float32 of shape "
            "(N, C, H, W): write x[:, None] for images of one channel",
        ),
        ("topology", "graph", 'topology "OWN:graph" gave list, expected a networkx graph'),
        (
            "topology",
            "small_graph",
            'topology "OWN:small_graph" gave 3 nodes, expected one for each of 4 agents',
        ),
        (
            "loss",
            "loss",
            'loss "OWN:loss" returned float, expected a scalar tensor with a gradient',
        ),
        (
            "loss",
            "each_loss",
            'loss "OWN:each_loss" returned a tensor of shape (32,), expected a scalar tensor with '
            "a gradient",
        ),
        (
            "loss",
            "detached_loss",
            'loss "OWN:detached_loss" returned a tensor of shape (), without a gradient, expected '
            "a scalar tensor with a gradient",
        ),
        ("loss", "broken_loss", "loss: IndexError"),
    ],
)
def test_a_function_of_the_users_returns_the_wrong_thing(complaint, tmp_path, part, name, line):
    module, changes = own(part, name)
    (tmp_path / f"{module}.py").write_text(OWN)
    found, line = complaints(complaint, tmp_path, toml(changes)), line.replace("OWN", module)
    assert found.startswith(line) if line.endswith(" ") else found == line  # torch's own words


@pytest.mark.parametrize("part", ["model", "data", "topology", "loss"])
def test_a_function_of_the_users_that_is_not_there(complaint, tmp_path, part):
    module, changes = own(part, "missing")
    line = complaints(complaint, tmp_path, toml(changes))
    assert line == (
        f'{part}: "{module}:missing": module {module} does not import (ModuleNotFoundError: '
        f"No module named '{module}')"
    )
    module, changes = own(part, "missing")
    (tmp_path / f"{module}.py").write_text(OWN)
    assert complaints(complaint, tmp_path, toml(changes)) == (
        f'{part}: "{module}:missing": module {module} ({tmp_path}/{module}.py) has no missing: '
        "check the spelling after the colon"
    )
    changes = {key: value.replace("missing", "number") for key, value in changes.items()}
    assert complaints(complaint, tmp_path, toml(changes)) == (
        f'{part}: "{module}:number" is not a function, it is of type int: name a function'
    )


@pytest.mark.parametrize("part", ["model", "data", "topology", "loss"])
def test_a_module_of_the_users_that_leaves(complaint, tmp_path, part):
    module, changes = own(part, "function")
    (tmp_path / f"{module}.py").write_text("raise SystemExit(3)\n")
    assert complaints(complaint, tmp_path, toml(changes)) == (
        f'{part}: "{module}:function": module {module} does not import (SystemExit: 3)'
    )


@pytest.mark.parametrize("part", ["model", "data", "topology", "loss"])
def test_a_module_of_the_users_with_an_error_in_it(complaint, tmp_path, part):
    module, changes = own(part, "function")
    (tmp_path / f"{module}.py").write_text("1 / 0\n")
    assert complaints(complaint, tmp_path, toml(changes)) == (
        f'{part}: "{module}:function": module {module} does not import (ZeroDivisionError: '
        "division by zero)"
    )


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("rounds", '"rounds" is not a setting: write section.key=value'),
        ("optim.=3", '"optim.=3" is not a setting: write section.key=value'),
        ("optim.lr=fast", 'optim.lr is "fast", expected a number'),
        ("seed.x=1", "seed is {'x': 1}, expected a whole number"),
        ("threat.eps=8", "threat.eps is 8.0, expected a fraction of the pixel range in [0, 1]: wr"),
        ("--nope", "No such option: --nope"),
        ("--pool=grid", 'pool is "grid", expected'),
    ],
)
def test_wrong_settings_and_flags(complaint, tmp_path, setting, line):
    (tmp_path / "study.toml").write_text(toml())
    for name in COMMANDS:
        assert complaint(name, "study.toml", setting).startswith(line)


def test_a_point_of_the_axes_is_named(complaint, tmp_path):
    (tmp_path / "study.toml").write_text(toml({'axes."data.batch"': "[8, 1000]", "axes.seed": [1]}))
    line = complaint("sweep", "study.toml")
    assert line.startswith("data.batch is 1000, but an agent's share is 323 of 1293")
    assert line.endswith("(at data.batch = 1000, seed = 1)")


def test_one_experiment_has_no_axes(complaint, tmp_path):
    (tmp_path / "study.toml").write_text(toml({'axes."threat.eps"': '["3/255", "8/255"]'}))
    assert complaint("run", "study.toml") == (
        "this is a study with the axes threat.eps: write threat.eps=3/255 (and so on) to choose "
        "one experiment, or python -m raydist.sweep to run them all"
    )


def test_the_output_folder_is_new_and_can_be_written(complaint, tmp_path):
    (tmp_path / "study.toml").write_text(toml())
    (tmp_path / "old").mkdir()
    for name in COMMANDS:
        assert complaint(name, "study.toml", "--out", "old") == (
            f"{tmp_path}/old exists: write --out with another folder"
        )
        for below in ("study.toml/new", "study.toml/new/er"):
            assert complaint(name, "study.toml", "--out", below) == (
                f"{tmp_path}/{below} cannot be written: {tmp_path}/study.toml is not a writable "
                "folder"
            )


@pytest.mark.parametrize(
    ("path", "line"),
    {
        "": '"" names no folder: write a path or a URL',
        "a::b": "a::b chains file systems with ::, expected one path or URL",
        "s3:///": "s3:/// names no folder: write s3://bucket/runs",
        "a/" + "ä" * 128: f"{'ä' * 20}... is a name of 256 bytes, expected at most 255: write a "
        "shorter path",
    }.items(),
)
def test_paths_that_no_storage_has(complaint, tmp_path, path, line):
    (tmp_path / "study.toml").write_text(toml())
    for name in COMMANDS:
        assert complaint(name, "study.toml", "--out", path) == line


def test_a_folder_that_may_not_be_written(complaint, tmp_path, monkeypatch):
    (tmp_path / "study.toml").write_text(toml())
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)  # also for root
    for name in COMMANDS:
        assert complaint(name, "study.toml") == (
            f"{tmp_path}/runs/study cannot be written: {tmp_path} is not a writable folder"
        )


def test_a_study_that_was_begun_is_to_be_resumed(complaint, tmp_path):
    (tmp_path / "one.toml").write_text(toml())
    study = tmp_path / "runs" / "one"
    study.mkdir(parents=True)
    (study / "study.json").write_text("{}")
    assert complaint("sweep", "one.toml") == (
        f"{study} exists: write --out with another folder, or continue this study with "
        f"--resume {study}"
    )


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '"x"', '{"name": "a"}'])
def test_a_folder_without_a_study_cannot_be_resumed(complaint, tmp_path, text):
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    assert complaint("sweep", "--resume", tmp_path) == (
        f"{tmp_path} holds no study to resume: {tmp_path}/study.json cannot be read"
    )


def test_resume_stands_alone(complaint, tmp_path):
    (tmp_path / "study.toml").write_text(toml())
    for arguments in (["study.toml", "--resume", "x"], ["--resume", "x", "--out", "y"]):
        line = "--resume x says all there is: write it without FILE and --out"
        assert complaint("sweep", *arguments) == line
    assert complaint("sweep").startswith("which study? write python -m raydist.sweep FILE")
    assert complaint("run").startswith("which experiment? write python -m raydist.run FILE")


def test_the_python_functions_raise_the_same_line():
    tree = {"topology": {"kind": "ring", "agents": 4}, "rounds": 2, "threat": {"eps": 8}}
    for function in (raydist.run_experiment, raydist.run_sweep):
        with pytest.raises(InputError, match=r"^threat.eps is 8.0, expected a fraction"):
            function(tree)


@pytest.mark.parametrize("module", ["raydist.sweep", "raydist.run"])
def test_as_a_user_calls_it(tmp_path, module):
    (tmp_path / "study.toml").write_text(toml({"threat.eps": "8"}))
    width = "0" if module.endswith("run") else "40"  # not known; narrower than the line
    environment = os.environ | {"COLUMNS": width}
    done = subprocess.run(
        [sys.executable, "-m", module, "study.toml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "raydist: threat.eps is 8.0, expected a fraction of the pixel range in [0, 1]: "
        'write "8/255"\n'
    )
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def agents(count, **agent):
    return validate({"topology": {"kind": "ring", "agents": count}, "rounds": 1, "agent": agent})


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ({"gpus": 1}, "agent.gpus = 1 for 4 agents needs 4 GPUs, but the cluster has 0"),
        ({"gpus": 0.6}, "agent.gpus = 0.6 for 4 agents needs 4 GPUs, but the cluster has 0"),
        ({"cpus": 1}, "agent.cpus = 1 for 4 agents needs 4 CPUs, but the cluster has 2"),
        ({"gpus": 1.5}, "agent.gpus is 1.5, expected a fraction up to 1 or a whole number"),
    ],
)
def test_more_than_the_cluster_has(wanted, line):
    with pytest.raises(InputError) as caught:
        layout(agents(4, **wanted), {"CPU": 2.0})
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("count", "wanted", "cluster", "sizes", "gpus"),
    [
        (16, {"gpus": 0.0625}, {"CPU": 16, "GPU": 2}, [16], 1.0),
        (16, {"gpus": 0.125}, {"CPU": 16, "GPU": 2}, [8, 8], 1.0),
        (16, {}, {"CPU": 16, "GPU": 2}, [8, 8], 1.0),
        (16, {}, {"CPU": 16, "GPU": 3}, [6, 6, 4], 0.9996),
        (6, {"gpus": 0.3}, {"CPU": 8, "GPU": 2}, [3, 3], 0.9),
        (4, {"gpus": 1}, {"CPU": 8, "GPU": 4}, [1, 1, 1, 1], 1.0),
        (2, {"gpus": 2}, {"CPU": 8, "GPU": 4}, [1, 1], 2.0),
        (4, {}, {"CPU": 8, "GPU": 8}, [1, 1, 1, 1], 1.0),
    ],
)
def test_agents_with_neighbouring_numbers_share_a_gpu(count, wanted, cluster, sizes, gpus):
    found = layout(agents(count, **wanted), cluster)
    assert found.bundle_of == [i for i, size in enumerate(sizes) for _ in range(size)]
    assert found.bundles[0]["GPU"] == pytest.approx(gpus, abs=1e-3)
    for bundle, size in zip(found.bundles, sizes, strict=True):
        assert bundle["GPU"] == pytest.approx(size * found.gpus, abs=1e-4)
        assert bundle["CPU"] == pytest.approx(size * found.cpus, abs=1e-4)
    for name, has in cluster.items():
        assert sum(bundle[name] for bundle in found.bundles) <= has + 1e-3


def test_agents_without_gpus_divide_the_cpus():
    found = layout(agents(8), {"CPU": 2.0})
    assert found.bundles == [{"CPU": 0.25}] * 8 and found.gpus == 0
    assert found.bundle_of == list(range(8))


@pytest.mark.parametrize(
    ("count", "wanted", "cluster", "sizes", "bundle_of"),
    [
        (16, {"per_actor": 8}, {"CPU": 2}, [8, 8], [0, 1]),
        (16, {"per_actor": 8, "cpus": 0.5}, {"CPU": 16}, [8, 8], [0, 1]),
        (10, {"per_actor": 4}, {"CPU": 8}, [4, 4, 2], [0, 1, 2]),
        (3, {"per_actor": 8}, {"CPU": 8}, [3], [0]),
        (16, {"per_actor": 4}, {"CPU": 16, "GPU": 2}, [4, 4, 4, 4], [0, 0, 1, 1]),
        (16, {"per_actor": 4}, {"CPU": 16, "GPU": 3}, [4, 4, 4, 4], [0, 0, 1, 1]),
        (16, {"per_actor": 16}, {"CPU": 16, "GPU": 1}, [16], [0]),
    ],
)
def test_an_actor_has_the_shares_of_its_agents(count, wanted, cluster, sizes, bundle_of):
    found = layout(agents(count, **wanted), cluster)
    assert [len(group) for group in found.groups] == sizes and found.bundle_of == bundle_of
    assert [k for group in found.groups for k in group] == list(range(count))
    for i, bundle in enumerate(found.bundles):
        inside = [found.reserved(a) for a, b in enumerate(bundle_of) if b == i]
        assert bundle["CPU"] == pytest.approx(sum(cpus for cpus, _ in inside), abs=1e-3)
        assert bundle.get("GPU", 0) == pytest.approx(sum(gpus for _, gpus in inside), abs=1e-3)
        assert bundle.get("GPU", 0) <= 1
    if "cpus" not in wanted:
        assert max(found.reserved(a)[0] for a in range(len(sizes))) <= 1


def test_an_actor_has_one_gpu_at_most():
    with pytest.raises(InputError, match=r"agent.gpus = 0.5 for agent.per_actor = 4 .* 0.25$"):
        layout(agents(8, per_actor=4, gpus=0.5), {"CPU": 8, "GPU": 8})
