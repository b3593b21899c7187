"""Subsets of images: even over labels, seeded, the larger ones around the smaller ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydist.config.experiment import validate
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.learning.subset import evenly, in_turn


@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 3))
def test_every_beginning_has_each_label_in_its_share(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)  # sorted, as a data set may be
    order = evenly(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    for n in range(1, len(labels) + 1):
        seen = np.bincount(labels[order[:n]], minlength=len(counts))
        share = n * np.array(counts) / len(labels)
        assert (np.abs(seen - share) < 1 + len(counts) / 2).all()
        if len(set(counts)) == 1:
            assert seen.max() - seen.min() <= 1


def test_the_order_is_the_seeds_and_random_within_a_label():
    labels = np.zeros(200, dtype=np.int64)
    order = evenly(labels)
    assert (evenly(labels) == order).all() and (evenly(labels, seed=1) != order).any()
    assert abs(np.corrcoef(order, np.arange(200))[0, 1]) < 0.2


def test_parts_take_turns():
    parts = [np.array([5, 3]), np.array([], dtype=np.int64), np.array([9, 8, 7])]
    assert in_turn(parts).tolist() == [5, 9, 3, 8, 7]


def sorted_by_label(n=120):
    """Two classes, sorted: the first half of each split is of one class."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2, 3], n // 4)
    x = rng.random((n, 1, 6, 6), dtype=np.float32)
    return {"train": (x, y), "test": (x, y), "validation": (x, y)}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_agents_look_at_all_classes_of_a_set_that_is_sorted(split):
    tree = {
        "topology": {"kind": "ring", "agents": 3},
        "rounds": 1,
        "data": {"set": "test_subset:sorted_by_label", "batch": 4},
        "model": {"name": "linear"},
        "evaluate": {"validation_images": 24, "test_images": 24, "autoattack": 8, "hessian": 12},
    }
    pool = LocalPool(make_plan(validate(tree)))
    seen = [agent.measurer._part(split, 24, shared=True).index for agent in pool.agents]
    labels = sorted_by_label()["test"][1]
    assert np.bincount(labels[np.concatenate(seen)]).tolist() == [6, 6, 6, 6]
    curved = [agent.measurer._curved(12) for agent in pool.agents]
    assert [len(part.index) for part in curved] == [4, 4, 4]
    assert all(len(set(part.y[part.index])) >= 3 for part in curved)
    pool.shutdown()
