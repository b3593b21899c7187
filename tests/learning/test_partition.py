from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydist.learning.partition import dirichlet, iid, quantity, shards

# each: (labels, agents, seed) -> shares
FAMILY = {
    "iid": lambda labels, agents, seed: iid(len(labels), agents, seed),
    "dirichlet 1e-3": lambda labels, agents, seed: dirichlet(labels, agents, 1e-3, seed),
    "dirichlet 1": lambda labels, agents, seed: dirichlet(labels, agents, 1.0, seed),
    "dirichlet 1e9": lambda labels, agents, seed: dirichlet(labels, agents, 1e9, seed),
    "quantity 0.1": lambda labels, agents, seed: quantity(len(labels), agents, 0.1, seed),
    "quantity 1e9": lambda labels, agents, seed: quantity(len(labels), agents, 1e9, seed),
    "shards 1": lambda labels, agents, seed: shards(labels, agents, 1, seed),
    "shards 3": lambda labels, agents, seed: shards(labels, agents, 3, seed),
}
LABELS = np.repeat(np.arange(10), 60)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", FAMILY)
@given(
    labels=st.lists(st.integers(0, 4), min_size=18, max_size=60),
    agents=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_shares_are_disjoint_complete_and_not_empty(name, labels, agents, seed):
    shares = FAMILY[name](labels, agents, seed)
    assert len(shares) == agents
    assert min(len(share) for share in shares) > 0
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(labels)))


@pytest.mark.parametrize("name", FAMILY)
def test_same_seed_same_shares_another_seed_other_shares(name):
    assert same(FAMILY[name](LABELS, 4, 7), FAMILY[name](LABELS, 4, 7))
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(FAMILY[name](LABELS, 4, 7), FAMILY[name](LABELS, 4, 8), strict=True)
    )


@given(size=st.integers(1, 200), agents=st.integers(1, 20), seed=st.integers(0, 99))
def test_iid_sizes_differ_by_at_most_one(size, agents, seed):
    if agents > size:
        with pytest.raises(ValueError, match="fewer agents"):
            iid(size, agents, seed)
    else:
        sizes = [len(share) for share in iid(size, agents, seed)]
        assert max(sizes) - min(sizes) <= 1


def test_iid_is_random():
    first = iid(1000, 2, seed=0)[0]
    assert 200 < (first < 500).sum() < 300
    assert len(np.unique(np.sign(np.diff(first)))) == 2


def test_large_alpha_gives_every_agent_the_same_class_proportions():
    for share in dirichlet(LABELS, 4, 1e9, seed=1):
        assert np.abs(np.bincount(LABELS[share], minlength=10) - 15).max() <= 1


def test_small_alpha_gives_each_class_to_one_agent():
    shares = dirichlet(LABELS, 2, 1e-6, seed=1)
    counts = np.array([np.bincount(LABELS[share], minlength=10) for share in shares])
    assert np.array_equal(np.sort(counts, axis=0), [[0] * 10, [60] * 10])


def test_alpha_sets_the_spread_of_the_proportions():
    # a proportion of Dir(α, ..., α) over K agents has variance (K − 1) / (K² (Kα + 1))
    labels, agents, alpha = np.repeat(np.arange(200), 100), 4, 0.5
    shares = dirichlet(labels, agents, alpha, seed=0)
    parts = np.array([np.bincount(labels[share], minlength=200) for share in shares]) / 100
    assert parts.var() == pytest.approx((agents - 1) / agents**2 / (agents * alpha + 1), rel=0.1)


def test_agents_left_with_nothing_take_one_sample_each():
    shares = dirichlet(np.zeros(20, int), 5, 1e-6, seed=0)
    assert sorted(len(share) for share in shares) == [1, 1, 1, 1, 16]


def test_quantities_go_from_even_to_one_agent_with_almost_all():
    even = [len(share) for share in quantity(6000, 4, 1e9, 0)]
    assert max(even) - min(even) < 10
    uneven = [len(share) for share in quantity(6000, 4, 1e-3, 0)]
    assert max(uneven) > 5900 and min(uneven) >= 1


def test_shards_hold_few_classes_and_samples_of_equal_number():
    shares = shards(LABELS, 10, 2, seed=3)  # shards of 30: two for each class
    assert {len(share) for share in shares} == {60}
    assert max(len(np.unique(LABELS[share])) for share in shares) == 2


def test_shards_of_one_class_hold_random_samples_of_it():
    share = shards(np.zeros(100, int), 2, 1, seed=0)[0]
    assert not np.array_equal(share, np.arange(50))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(iid, 10, 0, 0), "0 agents"),
        (partial(dirichlet, [0, 1], 3, 1.0, 0), "fewer agents"),
        (partial(dirichlet, [0, 1], 2, 0.0, 0), "alpha is 0.0"),
        (partial(dirichlet, [0, 1], 2, float("inf"), 0), "alpha is inf"),
        (partial(dirichlet, [0, 1], 2, float("nan"), 0), "alpha is nan"),
        (partial(shards, LABELS, 10, 61, 0), "610 parts"),
        (partial(shards, LABELS, 10, 0, 0), "0 parts"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
