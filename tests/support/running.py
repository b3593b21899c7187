"""Runs by hand, and what of them is compared."""

import numpy as np
import pandas as pd

from raydist import load_rounds
from raydist.config.experiment import validate
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.engine.recovery import Recovery
from raydist.results.folder import Folder


def weights_after(tree, rounds):
    """(K, P) after some rounds, by hand on the local pool."""
    plan = make_plan(validate(tree))
    pool = LocalPool(plan)
    try:
        for n in range(1, rounds + 1):
            pool.step(n)
        pool.close(rounds)
        return np.stack(pool.states())
    finally:
        pool.shutdown()


def values(result, metric, agent="mean"):
    frame = result.rounds
    chosen = frame[(frame["metric"] == metric) & (frame["agent"] == agent)]
    return dict(zip(chosen["round"], chosen["value"], strict=True))


def begun(plan, path):
    folder = Folder(path)
    folder.begin(plan.config, plan.graph, plan.A, plan.mixing_rate, plan.contents)
    return folder


def run(plan, path, pool=None, until=None):
    """The run in a folder, cut short after round `until` as by the end of its process."""
    folder, pool = begun(plan, path), pool or LocalPool(plan)
    keeper, states = Recovery(plan, folder), []

    def ending(pool, n):  # again, if somebody dies behind it
        states[:] = pool.states()

    try:
        for record in train(pool, plan, keeper, ending):
            pool.settle()  # so that the snapshots of a test are where it expects them
            if record.round == until:
                folder.flush()
                keeper.look()
                return None
        folder.finish(record, keeper.seconds())
        return np.stack(states), record, folder
    finally:
        pool.shutdown()


def same(found, expected):
    """Weights, final numbers, verdicts and everything measured are equal to the last bit."""
    np.testing.assert_array_equal(found[0], expected[0])
    pd.testing.assert_frame_equal(pd.DataFrame([found[1].final]), pd.DataFrame([expected[1].final]))
    assert (found[1].images is None) == (expected[1].images is None)
    if found[1].images is not None:
        pd.testing.assert_frame_equal(found[1].images, expected[1].images)
    one, other = (timeless(load_rounds(folder.url)) for *_, folder in (found, expected))
    pd.testing.assert_frame_equal(one, other)


def timeless(rounds):
    kept = ~rounds["metric"].str.startswith("seconds")
    return rounds[kept].drop(columns="trial").reset_index(drop=True)
