"""The Ray pool against the local one; trials, resources and failures under Ray Tune."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from experiments import EVERYTHING, experiment
from helpers_for_ray import BAD_EPS
from nodes import free_resources, wait_for

from raydist import load, load_rounds, run_experiment, run_sweep
from raydist.config.experiment import validate
from raydist.engine.cluster.layout import layout
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool import ray_pool
from raydist.engine.pool.pool import LocalPool
from raydist.engine.pool.ray_pool import RayPool
from raydist.errors import AgentError, InputError
from raydist.network.strategy import STRATEGIES

pytestmark = pytest.mark.ray


def _fill_the_disks(actor):
    shutil.disk_usage = lambda folder: SimpleNamespace(free=0)


def test_ray_agents_equal_local_ones_bit_for_bit_and_stay_warm(ray_cluster):
    _agree(ray_cluster, {}, ("objects", "auto"), actors=4, whole=False)


@pytest.mark.long
def test_ray_agents_equal_local_ones_in_every_way(ray_cluster):
    _agree(ray_cluster, {}, ("objects", "auto"), actors=4)


@pytest.mark.long
def test_packed_agents_equal_local_ones_bit_for_bit(ray_cluster):
    """Three agents in one actor, one in another."""
    _agree(ray_cluster, {"per_actor": 3}, ("objects", "board"), actors=2)


def _agree(cluster, agent, exchanges, actors, whole=True):
    """Every recipe by every exchange, or most of them by turns."""
    pool, pids = None, []
    bf16 = {"precision": "bf16", "model": {"name": "linear"}}  # slow where the CPU has none
    model, loss = ({"name": f"helpers_foreign:{name}"} for name in ("drawing_net", "noisy"))
    drawing = {"model": model, "loss": loss}  # from every global generator
    every = [{"strategy": each} for each in STRATEGIES]
    every += [drawing, *([bf16] if whole else []), EVERYTHING]
    for i, tables in enumerate(every):
        plan = make_plan(validate(experiment(**tables)))
        local = LocalPool(plan)
        expected = list(train(local, plan))
        for exchange in exchanges if whole or tables is EVERYTHING else [exchanges[i % 2]]:
            table = {"agent": {"cpus": 0.5, **agent}, "exchange": exchange}
            plan = make_plan(validate(experiment(**tables, **table)))
            if pool is None:
                pool = RayPool(plan, layout(plan.config, cluster))
            else:
                pool.reset(plan)
            assert pool.exchange == {"auto": "board"}.get(exchange, exchange)
            found = list(train(pool, plan))
            np.testing.assert_array_equal(np.stack(pool.states()), np.stack(local.states()))
            for a, b in zip(found, expected, strict=True):
                assert a.centroid == b.centroid
                for one, other in zip(a.agents, b.agents, strict=True):
                    assert _timeless(one) == _timeless(other)
            chosen = {"exchange_chosen": "board"} if exchange == "auto" else {}
            assert found[-1].final == expected[-1].final | chosen
            assert found[-1].images.equals(expected[-1].images)
            pids.append([ray.get(actor.__ray_call__.remote(_pid)) for actor in pool._actors])
        local.shutdown()
    assert len({tuple(each) for each in pids}) == 1 and len(set(pids[0])) == actors
    assert not list(Path("/dev/shm").glob("*raydist-board-*"))
    if exchanges[-1] == "auto":
        ray.get(pool._actors[0].__ray_call__.remote(_fill_the_disks))
        pool._choose_exchange()
        assert pool.exchange == "objects"
    pool.shutdown()
    assert wait_for(lambda: free_resources()[0] == cluster["CPU"])


def _pid(_):
    return os.getpid()


def _timeless(info):
    return {name: value for name, value in info.items() if not name.startswith("seconds")}


def test_a_pool_that_cannot_start_gives_back_what_it_reserved(ray_cluster, monkeypatch):
    def refused(*_):
        raise AgentError("agent 0 could not start: on purpose")

    monkeypatch.setattr(ray_pool, "start", refused)
    plan = make_plan(validate(experiment(agent={"cpus": 1})))
    for _ in range(2):  # the second one would wait for ever
        with pytest.raises(AgentError, match="on purpose"):
            RayPool(plan, layout(plan.config, ray_cluster))
    assert wait_for(lambda: free_resources()[0] == ray_cluster["CPU"])


def test_messages_travel_by_reference_and_the_driver_gets_none(ray_cluster, monkeypatch):
    """What the driver fetches in a round stays far below one model."""
    plan = make_plan(validate(experiment(rounds=2, topology={"kind": "ring", "agents": 3})))
    pool = RayPool(plan, layout(plan.config, ray_cluster))
    sizes = []
    get = ray.get

    def counted(references, **kwargs):
        values = get(references, **kwargs)
        sizes.append(len(ray.cloudpickle.dumps(values)))
        return values

    monkeypatch.setattr(ray, "get", counted)
    pool.collect(pool.step(1))
    pool.collect(pool.step(2))
    assert sizes and max(sizes) < 4000 < 4 * plan.parameters
    pool.shutdown()


def test_failing_trials_take_no_other_down_and_everything_is_given_back(ray_cluster, tmp_path):
    bad = "helpers_for_ray:raising", "helpers_for_ray:killed"
    out = tmp_path / "study"
    small = {"topology": {"kind": "ring", "agents": 2}, "model": {"name": "linear"}}
    small |= {"threat": {"eps": BAD_EPS}}
    frame = run_sweep(
        {
            "base": experiment(**small, snapshot={"recoveries": 1}),
            "axes": {"loss.name": [*bad, "standard"]},
        },
        out=out,
    ).set_index("loss.name")
    assert frame["status"].to_dict() == {
        bad[0]: "failed",
        bad[1]: "failed",
        "standard": "completed",
    }
    failed, good = frame.loc[[*bad]], frame.loc["standard"]
    assert "this budget is cursed" in failed.loc[bad[0], "error"]
    assert "died" in failed.loc[bad[1], "error"]
    assert "snapshot.recoveries is 1" in failed.loc[bad[1], "error"]
    assert failed["recoveries"].fillna(0).to_dict() == {bad[0]: 0, bad[1]: 1}
    assert all(Path(log).exists() for log in failed["log"])
    assert (out / "summary.png").stat().st_size > 10_000
    assert wait_for(lambda: free_resources()[0] == ray_cluster["CPU"])
    # the same experiment without Tune and without Ray gives the same numbers
    alone = run_experiment(experiment(**small, loss={"name": "standard"}))
    assert alone.final["val_loss"] == good["val_loss"]


@pytest.mark.long
def test_a_resumed_study_keeps_what_ended_and_runs_failed_trials_again(ray_cluster, tmp_path):
    cure = tmp_path / "cure"
    loss = {"name": "helpers_for_ray:raising", "params": {"cure": str(cure)}}
    study = {"base": experiment(loss=loss), "axes": {"threat.eps": [0.07, 0.1]}}
    first = run_sweep(study, out=tmp_path / "study", pool="local").set_index("threat.eps")
    assert first["status"].to_dict() == {0.07: "failed", 0.1: "completed"}
    cure.touch()
    again = run_sweep(study, out=tmp_path / "study", pool="local", resume=True)
    again = again.set_index("threat.eps")
    assert set(again["status"]) == {"completed"}
    assert again.loc[0.1, "seconds"] == first.loc[0.1, "seconds"]  # the very same run


@pytest.mark.long
def test_a_trial_stopped_by_fosc_says_why_and_gives_its_resources_back(ray_cluster, tmp_path):
    frame = run_sweep(
        {
            "base": experiment(rounds=8, evaluate={"every": 1, "test_images": 32, "autoattack": 0}),
            "axes": {"seed": [0, 1]},
            "stop": {"fosc": {"threshold": 1e-9, "patience": 2, "warmup": 1}},
        },
        out=tmp_path / "study",
    )
    assert set(frame["status"]) == {"stopped"} and set(frame["stop_round"]) == {3}
    assert frame["stop_reason"].str.contains("FOSC on validation is").all()
    rounds = load_rounds(tmp_path / "study")
    assert rounds.groupby("trial")["round"].max().eq(3).all()
    assert wait_for(lambda: free_resources()[0] == ray_cluster["CPU"])


def test_more_than_the_cluster_has_is_refused_before_anything_is_written(ray_cluster, tmp_path):
    tree = {"base": experiment(agent={"cpus": 0.5, "gpus": 1.0})}
    with pytest.raises(InputError, match=r"agent.gpus = 1 for 4 agents needs 4 GPUs.* has 0"):
        run_sweep(tree, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.long
def test_drawn_axes_run_and_are_reproducible(ray_cluster, tmp_path):
    study = {
        "base": experiment(),
        "axes": {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "seed": [0, 1]},
        "search": {"samples": 2, "seed": 3},
    }
    first, second = (run_sweep(study, out=tmp_path / n, pool="local") for n in ("a", "b"))
    assert len(first) == 4 and first["optim.lr"].between(1e-3, 1e-1).all()
    assert first["optim.lr"].tolist() == second["optim.lr"].tolist()
    assert first["val_loss"].tolist() == second["val_loss"].tolist()


@pytest.mark.long
def test_images_are_read_where_the_study_is_started_and_nowhere_else(ray_cluster, tmp_path):
    log = tmp_path / "reads"
    data = {"set": "helpers_for_ray:counted", "params": {"log": str(log)}, "batch": 8}
    study = {"base": experiment(data=data), "axes": {"seed": [0, 1]}}
    frame = run_sweep(study, out=tmp_path / "study", pool="local")
    assert frame["status"].tolist() == ["completed"] * 2
    assert {int(reader) for reader in log.read_text().split()} == {os.getpid()}


RESUMED = {
    "optim": {},
    "threat": {},
    "evaluate": {"every": 5, "validation_images": 32, "test_images": 64},
}
RESUMED["evaluate"] |= {"pgd": [2], "autoattack": 0}
STUDY = """
name = "killed"
[base]
rounds = 40
topology = { kind = "ring", agents = 4 }
data = { set = "digits", batch = 8 }
model = { name = "small-cnn" }
attack = { steps = 2 }
evaluate = { every = 5, validation_images = 32, test_images = 64, pgd = [2], autoattack = 0 }
[axes]
seed = [0, 1, 2, 3, 4, 5]
"""


@pytest.mark.long
def test_a_killed_study_resumes_where_it_was(tmp_path):
    """SIGKILL of the driver and its Ray; finished trials are kept, the others go on."""
    (tmp_path / "study.toml").write_text(STUDY)
    command = [sys.executable, "-m", "raydist.sweep"]
    flags = ["--pool", "local", "--max-concurrent", "1"]
    run = subprocess.Popen([*command, "study.toml", *flags], cwd=tmp_path, start_new_session=True)
    out = tmp_path / "runs" / "killed"
    assert wait_for(lambda: len(list(out.glob("*/final.json"))) >= 2, 90)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    done = {file: file.stat().st_mtime_ns for file in out.glob("*/final.json")}
    assert 2 <= len(done) < 6
    assert set(load(out)["status"]) <= {"completed", "unfinished"}
    resumed = subprocess.run(
        [*command, "--resume", str(out), *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    frame = load(out)
    assert len(frame) == 6 and set(frame["status"]) == {"completed"}
    assert all(file.stat().st_mtime_ns == when for file, when in done.items())
    undisturbed = run_experiment(experiment(rounds=40, seed=5, **RESUMED))
    assert frame.set_index("seed").loc[5, "val_loss"] == undisturbed.final["val_loss"]


@pytest.mark.long
def test_relative_paths_begin_where_the_sweep_was_started(tmp_path, monkeypatch, ray_cluster):
    monkeypatch.chdir(tmp_path)
    table = {"topology": {"kind": "ring", "agents": 2}, "rounds": 1, "data": {"batch": 8}}
    small = {
        "model": {"name": "linear"},
        "evaluate": {"test_images": 8, "autoattack": 0, "validation_images": 8},
    }
    run_experiment(table | small, out=tmp_path / "start")
    small["model"]["checkpoint"] = "start/weights/centroid.safetensors"
    for pool in ("local", "ray"):
        study = {"name": pool, "base": table | small, "axes": {"seed": [0]}}
        frame = run_sweep(study, out=tmp_path / pool, pool=pool, quiet=True)
        assert frame["status"].tolist() == ["completed"]
