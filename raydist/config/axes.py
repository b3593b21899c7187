"""The axes of a study: a list is a grid, a table names one of Ray Tune's search spaces."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raydist.config.experiment import Experiment
from raydist.config.fields import fields_in
from raydist.config.point import Point
from raydist.config.values import shown
from raydist.errors import InputError

CORNERS = 512  # points of lists to draw from that are all checked; of more, one axis at a time
GRID = 2048  # points of a grid that are all checked, because all of them will run
# How many numbers each search space of Ray Tune takes; a choice takes any list.
SPACES = {
    "uniform": 2,
    "loguniform": 2,
    "quniform": 3,  # low, high, and the step of which both are multiples
    "qloguniform": 3,
    "randint": 2,
    "lograndint": 2,
    "choice": None,
}


def check_axis(key: str, axis: Any) -> None:
    """An axis is a list of different values or one search space with the right numbers.

    Args:
        key: its dotted key.
        axis: its value in the file.

    Raises:
        InputError: if it is not.
    """
    if isinstance(axis, list):
        if not axis:
            raise InputError(f"axes.{key} is empty, expected one value or more: remove it")
        seen: set[Any] = set()
        for value in axis:
            if _frozen(value) in seen:
                raise InputError(f"axes.{key} holds {shown(value)} twice: remove one")
            seen.add(_frozen(value))
        return
    if isinstance(axis, dict) and axis and not SPACES.keys() & axis.keys():
        table = getattr(Experiment.model_fields.get(key), "annotation", None)
        inner = next(iter(axis))
        if inner in fields_in(table):
            raise InputError(
                f"axes.{key} is a table, expected a dotted key in quotes: "
                f'write "{key}.{inner}" = [...]'
            )
    if not isinstance(axis, dict) or len(axis) != 1 or next(iter(axis)) not in SPACES:
        raise InputError(
            f"axes.{key} is {shown(axis)}, expected a list or one search space "
            f"({', '.join(SPACES)}): write {{ loguniform = [1e-3, 1e-1] }}"
        )
    ((space, values),) = axis.items()
    problem = _problem(space, values)
    if problem:
        raise InputError(f"axes.{key}: {space} is {shown(values)}, expected {problem}")


def _frozen(value: Any) -> Any:
    """A value that a set takes, equal where the values are."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(each)) for key, each in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _problem(space: str, values: Any) -> str:
    """The reason why these values do not fit the search space, or ""."""
    wanted = SPACES[space]
    if wanted is None:
        return "" if isinstance(values, list) and values else "a list of values"
    if not isinstance(values, list) or len(values) != wanted:
        return "[low, high, step]" if wanted == 3 else "[low, high]"
    types = int if "randint" in space else int | float
    if not all(isinstance(n, types) and math.isfinite(n) for n in values):
        return "whole numbers" if types is int else "finite numbers"
    low, high = values[:2]
    if "log" in space and low <= 0:
        return "0 < low < high"
    if low >= high:
        return "low < high"
    good = all(step > 0 and _multiple(low, step) and _multiple(high, step) for step in values[2:])
    return "" if good else "a step > 0 of which low and high are multiples"


def _multiple(value: float, step: float) -> bool:
    return math.isclose(value / step, round(value / step))


def ends(space: Mapping[str, Any]) -> list[Any]:
    """The smallest and the largest value of a search space; all of a choice."""
    (name, values), *_ = space.items()
    if name == "choice":
        return list(values)
    return [values[0], values[1] - 1 if "randint" in name else values[1]]


def corners(axes: Mapping[str, Any], spaces: Sequence[str]) -> Iterator[Point]:
    """The points to check before anything starts: the grid, at both ends of every space.

    Where there are too many, each value of each axis once, the other axes at their first; of a long
    list its first and last ones.

    Args:
        axes: dotted key -> list or search space.
        spaces: the axes that values are drawn from.

    Yields:
        Points.
    """
    values = {k: ends(v) if isinstance(v, dict) else v for k, v in axes.items()}
    drawn = any(isinstance(axes[key], list) for key in spaces)
    if math.prod(len(v) for v in values.values()) <= (CORNERS if drawn else GRID):
        for point in itertools.product(*values.values()):
            yield dict(zip(values, point, strict=True))
        return
    first = {key: choices[0] for key, choices in values.items()}
    yield first
    for key, choices in values.items():
        some = choices[1:] if len(choices) <= CORNERS else [*choices[1:CORNERS], choices[-1]]
        yield from (first | {key: value} for value in some)


def check_drawn(axes: Mapping[str, Any], spaces: Sequence[str], algorithm: str | None) -> None:
    """The axes are ones that the search algorithm can choose from.

    Args:
        axes: dotted key -> list or search space.
        spaces: the axes that values are drawn from.
        algorithm: the value of `search.algorithm`.

    Raises:
        InputError: if they are not.
    """
    if algorithm == "grid" and spaces:
        raise InputError(
            f'search.algorithm is "grid", but axes.{spaces[0]} is a search space: write a list, or '
            "remove search.algorithm"
        )
    if algorithm in ("random", "optuna") and not spaces:
        raise InputError(
            f'search.algorithm is "{algorithm}", but there is nothing to choose: write an axis '
            'besides seed, such as "optim.lr" = { loguniform = [1e-3, 1e-1] }'
        )
    for key in spaces:
        if algorithm == "optuna" and "qloguniform" in axes[key]:
            raise InputError(
                f"axes.{key}: qloguniform is no space of optuna: write lograndint, loguniform or a "
                "list"
            )
