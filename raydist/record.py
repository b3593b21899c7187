"""What a run leaves behind, and how pandas reads it.

A trial's folder holds: `experiment.json` (the resolved configuration and its hash), `graph.json`
(edges, A, mixing rate), `rounds.parquet` (trial, round, agent, metric, value), `images.parquet`
(the verdict on each test image), `weights/` (safetensors) and `final.json`, written last: status,
why it stopped, the final numbers. Nothing that is read back is a pickle.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raydist.config import Experiment, InputError
from raydist.measure.trained import Masks

COLUMNS = ["trial", "round", "agent", "metric", "value"]
STARTED = ("experiment.json", "params.json")  # ours, and the one that Tune writes
Row = tuple[int, str, str, float]  # round, agent, metric, value


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: "completed"; "stopped" early by a rule; "diverged" where the loss became NaN.
        reason: in words, "" if completed.
        round: the last round.
    """

    status: str
    reason: str
    round: int


@dataclass(frozen=True)
class Record:
    """What is known after a round.

    Attributes:
        round: n; round 0 is the start.
        agents: of each agent, metric -> value.
        centroid: of the centroid, metric -> value.
        outcome: how the run ended, in its last record only.
        final: the final numbers, in the last record only.
        images: one row for each test image, in the last record only.
    """

    round: int
    agents: Sequence[dict[str, float]]
    centroid: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    final: dict[str, float | str] = field(default_factory=dict)
    images: pd.DataFrame | None = None

    @property
    def mean(self) -> dict[str, float]:
        """Means over the agents."""
        names = dict.fromkeys(name for info in self.agents for name in info)
        return {
            name: float(np.mean([info[name] for info in self.agents if name in info]))
            for name in names
        }

    def rows(self) -> list[Row]:
        """The long form: one row for each agent, for their mean, for the centroid."""
        whose = [(str(k), info) for k, info in enumerate(self.agents)]
        whose += [("mean", self.mean), ("centroid", self.centroid)]
        return [(self.round, who, name, info[name]) for who, info in whose for name in info]


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        rounds: as `load_rounds`.
        final: the final numbers by name, with status, stop_reason and stop_round.
        weights: every agent's parameters, (K, P).
        centroid: their mean, (P,).
    """

    rounds: pd.DataFrame
    final: dict[str, Any]
    weights: NDArray[np.float64]
    centroid: NDArray[np.float64]


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """One row for each trial of a study (or for one run): configuration, final numbers, status.

    Args:
        path: the folder of a study or of a single run.

    Returns:
        Columns: `trial`; the configuration under dotted keys (`threat.eps`); the final numbers
        (`clean_acc`, `autoattack_acc`, ...); `mixing_rate`; `status` ("completed", "stopped",
        "diverged", "failed", "unfinished"), `stop_reason`, `stop_round`, `seconds`; for a failed
        trial `error` and `log`, the path of its log.

    Raises:
        InputError: if there is no run in that folder.
    """
    frame = pd.DataFrame([_trial_row(folder) for folder in _trials(path)])
    return frame.sort_values("trial", ignore_index=True)


def load_rounds(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Everything that was measured round by round, in long form.

    Args:
        path: the folder of a study or of a single run.

    Returns:
        Columns `trial`, `round` (0 is the start), `agent` ("0".."K-1", "mean" or "centroid"),
        `metric`, `value`.

    Raises:
        InputError: if there is no run in that folder.
    """
    files = [folder / "rounds.parquet" for folder in _trials(path)]
    frames = [pd.read_parquet(file) for file in files if file.exists()]
    return pd.concat(frames, ignore_index=True) if frames else frame_of("", [])


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """The trials of `load`, those that differ only in their seed taken together.

    Args:
        frame: one row for each trial.

    Returns:
        One row for each point: its configuration; `seeds`, the number of its trials; every number
        as the mean over those that have it, and under its name with `_sd` their standard deviation
        (of a sample, missing for one seed); `status`, counted.

    Example:
        >>> frame = pd.DataFrame(
        ...     {"optim.lr": [0.1, 0.1, 0.2], "seed": [0, 1, 0], "clean_acc": [0.5, 0.7, 0.9]}
        ... )
        >>> over_seeds(frame)[["optim.lr", "seeds", "clean_acc"]].values.tolist()
        [[0.1, 2.0, 0.6], [0.2, 1.0, 0.9]]
    """
    names = [str(name) for name in frame if name != "seed"]
    fields = [name for name in names if name.split(".")[0] in Experiment.model_fields]
    numbers = frame.drop(columns=[*fields, "seed"], errors="ignore").select_dtypes("number")
    rows = []
    point = [frame[name].map(str) for name in fields]
    for _, same in frame.groupby(point, sort=False, dropna=False):
        row = same.iloc[0][fields].to_dict() | {"seeds": len(same)}
        for name in numbers:
            row |= {name: same[name].mean(), f"{name}_sd": same[name].std()}
        if "status" in same:
            counts = same["status"].value_counts()
            row["status"] = ", ".join(f"{count} {status}" for status, count in counts.items())
        rows.append(row)
    return pd.DataFrame(rows)


