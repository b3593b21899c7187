"""Data parallel workers against the centralized rounds of agents."""

import json
import subprocess
import sys
from pathlib import Path

import experiments
import helpers_for_parallel
import numpy as np
import pytest

from raydist import load, load_rounds, run_experiment, run_sweep
from raydist.config.experiment import validate
from raydist.errors import InputError


def experiment(**tables):
    exact = {"strategy": "centralized", "dtype": "float64", "model": {"name": "linear"}}
    tree = experiments.experiment(topology={"kind": "ring", "agents": 3}, **exact)
    del tree["agent"]
    return tree | tables


EXPERIMENTS = {
    "momentum": {"model": {"name": "small-cnn"}},
    "running statistics": {
        "model": {"name": "preact-resnet-18", "width": 0.0625},
        "loss": {"name": "trades"},
        "rounds": 2,
    },
    "everything": {
        "loss": {"name": "wasserstein", "gamma": 0.5},
        "awp": {"gamma": 0.01},
        "data": {"set": "digits", "batch": 64, "partition": {"name": "dirichlet", "alpha": 5.0}},
        "optim": {"name": "deat", "lr": 0.05},
        "average": {"name": "ema"},
        "periods": [0.5],
        "telemetry": {"every": 2},
        "threat": {"eps": 0.1, "agents": [{}, {"eps": 0.05}, {"eps": 0.02}]},
        "stop": {"fosc": {"threshold": 1e-9}, "on_instability": "heal"},
        "evaluate": {
            "every": 2,
            "validation_images": 32,
            "test_images": 64,
            "autoattack": 0,
            "agents": True,
        },
    },
    "quadratic": {
        "data": {"set": "quadratic", "centers": [[1, 0], [0, 1], [2, 2]], "hessian": [1.0, 0.5]},
        "model": {"name": "point", "start": [0.5, 0.5]},
        "loss": {"name": "quadratic"},
        "evaluate": {"every": 1},
    },
}


def told(result):
    """What was measured, but for clocks and what only messages between agents have."""
    frame = result.rounds[~result.rounds["metric"].str.match("seconds|bytes_sent")]
    return frame.set_index(["round", "agent", "metric"])["value"].sort_index()


def assert_same(found, expected, tolerance):
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=tolerance)
    assert told(found).index.equals(told(expected).index)
    np.testing.assert_allclose(told(found), told(expected), rtol=1e3 * tolerance, atol=tolerance)
    assert found.final.keys() == expected.final.keys()
    for name in ("status", "stop_reason", "rounds_run", "clean_acc", "pgd2_acc", "unstable"):
        assert found.final.get(name) == expected.final.get(name)


def test_two_workers_equal_the_agents(tmp_path):
    trees = [experiment(**tables) for tables in EXPERIMENTS.values()]
    command = [sys.executable, helpers_for_parallel.__file__, str(tmp_path / "store"), "1", "2"]
    with subprocess.Popen([*command, json.dumps(trees)]) as other:
        found = helpers_for_parallel.work(tmp_path / "store", 0, 2, trees)
    assert other.returncode == 0
    for tree, result in zip(trees, found, strict=True):
        assert_same(result, run_experiment(tree), 1e-12)


def test_one_worker_equals_the_agents(tmp_path):
    tree = experiment(topology={"kind": "ring", "agents": 5})
    (found,) = helpers_for_parallel.work(tmp_path / "store", 0, 1, [tree])
    assert_same(found, run_experiment(tree), 1e-12)


REFUSED = {
    'strategy = "centralized"': {"strategy": "diffusion"},
    "combine_buffers = true": {"combine_buffers": False},
    'exchange = "objects"': {"exchange": "board"},
    "snapshot.every = 0": {"snapshot": {"every": 5}},
    "neither agent.cpus nor agent.gpus": {"agent": {"cpus": 0.5}},
}


@pytest.mark.parametrize("needed", REFUSED)
def test_what_it_cannot_do_is_refused(needed):
    with pytest.raises(InputError, match=f'engine = "train" needs {needed}'):
        validate(experiment(engine="train", **REFUSED[needed]))


def test_it_is_refused_without_ray_when_resumed_and_in_a_sweep(tmp_path):
    tree = experiment(engine="train")
    with pytest.raises(InputError, match="write --pool ray"):
        run_experiment(tree, out=tmp_path / "run")
    with pytest.raises(InputError, match="keeps no snapshots"):
        run_experiment(tree, pool="ray", out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match=r"python -m raydist.run .*\(at seed = 0\)"):
        run_sweep({"base": tree, "axes": {"seed": [0]}}, out=tmp_path / "study")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("nodes", "workers", "each"),
    [
        ([{"CPU": 2.0}], 2, 1),
        ([{"CPU": 16.0}], 3, 5),
        ([{"CPU": 5.0}, {"CPU": 3.0}], 3, 2),
        ([{"CPU": 1.5}, {"CPU": 1.5}], 2, 1),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0}], 2, 4),
    ],
)
def test_the_workers_are_as_large_as_the_nodes_allow(nodes, workers, each):
    from raydist.engine.ray_train import scaling

    found = scaling(validate(experiment()), nodes)
    assert (found.num_workers, found.resources_per_worker) == (workers, {"CPU": each})
    assert found.use_gpu == ("GPU" in nodes[0])


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:::ray.data.context")  # Ray warns of its own settings
def test_ray_train_equals_the_agents(tmp_path):
    """The whole way, with its folder: slow, since Ray Train starts half a dozen processes."""
    tree = experiment(**EXPERIMENTS["running statistics"], seed=3)
    found = run_experiment(tree | {"engine": "train"}, pool="ray", out=tmp_path / "run")
    assert_same(found, run_experiment(tree), 1e-12)
    (row,) = load(tmp_path / "run").to_dict("records")
    assert row["engine"] == "train" and row["clean_acc"] == found.final["clean_acc"]
    assert load_rounds(tmp_path / "run")["value"].tolist() == found.rounds["value"].tolist()
    assert len(list(Path(tmp_path / "run" / "weights").glob("agent-*.safetensors"))) == 3
