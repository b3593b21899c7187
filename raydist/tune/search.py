"""Points that a study runs, and their order.

Points of lists and of random draws are all known before the start. Optuna proposes one point after
the other from the results so far. Either way the seeds of one point are neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray.tune.search import ConcurrencyLimiter, Searcher

from raydist.config.point import Point
from raydist.config.study import Study
from raydist.errors import InputError
from raydist.storage import Storage
from raydist.tune.points import points


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
        """Implement `Searcher.suggest`."""
        return self._left.pop() if self._left else Searcher.FINISHED

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Implement `Searcher.on_trial_complete`: the points do not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """Implement `Searcher.save`, which nobody reads: the study itself says what is to run."""
        Path(checkpoint_path).touch()


@dataclass(frozen=True)
class Source:
    """The source of Tune's trials.

    Attributes:
        searcher: `Listed` or `Proposals`, and how many of its trials exist at a time.
        count: the number of trials that there will be.
        exhausted: a function that tells whether it ran out of different points before.
    """

    searcher: Searcher
    count: int
    exhausted: Callable[[], bool] = lambda: False


def source(study: Study, folder: Storage, max_concurrent: int | None, fit: int) -> Source:
    """The source of a study's trials.

    Args:
        study: the study.
        folder: the study's folder.
        max_concurrent: trials at a time; None: as many as fit.
        fit: the number of trials that fit.

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