def images_frame(masks: Masks, labels: NDArray[np.int64]) -> pd.DataFrame:
    """One row for each test image.

    Args:
        masks: verdicts on the images.
        labels: of the whole test split.

    Returns:
        Columns `image`, `label`, `clean`, `pgd10`, ..., `fosc`, and `broken_by`: "clean" if it was
        wrong without attack, the attack that broke it, "none", or missing if none was tried.
    """
    frame = pd.DataFrame({"image": masks.index, "label": labels[masks.index], "clean": masks.clean})
    for steps, right in masks.pgd.items():
        frame[f"pgd{steps}"] = right
    frame["fosc"] = masks.fosc
    if masks.verdict is not None:
        names = np.array(["clean", *masks.verdict.attacks, "none"])
        broken_by = pd.Series(names[masks.verdict.broken_by], index=masks.attacked)
        frame["broken_by"] = frame["image"].map(broken_by)
    return frame


def rounds_frame(trial: str, records: Sequence[Record]) -> pd.DataFrame:
    """The records of one run as `load_rounds` gives them."""
    return frame_of(trial, [row for record in records for row in record.rows()])


def frame_of(trial: str, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as the long frame of `load_rounds`."""
    frame = pd.DataFrame(list(rows), columns=COLUMNS[1:])
    frame.insert(0, "trial", trial)
    return frame.astype({"round": "int64", "value": "float64"})


def _trials(path: str | os.PathLike[str]) -> list[Path]:
    root = Path(path)
    found = sorted({file.parent for name in STARTED for file in root.glob(f"*/{name}")})
    if (root / "experiment.json").exists():
        found = [root]
    if not found:
        raise InputError(
            f"{root} holds no run: expected the folder that a sweep or run has written"
        )
    return found


def _trial_row(folder: Path) -> dict[str, Any]:
    row = {"trial": folder.name}
    if (folder / "experiment.json").exists():
        row |= _flatten(json.loads((folder / "experiment.json").read_text())["config"])
    else:  # it failed before it began: what Tune wrote of it
        row |= json.loads((folder / "params.json").read_text())
    if (folder / "graph.json").exists():
        row["mixing_rate"] = json.loads((folder / "graph.json").read_text())["mixing_rate"]
    if (folder / "final.json").exists():
        final: dict[str, Any] = json.loads((folder / "final.json").read_text())
        return row | final
    if (folder / "error.txt").exists():
        lines = (folder / "error.txt").read_text().strip().splitlines()
        failed = {"status": "failed", "error": lines[-1] if lines else ""}
        return row | failed | {"log": str(folder / "error.txt")}
    return row | {"status": "unfinished"}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
