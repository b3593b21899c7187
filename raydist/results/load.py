"""Frames of finished runs: `raydist.load`, `load_rounds`, `load_events`.

Cells hold numbers, booleans and text: a list of the configuration is its JSON text, a table has a
column for each key. A file that cannot be read costs what its trial would have added to the frame,
and a warning names it.
"""

import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import pandas as pd

from raydist.config.study import Study
from raydist.errors import InputError, printable
from raydist.results.cells import cells, check_config
from raydist.results.record import evaluated, events_frame, frame_of, part_names, read_part
from raydist.storage import Storage

STARTED = ("experiment.json", "params.json")  # ours, and the one that Tune writes
LEFT = ("final.json", "weights", "rounds.parquet")  # what a trial leaves later
Read = TypeVar("Read")


class _Unreadable(Exception):
    """A file is damaged; the message names it."""


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """One row for each trial of a study (or for one run): configuration, final numbers, status.

    Args:
        path: the folder of a study or of a single run, or its fsspec URL.

    Returns:
        Columns: `trial`, the name of its folder; the configuration under dotted keys
        (`threat.eps`), lists as JSON text; the final numbers (`clean_acc`, `autoattack_acc`, ...);
        `mixing_rate`; `status` ("completed", "stopped", "diverged", "failed", "unfinished"),
        `stop_reason`, `stop_round`, `seconds`; `recoveries` and `seconds_lost`, how often it went
        on after a death and what that cost; for a failed trial `error` and `log`, the path of its
        log. A trial with a file that cannot be read has no row, and a warning.

    Raises:
        InputError: if there is no run in that folder, or none that can be read.
    """
    rows = [row for _, row in _each(path, _trial_row)]
    frame = pd.DataFrame(rows).sort_values("trial", ignore_index=True)
    mixed = [name for name in frame if len({*map(_kind, frame[name].dropna())}) > 1]
    return frame.assign(**{str(name): frame[name].map(_text) for name in mixed})


