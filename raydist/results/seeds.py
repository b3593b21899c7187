"""Means over the seeds of a point, and over nothing that is not alike."""

import pandas as pd

from raydist.config.experiment import Experiment
from raydist.metrics import counted

LIKE = ("status", "rounds_run")  # runs are compared where these agree


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """The trials of `load`, those that differ only in their seed taken together.

    Means are over runs of the same length and status: a point whose runs ended differently has a
    row for each kind of them, the most frequent first.

    Args:
        frame: one row for each trial.

    Returns:
        One row for each point, status and length: its configuration; `seeds`, the number of its
        trials; `status` and `rounds_run`; every number as the mean, and under its name with `_sd`
        the standard deviation (of a sample, missing for one seed). A number that only some of
        these trials have, or have of the same number of images (see `comparable`), is of those,
        and counted under its name with `_seeds`.

    Example:
        >>> frame = pd.DataFrame(
        ...     {
        ...         "optim.lr": [0.1, 0.1, 0.1],
        ...         "seed": [0, 1, 2],
        ...         "status": ["completed", "completed", "stopped"],
        ...         "rounds_run": [300, 300, 20],
        ...         "clean_acc": [0.5, 0.7, 0.1],
        ...     }
        ... )
        >>> over_seeds(frame)[["optim.lr", "seeds", "status", "clean_acc"]].values.tolist()
        [[0.1, 2, 'completed', 0.6], [0.1, 1, 'stopped', 0.1]]
    """
    names = [str(name) for name in frame if name != "seed"]
    fields = [name for name in names if name.split(".")[0] in Experiment.model_fields]
    like = [name for name in LIKE if name in frame]
    others = frame.drop(columns=[*fields, *like, "seed"], errors="ignore")
    numbers = [str(name) for name in others.select_dtypes("number")]
    rows = []
    point = [frame[name].map(str) for name in fields] or [pd.Series("", index=frame.index)]
    for _, trials in frame.groupby(point, sort=False, dropna=False):
        for same in kinds(trials):
            row = same.iloc[0][fields].to_dict() | {"seeds": len(same)}
            row |= same.iloc[0][like].to_dict()
            for name in numbers:
                values = comparable(same, name)
                row |= {name: values.mean(), f"{name}_sd": values.std()}
                if 0 < len(values) < len(same):
                    row[f"{name}_seeds"] = len(values)
            rows.append(row)
    return pd.DataFrame(rows)


def comparable(trials: pd.DataFrame, name: str) -> "pd.Series[float]":
    """The values of a number that may be averaged: those of as many images each.

    Args:
        trials: a frame of one row for each trial.
        name: the number's name.

    Returns:
        The values of the trials that have it of the most frequent number of images (of several,
        the largest); of all that have it, if it is not of images.
    """
    values: pd.Series[float] = trials[name].dropna()
    counts = counted(name)
    if counts not in trials or values.empty:
        return values
    of = trials.loc[values.index, counts].fillna(0)
    chosen: pd.Series[float] = values[of == of.mode().max()]
    return chosen


def kinds(trials: pd.DataFrame) -> list[pd.DataFrame]:
    """Trials of the same length and status together: those that completed first, then most.

    Args:
        trials: a frame of one row for each trial.

    Returns:
        Their rows, in parts.
    """
    like = [name for name in LIKE if name in trials]
    if not like:
        return [trials]
    parts = [part for _, part in trials.groupby(like, sort=False, dropna=False)]
    return sorted(parts, key=lambda part: (_status(part) != "completed", -len(part)))


def _status(part: pd.DataFrame) -> object:
    return part["status"].iloc[0] if "status" in part else None
