"""A trial's folder as it is written: each file appears whole or not at all."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raydist.config import Experiment, InputError
from raydist.engine.store import Store
from raydist.network.topology import names
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

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """Name the folder, by a path or an fsspec URL; nothing is written yet."""
        self.store = Store(url)
        self.url, self.name = self.store.url, self.store.name
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

        Raises:
            InputError: if the folder cannot be written.
        """
        try:
            self.earlier = self._look_back(config.digest())
            others = () if self.earlier else ("rounds.parquet", "images.parquet", "events.parquet")
            torn = [name for name in self.store.names() if name.endswith(".part")]
            for name in ("final.json", "error.txt", "evaluation.json", *others, *torn):
                self.store.remove(name)  # of another try
            if self.earlier:
                self.events = _unpack_events(self.store.find("events.parquet"))
            experiment = {"hash": config.digest(), "config": config.model_dump(mode="json")}
            self._write("experiment.json", pack_json(experiment))
            edges = [[int(l), int(k)] for l, k in graph.edges]
            known = {"nodes": names(graph), "edges": edges, "directed": graph.is_directed()}
            known["A"] = A.tolist()
            self._write("graph.json", pack_json(known | {"mixing_rate": mixing_rate}))
        except OSError as error:
            raise InputError(f"{self.url} cannot be written: {error.strerror or error}") from error

    def add(self, record: Record) -> None:
        """Take in a record; `flush` writes."""
        self.rows += record.rows()

    def flush(self) -> None:
        """Write all rounds so far."""
        self._write("rounds.parquet", pack_frame(frame_of(self.name, self.rows)))

    def tell(self, event: Event) -> None:
        """Write one more event."""
        self.events.append(event)
        self._write("events.parquet", pack_frame(events_frame(self.name, self.events)))

    def fail(self, text: str) -> None:
        """Write why the run failed; its last line is the reason."""
        self._write("error.txt", text.encode())

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
            self._write("images.parquet", pack_frame(record.images))
        self.flush()
        final = final_numbers(record, seconds, self.events)
        self._write("final.json", pack_json(final))
        return final

    def final(self, digest: str) -> dict[str, Any] | None:
        """The final numbers of an experiment that already ran to its end here, else None."""
        try:
            experiment = json.loads(self.store.read("experiment.json"))
            final: dict[str, Any] = json.loads(self.store.read("final.json"))
        except (OSError, json.JSONDecodeError):
            return None
        return final if experiment.get("hash") == digest else None

    def _look_back(self, digest: str) -> Earlier | None:
        """What an unfinished try of this experiment has left here."""
        try:
            if json.loads(self.store.read("experiment.json")).get("hash") != digest:
                return None
        except (OSError, json.JSONDecodeError):
            return None
        began = self.store.modified("experiment.json")
        reached, seen, rounds = 0, began, self.store.find("rounds.parquet")
        if rounds is not None:
            seen = max(began, self.store.modified("rounds.parquet"))
            reached = int(pd.read_parquet(io.BytesIO(rounds), columns=["round"])["round"].max())
        lines = (self.store.find("error.txt") or b"").decode().strip().splitlines()
        return Earlier(reached, began, seen, lines[-1][:300] if lines else "the process was gone")

    def _write(self, name: str, data: bytes) -> None:
        self.store.write(name, data, durable=False)  # what a dying disk takes is measured again


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
    return pack_frame(frame_of("", rows))


def unpack_rows(data: bytes) -> list[Row]:
    """The rows that `pack_rows` packed."""
    columns = pd.read_parquet(io.BytesIO(data))[COLUMNS[1:]]
    return list(columns.itertuples(index=False, name=None))


def _unpack_events(data: bytes | None) -> list[Event]:
    if data is None:
        return []
    frame = pd.read_parquet(io.BytesIO(data)).drop(columns="trial")
    frame["when"] = [when.timestamp() for when in frame["when"]]
    known = frame.astype(object).where(frame.notna(), None)
    return [Event(**{str(k): v for k, v in row.items()}) for row in known.to_dict("records")]


def plain(value: float | str) -> float | str | None:
    """A value that JSON knows: NaN and infinities become null."""
    return value if isinstance(value, str) or np.isfinite(value) else None


def pack_json(value: Any) -> bytes:
    """A value as the bytes of a JSON file."""
    return json.dumps(value, indent=1).encode()


def pack_frame(frame: pd.DataFrame) -> bytes:
    """A frame as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()
