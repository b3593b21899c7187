"""Partitions of the training samples over the agents.

Each function returns K index arrays that are disjoint and together complete; none is empty.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydist.seeding import Purpose, numpy_rng

Shares = list[NDArray[np.int64]]


def iid(size: int, agents: int, seed: int) -> Shares:
    """A random split into equal shares: their sizes differ by at most one.

    Args:
        size: number of samples N.
        agents: number of agents K, at most N.
        seed: the run's seed.

    Returns:
        K arrays of indices in [0, N).

    Example:
        >>> [len(share) for share in iid(10, 4, seed=0)]
        [3, 3, 2, 2]
    """
    _check_sizes(size, agents, agents)
    return np.array_split(numpy_rng(Purpose.PARTITION, seed).permutation(size), agents)


def dirichlet(labels: ArrayLike, agents: int, alpha: float, seed: int) -> Shares:
    """Label skew: the samples of class c are cut in proportions p_c ~ Dir(α, ..., α) over agents.

    After arXiv:2002.06440: α → ∞ gives every agent the same class proportions, α → 0 each class to
    one agent. An agent left with nothing takes one sample from the largest share.

    Args:
        labels: the classes of the N samples, whole numbers of shape (N,).
        agents: number of agents K, at most N.
        alpha: concentration α > 0.
        seed: the run's seed.

    Returns:
        K arrays of indices in [0, N), each sorted.

    Raises:
        ValueError: alpha is not a positive number.
    """
    labels = np.asarray(labels)
    _check_sizes(labels.size, agents, agents)
    _check_alpha(alpha)
    rng = numpy_rng(Purpose.PARTITION, seed)
    owner = np.empty(labels.size, np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet(np.full(agents, alpha))) * len(members)
        owner[members] = np.searchsorted(ends[:-1], np.arange(len(members)) + 0.5)
    _fill_empty(owner, agents, rng)
    return [np.flatnonzero(owner == k) for k in range(agents)]


def shards(labels: ArrayLike, agents: int, shards_per_agent: int, seed: int) -> Shares:
    """Few classes each: sort by label, cut into K·s shards, give each agent s random ones.

    After arXiv:1602.05629. Samples of one label are in random order.

    Args:
        labels: the classes of the N samples, whole numbers of shape (N,).
        agents: number of agents K.
        shards_per_agent: shards s ≥ 1 of each agent, with K·s at most N.
        seed: the run's seed.

    Returns:
        K arrays of indices in [0, N), each sorted; each has at most 2 classes a shard where every
        class has at least as many samples as a shard.
    """
    labels = np.asarray(labels)
    count = agents * shards_per_agent
    _check_sizes(labels.size, agents, count)
    rng = numpy_rng(Purpose.PARTITION, seed)
    shuffled = rng.permutation(labels.size)
    pieces = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], count)
    dealt = rng.permutation(count).reshape(agents, shards_per_agent)
    return [np.sort(np.concatenate([pieces[i] for i in hand])) for hand in dealt]


def quantity(size: int, agents: int, alpha: float, seed: int) -> Shares:
    """Uneven amounts: the sizes of the shares follow a Dirichlet(α, ..., α), the labels stay IID.

    Args:
        size: number N of samples, at least K.
        agents: number of agents K.
        alpha: α > 0; small is uneven, large is even.
        seed: the run's seed.

    Returns:
        K arrays of indices in [0, N), each sorted and not empty.

    Raises:
        ValueError: alpha is not above 0.
    """
    _check_sizes(size, agents, agents)
    _check_alpha(alpha)
    rng = numpy_rng(Purpose.PARTITION, seed)
    ends = np.cumsum(rng.dirichlet(np.full(agents, alpha))) * size
    owner = np.empty(size, np.int64)
    owner[rng.permutation(size)] = np.searchsorted(ends[:-1], np.arange(size) + 0.5)
    _fill_empty(owner, agents, rng)
    return [np.flatnonzero(owner == k) for k in range(agents)]


def check_own(name: str, shares: Sequence[ArrayLike], size: int, agents: int) -> Shares:
    """Check the shares that a partition of the user's own returned.

    Args:
        name: the name of the function.
        shares: K arrays of indices in [0, N).
        size: number of samples N.
        agents: number of agents K.

    Returns:
        The shares.

    Raises:
        ValueError: there are not K of them, one is empty, or together they do not hold every
            sample once.
    """
    found = [np.asarray(share) for share in shares]
    if len(found) != agents or any(s.ndim != 1 or s.size == 0 for s in found):
        raise ValueError(
            f'partition "{name}" returned shares of sizes {[s.shape for s in found][:8]}, expected '
            f"{agents} arrays of indices, none empty"
        )
    given = np.concatenate(found)
    if given.dtype.kind not in "iu" or not np.array_equal(np.sort(given), np.arange(size)):
        raise ValueError(
            f'partition "{name}" returned {given.size} indices ({given.dtype}), expected each of '
            f"0 to {size - 1} once"
        )
    return [share.astype(np.int64) for share in found]


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(
            f"alpha is {alpha}, expected a number above 0: write 0.1 for strong and 100 for hardly "
            "any skew"
        )


def _fill_empty(owner: NDArray[np.int64], agents: int, rng: np.random.Generator) -> None:
    """Give every agent without a sample one of the agent that has most; changes `owner`."""
    sizes = np.bincount(owner, minlength=agents)
    for k in np.flatnonzero(sizes == 0):
        largest = sizes.argmax()
        owner[rng.choice(np.flatnonzero(owner == largest))] = k
        sizes[largest] -= 1
        sizes[k] += 1


def _check_sizes(size: int, agents: int, parts: int) -> None:
    if agents < 1 or not 1 <= parts <= size:
        raise ValueError(
            f"{size} samples for {agents} agents in {parts} parts, expected at least one agent "
            "and one sample for each part: use fewer agents or more data"
        )
