"""Everything that is measured round by round, kept in parts.

The folder `rounds.parquet/` of a trial holds `part-000000.parquet`, `part-000001.parquet`, ... (or
lies in memory, where a run has no folder). A part is closed once it holds `ROWS` rows and is not
written again; only the last one is, as it grows. Recording, flushing and a snapshot therefore cost
the same at any round, in time and in memory.
"""

import io
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydist.results.record import ROUNDS, Record, Row, part_names
from raydist.storage import Storage

ROWS = 65_536  # of a part: a run of 10⁵ rounds of 16 agents has some hundred parts
SECONDS = b"seconds"  # that the run had taken when a part was written, in the part's metadata


@dataclass
class _Rows:
    """Rows by column; names are numbers, which index `names`."""

    round: "array[int]" = field(default_factory=lambda: array("q"))
    agent: "array[int]" = field(default_factory=lambda: array("H"))
    metric: "array[int]" = field(default_factory=lambda: array("H"))
    value: "array[float]" = field(default_factory=lambda: array("d"))
    names: dict[str, int] = field(default_factory=dict)

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        names = self.names
        for n, who, metric, value in rows:
            self.round.append(n)
            self.agent.append(names.setdefault(who, len(names)))
            self.metric.append(names.setdefault(metric, len(names)))
            self.value.append(value)

    def pack(self, seconds: float, upto: int | None = None) -> bytes:
        """The rows as the bytes of a Parquet file.

        Args:
            seconds: the seconds that the run has taken.
            upto: the last round; None: all.

        Returns:
            The bytes.
        """
        rounds = np.array(self.round)
        n = len(rounds) if upto is None else int(np.searchsorted(rounds, upto, "right"))
        names = pa.array(list(self.names), pa.string())
        coded = [
            names.take(pa.array(np.array(column)[:n], pa.int32()))
            for column in (self.agent, self.metric)
        ]
        columns = [pa.array(rounds[:n]), *coded, pa.array(np.array(self.value)[:n])]
        table = pa.table(columns, names=["round", "agent", "metric", "value"])
        return _written(table.replace_schema_metadata({SECONDS: repr(seconds)}))


class Rounds:
    """The rounds of one run.

    Attributes:
        last: the last round that was added; -1 if there is none.
    """

    def __init__(self, store: Storage | None, seconds: Callable[[], float]) -> None:
        """Begin with no round.

        Args:
            store: the trial's folder; None: the measurements stay in memory.
            seconds: a function that tells how many seconds the run has taken.
        """
        self._store, self._seconds, self._memory = store, seconds, dict[str, bytes]()
        self._ends: list[int] = []  # the last round of each closed part
        self._rows = _Rows()  # behind them
        self.last = self._written = -1

    def add(self, record: Record) -> None:
        """Take in a record; that of a round which is there already changes nothing."""
        if record.round > self.last:
            self._rows.extend(record.rows())
            self.last = record.round
        if len(self._rows.round) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._written == self.last:
            return
        full = len(self._rows.round) >= ROWS
        data = self._rows.pack(self._seconds())
        self._write(_name(len(self._ends)), data, durable=full)
        self._written = self.last
        if full:
            self._ends.append(self.last)
            self._rows = _Rows()

    def newest(self) -> Record | None:
        """The record of the last round, as it was added; None if there is none."""
        if self.last < 0:
            return None
        if self._rows.round:
            data = self._rows.pack(self._seconds())
        else:  # a part ends with that round
            data = self._read(_name(len(self._ends) - 1))
        rows = [row for row in _unpacked(data) if row[0] == self.last]
        agents: dict[int, dict[str, float]] = {}
        others: dict[str, dict[str, float]] = {"centroid": {}, "mean": {}}
        for _, who, metric, value in rows:
            (others[who] if who in others else agents.setdefault(int(who), {}))[metric] = value
        mine = [agents[k] for k in sorted(agents)]
        measured = {metric for info in mine for metric in info}
        predicted = {metric: v for metric, v in others["mean"].items() if metric not in measured}
        return Record(self.last, mine, others["centroid"], predicted=predicted)

    def until(self, n: int) -> tuple[list[int], bytes]:
        """The state that `restore` needs to go back to round n.

        Args:
            n: a round that was added.

        Returns:
            The last rounds of the closed parts which end by then; the rows behind those up to n,
            as the bytes of a Parquet file.
        """
        closed = [end for end in self._ends if end <= n]
        if len(closed) == len(self._ends):
            return closed, self._rows.pack(self._seconds(), n)
        # the next part has been closed since
        table = pq.read_table(io.BytesIO(self._read(_name(len(closed)))))
        rows = np.searchsorted(table["round"].to_numpy(), n, "right")
        return closed, _written(table.slice(0, int(rows)))

    def restore(self, ends: Iterable[int], rows: bytes | None) -> None:
        """Forget what was measured after a round.

        Args:
            ends: the last rounds of the closed parts, of those that are there.
            rows: the rows measured behind them; both come from `until`.
        """
        self._ends, self._rows = [*ends], _Rows()
        if rows is not None:
            self._rows.extend(_unpacked(rows))
        self.last = max([*self._ends[-1:], *self._rows.round[-1:]], default=-1)
        self._written = self._ends[-1] if self._ends else -1

    def clear(self) -> None:
        """Remove the files behind those that count."""
        if self._store is None:
            return
        keep = {_name(i) for i in range(len(self._ends))}
        for name in self._store.names(ROUNDS):
            if name == ROUNDS:  # one file, as earlier releases wrote it
                self._store.remove(ROUNDS)
            elif name not in keep:
                self._store.remove(f"{ROUNDS}/{name}")

    def parts(self) -> list[bytes]:
        """All that was flushed, as the bytes of Parquet files."""
        if self._store is None:
            return [*self._memory.values()]
        return [self._store.read(name) for name in part_names(self._store)]

    def _write(self, name: str, data: bytes, durable: bool) -> None:
        if self._store is None:
            self._memory[name] = data
        else:  # what a dying disk takes of the last part is measured again
            self._store.write(f"{ROUNDS}/{name}", data, durable=durable)

    def _read(self, name: str) -> bytes:
        return self._memory[name] if self._store is None else self._store.read(f"{ROUNDS}/{name}")


def reached(store: Storage) -> tuple[int, float]:
    """The last round of an earlier try, and its seconds.

    Args:
        store: the trial's folder.

    Returns:
        The last round that it left, and the seconds that it had taken by then.

    Raises:
        ValueError: if its last part is damaged: the name of the file.
    """
    names = part_names(store)
    if not names:
        return 0, 0.0
    try:
        table = pq.read_table(io.BytesIO(store.read(names[-1])))
        seconds = float((table.schema.metadata or {}).get(SECONDS, b"0"))
        return int(table["round"][-1].as_py()), seconds
    except (pa.ArrowException, OSError, KeyError, IndexError, ValueError) as error:
        raise ValueError(names[-1]) from error


def _written(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _name(i: int) -> str:
    return f"part-{i:06d}.parquet"


def _unpacked(data: bytes) -> Iterable[Row]:
    """The rows in the bytes of a Parquet file."""
    table = pq.read_table(io.BytesIO(data), columns=["round", "agent", "metric", "value"])
    return zip(*(column.to_pylist() for column in table.columns), strict=True)
