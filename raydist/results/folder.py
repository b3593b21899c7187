"""A trial's folder as it is written: each file appears whole or not at all."""

import fnmatch
import hashlib
import io
import json
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from raydist.config.experiment import Experiment
from raydist.errors import InputError, MachineError, printable, whole
from raydist.network.topology import names
from raydist.results.identity import check_same, description, named_files
from raydist.results.record import ROUNDS, Event, Record, events_frame, survived
from raydist.results.rounds import Rounds, reached
from raydist.storage import Storage

log = logging.getLogger("raydist")


@dataclass(frozen=True)
class Earlier:
    """A try of the same experiment that another process did not bring to its end.

    Attributes:
        round: the last round that it left.
        seconds: the seconds that it had taken by then.
        reason: the reason for its end, if it told.
    """

    round: int
    seconds: float
    reason: str


class Stopwatch:
    """The time that a run has taken, with that of earlier tries."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.start(0.0)

    def start(self, seconds: float) -> None:
        """Go on from so many seconds."""
        self._before, self._began = seconds, time.monotonic()

    def seconds(self) -> float:
        """Seconds until now."""
        return self._before + time.monotonic() - self._began


class Folder:
    """A trial's folder, written as the run goes; every file appears whole or not at all."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        """Name the folder, by a path or an fsspec URL; nothing is written yet."""
        self.store = Storage(url)
        self.url, self.name = self.store.url, self.store.name
        self.clock = Stopwatch()
        self.rounds = Rounds(self.store, self.clock.seconds)
        self.events: list[Event] = []
        self.hash = ""  # of the experiment, under which the first try began
        self._data = ""  # digest of its images
        self.earlier: Earlier | None = None
        self._damaged: set[str] = set()

    def begin(
        self,
        config: Experiment,
        graph: nx.Graph,
        A: NDArray[np.float64],
        mixing_rate: float,
        contents: Mapping[str, str] | None = None,
    ) -> None:
        """Write what is known before the first round; `earlier` tells of an unfinished try.

        Args:
            config: the experiment.
            graph: the topology.
            A: combination matrix of the graph, (K, K).
            mixing_rate: the mixing rate of A.
            contents: digests of the files and images that the experiment names.

        Raises:
            InputError: if the folder holds another experiment or a result.
            MachineError: if it cannot be written.
        """
        contents = named_files(config) | dict(contents or {})
        self.check(config, contents)
        self._data = contents.get("data", "")
        if self.final(config) is not None:
            raise InputError(f"{self.url} has run to its end: read it with raydist.load")
        self.earlier = self._look_back()
        self.hash = (self._known() or {}).get("hash") or config.digest(contents)
        others = () if self.earlier else (ROUNDS, "images.parquet", "events.parquet")
        torn = [name for name in self.store.names() if name.endswith(".part")]
        for name in ("final.json", "error.txt", "evaluation.json", *others, *torn):
            self.store.remove(name)  # of another try
        if self.earlier:
            self.events = self._known_events()
        experiment = description(config, contents, self.hash)
        self._write("experiment.json", pack_json(experiment))
        edges = [[int(l), int(k)] for l, k in graph.edges]
        known = {"nodes": names(graph), "edges": edges, "directed": graph.is_directed()}
        known["A"] = A.tolist()
        self._write("graph.json", pack_json(known | {"mixing_rate": mixing_rate}))
        self.clock.start(0.0)

    def check(self, config: Experiment, contents: dict[str, str]) -> dict[str, str]:
        """The folder holds nothing, or this experiment.

        Args:
            config: the experiment.
            contents: digests of the files and images that the experiment names.

        Returns:
            The versions with which an unfinished try was begun, as far as it recorded them.

        Raises:
            InputError: if it holds another experiment.
        """
        known = self._known()
        if known is None:
            return {}
        check_same(self.url, known, config, named_files(config) | contents)
        finished = self.store.find("final.json") is not None
        return {} if finished else dict(known.get("versions", {}))

    def add(self, record: Record) -> None:
        """Take in a record; `flush` writes."""
        self.rounds.add(record)

    def flush(self) -> None:
        """Write all rounds so far."""
        self._check_there()
        self.rounds.flush()

    def tell(self, event: Event) -> None:
        """Write one more event."""
        self.events.append(event)
        self._write("events.parquet", pack_frame(events_frame(self.name, self.events)))

    def fail(self, error: BaseException) -> None:
        """Write why the run failed, the reason as its last line; a result that is there stands."""
        text = "".join(traceback.format_exception(error))
        if len(str(error).splitlines()) > 1:  # of the reason that would be the last line only
            text += whole(error) + "\n"
        if self.store.find("final.json") is None:
            self._write("error.txt", printable(text).encode(errors="replace"))

    def finish(self, record: Record, seconds: float) -> dict[str, Any]:
        """Write the final numbers, last of all.

        Args:
            record: the last record.
            seconds: the seconds that the run took.

        Returns:
            What `final.json` holds.
        """
        assert record.outcome is not None
        final = final_numbers(record, seconds, self.events)
        centroid = self.store.find("weights/centroid.safetensors")
        if centroid is not None:
            final["centroid_digest"] = digest_of(centroid, self._data.encode())
        if record.images is not None:
            models = record.images["model"]
            of = {name: digest_of_model(self.store, name, self._data) for name in models.unique()}
            images = record.images.assign(weights=models.map(of))  # whose verdicts these are
            self._write("images.parquet", pack_frame(images))
        self.flush()
        self._write("final.json", pack_json(final))
        return final

    def final(self, config: Experiment) -> dict[str, Any] | None:
        """The final numbers of an experiment that already ran to its end here, else None.

        Args:
            config: the experiment.

        Returns:
            The numbers.

        Raises:
            InputError: if it is another experiment that ran to its end here.
        """
        final = self._json("final.json")
        if final is None:
            return None
        known = self._known()
        if known is None:
            raise InputError(
                f"{self.url} holds a result, but its experiment.json is gone or damaged: move it "
                "away, or write --out with a new folder"
            )
        check_same(self.url, known, config, named_files(config))
        return final

    def _look_back(self) -> Earlier | None:
        """The unfinished try of this experiment that left something here, or None."""
        if not {"experiment.json", ROUNDS} & {*self.store.names()}:
            return None
        came = 0, 0.0
        try:
            came = reached(self.store)
        except ValueError as error:
            self._leave_out(str(error))
        lines = (self.store.find("error.txt") or b"").decode(errors="replace").strip().splitlines()
        return Earlier(*came, lines[-1][:300] if lines else "the process was gone")

    def _known(self) -> dict[str, Any] | None:
        """The content of `experiment.json`; None if it is not there or damaged."""
        known = self._json("experiment.json")
        return known if known and isinstance(known.get("config"), dict) else None

    def _json(self, name: str) -> dict[str, Any] | None:
        """A file's table; None if it is not there, or not a whole one, which is told."""
        data = self.store.find(name)
        try:
            tree = None if data is None else json.loads(data)
        except ValueError:
            self._leave_out(name)
            return None
        return tree if isinstance(tree, dict) else None

    def _known_events(self) -> list[Event]:
        """The events that earlier tries survived."""
        data = self.store.find("events.parquet")
        try:
            return [] if data is None else _unpack_events(data)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            self._leave_out("events.parquet")
            return []

    def _leave_out(self, name: str) -> None:
        """Tell once that a file is damaged."""
        if name not in self._damaged:
            self._damaged.add(name)
            log.warning("%s/%s is damaged, and left out", self.url, name)

    def _check_there(self) -> None:
        """Nobody has moved or removed the folder: it would be made anew, without what it held."""
        if self.hash and self.store.local and not os.path.exists(f"{self.url}/experiment.json"):
            raise MachineError(
                f"{self.url} was moved or removed while it was written: look where it is, and "
                "continue there with --resume"
            )

    def _write(self, name: str, data: bytes) -> None:
        if name != "experiment.json":
            self._check_there()
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


def digest_of_model(store: Storage, name: str, data: str) -> str:
    """A hash that identifies a model and the images on which it is measured.

    Args:
        store: the trial's folder.
        name: the name of a model that has files; "ensemble" is made of the snapshots.
        data: digest of the images.

    Returns:
        16 hexadecimal digits of a hash of the contents.
    """
    pattern = "snapshot-*" if name == "ensemble" else name
    names = fnmatch.filter(store.names("weights"), f"{pattern}.safetensors")
    files = [store.read(f"weights/{file}") for file in names]
    return digest_of(*[b"ensemble"] * (name == "ensemble"), *files, data.encode())


def digest_of(*files: bytes) -> str:
    """16 hexadecimal digits of a hash of the contents of files, one after the other."""
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file)
    return hashed.hexdigest()[:16]


def _unpack_events(data: bytes) -> list[Event]:
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
