"""Tune's own files of a trial, `result.json`, `progress.csv`, TensorBoard's events, continued.

A resumed study is a new one to Tune, which begins these files anew and puts them over the old ones.
Here they begin with what an earlier process has left, count on from there, and take no round twice.
"""

import csv
import json
from pathlib import Path
from typing import Any

from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.utils import flatten_dict

from raydist.engine.store import Store

RESULTS, PROGRESS = "result.json", "progress.csv"


class Past:
    """What the files of a trial hold.

    Attributes:
        lines: of `result.json`, the whole ones.
    """

    def __init__(self, data: bytes | None) -> None:
        """Read what is there.

        Args:
            data: the content of `result.json`; None: nothing.
        """
        self.lines: list[str] = []
        self._count, self._seconds, self._round, self._ended = 0, 0.0, -1, False
        for line in (data or b"").decode(errors="replace").splitlines():
            try:
                self._note(json.loads(line))
            except (ValueError, TypeError, AttributeError):  # cut off, or not Tune's
                continue
            self.lines.append(line)
        self._before = self._seconds

    def take(self, result: dict[str, Any]) -> dict[str, Any] | None:
        """A report as it follows on the earlier ones; None if they have it.

        Args:
            result: as Tune gives it.

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

    def _note(self, result: dict[str, Any]) -> None:
        self._round = int(result.get("round", self._round))
        self._seconds = float(result.get("time_total_s") or 0.0)
        self._count += 1
        self._ended = bool(result.get("done")) and result.get("status") != "failed"


class _Continued:
    """A logger of Tune that goes on after what an earlier process has left of a trial."""

    def __init__(self, folder: Store) -> None:
        """Read nothing yet.

        Args:
            folder: of the study.
        """
        super().__init__()
        self._folder, self._past = folder, dict[str, Past]()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune saves its callbacks, and nobody reads them."""
        return {}

    def log_trial_start(self, trial: Any) -> None:
        """As `LoggerCallback.log_trial_start`."""
        if str(trial) not in self._past:
            trial.init_local_path()
            past = self._past[str(trial)] = Past(self._folder.find(f"{trial}/{RESULTS}"))
            self._bring(trial, past, Path(trial.local_path))
        super().log_trial_start(trial)  # type: ignore[misc]

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """As `LoggerCallback.log_trial_result`."""
        found = self._past[str(trial)].take(result)
        if found is not None:
            super().log_trial_result(iteration, trial, self._form(trial, found))  # type: ignore[misc]

    def _bring(self, trial: Any, past: Past, where: Path) -> None:
        """Put what is there where Tune appends."""

    def _form(self, trial: Any, result: dict[str, Any]) -> dict[str, Any]:
        return result


class Results(_Continued, JsonLoggerCallback):
    """`result.json`, a line for each report."""

    def _bring(self, trial: Any, past: Past, where: Path) -> None:
        (where / RESULTS).write_text("".join(f"{line}\n" for line in past.lines))


class Progress(_Continued, CSVLoggerCallback):
    """`progress.csv`, whose columns are those of its first report."""

    def __init__(self, folder: Store) -> None:
        """As `_Continued`."""
        super().__init__(folder)
        self._columns: dict[str, list[str]] = {}

    def _bring(self, trial: Any, past: Past, where: Path) -> None:
        data = self._folder.find(f"{trial}/{PROGRESS}") or b""
        whole = data[: data.rfind(b"\n") + 1]  # the rest was cut off
        if whole:
            self._columns[str(trial)] = next(csv.reader([whole.decode().splitlines()[0]]))
            (where / PROGRESS).write_bytes(whole)

    def _form(self, trial: Any, result: dict[str, Any]) -> dict[str, Any]:
        flat = flatten_dict({k: v for k, v in result.items() if k != "config"}, delimiter="/")
        columns = self._columns.setdefault(str(trial), [*flat])
        return {name: flat.get(name, "") for name in columns}


class Events(_Continued, TBXLoggerCallback):
    """TensorBoard's events: a further file beside the earlier ones, whose steps it counts on."""


def loggers(folder: Store) -> list[Any]:
    """Tune's loggers, continuing what lies in the folder of a study.

    Args:
        folder: of the study.

    Returns:
        Callbacks; without TensorBoard's where its package is missing.
    """
    found: list[Any] = [Results(folder), Progress(folder)]
    try:
        found.append(Events(folder))
    except ImportError:
        pass
    return found