def load_rounds(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Everything that was measured round by round, in long form.

    Args:
        path: the folder of a study or of a single run, or its fsspec URL.

    Returns:
        Columns `trial`, the name of its folder, `round` (0 is the start), `agent` (0 to K-1,
        "mean" or "centroid": a column of the type of `raydist.results.agents`), `metric`, `value`.

    Raises:
        InputError: if there is no run in that folder, or none that can be read.
    """
    frames = [frame for _, parts in _each(path, _rounds) for frame in parts]
    return pd.concat(frames, ignore_index=True) if frames else frame_of("", [])


def load_events(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The events that the trials survived.

    Args:
        path: the folder of a study or of a single run, or its fsspec URL.

    Returns:
        One row for each event, with the columns `trial`, the name of its folder, `when` (UTC) and
        those of `Event`; `agents` is a JSON list.

    Raises:
        InputError: if there is no run in that folder, or none that can be read.
    """
    found = _each(path, lambda folder: _read(folder, "events.parquet", _events))
    frames = [_named(frame, folder) for folder, frame in found if frame is not None]
    frame = pd.concat(frames, ignore_index=True) if frames else events_frame("", [])
    agents = [json.dumps([int(k) for k in each]) for each in frame["agents"]]
    frame = frame.assign(agents=pd.Series(agents, dtype="str"))
    return frame.sort_values(["trial", "when"], ignore_index=True)


def _each(
    path: str | os.PathLike[str], read: Callable[[Storage], Read]
) -> Iterator[tuple[Storage, Read]]:
    """Yield what is read of each trial; warn of those that cannot be read.

    Args:
        path: the folder of a study or of a single run, or its fsspec URL.
        read: the function that reads a trial's folder.

    Yields:
        The folder, and what was read.

    Raises:
        InputError: if there is no trial, or none that can be read.
    """
    good, bad = 0, []
    for folder, names in _trials(path):
        try:
            _check_begun(folder, names)
            found = read(folder)
        except _Unreadable as error:
            bad.append(str(error))
            warnings.warn(f"{error}: trial {folder.name} is left out", stacklevel=3)
            continue
        good += 1
        yield folder, found
    if bad and not good:
        raise InputError(f"{bad[0]}: no trial is left")


def _check_begun(folder: Storage, names: set[str]) -> None:
    """A trial with names has the file with its configuration.

    Args:
        folder: the trial's folder.
        names: the names of the files in it.

    Raises:
        _Unreadable: if that file was removed.
    """
    if not {*STARTED} & names:
        raise _Unreadable(f"{folder.url}/{STARTED[0]} is gone")


def _trials(path: str | os.PathLike[str]) -> list[tuple[Storage, set[str]]]:
    """The folders of trials, each with the names of what lies in it."""
    root = Storage(path)
    names = root.names()
    if "experiment.json" in names or {*LEFT} & {*names}:
        return [(root, {*names})]
    below = [(each, {*each.names()}) for each in map(root.under, names)]
    found = [(each, names) for each, names in below if {*STARTED, *LEFT} & names]
    if not found:
        raise InputError(
            f"{root.url} holds no run: expected the folder that a sweep or run has written"
        )
    return found


def _read(folder: Storage, name: str, parse: Callable[[bytes], Read]) -> Read | None:
    """A file, understood.

    Args:
        folder: the trial's folder.
        name: the file's name.
        parse: the function that reads the bytes.

    Returns:
        What `parse` makes of it; None if there is no such file.

    Raises:
        _Unreadable: if it is there and cannot be read.
    """
    try:
        data = folder.find(name)
        return None if data is None else parse(data)
    except Exception as error:  # each storage and each parser has its own
        raise _Unreadable(f"{folder.url}/{name} cannot be read ({_why(error)})") from error


def _why(error: Exception) -> str:
    """The kind of an error and its message, which may be long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _table(*needed: str) -> Callable[[bytes], dict[str, Any]]:
    """Reads JSON that is a table with certain keys."""

    def parse(data: bytes) -> dict[str, Any]:
        tree = json.loads(data)
        if not isinstance(tree, dict):
            raise TypeError(f"a {type(tree).__name__}, expected a table")
        missing = [key for key in needed if key not in tree]
        if missing:
            raise KeyError(missing[0])
        return tree

    return parse


def _experiment(data: bytes) -> dict[str, Any]:
    """The configuration that a file holds: of values that columns hold where those belong."""
    config = _table("config")(data)["config"]
    if not isinstance(config, dict):
        raise TypeError(f"config is a {type(config).__name__}, expected a table")
    check_config(config)
    return config


def _numbers(*needed: str) -> Callable[[bytes], dict[str, Any]]:
    """Reads JSON that is a table of numbers and text, with certain keys."""
    return lambda data: cells(_table(*needed)(data))


def _mixing_rate(data: bytes) -> float:
    """The mixing rate of the graph in a file."""
    rate = _table("mixing_rate")(data)["mixing_rate"]
    cells({"mixing_rate": rate})
    if not isinstance(rate, int | float):
        raise TypeError(f"mixing_rate is a {type(rate).__name__}, expected a number")
    return float(rate)


def _rounds(folder: Storage) -> list[pd.DataFrame]:
    """The parts of the long frame of a trial."""
    parse = partial(read_part, trial=folder.name)
    found = [_read(folder, name, parse) for name in part_names(folder)]
    return [part for part in found if part is not None]


def _events(data: bytes) -> pd.DataFrame:
    """The events in a file."""
    return pd.read_parquet(io.BytesIO(data), columns=[*events_frame("", [])])


def _named(frame: pd.DataFrame, folder: Storage) -> pd.DataFrame:
    """The frame of a trial, whose name is that of its folder, whatever that was before."""
    frame = frame.drop(columns="trial", errors="ignore")
    frame.insert(0, "trial", folder.name)
    return frame


def _trial_row(folder: Storage) -> dict[str, Any]:
    row = {"trial": folder.name} | _config(folder)
    mixing_rate = _read(folder, "graph.json", _mixing_rate)
    if mixing_rate is not None:
        row["mixing_rate"] = mixing_rate
    final = _read(folder, "final.json", _numbers("status"))
    if final is not None:
        average = str(row.get("average.name") or "average")
        try:
            return row | cells(evaluated(folder, final, average))
        except Exception as error:  # whatever is wrong with that file
            url = f"{folder.url}/evaluation.json"
            raise _Unreadable(f"{url} cannot be read ({_why(error)})") from error
    events = _read(folder, "events.parquet", _events)
    if events is not None:
        deaths = events.dropna(subset="replayed_from")
        lost = float(deaths["seconds_lost"].sum())
        row |= {"recoveries": len(deaths), "seconds_lost": lost}
    told = _read(folder, "error.txt", lambda data: data.decode(errors="replace"))
    if told is not None:
        lines = told.strip().splitlines()
        failed = {"status": "failed", "error": lines[-1] if lines else ""}
        return row | failed | {"log": printable(f"{folder.url}/error.txt")}
    return row | {"status": "unfinished"}


def _config(folder: Storage) -> dict[str, Any]:
    """The configuration of a trial, flat; of one that failed before it began, from its study."""
    experiment = _read(folder, "experiment.json", _experiment)
    if experiment is not None:
        return _flatten(experiment)
    point = _read(folder, "params.json", _table()) or {}
    try:
        above = Storage(folder.url.rpartition("/")[0])
        study = Study.from_json(above.read("study.json").decode())
        return _flatten(study.experiment(point).model_dump(mode="json"))
    except (OSError, ValueError, TypeError):  # there is none, or it is this point that is invalid
        return _flatten(point)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and what a cell can hold: of a list its JSON text; an empty table has no key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _kind(value: Any) -> str:
    """The kind that the values of one column share, so that they can be compared and stored."""
    if isinstance(value, str):
        return "text"
    return "truth" if isinstance(value, bool) else "number"


def _text(value: Any) -> Any:
    """A value as JSON has it; what is missing and what is text stay."""
    return value if value is None or value != value or isinstance(value, str) else json.dumps(value)
