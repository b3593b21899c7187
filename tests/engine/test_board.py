"""The board between forked processes, each with some agents, against all agents in one process."""

import fcntl
import hashlib
import itertools
import multiprocessing
import os
import signal
import time
import traceback
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from experiments import EVERYTHING, experiment

from raydist.config.experiment import Experiment, validate
from raydist.engine.plan import make_plan
from raydist.engine.pool import board
from raydist.engine.pool.board import PREFIX, Aborted, Board, Size, remove_leftovers, room_for
from raydist.engine.pool.edges import edges_between
from raydist.engine.pool.pool import LocalPool
from raydist.engine.pool.ray_actor import Actor
from raydist.engine.pool.ray_exchange import EXCHANGES
from raydist.network.strategy import STRATEGIES

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
DIRECTED = [[0.5, 0, 0, 0.5], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]


def fork(target, *args):
    """Run a function in a child process; what it returns comes through the pipe."""
    here, there = multiprocessing.Pipe(duplex=False)

    def child():
        try:
            there.send(target(*args))
        except Exception:
            there.send(traceback.format_exc())
            raise

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    there.close()
    return process, here


def results(children):
    found = []
    for process, pipe in children:
        try:
            found.append(pipe.recv())
        except EOFError:  # died
            found.append(None)
        process.join()
    return found


