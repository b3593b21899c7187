"""Snapshots: what is brought back is what was there, and what is damaged is never used."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import EVERYTHING, digits, quadratic
from hypothesis import example, given, settings
from hypothesis import strategies as st
from running import begun, run, same

from raydist import cli, load, load_events
from raydist.config.experiment import validate
from raydist.config.study import from_tree
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.engine.recovery import Recovery
from raydist.engine.snapshot.catalogue import Catalogue
from raydist.engine.snapshot.manifest import SnapshotError, checksum
from raydist.engine.snapshot.shard import Shard, capture, pack, unpack
from raydist.errors import AgentDied, AgentError, InputError
from raydist.network.strategy import STRATEGIES
from raydist.run import main
from raydist.storage import Storage

ROUNDS = 12
EVERY = {"evaluate": {"every": 4}, "rounds": ROUNDS}
BN = {"name": "preact-resnet-18", "width": 0.0625}
RECIPES = {
    **{strategy: {"strategy": strategy, "optim": {"momentum": 0.9}} for strategy in STRATEGIES},
    "nesterov": {"optim": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}},
    "adam": {"optim": {"name": "adam", "lr": 0.01}},
    "adam, combined": {"optim": {"name": "adam", "lr": 0.01, "combine": True}},
    "deat": {"optim": {"name": "deat", "combine": True}},
    "trades": {"loss": {"name": "trades"}, "telemetry": {"every": 1}},
    "mart": {"loss": {"name": "mart"}, "average": {"name": "swa", "start": 0.25}},
    "batchnorm": {"model": BN, "data": {"batch": 4}, "combine_buffers": False},
    "periods": {"periods": [0.25, 0.5], "average": {"name": "ema", "decay": 0.9}},
    "schedules": {
        "optim": {"schedule": {"name": "cosine"}},
        "threat": {"schedule": {"name": "linear"}},
    },
    "float64": {"dtype": "float64", "optim": {"momentum": 0.9}},
    "healed": {"stop": {"fosc": {"threshold": 1e-9, "on": "train"}, "on_instability": "heal"}},
    "everything": EVERYTHING,
}


class Dying(LocalPool):
    """Agents that die at given calls, and are then new ones that know nothing."""

    def __init__(self, plan, when):
        super().__init__(plan)
        self.when, self.calls, self.plan, self.died = set(when), 0, plan, 0

    def _may_die(self):
        self.calls += 1
        if self.calls in self.when:
            self.died += 1
            raise AgentDied("agent 1 died: on purpose", 1)

    def step(self, n, noisy=(False,)):
        self._may_die()
        return super().step(n, noisy)

    def measure(self, n):
        self._may_die()
        return super().measure(n)

    def evaluate(self, *which):
        self._may_die()
        return super().evaluate(*which)

    def snapshot(self, n, url):
        super().snapshot(n, url)
        self._may_die()

    def revive(self):
        self.settle()
        self.reset(self.plan)
        super().revive()


def plan_of(tree, **table):
    return make_plan(validate(tree | {"snapshot": {"every": 2} | table}))


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_goes_on_in_another_process_is_the_undisturbed_one(tmp_path, name):
    plan = plan_of(digits(**EVERY, **RECIPES[name]), every=3)
    straight = run(plan, tmp_path / "straight")
    run(plan, tmp_path / "cut", until=7)
    same(run(plan, tmp_path / "cut"), straight)
    (event,) = load_events(tmp_path / "cut").to_dict("records")
    assert (event["what"], event["round"], event["replayed_from"]) == ("run resumed", 7, 6)
    (row,) = load(tmp_path / "cut").to_dict("records")
    assert row["recoveries"] == 1 and row["seconds_lost"] == event["seconds_lost"] >= 0
    assert load(tmp_path / "straight").loc[0, ["recoveries", "seconds_lost"]].tolist() == [0, 0]


def test_the_quadratic_task_goes_on_too(tmp_path):
    plan = plan_of(quadratic(rounds=ROUNDS, data={"noise": 0.5}, optim={"momentum": 0.5}))
    straight = run(plan, tmp_path / "straight")
    run(plan, tmp_path / "cut", until=5)
    same(run(plan, tmp_path / "cut"), straight)


LINEAR = digits(**EVERY, average={"name": "ema"}, optim={"momentum": 0.9})


@settings(max_examples=8)
@given(every=st.integers(1, 5), until=st.integers(0, ROUNDS - 1), more=st.integers(0, 5))
def test_it_does_not_matter_when_it_is_cut(tmp_path_factory, straight, every, until, more):
    path = tmp_path_factory.mktemp("cut")
    plan = plan_of(LINEAR, every=every)
    run(plan, path, until=until)
    if until + more < ROUNDS - 1:  # a second time, from the first one's snapshots
        run(plan, path, until=max(until // every * every + 1, until + more))
    same(run(plan, path), straight)
    events = load_events(path)
    assert events["replayed_from"].iloc[0] == until // every * every
    assert (events["what"] == "run resumed").all()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return run(plan_of(LINEAR), tmp_path_factory.mktemp("run") / "straight")


@settings(max_examples=8)
@example(when={3}, every=2)
@example(when={2, 9, 10, 23}, every=3)
@given(when=st.sets(st.integers(1, 30), max_size=4), every=st.integers(0, 5))
def test_agents_may_die_at_any_call(tmp_path_factory, straight, when, every):
    path = tmp_path_factory.mktemp("died")
    plan = plan_of(LINEAR, every=every, recoveries=4)
    pool = Dying(plan, when)
    found = run(plan, path, pool)
    same(found, straight)
    events = load_events(path)
    deaths = events[events["what"] == "agent died"]
    assert (deaths["replayed_from"] <= deaths["round"]).all()
    assert (deaths["agents"] == "[1]").all() and len(deaths) == pool.died
    assert load(path).loc[0, "recoveries"] == pool.died
    assert set(events["what"]) <= {"agent died", "snapshot unusable"}


def test_without_a_folder_a_death_costs_all_rounds_but_the_run_is_the_same(straight):
    plan = plan_of(LINEAR)
    keeper, pool = Recovery(plan), Dying(plan, {9})
    records = list(train(pool, plan, keeper))
    np.testing.assert_array_equal(np.stack(pool.states()), straight[0])
    assert [record.round for record in records] == [*range(ROUNDS + 1)]
    ((what, replayed),) = [(event.what, event.replayed_from) for event in keeper.events]
    assert (what, replayed) == ("agent died", 0)


class Ahead(LocalPool):
    """Some rounds a call, and the next call before the first one is read: as on a board."""

    batch, exchange = 3, "board"


@pytest.mark.parametrize("every", [0, 4], ids=["anew", "from a snapshot"])
def test_a_diverged_run_leaves_the_weights_of_its_last_round(tmp_path, every):
    """However far its agents were when that was seen: they grow by 1e26 a round, to 1e156."""
    tree = quadratic(rounds=ROUNDS, optim={"lr": 1e6}, evaluate={"every": 12})
    tree["data"]["hessian"] = [1e20, 0.5]
    plan = plan_of(tree, every=every)
    found = [run(plan, tmp_path / pool.__name__, pool(plan)) for pool in (LocalPool, Ahead)]
    n = found[0][1].outcome.round
    assert found[0][1].outcome.status == "diverged" and 5 < n < 9
    same(found[1], found[0])
    pool = LocalPool(plan)
    pool.step(1, [False] * n)
    pool.close(n)
    np.testing.assert_array_equal(found[0][0], np.stack(pool.states()))
    pool.shutdown()


def test_one_death_too_many_ends_the_run_with_its_reason(tmp_path):
    plan = plan_of(LINEAR, recoveries=2)
    with pytest.raises(
        AgentError, match=r"agent 1 died: on purpose .*snapshot.recoveries is 2"
    ) as e:
        run(plan, tmp_path, Dying(plan, {5, 6, 7}))
    assert not isinstance(e.value, AgentDied)
    assert len(load_events(tmp_path)) == 2


def test_the_command_tells_a_failed_run_in_one_line_and_leaves_its_traceback(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raydist.engine.pool.pool.LocalPool", lambda plan: Dying(plan, {2, 3}))
    study = from_tree(LINEAR | {"name": "x", "snapshot": {"recoveries": 1}})
    monkeypatch.setattr("raydist.run.read", lambda *_: study)
    monkeypatch.setattr(sys, "argv", ["run", "x.toml", "--quiet"])
    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 1
    reason = "agent 1 died: on purpose (death 2, snapshot.recoveries is 1)"
    went_on = "continue with python -m raydist.run --resume runs/x"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"raydist: {reason} (log: runs/x/error.txt); {went_on}"
    (row,) = load("runs/x").to_dict("records")
    assert row["status"] == "failed" and row["error"].endswith(reason)
    assert "Traceback" in Path(row["log"]).read_text()


def cut_at_7(path):
    plan = plan_of(LINEAR, every=2)
    run(plan, path, until=7)
    return plan, path / "snapshots"


def flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def truncated(file):
    file.write_bytes(file.read_bytes()[:-5])


def foreign(file):
    """A whole manifest, of another experiment."""
    whole = json.loads(file.read_text())
    body = json.loads(whole["body"]) | {"config": "0123456789ab"}
    text = json.dumps(body)
    file.write_text(json.dumps({"body": text, "sha256": checksum(text.encode())}))


def emptied(file):
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("agent-002.safetensors", flipped, "agent 2: .*checksum differs"),
        ("agent-000.safetensors", truncated, "agent 0: .*checksum differs"),
        ("agent-003.safetensors", os.remove, "agent 3: .*cannot be read"),
        ("rounds.parquet", flipped, "rounds.parquet .*checksum differs"),
        ("rounds.parquet", os.remove, "rounds.parquet cannot be read"),
        ("manifest.json", flipped, "damaged"),
        ("manifest.json", truncated, "damaged"),
        ("manifest.json", emptied, "damaged"),
        ("manifest.json", os.remove, "no manifest"),
        ("manifest.json", foreign, "of the experiment 0123456789ab"),
    ],
)
def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(
    tmp_path, straight, name, damage, said
):
    plan, snapshots = cut_at_7(tmp_path / "run")
    damage(snapshots / "round-000006" / name)
    same(run(plan, tmp_path / "run"), straight)
    events = load_events(tmp_path / "run")
    assert events["what"].tolist() == ["snapshot unusable", "run resumed"]
    assert events["detail"].str.contains(said)[0] and events.loc[0, "round"] == 6
    assert events.loc[1, "replayed_from"] == 4


@pytest.mark.parametrize("position", [0.0, 0.25, 0.6, 0.99])
@pytest.mark.parametrize("name", ["manifest.json", "agent-001.safetensors"])
def test_no_flipped_bit_goes_unnoticed(tmp_path, name, position):
    plan, snapshots = cut_at_7(tmp_path / "run")
    file = snapshots / "round-000006" / name
    data = bytearray(file.read_bytes())
    data[int(position * len(data))] ^= 4
    file.write_bytes(bytes(data))
    run(plan, tmp_path / "run", until=8)
    assert "snapshot unusable" in set(load_events(tmp_path / "run")["what"])


def test_without_any_good_snapshot_the_run_begins_again(tmp_path, straight):
    plan, snapshots = cut_at_7(tmp_path / "run")
    for folder in snapshots.iterdir():
        flipped(folder / "agent-001.safetensors")
    same(run(plan, tmp_path / "run"), straight)
    events = load_events(tmp_path / "run")
    assert events["what"].tolist() == ["snapshot unusable"] * 2 + ["run resumed"]
    assert events["replayed_from"].iloc[-1] == 0


def test_the_state_of_another_experiment_or_agent_is_not_taken(tmp_path):
    one, other = (LocalPool(plan_of(LINEAR | {"seed": seed})) for seed in (0, 1))
    for pool in (one, other):
        pool.step(1)
        pool.close(1)
    other.agents[0].snapshot(1, str(tmp_path))
    other.settle()
    file = tmp_path / "round-000001" / "agent-000.safetensors"
    before = one.states()
    for agent, whose in ((one.agents[0], checksum(b"what one wrote")), (one.agents[1], None)):
        data = file.read_bytes()
        (file.parent / f"agent-{agent.spec.agent:03d}.safetensors").write_bytes(data)
        why = agent.restore(1, str(tmp_path), [whose or checksum(data)] * 4)
        assert "its checksum differs" in why or why == "it is of agent 0"
    other.agents[1].snapshot(1, str(tmp_path))
    other.settle()
    data = (file.parent / "agent-001.safetensors").read_bytes()
    file.write_bytes(data)
    assert one.agents[0].restore(1, str(tmp_path), [checksum(data)]) == "it is of agent 1"
    np.testing.assert_array_equal(one.states(), before)
    for pool in (one, other):
        pool.shutdown()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_snapshots_stay_as_asked_and_one_at_the_end(tmp_path, keep):
    plan = plan_of(LINEAR, every=2, keep=keep)
    run(plan, tmp_path / "run", until=9)
    there = sorted((tmp_path / "run" / "snapshots").iterdir())
    assert [folder.name for folder in there] == [f"round-{n:06d}" for n in (2, 4, 6, 8)[-keep:]]
    run(plan, tmp_path / "run")
    (last,) = (tmp_path / "run" / "snapshots").iterdir()
    assert last.name == "round-000010"
    names = {file.name for file in last.iterdir()}
    assert {"manifest.json", "rounds.parquet", "agent-003.safetensors"} < names
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("table", [{"every": 0}, {"every": None, "seconds": 100.0}])
def test_no_snapshot_is_taken_where_none_is_due(tmp_path, table):
    run(plan_of(LINEAR, **table), tmp_path / "run", until=9)
    assert not (tmp_path / "run" / "snapshots").exists()


def test_snapshots_follow_the_clock_at_whatever_round_that_is(tmp_path, straight):
    plan = plan_of(LINEAR, every=None, seconds=1e-9, keep=20)
    run(plan, tmp_path / "run", until=9)
    there = {folder.name for folder in (tmp_path / "run" / "snapshots").iterdir()}
    assert there == {f"round-{n:06d}" for n in range(1, 10)}
    same(run(plan, tmp_path / "run"), straight)


def test_snapshots_lie_at_any_url(tmp_path, straight):
    plan = plan_of(LINEAR, path="memory://somewhere/snapshots")
    run(plan, tmp_path / "run", until=7)
    assert not (tmp_path / "run" / "snapshots").exists()
    same(run(plan, tmp_path / "run"), straight)
    assert load_events(tmp_path / "run")["replayed_from"].tolist() == [6]
    name = json.loads((tmp_path / "run" / "experiment.json").read_text())["hash"]
    store = Storage(f"memory://somewhere/snapshots/run-{name}")
    assert store.names() == ["round-000010"]


def test_a_snapshot_that_cannot_be_written_is_told_and_the_run_goes_on(
    tmp_path, straight, monkeypatch
):
    write = Storage.write

    def full(self, name, data, **how):
        if name == "round-000006/agent-001.safetensors":
            raise OSError(28, "No space left on device")
        write(self, name, data, **how)

    monkeypatch.setattr(Storage, "write", full)
    same(run(plan_of(LINEAR), tmp_path / "run"), straight)
    (event,) = load_events(tmp_path / "run").to_dict("records")
    assert event["what"] == "snapshot unusable" and event["round"] == 6
    assert "agent-001.safetensors: OSError" in event["detail"]
    assert "No space left" in event["detail"]


def test_an_agent_does_not_wait_for_its_disk(tmp_path, monkeypatch):
    """The next round is done while the last state is still being written."""
    from threading import Event

    go_on, write = Event(), Storage.write

    def slow(self, name, data, **how):
        assert go_on.wait(20)
        write(self, name, data, **how)

    monkeypatch.setattr(Storage, "write", slow)
    pool = LocalPool(plan_of(LINEAR))
    pool.step(1)
    pool.close(1)
    kept = pool.states()
    pool.snapshot(1, str(tmp_path))
    pool.step(2)
    pool.close(2)
    assert not list(tmp_path.iterdir())
    go_on.set()
    pool.settle()
    files = [tmp_path / "round-000001" / f"agent-{k:03d}.safetensors" for k in range(4)]
    sums = [checksum(file.read_bytes()) for file in files]
    assert pool.restore(1, str(tmp_path), sums) == [""] * 4
    np.testing.assert_array_equal(np.stack(pool.states()), np.stack(kept))
    pool.shutdown()


def test_a_snapshot_counts_as_soon_as_its_last_part_is_there(tmp_path):
    """In the middle of a round however long: nobody needs to look."""
    pool = LocalPool(plan_of(LINEAR))
    pool.step(1)
    pool.close(1)
    shelf = Catalogue(str(tmp_path), "hash", 4, 2, pytest.fail)
    manifest = tmp_path / "round-000001" / "manifest.json"
    shelf.begin(1, {})
    shelf.publish(([], b"rows"))
    for agent in pool.agents:
        assert not manifest.exists() and not shelf.good
        agent.snapshot(1, str(tmp_path))
        agent.settle()
    end = time.monotonic() + 60
    while shelf.begun is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert manifest.exists() and shelf.good == [1] and shelf.settle() is None
    pool.shutdown()


def test_a_disk_slower_than_the_cadence_stretches_it(tmp_path):
    """The run waits for a snapshot only when that took twice the time between two."""
    plan = plan_of(LINEAR, every=None, seconds=100.0)
    keeper, due = Recovery(plan, begun(plan, tmp_path)), []
    for writing in (False, True):
        if writing:
            keeper._shelf.begin(1, {})
        for seconds in (50, 150, 250):
            keeper._last = time.monotonic() - seconds
            due.append(keeper.due(1))
    assert due == [False, True, True, False, False, True]
    keeper.close()


@pytest.mark.parametrize(
    ("every", "expected"), [(4, [4, 4, 8, 12]), (7, [7, 7, 7, 12]), (0, [12] * 4)]
)
def test_the_next_round_that_is_kept(tmp_path, every, expected):
    plan = plan_of(LINEAR, every=every)
    keeper = Recovery(plan, begun(plan, tmp_path))
    assert [keeper.next(n) for n in (1, 4, 5, 9)] == expected
    keeper.close()


def test_of_several_deaths_the_last_one_has_cost_the_time(tmp_path):
    plan = plan_of(LINEAR)
    keeper = Recovery(plan, begun(plan, tmp_path))
    keeper._began = time.monotonic() - 5
    keeper._open = [(AgentDied("gone", k), float(k)) for k in range(3)]
    keeper._made_good(4)
    keeper.close()
    events = load_events(tmp_path)
    assert events["replayed_from"].tolist() == [4, 4, 4]
    assert events["seconds_lost"].tolist() == [0, 0, pytest.approx(5, abs=1)]


def test_a_shard_reads_back_to_the_last_bit():
    tensors = {
        "w": torch.tensor([1.0, -0.0, torch.nan, torch.inf, 1e-45]),
        "optim.step": torch.tensor(3.0),
        "buffer.count": torch.tensor(7),
        "none": torch.zeros(0, dtype=torch.float64),
    }
    numbers = {"round": 3, "upsilon": 0.1, "optim": [["step", None]], "bad": float("inf")}
    back = unpack(pack(Shard(tensors, numbers)))
    assert back.numbers == numbers and set(back.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert back.tensors[name].numpy().tobytes() == tensor.numpy().tobytes()
        assert back.tensors[name].dtype == tensor.dtype


def test_a_shard_is_a_copy():
    """What is written while the agent goes on is the state of its round."""
    pool = LocalPool(plan_of(LINEAR))
    pool.step(1)
    pool.close(1)
    shard = capture(pool.agents[0])
    before = pack(shard)
    pool.step(2)
    pool.close(2)
    assert pack(shard) == before != pack(capture(pool.agents[0]))
    pool.shutdown()


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 64, b"\x02" + b"\x00" * 7 + b"{}"])
def test_what_is_no_shard_is_refused(data):
    with pytest.raises(SnapshotError, match="not a shard"):
        unpack(data)


def test_an_open_round_is_not_kept():
    pool = LocalPool(plan_of(LINEAR))
    pool.step(1)
    with pytest.raises(RuntimeError, match="round 1 is not just finished"):
        pool.agents[0].snapshot(1, "nowhere")
    pool.close(1)
    assert capture(pool.agents[0]).numbers["round"] == 1
    pool.shutdown()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"every": 5, "seconds": 3.0}, "every and snapshot.seconds are both given"),
        ({"path": "here"}, r'snapshot.path is "here", expected an absolute path or a URL'),
        ({"keep": 0}, "snapshot.keep is 0"),
        ({"every": -1}, "snapshot.every is -1"),
        ({"often": 1}, "snapshot.often is not a known key"),
    ],
)
def test_a_wrong_table_is_told(table, said):
    with pytest.raises(InputError, match=said):
        validate(digits(snapshot=table))


def test_records_are_told_once(tmp_path):
    plan = plan_of(LINEAR, recoveries=9)
    pool = Dying(plan, {4, 9, 14, 19})
    keeper = Recovery(plan, begun(plan, tmp_path))
    told = [record.round for record in train(pool, plan, keeper)]
    assert told == [*range(ROUNDS + 1)] and pool.calls > 19
    pool.shutdown()


def test_a_run_whose_snapshots_fail_says_so_once_and_goes_on(
    tmp_path, straight, monkeypatch, caplog
):
    """Nothing can be written there: no part, no receipt, no manifest."""
    write = Storage.write

    def full(self, name, data, **how):
        if name.startswith("round-"):
            raise OSError(28, "No space left on device")
        write(self, name, data, **how)

    monkeypatch.setattr(Storage, "write", full)
    same(run(plan_of(LINEAR), tmp_path / "run"), straight)
    (event,) = load_events(tmp_path / "run").to_dict("records")
    assert (event["what"], event["round"]) == ("snapshot unusable", 2)
    assert "agent-000.safetensors: OSError: [Errno 28] No space left" in event["detail"]
    assert caplog.text.count("snapshot unusable") == 1


def test_what_does_not_count_is_removed(tmp_path):
    shelf = Catalogue(str(tmp_path), "hash", 4, 2, pytest.fail)
    for name in ("round-000002", "round-000004", "left"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent-000.safetensors").write_bytes(b"torn")
    (tmp_path / "round-000002" / "manifest.json").write_bytes(b"{}")
    shelf.take(2)
    shelf.tidy()
    assert [folder.name for folder in tmp_path.iterdir()] == ["round-000002"]
    shelf.settle()
