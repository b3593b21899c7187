"""The points of a study: values on its axes, repeated over seeds."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray import tune

from raydist.config.point import Point
from raydist.config.study import Study

OBJECTIVE = "objective"  # what trials are compared by, in Tune's results
WORST = 1e30  # the objective of a diverged run: finite, for quantiles; optuna looks at ranks
REPEATS = 100  # draws in a row that bring nothing new: then every point has been drawn


def points(study: Study) -> list[Point]:
    """The trials of a study whose points do not depend on results, in their order.

    Args:
        study: the study; `study.samples` draws from its search spaces, no draw twice, and at each
            of them every combination of its lists.

    Returns:
        The points; those that differ in the seed only are neighbours.

    Example:
        >>> from raydist.config.study import from_tree
        >>> base = {"topology": {"kind": "ring", "agents": 4}, "rounds": 1}
        >>> axes = {"seed": [0, 1], "strategy": ["consensus", "diffusion"]}
        >>> [tuple(point.values()) for point in points(from_tree({"base": base, "axes": axes}))]
        [(0, 'consensus'), (1, 'consensus'), (0, 'diffusion'), (1, 'diffusion')]
    """
    random = np.random.RandomState(study.search.seed)
    domains = {key: domain(study.axes[key]) for key in study.spaces}
    grid = {k: axis for k, axis in study.axes.items() if k not in domains and k != "seed"}
    before: set[str] = set()
    found: list[Point] = []
    for _ in range(study.samples):
        for _ in range(REPEATS if domains else 1):
            drawn = {
                key: value(study.axes[key], each.sample(random_state=random))
                for key, each in domains.items()
            }
            name = json.dumps(drawn, sort_keys=True)
            if name not in before:
                before.add(name)
                for values in itertools.product(*grid.values()):  # all at the same draw
                    fixed = dict(zip(grid, values, strict=True))
                    found += with_seeds(study, fixed | drawn)
                break
    return found


def with_seeds(study: Study, point: Mapping[str, Any]) -> list[Point]:
    """The trials of a point: one for each seed where these are a list, in the order of the axes."""
    seeds = study.axes.get("seed") if "seed" not in point else None
    each = [{**point, "seed": seed} for seed in seeds] if seeds else [dict(point)]
    return [{key: one[key] for key in study.axes} for one in each]


def domain(axis: list[Any] | Mapping[str, Any]) -> Any:
    """A search space of Ray Tune; of a list or a choice one of its positions (see `value`)."""
    choices = axis if isinstance(axis, list) else axis.get("choice")
    if choices is not None:
        return tune.choice(list(range(len(choices))))
    ((name, numbers),) = dict(axis).items()
    return getattr(tune, name)(*numbers)


def value(axis: list[Any] | Mapping[str, Any], drawn: Any) -> Any:
    """The value that a draw from `domain` stands for: the values of a list may be tables."""
    choices = axis if isinstance(axis, list) else axis.get("choice")
    plain = drawn.item() if isinstance(drawn, np.generic) else drawn
    return choices[plain] if choices is not None else plain