def on_board(plan, groups, rounds, before=lambda actor, i: None, batch=3):
    """Every group's states after some rounds, in a process of its own, a few rounds a call."""
    specs = plan.specs(threads=1, cuda=False)
    edges = edges_between(specs, groups)
    created = multiprocessing.Queue()
    joined = multiprocessing.Barrier(len(groups))

    def member(i):
        group = groups[i]
        actor = Actor(
            [specs[k] for k in group], [plan.share(k) for k in group], plan.held(), edges[i]
        )
        if i == 0:
            made = actor.make_board(len(groups))
            for _ in groups[1:]:
                created.put(made)
        else:
            actor.join_board(created.get(), i)
        joined.wait()
        if i == 0:
            actor.hide_board()
        before(actor, i)
        for first in range(1, rounds + 1, batch):
            actor.run(first, [False] * min(batch, rounds + 1 - first))
        actor.close_on_board(rounds)
        return np.stack(actor.each("ordered_state"))

    return [fork(member, i) for i in range(len(groups))]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Where no other test has boards."""
    monkeypatch.setattr(board, "folders", lambda: [tmp_path])


def boards():
    return [f for folder in board.folders() for f in folder.glob(f"*{PREFIX}*")]


@pytest.mark.parametrize("groups", [[1, 1, 1, 1], [3, 1]], ids=str)
@pytest.mark.parametrize("name", [*STRATEGIES, "everything", "directed"])
def test_rounds_on_the_board_are_those_of_one_process(name, groups):
    tables = {"strategy": name} if name in STRATEGIES else EVERYTHING | {"loss": {}}
    if name == "directed":  # who reads and who is read are not the same
        tables = {"topology": {"kind": "complete", "agents": 4, "weights": DIRECTED}}
    plan = make_plan(validate(experiment(model={"name": "linear"}, **tables)))
    local = LocalPool(plan)
    local.step(1, [False] * 7)
    local.close(7)
    ends = np.cumsum([0, *groups])
    ranges = [range(a, b) for a, b in itertools.pairwise(ends)]
    found = results(on_board(plan, ranges, 7))
    np.testing.assert_array_equal(np.concatenate(found), np.stack(local.states()))
    local.shutdown()
    assert not boards()


def dying_on_board(moment):
    """How long those who live take to give up after the process of agent 1 was killed."""
    plan = make_plan(validate(experiment(model={"name": "linear"})))
    LocalPool(plan).shutdown()  # what it imports, the children need not
    killed = multiprocessing.Value("d", 0.0)

    def before(actor, i):
        if i != 1:
            return
        attack = actor.agents[0].local.attack

        def fatal(n, noisy):
            if n == 4:
                killed.value = time.monotonic()
                if moment == "raises":
                    raise ArithmeticError("on purpose")
                os.kill(os.getpid(), signal.SIGKILL)
            return attack(n, noisy)

        actor.agents[0].local.attack = fatal

    children = on_board(plan, [range(k, k + 1) for k in range(4)], 9, before, batch=9)
    found = results(children)
    return found, time.monotonic() - killed.value


@pytest.mark.parametrize("moment", ["dies", "raises"])
def test_when_one_is_gone_the_others_give_up_at_once(moment):
    """Agent 3 waits for nobody who is dead, but for 0 and 2, who wait for 1."""
    found, seconds = dying_on_board(moment)
    assert found[1] is None if moment == "dies" else "on purpose" in found[1]
    assert all("Aborted: " in found[k] for k in (0, 2, 3))
    assert seconds < 5  # they look every 20 ms; a busy machine takes its time
    assert not boards()


def test_who_leaves_the_board_may_go_on_without(tmp_path):
    """From an earlier round, with what comes as objects."""
    plan = make_plan(validate(experiment(model={"name": "linear"})))
    groups, url = [range(2), range(2, 4)], str(tmp_path / "snapshots")
    edges = edges_between(plan.specs(threads=1, cuda=False), groups)
    specs, shares = plan.specs(threads=1, cuda=False)[:2], [plan.share(k) for k in groups[0]]
    actor = Actor(specs, shares, plan.held(), edges[0])
    actor.make_board(2)
    actor.each("snapshot", 0, url)
    actor.each("settle")
    files = [Path(url) / "round-000000" / f"agent-00{k}.safetensors" for k in groups[0]]
    checksums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    actor.leave_board()
    assert actor.each("restore", 0, url, checksums) == ["", ""]
    *sent, _ = actor.step(1, False)
    actor.step(2, False, *sent)
    assert not boards()


def test_the_exchanges_are_those_that_may_be_configured():
    written = get_args(Experiment.model_fields["exchange"].annotation)
    assert {*written} == {*EXCHANGES, "auto"}


def test_boards_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    def alive():
        file = open(tmp_path / f"{PREFIX}held", "r+b")
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 2)
        there.send("held")
        there_no_more.recv()

    for name in (f"{PREFIX}left", f"{PREFIX}held", "other"):
        (tmp_path / name).write_bytes(b"x" * 8)
    here, there = multiprocessing.Pipe(duplex=False)
    there_no_more, go = multiprocessing.Pipe(duplex=False)
    process, _ = fork(alive)
    assert here.recv() == "held"
    remove_leftovers(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["other", f"{PREFIX}held"]
    process.kill()
    process.join()
    go.close()
    remove_leftovers(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["other"]


def test_a_board_that_finds_no_room_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(board.shutil, "disk_usage", lambda folder: type("", (), {"free": 100}))
    with pytest.raises(OSError, match=r'^no room .* write exchange = "objects"$'):
        Board.create(Size(2, 4, 1000, torch.float32))
    assert room_for(Size(2, 4, 1000, torch.float32)) is None
    assert not boards()


def test_who_waits_for_an_aborted_board_gives_up(tmp_path):
    one = Board.create(Size(2, 2, 10, torch.float32))
    one.publish(1)
    one.wait([0], 1)
    one.slot(1, 2).fill_(3.0)
    assert one.slot(1, 3).sum() == 0 and one.slot(0, 2).sum() == 0
    one.abort()
    with pytest.raises(Aborted):
        one.wait([0], 1)
    one.leave()
    assert not boards()


def test_a_group_that_ends_after_its_last_round_has_not_died_before_it(monkeypatch):
    """It may publish between the look at its round and the look at its lock."""
    monkeypatch.setattr(board, "LOOK", 0.0)
    one, rounds = Board.create(Size(2, 2, 10, torch.float32)), iter([1, 1])

    def ended(self, group):
        self._words[self._word(group)] = next(rounds)
        return False

    monkeypatch.setattr(Board, "_lives", ended)
    one.wait([1], 1)
    with pytest.raises(Aborted, match="group 1 is gone"):
        one.wait([1], 2)
    one.leave()
