"""Images that stand for a whole set where not all of them are measured."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raydist.seeding import Purpose, numpy_rng

Index = NDArray[np.int64]


def evenly(labels: Index, seed: int = 0) -> Index:
    """An order of a set whose first n images are an even sample of it, for every n.

    Among the first n, each label has its share of n, give or take half an image for each label.
    Within a label the order is random. It does not follow the run's seed: all runs of a study are
    measured on the same images, and a larger sample contains the smaller ones.

    Args:
        labels: the labels of the whole set, (N,).
        seed: the seed of the draw.

    Returns:
        A permutation of 0..N − 1.

    Example:
        >>> labels = np.repeat([0, 1], [40, 20])
        >>> [int(labels[evenly(labels)[:n]].sum()) for n in (3, 30, 60)]
        [1, 10, 20]
    """
    order = numpy_rng(Purpose.SPLIT, seed, agent=1).permutation(len(labels))
    _, label, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    rank = np.empty(len(labels))
    rank[np.argsort(label, kind="stable")] = np.concatenate([np.arange(n) for n in [0, *counts]])
    place = (rank + 0.5) / counts[label]  # where it stands among those of its label, in (0, 1)
    return order[np.argsort(place, kind="stable")].astype(np.int64)


def in_turn(parts: Sequence[Index]) -> Index:
    """The first of each part, then the second of each, and so on; parts may differ in length.

    Args:
        parts: positions.

    Returns:
        All of them. The first n hold as many of every part, give or take one, while all last.

    Example:
        >>> in_turn([np.array([0, 1, 2]), np.array([7])]).tolist()
        [0, 7, 1, 2]
    """
    turn = np.concatenate([np.arange(len(part)) for part in parts])
    found: Index = np.concatenate(parts)[np.argsort(turn, kind="stable")]
    return found
