"""Whatever dies, nothing that ran is lost, nothing counts twice, and the numbers stay the same."""

import json
import os
import random
import signal
import subprocess
import sys
import threading

import helpers_for_ray
import numpy as np
import pandas as pd
import pytest
import ray
from experiments import EVERYTHING, experiment
from nodes import free_resources, wait_for
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from running import begun, same, timeless

from raydist import load, load_events, load_rounds, run_experiment, run_sweep
from raydist.config.experiment import validate
from raydist.engine.cluster.layout import layout
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.engine.pool.ray_errors import agent_error
from raydist.engine.pool.ray_pool import RayPool
from raydist.engine.recovery import Recovery
from raydist.errors import AgentDied, AgentError, InputError
from raydist.results.record import Event, events_frame

pytestmark = pytest.mark.ray

SMALL = {"every": 4, "validation_images": 32, "test_images": 32, "pgd": [2], "autoattack": 0}
TREE = experiment(
    rounds=12,
    model={"name": "linear"},
    evaluate=SMALL,
    average={"name": "ema"},
    snapshot={"every": 3},
)


def finished(plan, pool, path):
    """What a run leaves, and how it went."""
    folder, states = begun(plan, path), []
    keeper = Recovery(plan, folder)

    def ending(pool, n):
        pool.save(f"{path}/weights", n)
        states[:] = pool.states()

    *_, record = train(pool, plan, keeper, ending)
    folder.finish(record, keeper.seconds())
    return np.stack(states), record, folder


