"""Records of a run; `raydist.results.load` reads them into frames.

A trial's folder holds: `experiment.json` (the resolved configuration and its hash), `graph.json`
(nodes by name, edges, A, mixing rate), `rounds.parquet/` (round, agent, metric, value),
`images.parquet` (the verdict on each test image), `events.parquet` (what it survived, if
anything), `snapshots/`, `weights/` (safetensors) and `final.json`, written last: status, why it
stopped, the final numbers.
Nothing that is read back is a pickle.
"""

import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raydist.measure.columns import joined
from raydist.metrics import base
from raydist.results.agents import AgentDtype
from raydist.storage import Storage

ROUNDS = "rounds.parquet"  # a folder of parts: see `raydist.results.rounds`
COLUMNS = ["trial", "round", "agent", "metric", "value"]
KINDS: Any = {"round": "int64", "agent": AgentDtype(), "value": "float64"}
Row = tuple[int, str, str, float]  # round, agent as text, metric, value


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        status: "completed"; "stopped" early by a rule; "diverged" where the loss became NaN.
        reason: the reason in words, "" if completed.
        round: the last round.
    """

    status: str
    reason: str
    round: int


@dataclass(frozen=True)
class Record:
    """The record of one round.

    Attributes:
        round: the round's number n; round 0 is the start.
        agents: each agent's values: metric -> value.
        centroid: the centroid's values: metric -> value.
        predicted: the values that only the mean over the agents has: metric -> value.
        outcome: the end of the run, in its last record only.
        final: the final numbers, in the last record only.
        images: one row for each model and test image, in the last record only.
    """

    round: int
    agents: Sequence[dict[str, float]]
    centroid: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict, kw_only=True)
    outcome: Outcome | None = None
    final: dict[str, float | str] = field(default_factory=dict)
    images: pd.DataFrame | None = None

    @property
    def mean(self) -> dict[str, float]:
        """Means over the agents, measured and predicted."""
        names = dict.fromkeys(name for info in self.agents for name in info)
        measured = {
            name: float(np.mean([info[name] for info in self.agents if name in info]))
            for name in names
        }
        return measured | self.predicted

    @property
    def numbers(self) -> dict[str, float]:
        """The means over the agents and the centroid's numbers, each under a name of its own.

        Raises:
            ValueError: if a name stands for both, because a column would then mean two things.
        """
        mean = self.mean
        both = mean.keys() & self.centroid.keys()
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: of the agents and of the centroid")
        return mean | self.centroid

    def rows(self) -> list[Row]:
        """The long form: one row for each agent, for their mean, for the centroid."""
        whose = [(str(k), info) for k, info in enumerate(self.agents)]
        whose += [("mean", self.mean), ("centroid", self.centroid)]
        return [(self.round, who, name, info[name]) for who, info in whose for name in info]


@dataclass(frozen=True)
class Event:
    """Something that a run survived.

    Attributes:
        what: "agent died"; "run resumed", by another process; "snapshot unusable".
        detail: the reason, in one line.
        round: the last round known to be done; for a snapshot, its own round.
        agents: the agents that died, if known: all those of an actor.
        replayed_from: the round from which the run went on; None where it need not.
        seconds_lost: the seconds from the state that was kept to the state that was brought back.
        when: the time in seconds since 1970.
    """

    what: str
    detail: str
    round: int
    agents: Sequence[int] = ()
    replayed_from: int | None = None
    seconds_lost: float = 0.0
    when: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        trial: its name.
        parts: the measurements, as the bytes of Parquet files.
        final: the final numbers by name, with status, stop_reason and stop_round.
        weights: every agent's parameters, (K, P).
        centroid: their mean, (P,).
    """

    trial: str
    parts: Sequence[bytes]
    final: dict[str, Any]
    weights: NDArray[np.float64]
    centroid: NDArray[np.float64]

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """The measurements, as `load_rounds` has them; unpacked when they are asked for."""
        frames = [read_part(data, self.trial) for data in self.parts]
        return pd.concat(frames, ignore_index=True)


def events_frame(trial: str, events: Sequence[Event]) -> pd.DataFrame:
    """Events as the frame of `load_events`."""
    names = [column.name for column in fields(Event)]
    frame = pd.DataFrame([asdict(event) for event in events], columns=names)
    frame.insert(0, "trial", trial)
    frame.insert(1, "when", pd.to_datetime(frame.pop("when").astype("float64"), unit="s", utc=True))
    frame["agents"] = frame["agents"].map(list)
    kinds = {"round": "int64", "replayed_from": "Int64"}
    return frame.astype(kinds | {"seconds_lost": "float64"})


def survived(events: Sequence[Event]) -> dict[str, float]:
    """The number of deaths after which a run went on, and the seconds that they cost."""
    found = [event.seconds_lost for event in events if event.replayed_from is not None]
    return {"recoveries": len(found), "seconds_lost": float(sum(found))}


def frame_of(trial: str, rows: Sequence[Row]) -> pd.DataFrame:
    """Rows as the long frame of `load_rounds`."""
    frame = pd.DataFrame(list(rows), columns=COLUMNS[1:])
    frame.insert(0, "trial", trial)
    return frame.astype(KINDS)


def part_names(folder: Storage) -> list[str]:
    """The files of a trial that hold what was measured round by round, in the order of rounds."""
    names = folder.names(ROUNDS)
    parts = [f"{ROUNDS}/{name}" for name in names if name.startswith("part-")]
    return parts or names  # or one file, as earlier releases wrote it


def read_part(data: bytes, trial: str) -> pd.DataFrame:
    """One of those files as a part of the long frame."""
    frame = pd.read_parquet(io.BytesIO(data), columns=COLUMNS[1:])
    frame.insert(0, "trial", trial)
    return frame.astype(KINDS)


def evaluated(folder: Storage, final: dict[str, Any], average: str) -> dict[str, Any]:
    """The final numbers with those that `raydist.evaluate` added later.

    Where both have a number, that of the later evaluation stands as `joined` says. If the weights
    or the images were replaced since, nothing that the trial measured of them stands.

    Args:
        folder: the trial's folder.
        final: the final numbers.
        average: the prefix of the averaged model's numbers.

    Returns:
        All numbers.
    """
    evaluation = folder.find("evaluation.json")
    if evaluation is None:
        return final
    models: dict[str, dict[str, Any]] = json.loads(evaluation)
    digest = models.get("centroid", {}).get("weights")
    if digest is not None and final.get("centroid_digest") not in (digest, None):
        of_images = {base(name) for name in final if name.endswith("_images")}
        final = {name: value for name, value in final.items() if base(name) not in of_images}
        final |= {"centroid_digest": digest}
    found: dict[str, Any] = dict(final)
    prefixes = {"centroid": "", "average": f"{average}_", "agents": "agents_"}
    for model in ("centroid", "average", "ensemble", "start", "agents"):
        prefix = prefixes.get(model, f"{model}_")
        later = {n: v for n, v in models.get(model, {}).items() if n != "weights"}
        found = joined(found, later, prefix)
    return found
