"""Schedules: pure functions of progress, the fraction of a period that is done.

The `Timetable` of a run says how far it is; the schedules say what that means for μ and ε.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal

from raydist.lookup import named

Schedule = Callable[..., float]


@dataclass(frozen=True)
class Timetable:
    """Ends of the epochs and the periods of a run; a run without restarts is one period.

    With N rounds, the period that ends at the fraction r of the run ends with round ⌈r N⌉: fewer
    than r N rounds are done before each of its rounds. In the next one the schedules begin again
    (arXiv:2006.08403).

    Attributes:
        rounds: length N of the run, ≥ 1.
        epoch: rounds in a pass over the data, ≥ 1.
        periods: increasing fractions in (0, 1) at which a new period begins.

    Example:
        >>> times = Timetable(5, periods=[0.5])
        >>> times.ends, [times.progress(n) for n in range(1, 6)]
        ([3, 5], [0.0, 0.3333333333333333, 0.6666666666666666, 0.0, 0.5])
    """

    rounds: int
    epoch: int = 1
    periods: Sequence[float] = ()

    @cached_property
    def ends(self) -> list[int]:
        """The last round of each period, that of the run the last of them."""
        # products such as 0.07 * 100 are a little above the whole number that is meant
        return [math.ceil(round(r * self.rounds, 9)) for r in self.periods] + [self.rounds]

    def ended(self, n: int) -> int:
        """The number of periods that are over after round n."""
        return sum(end <= n for end in self.ends)

    def progress(self, n: int, per: Literal["round", "epoch"] = "round") -> float:
        """The fraction of its period that is done before a round.

        Args:
            n: the round, ≥ 1; a pool can be told to go on past N, where the last period is over.
            per: "epoch": in whole epochs, counted from the beginning of the period.

        Returns:
            A fraction in [0, 1), 0 in the first round of each period; 1 past N.

        Raises:
            ValueError: n is below 1.
        """
        if n < 1:
            raise ValueError(f"round is {n}, expected 1 or more: round 0 is the start")
        if n > self.rounds:
            return 1.0
        begin, end = next(period for period in pairwise([0, *self.ends]) if n <= period[1])
        done = n - 1 - begin
        return (done - done % self.epoch if per == "epoch" else done) / (end - begin)


def lr_at(name: str, progress: float, lr: float, **params: Any) -> float:
    """The learning rate μ at a point of the run.

    With p the progress:

    - constant: μ
    - piecewise: μ · factor^(number of milestones ≤ p)
    - cosine: final + (μ − final) (1 + cos πp) / 2

    Args:
        name: "constant", "piecewise", "cosine", or anyone's "package.module:function", called as
            function(progress, lr, **params).
        progress: the fraction of the run that is done, in [0, 1].
        lr: the initial rate μ.
        **params: parameters; of piecewise, `milestones`, increasing fractions of the run, and
            `factor` (0.1);
            of cosine, `final` (0.0), the rate at the end.

    Returns:
        The rate.

    Raises:
        ValueError: unknown name or parameter, or a value out of its range.

    Example:
        >>> lr_at("piecewise", 0.8, 1.0, milestones=[0.5, 0.75], factor=0.5)
        0.25
    """
    return _evaluate("lr", _LR, name, progress, lr, params)


def eps_at(name: str, progress: float, eps: float, **params: Any) -> float:
    """The budget ε at a point of the run (arXiv:2006.08403).

    With p the progress, each clipped at the target ε:

    - constant: ε
    - linear: eps_min + (eps_max − eps_min) p
    - cosine: eps_min + (eps_max − eps_min) (1 − cos πp) / 2

    With eps_max = 2 ε and eps_min = 0 both reach the target at half of the run.

    Args:
        name: "constant", "linear", "cosine", or anyone's "package.module:function", called as
            function(progress, eps, **params).
        progress: the fraction of the run that is done, in [0, 1].
        eps: the target ε ≥ 0, the value from the clip point on.
        **params: parameters; of linear and cosine, `eps_max` ≥ eps (default eps) and `eps_min`
            (0.0), at most eps, in the units of eps.

    Returns:
        The budget, at most eps.

    Raises:
        ValueError: unknown name or parameter, or a value out of its range.

    Example:
        >>> eps_at("linear", 0.25, 8.0, eps_max=16.0)
        4.0
    """
    return _evaluate("eps", _EPS, name, progress, eps, params)


def _constant(progress: float, target: float) -> float:
    return target


def _piecewise(
    progress: float, lr: float, milestones: Sequence[float], factor: float = 0.1
) -> float:
    fractions = list(milestones)
    if sorted(set(fractions)) != fractions or not all(0 <= m <= 1 for m in fractions):
        raise ValueError(
            f"milestones is {fractions}, expected increasing fractions of the run in [0, 1]:"
            " write [0.5, 0.75]"
        )
    return lr * factor ** sum(milestone <= progress for milestone in fractions)


def _cosine_decay(progress: float, lr: float, final: float = 0.0) -> float:
    return final + (lr - final) * (1 + math.cos(math.pi * progress)) / 2


def _linear(
    progress: float, eps: float, eps_max: float | None = None, eps_min: float = 0.0
) -> float:
    top = _top(eps, eps_max, eps_min)
    return min(eps, eps_min + (top - eps_min) * progress)


def _cosine(
    progress: float, eps: float, eps_max: float | None = None, eps_min: float = 0.0
) -> float:
    top = _top(eps, eps_max, eps_min)
    return min(eps, eps_min + (top - eps_min) * (1 - math.cos(math.pi * progress)) / 2)


def _top(eps: float, eps_max: float | None, eps_min: float) -> float:
    top = eps if eps_max is None else eps_max
    if not 0 <= eps_min <= eps <= top:
        raise ValueError(
            f"eps_min is {eps_min}, eps {eps}, eps_max {top}, expected"
            " 0 <= eps_min <= eps <= eps_max: write eps_max = 2 * eps"
        )
    return top


_LR: Mapping[str, Schedule] = {
    "constant": _constant,
    "piecewise": _piecewise,
    "cosine": _cosine_decay,
}
_EPS: Mapping[str, Schedule] = {"constant": _constant, "linear": _linear, "cosine": _cosine}


@cache
def _check_parameters(schedule: Schedule, names: tuple[str, ...]) -> None:
    """TypeError unless a schedule has exactly such parameters; asked in every round."""
    inspect.signature(schedule).bind(None, None, **dict.fromkeys(names))


def _evaluate(
    what: str,
    schedules: Mapping[str, Schedule],
    name: str,
    progress: float,
    target: float,
    params: Mapping[str, Any],
) -> float:
    schedule = named(schedules, name, f"{what} schedule")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}, expected a fraction in [0, 1]: round / rounds")
    try:
        _check_parameters(schedule, tuple(params))
    except TypeError as error:
        known = ", ".join(list(inspect.signature(schedule).parameters)[2:]) or "none"
        raise ValueError(f"{what} schedule {name!r}: {error}; its parameters: {known}") from error
    value = schedule(progress, target, **params)
    if ":" in name and not 0 <= value <= (target if what == "eps" else math.inf):
        raise ValueError(
            f"{what} schedule {name!r} returned {value!r} at progress {progress:g}, expected a "
            f"number from 0 to {f'{target:g}' if what == 'eps' else 'below infinity'}"
        )
    return value
