"""Which points a study runs, and in which order.

Points of lists and of random draws are all known before the start. Optuna proposes one point after
the other from the results so far. Either way the seeds of one point are neighbours.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher

from raydist.config.experiment import InputError
from raydist.config.point import Point
from raydist.config.study import Study
from raydist.storage import Store

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
    """What a draw from `domain` stands for: the values of a list may be tables."""
    choices = axis if isinstance(axis, list) else axis.get("choice")
    plain = drawn.item() if isinstance(drawn, np.generic) else drawn
    return choices[plain] if choices is not None else plain


class Listed(Searcher):
    """Points that are known, one after the other.

    Tune's own generator would ask Ray for the resources of 200 trials at a time, and start those
    that wait for warm agents in any order.
    """

    def __init__(self, trials: Sequence[Point]) -> None:
        """Begin with the first one."""
        super().__init__()
        self._left = [*reversed(trials)]

    def suggest(self, trial_id: str) -> Any:
        """As `Searcher.suggest`."""
        return self._left.pop() if self._left else Searcher.FINISHED

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """As `Searcher.on_trial_complete`: the points do not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """As `Searcher.save`, which nobody reads: the study itself says what is to run."""
        Path(checkpoint_path).touch()


@dataclass(frozen=True)
class Source:
    """What gives Tune its trials.

    Attributes:
        searcher: `Listed` or `Proposals`, and how many of its trials exist at a time.
        count: how many trials there will be.
        exhausted: whether it ran out of different points before.
    """

    searcher: Searcher
    count: int
    exhausted: Callable[[], bool] = lambda: False


def source(study: Study, folder: Store, max_concurrent: int | None, fit: int) -> Source:
    """What gives Tune the trials of a study.

    Args:
        study: the study.
        folder: of the study.
        max_concurrent: trials at a time; None: as many as fit.
        fit: how many fit.

    Returns:
        The source.
    """
    if study.search.algorithm != "optuna":
        known = points(study)
        # Those that wait keep the agents of trials that end warm; more only cost.
        return Source(ConcurrencyLimiter(Listed(known), max_concurrent or 2 * fit), len(known))
    from raydist.tune.optuna import Proposals  # optuna need not be installed

    proposals = Proposals(study, folder)
    limited = ConcurrencyLimiter(proposals, max_concurrent or fit)  # as few unknown as can be
    return Source(limited, proposals.trials_left, lambda: proposals.exhausted)


def check_installed(study: Study) -> None:
    """The packages that a study needs are there.

    Args:
        study: the study.

    Raises:
        InputError: if one is not; says how to install it.
    """
    if study.search.algorithm == "optuna" and find_spec("optuna") is None:
        raise InputError(
            'search.algorithm = "optuna" needs the package optuna: '
            "write pip install 'raydist[optuna]'"
        )