@pytest.fixture(scope="module")
def warm(ray_cluster):
    """One pool for many runs: only who dies is started again."""
    plan = make_plan(validate(TREE))
    pool = RayPool(plan, layout(plan.config, ray_cluster))
    yield pool
    pool.shutdown()
    assert wait_for(lambda: free_resources()[0] == ray_cluster["CPU"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return local_run(TREE, tmp_path_factory.mktemp("local") / "run")


def local_run(tree, path):
    plan = make_plan(validate(tree))
    pool = LocalPool(plan)
    found = finished(plan, pool, path)
    pool.shutdown()
    return found


def went_on(path):
    """The events after which a run went on; a snapshot under way may be lost besides."""
    return load_events(path).dropna(subset="replayed_from").to_dict("records")


def lay(pool, k, moment, n):
    ray.get(pool._actors[k].__ray_call__.remote(helpers_for_ray.trap, moment, n))


@pytest.mark.parametrize(
    ("traps", "least"),
    [
        ([(0, "attack", 1)], 0),
        pytest.param([(2, "attack", 8)], 3, marks=pytest.mark.long),
        ([(1, "exchange", 7), (3, "exchange", 7)], 3),
        pytest.param([(3, "measurement", 8)], 3, marks=pytest.mark.long),
        pytest.param([(1, "snapshot", 6)], 3, marks=pytest.mark.long),
        ([(2, "writing", 6)], 3),
        ([(1, "evaluation", None)], 6),
        pytest.param([(0, "weights", None)], 6, marks=pytest.mark.long),
    ],
    ids=lambda value: "+".join(f"{t[1]}-{t[2]}" for t in value) if isinstance(value, list) else "",
)
def test_a_killed_agent_changes_nothing(warm, undisturbed, tmp_path, traps, least):
    plan = make_plan(validate(TREE))
    warm.reset(plan)
    before = list(warm._actors)
    for each in traps:
        lay(warm, *each)
    same(finished(plan, warm, tmp_path / "run"), undisturbed)
    events = load_events(tmp_path / "run")
    died = events[events["what"] == "agent died"]
    assert 1 <= len(died) <= len(traps)
    assert {*died["agents"].map(json.loads).explode()} <= {k for k, *_ in traps}
    assert (died["replayed_from"] >= least).all() and (died["replayed_from"] <= died["round"]).all()
    assert (died["seconds_lost"] > 0).all()
    replaced = {k for k in range(4) if before[k] is not warm._actors[k]}
    assert replaced == {k for k, *_ in traps}  # the others stayed warm
    (row,) = load(tmp_path / "run").to_dict("records")
    assert row["recoveries"] == len(died) and row["status"] == "completed"
    for k in range(4):
        name = f"weights/agent-{k:03d}.safetensors"
        expected = undisturbed[2].store.read(name)
        assert (tmp_path / "run" / name).read_bytes() == expected


def test_a_death_on_the_board_changes_nothing(warm, undisturbed, tmp_path):
    """In the middle of a batch of rounds; those who live go back from wherever they are."""
    plan = make_plan(validate(TREE | {"exchange": "board"}))
    warm.reset(plan)
    lay(warm, 2, "attack", 8)
    same(finished(plan, warm, tmp_path / "run"), undisturbed)
    (event,) = went_on(tmp_path / "run")
    assert event["what"] == "agent died" and event["detail"].startswith("agent 2 died")


@pytest.mark.long
def test_who_is_behind_when_another_dies_tells_of_that_death(ray_cluster):
    """Agent 1 dies in the second call, and 0 sees it, while 4, not waiting, is in the first one."""
    path = {"topology": {"kind": "path", "agents": 5}, "agent": {"cpus": 0.2}}
    plan = make_plan(validate(TREE | path | {"exchange": "board"}))
    pool = RayPool(plan, layout(plan.config, ray_cluster))
    lay(pool, 1, "attack", 3)
    ray.get(pool._actors[4].__ray_call__.remote(helpers_for_ray.late, 2.0))
    first = pool.step(1, [False] * 2)
    pool.step(3, [False] * 2)
    with pytest.raises(AgentDied, match="agent 1 died"):
        pool.collect(first)
    pool.shutdown()


def test_everything_at_once_survives_too(warm, tmp_path):
    tree = experiment(**EVERYTHING, rounds=8, snapshot={"every": 2}, evaluate=SMALL)
    plan = make_plan(validate(tree))
    warm.reset(plan)
    lay(warm, 1, "attack", 6)
    same(finished(plan, warm, tmp_path / "run"), local_run(tree, tmp_path / "local"))
    assert load_events(tmp_path / "run")["replayed_from"].min() >= 2


@pytest.mark.long
def test_an_agent_that_dies_again_and_again_ends_the_run(warm, tmp_path):
    """With one death allowed; what is raised is not tried again at all."""
    tree = TREE | {"threat": {"eps": helpers_for_ray.BAD_EPS}, "snapshot": {"recoveries": 1}}
    for name, said in (("killed", "died: .*snapshot.recoveries is 1"), ("raising", "cursed")):
        plan = make_plan(validate(tree | {"loss": {"name": f"helpers_for_ray:{name}"}}))
        warm.reset(plan)  # also after a run that has left agents dead
        with pytest.raises(AgentError, match=said) as caught:
            finished(plan, warm, tmp_path / name)
        assert not isinstance(caught.value, AgentDied)
    assert len(load_events(tmp_path / "killed")) == 1
    assert not (tmp_path / "raising" / "events.parquet").exists()


def test_want_of_memory_is_told_with_what_to_change():
    monitor = OutOfMemoryError("Task was killed due to the node running low on memory. ...")
    behind = RayTaskError("step", "Traceback ...", monitor)
    for error in (monitor, behind):
        told = agent_error(error, {})
        assert isinstance(told, AgentDied) and "\n" not in str(told)
        assert "out of memory: write a smaller data.batch or model.width" in str(told)
    import torch

    for cause in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        told = agent_error(RayTaskError("step", "Traceback ...", cause), {})
        assert not isinstance(told, AgentDied) and "agent.gpus" in str(told)
    plain = agent_error(RayTaskError("step", "Traceback ...", ValueError("a\nb")), {})
    assert str(plain) == "ValueError: a b"


def test_what_an_agent_raises_is_told_with_its_name():
    raised = "ray::Actor.step() (pid=7, ip=10.0.0.1, actor_id=ab, repr=agents 4 to 7)\nTraceback"
    inner = RayTaskError("step", raised, ValueError("b"))
    behind = RayTaskError("step", f"{raised}, and (pid=8, repr=agent 3)\nTraceback", inner)
    assert str(agent_error(inner, {})) == "agents 4 to 7: ValueError: b"
    assert str(agent_error(behind, {})) == "agent 3: ValueError: b"
    town = RayTaskError("step", "... repr=agent 3 (New York))", ValueError("b"))
    assert str(agent_error(town, {})) == "agent 3 (New York): ValueError: b"


def test_the_death_of_an_actor_names_all_its_agents():
    told = agent_error(RayActorError("ab", "gone"), {"aa": range(4), "ab": range(4, 7)})
    assert isinstance(told, AgentDied) and told.agents == (4, 5, 6)
    assert str(told) == "agents 4 to 6, of one actor, died: gone"
    (row,) = events_frame("", [Event("agent died", str(told), 3, told.agents)]).to_dict("records")
    assert row["agents"] == [4, 5, 6]


@pytest.mark.parametrize("pool", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_a_killed_trial_is_started_again_and_goes_on(ray_cluster, tmp_path, pool):
    """The process that drives its agents; in the local pool they live in it."""
    out = tmp_path / "study"
    tree = TREE | {"topology": {"kind": "ring", "agents": 2}, "rounds": 150}
    tree |= {"snapshot": {"every": 10}, "evaluate": SMALL | {"every": 25}}
    killed = []

    def kill():
        assert wait_for(lambda: list(out.glob("*/snapshots/*/manifest.json")), 120)
        titles = helpers_for_ray.workers(os.getpid())
        (trial,) = [pid for pid, title in titles.items() if "Trainable" in title]
        os.kill(trial, signal.SIGKILL)
        killed.append(trial)

    killer = threading.Thread(target=kill)
    killer.start()
    frame = run_sweep({"base": tree, "axes": {"seed": [0]}}, out=out, pool=pool)
    killer.join()
    assert killed and frame["status"].tolist() == ["completed"]
    (event,) = went_on(out)
    assert event["what"] == "run resumed" and 10 <= event["replayed_from"] < 150
    assert frame["recoveries"].tolist() == [1]
    plain = run_experiment(tree)
    assert frame.loc[0, "val_loss"] == plain.final["val_loss"]
    pd.testing.assert_frame_equal(timeless(load_rounds(out)), timeless(plain.rounds))


STUDY = """
name = "killed"
rounds = 120
topology = { kind = "ring", agents = 4 }
data = { set = "digits", batch = 8 }
model = { name = "linear" }
attack = { steps = 2 }
average = { name = "ema" }
evaluate = { every = 50, validation_images = 32, test_images = 32, pgd = [2], autoattack = 0 }
snapshot = { every = 20 }
"""


@pytest.mark.parametrize("command", [pytest.param("run", marks=pytest.mark.long), "sweep"])
def test_a_killed_command_resumes_from_its_snapshot(tmp_path, command):
    (tmp_path / "study.toml").write_text(STUDY)
    start = [sys.executable, "-m", f"raydist.{command}"]
    flags = ["--pool", "local", "--quiet"]
    out = tmp_path / "runs" / "killed"
    run = subprocess.Popen([*start, "study.toml", *flags], cwd=tmp_path, start_new_session=True)
    manifests = "**/snapshots/*/manifest.json"
    assert wait_for(lambda: list(out.glob(manifests)), 120)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert load(out)["status"].tolist() == ["unfinished"]
    kept = {int(file.parent.name[-6:]) for file in out.glob(manifests)}
    resumed = subprocess.run(
        [*start, "--resume", str(out), *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    (event,) = went_on(out)
    assert event["replayed_from"] >= max(kept) >= 20 and event["replayed_from"] < 120
    (tmp_path / "plain").mkdir()
    plain = run_experiment(tmp_path / "study.toml")
    (row,) = load(out).to_dict("records")
    assert row["val_loss"] == plain.final["val_loss"] and row["recoveries"] == 1
    pd.testing.assert_frame_equal(timeless(load_rounds(out)), timeless(plain.rounds))


def test_only_an_unfinished_run_of_the_same_experiment_is_resumed(tmp_path):
    tree = TREE | {"rounds": 2}
    with pytest.raises(InputError, match="needs out"):
        run_experiment(tree, resume=True)
    with pytest.raises(InputError, match="holds no run to resume"):
        run_experiment(tree, out=tmp_path / "run", resume=True)
    run_experiment(tree, out=tmp_path / "run")
    with pytest.raises(InputError, match="continue this run with --resume"):
        run_experiment(tree, out=tmp_path / "run")
    with pytest.raises(InputError, match="has run to its end"):
        run_experiment(tree, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="another experiment"):
        run_experiment(tree | {"seed": 1}, out=tmp_path / "run", resume=True)


def test_agents_killed_at_random_moments_change_nothing(warm, undisturbed, tmp_path):
    plan = make_plan(validate(TREE | {"snapshot": {"every": 3, "recoveries": 9}}))
    warm.reset(plan)
    draw, killed, over = random.Random(0), [], threading.Event()

    def kill():
        while len(killed) < 3 and not over.wait(draw.uniform(0.01, 0.1)):
            k = draw.randrange(4)
            ray.kill(warm._actors[k])
            killed.append(k)
            over.wait(1.0)

    killer = threading.Thread(target=kill)
    killer.start()
    found = finished(plan, warm, tmp_path / "run")
    over.set()
    killer.join()
    same(found, undisturbed)
    assert killed
