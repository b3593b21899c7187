"""A trial's folder as it is written: each file appears whole or not at all."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raydist.config import Experiment
from raydist.record import COLUMNS, Event, Record, Row, events_frame, frame_of, survived


@dataclass(frozen=True)
class Earlier:
    """A try of the same experiment that another process did not bring to its end.

    Attributes:
        round: the last one that it left.
        began: when, in seconds since 1970.
        seen: when it gave the last sign of life.
        reason: why it ended, if it told.
    """

    round: int
    began: float
    seen: float
    reason: str


class Folder:
    """A trial's folder, written as the run goes; every file appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is written yet."""
        self.path = path
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.earlier: Earlier | None = None

    def begin(
        self, config: Experiment, graph: nx.Graph, A: NDArray[np.float64], mixing_rate: float
    ) -> None:
        """Write what is known before the first round; `earlier` tells of an unfinished try.

        Args:
            config: the experiment.
            graph: the topology.
            A: combination matrix of the graph, (K, K).
            mixing_rate: of A.
        """
        (self.path / "weights").mkdir(parents=True, exist_ok=True)
        self.earlier = self._look_back(config.digest())
        others = () if self.earlier else ("rounds.parquet", "images.parquet", "events.parquet")
        for name in ("final.json", "error.txt", "evaluation.json", *others):  # of another try
            (self.path / name).unlink(missing_ok=True)
        if self.earlier:
            self.events = _events_in(self.path / "events.parquet")
        experiment = {"hash": config.digest(), "config": config.model_dump(mode="json")}
        write_json(self.path / "experiment.json", experiment)
        edges = [[int(l), int(k)] for l, k in graph.edges]
        write_json(
            self.path / "graph.json",
            {"edges": edges, "directed": graph.is_directed(), "A": A.tolist()}
            | {"mixing_rate": mixing_rate},
        )

    def add(self, record: Record) -> None:
        """Take in a record; `flush` writes."""
        self.rows += record.rows()

    def flush(self) -> None:
        """Write all rounds so far."""
        write_parquet(self.path / "rounds.parquet", frame_of(self.path.name, self.rows))

    def tell(self, event: Event) -> None:
        """Write one more event."""
        self.events.append(event)
        write_parquet(self.path / "events.parquet", events_frame(self.path.name, self.events))

    def fail(self, text: str) -> None:
        """Write why the run failed; its last line is the reason."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "error.txt").write_text(text)

    def finish(self, record: Record, seconds: float) -> dict[str, Any]:
        """Write the final numbers, last of all.

        Args:
            record: the last record.
            seconds: that the run took.

        Returns:
            What `final.json` holds.
        """
        assert record.outcome is not None
        if record.images is not None:
            write_parquet(self.path / "images.parquet", record.images)
        self.flush()
        final = final_numbers(record, seconds, self.events)
        write_json(self.path / "final.json", final)
        return final

    def final(self, digest: str) -> dict[str, Any] | None:
        """The final numbers of an experiment that already ran to its end here, else None."""
        try:
            experiment = json.loads((self.path / "experiment.json").read_text())
            final: dict[str, Any] = json.loads((self.path / "final.json").read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return final if experiment.get("hash") == digest else None

    def _look_back(self, digest: str) -> Earlier | None:
        """What an unfinished try of this experiment has left here."""
        start, rounds = self.path / "experiment.json", self.path / "rounds.parquet"
        try:
            if json.loads(start.read_text()).get("hash") != digest:
                return None
        except (OSError, json.JSONDecodeError):
            return None
        began = start.stat().st_mtime
        reached, seen = 0, began
        if rounds.exists():
            seen = max(began, rounds.stat().st_mtime)
            reached = int(pd.read_parquet(rounds, columns=["round"])["round"].max())
        error = self.path / "error.txt"
        lines = error.read_text().strip().splitlines() if error.exists() else []
        return Earlier(reached, began, seen, lines[-1][:300] if lines else "the process was gone")


def final_numbers(record: Record, seconds: float, events: Sequence[Event]) -> dict[str, Any]:
    """The final numbers of a run, from its last record, the seconds it took, what it survived."""
    assert record.outcome is not None
    early = record.outcome.status != "completed"
    return {
        "status": record.outcome.status,
        "stop_reason": record.outcome.reason,
        "stop_round": record.outcome.round if early else None,
        "rounds_run": record.outcome.round,
        "seconds": seconds,
        **survived(events),
        **{name: plain(value) for name, value in record.final.items()},
    }


def pack_rows(rows: Sequence[Row]) -> bytes:
    """Rows as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame_of("", rows).to_parquet(buffer)
    return buffer.getvalue()


def unpack_rows(data: bytes) -> list[Row]:
    """The rows that `pack_rows` packed."""
    columns = pd.read_parquet(io.BytesIO(data))[COLUMNS[1:]]
    return list(columns.itertuples(index=False, name=None))


def _events_in(path: Path) -> list[Event]:
    if not path.exists():
        return []
    frame = pd.read_parquet(path).drop(columns="trial")
    frame["when"] = [when.timestamp() for when in frame["when"]]
    known = frame.astype(object).where(frame.notna(), None)
    return [Event(**{str(k): v for k, v in row.items()}) for row in known.to_dict("records")]


def plain(value: float | str) -> float | str | None:
    """A value that JSON knows: NaN and infinities become null."""
    return value if isinstance(value, str) or np.isfinite(value) else None


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1))
    os.replace(part, path)


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as Parquet, whole or not at all."""
    part = path.with_name(path.name + ".part")
    frame.to_parquet(part)
    os.replace(part, path)
