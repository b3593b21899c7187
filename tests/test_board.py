"""The board between forked processes, each with some agents, against all agents in one process."""

import multiprocessing
import traceback

import numpy as np
import pytest
from test_ray import EVERYTHING, experiment

from raydist.config import validate
from raydist.engine import board
from raydist.engine.board import PREFIX
from raydist.engine.edges import edges_between
from raydist.engine.plan import make_plan
from raydist.engine.pool import LocalPool
from raydist.engine.ray_actor import Actor
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
            made = actor.make_board(len(groups), plan.agents)
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
        actor.close(rounds)
        return np.stack(actor.states())

    return [fork(member, i) for i in range(len(groups))]


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
    ranges = [range(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    found = results(on_board(plan, ranges, 7))
    np.testing.assert_array_equal(np.concatenate(found), np.stack(local.states()))
    local.shutdown()
    assert not boards()
