"""A trial's folder as it is written: each file appears whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raydist.config import Experiment
from raydist.record import Record, Row, frame_of


class Folder:
    """A trial's folder, written as the run goes; every file appears whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is written yet."""
        self.path = path
        self.rows: list[Row] = []

    def begin(
        self, config: Experiment, graph: nx.Graph, A: NDArray[np.float64], mixing_rate: float
    ) -> None:
        """Write what is known before the first round.

        Args:
            config: the experiment.
            graph: the topology.
            A: combination matrix of the graph, (K, K).
            mixing_rate: of A.
        """
        (self.path / "weights").mkdir(parents=True, exist_ok=True)
        for earlier in ("final.json", "error.txt", "evaluation.json"):  # of another try
            (self.path / earlier).unlink(missing_ok=True)
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
        final = final_numbers(record, seconds)
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


def final_numbers(record: Record, seconds: float) -> dict[str, Any]:
    """The final numbers of a run, from its last record and the seconds it took."""
    assert record.outcome is not None
    early = record.outcome.status != "completed"
    return {
        "status": record.outcome.status,
        "stop_reason": record.outcome.reason,
        "stop_round": record.outcome.round if early else None,
        "rounds_run": record.outcome.round,
        "seconds": seconds,
        **{name: plain(value) for name, value in record.final.items()},
    }


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
