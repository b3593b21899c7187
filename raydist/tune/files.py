"""Tune's own files of a trial, `result.json`, `progress.csv`, TensorBoard's events.

Tune lets its loggers write in a folder of its session, which it copies now and then: a kill takes
what was not copied. Here they write where the files stay, so a report is kept when it is told. At a
URL, where nothing can be appended to, Tune's copies remain, and one more is made at a trial's end.

A resumed study is a new one to Tune, which would begin the files anew. Here they go on, and take no
round twice. `result.json` is written first and says which reports there are; where a kill came
before the others had the last ones, they are given them.
"""

import csv
import io
import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.logger import (
    CSVLoggerCallback,
    JsonLoggerCallback,
    LoggerCallback,
    TBXLoggerCallback,
)
from ray.tune.utils import flatten_dict

from raydist.storage import Storage

RESULTS, PROGRESS, EVENTS = "result.json", "progress.csv", "events.out.tfevents"
HAS_LOGGERS = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"
Report = dict[str, Any]


class Past:
    """The reports of a trial so far, in this process and in earlier ones."""

    def __init__(self) -> None:
        """Begin without reports."""
        self.columns: list[str] = []  # of `progress.csv`: those of the first report
        self._count, self._seconds, self._round, self._ended = 0, 0.0, -1, False
        self._before = 0.0  # seconds of the trial's earlier processes

    def read(self, data: bytes) -> list[str]:
        """Take in what an earlier process has left.

        Args:
            data: the content of `result.json`.

        Returns:
            Its whole lines.
        """
        lines = []
        for line in data.decode(errors="replace").splitlines():
            try:
                self._note(json.loads(line))
            except (ValueError, TypeError, AttributeError):  # cut off, or not Tune's
                continue
            lines.append(line)
        return lines

    def begin(self) -> None:
        """A process of the trial begins, and counts its seconds from 0."""
        self._before = self._seconds

    def take(self, result: Report) -> Report | None:
        """A report as it follows on the earlier ones; None if they have it.

        Args:
            result: Tune's report.

        Returns:
            The report, with `training_iteration` and `time_total_s` counted on.
        """
        n, done = result.get("round", self._round), bool(result.get("done"))
        if self._ended or n < self._round or (n == self._round and not done):
            return None
        seconds = self._before + float(result.get("time_total_s") or 0.0)
        found = result | {"training_iteration": self._count + 1, "time_total_s": seconds}
        self._note(found)
        return found

    def row(self, result: Report) -> Report:
        """A report as `progress.csv` has it."""
        flat = _flat(result)
        return {name: flat.get(name, "") for name in self.columns}

    def _note(self, result: Report) -> None:
        n, seconds = int(result.get("round", self._round)), float(result.get("time_total_s") or 0.0)
        self.columns = self.columns or [*_flat(result)]
        self._round, self._seconds, self._count = n, seconds, self._count + 1
        self._ended = bool(result.get("done")) and result.get("status") != "failed"


@dataclass(eq=False)
class _Place:
    """A trial as Tune's loggers see it, and where they write."""

    name: str
    local_path: str
    config: dict[str, Any]
    evaluated_params: dict[str, Any]
    checkpoint: None = None  # they have nothing to fetch

    def init_local_path(self) -> None:
        """Make the folder; not the study's, which may have been moved."""
        Path(self.local_path).mkdir(exist_ok=True)


class _Events(TBXLoggerCallback):
    """TensorBoard's events: a further file beside the earlier ones."""

    def fill(self, place: Any, reports: list[Report], folder: Storage) -> None:
        """Write what its queue had not yet written when the earlier process was killed.

        Args:
            place: the trial.
            reports: all reports that it has told.
            folder: the folder of its earlier events.
        """
        last, tags = 0, set[str]()
        for name in folder.names():
            for event in _events(folder.read(name)) if name.startswith(EVENTS) else ():
                if event.step > last:
                    last, tags = event.step, set()
                if event.step == last:
                    tags |= {value.tag for value in event.summary.value}
        begin = max(last, 1)
        for step, report in enumerate(reports[begin - 1 :], start=begin):
            known = tags if step == last else set[str]()
            found = {k: v for k, v in _flat(report).items() if f"ray/tune/{k}" not in known}
            self.log_trial_result(step, place, found | {"training_iteration": step})


class TuneFiles(LoggerCallback):
    """Tune's loggers, each writing where its files stay, after what lies there.

    A context manager: inside, Tune adds none of its own.
    """

    def __init__(self, folder: Storage) -> None:
        """Keep the folder; read and write nothing.

        Args:
            folder: the study's folder.
        """
        self._folder = folder
        # Any: to them a _Place is a trial
        self._results: Any = JsonLoggerCallback()  # type: ignore[no-untyped-call]
        self._progress: Any = CSVLoggerCallback()  # type: ignore[no-untyped-call]
        self._events: Any = None
        with suppress(ImportError):  # its package is missing
            self._events = _Events()  # type: ignore[no-untyped-call]
        self._known: dict[str, tuple[_Place, Past]] = {}

    def __enter__(self) -> "TuneFiles":
        """Tell Tune that it has its loggers."""
        self._before = os.environ.get(HAS_LOGGERS)
        os.environ[HAS_LOGGERS] = "1"
        return self

    def __exit__(self, *_: object) -> None:
        """Studies of others in this process have theirs again."""
        if self._before is None:
            del os.environ[HAS_LOGGERS]
        else:
            os.environ[HAS_LOGGERS] = self._before

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune saves its callbacks, and nobody reads them."""
        return {}

    def log_trial_start(self, trial: Any) -> None:
        """Implement `LoggerCallback.log_trial_start`, in each process of the trial."""
        first, reports = str(trial) not in self._known, list[Report]()
        if first:
            place, past = self._place(trial), Past()
            reports = self._restore(place, past)
            self._known[place.name] = place, past
        place, past = self._known[str(trial)]
        past.begin()
        for logger in self._loggers():
            logger.log_trial_start(place)
        if first and self._events is not None:
            self._events.fill(place, reports, self._folder.under(place.name))

    def log_trial_result(self, iteration: int, trial: Any, result: Report) -> None:
        """Implement `LoggerCallback.log_trial_result`."""
        place, past = self._known[str(trial)]
        found = past.take(result)
        if found is not None:
            self._results.log_trial_result(iteration, place, found)
            self._progress.log_trial_result(iteration, place, past.row(found))
            if self._events is not None:
                self._events.log_trial_result(iteration, place, found)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Implement `LoggerCallback.log_trial_end`."""
        if str(trial) not in self._known:  # its process could not be made: it is a failed trial too
            self.log_trial_start(trial)
        place, _ = self._known[str(trial)]
        for logger in self._loggers():
            logger.log_trial_end(place, failed)
        if not self._folder.local:
            for file in sorted(Path(place.local_path).iterdir()):
                if file.name.startswith((RESULTS, PROGRESS, EVENTS)):
                    self._folder.write(f"{place.name}/{file.name}", file.read_bytes())

    def _loggers(self) -> Iterator[Any]:
        yield from (self._results, self._progress)
        if self._events is not None:
            yield self._events

    def _place(self, trial: Any) -> _Place:
        """The place where loggers write: the study's folder if it is one of this machine."""
        trial.init_local_path()
        local = f"{self._folder.root}/{trial}" if self._folder.local else trial.local_path
        place = _Place(str(trial), str(local), trial.config, trial.evaluated_params)
        place.init_local_path()
        return place

    def _restore(self, place: _Place, past: Past) -> list[Report]:
        """Put what was told before where the loggers append, and return it."""
        lines = past.read(self._folder.find(f"{place.name}/{RESULTS}") or b"")
        reports = [json.loads(line) for line in lines]
        there = Storage(place.local_path)
        whole = {RESULTS: "".join(f"{line}\n" for line in lines), PROGRESS: _table(past, reports)}
        for name, text in whole.items():
            if (there.find(name) or b"") != text.encode():
                there.write(name, text.encode())
        return reports


def _flat(result: Report) -> Report:
    """A report without its configuration, `{"a": {"b": 1}}` as `{"a/b": 1}`."""
    flat: Report = flatten_dict({k: v for k, v in result.items() if k != "config"}, delimiter="/")
    return flat


def _table(past: Past, reports: list[Report]) -> str:
    """Reports as `progress.csv` holds them; "" if there are none."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, past.columns)
    if reports:
        writer.writeheader()
    writer.writerows(map(past.row, reports))
    return text.getvalue()


def _events(data: bytes) -> Iterator[Any]:
    """The whole records of an event file: length, 4 bytes, event, 4 bytes."""
    from tensorboardX.proto.event_pb2 import Event

    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        begin, at = at + 12, at + 16 + length
        if at <= len(data):  # else it was cut off
            yield Event.FromString(data[begin : begin + length])
