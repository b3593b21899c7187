"""What a round costs at the end of a long run, and how old the newest usable snapshot ever is.

16 agents on the quadratic task whose rounds are told, not computed: their numbers are drawn, so
what is measured is the driver, the records with all metrics, what is written, and the snapshots.
"""

import json
import os
import resource
import tempfile
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from growth import quadratic
from targets import Row, row, tell

from raydist.config.experiment import validate
from raydist.engine.driver import train
from raydist.engine.plan import Plan, make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.engine.recovery import Recovery
from raydist.results.folder import Folder

CADENCE = 2.0  # seconds between two snapshots
AGENTS = 16
BLOCK = 100  # rounds of one run, and then of the other
TOLD = (  # by every agent, every round
    *("loss", "lr", "eps", "fosc", "grad_norm", "bytes_sent"),
    *("seconds_attack", "seconds_adapt", "seconds_combine"),
)
MEASURED = ("distance", "disagreement", "excess_risk", "centroid_excess_risk")


class Told(LocalPool):
    """Agents that tell drawn numbers; what they keep in snapshots is their real state."""

    def __init__(self, plan: Plan) -> None:
        """Draw the numbers."""
        super().__init__(plan)
        self._draw = np.random.default_rng(0)

    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> list[list[dict[str, float]]]:
        """As `Pool.step`."""
        for agent in self.agents:
            agent.round = n + len(noisy) - 1
        return [self._numbers(TOLD) for _ in noisy]

    def close(self, n: int) -> None:
        """As `Pool.close`: nothing is open."""

    def measure(self, n: int) -> list[tuple[dict[str, float], dict[str, float]]]:
        """As `Pool.measure`."""
        return [(numbers, {}) for numbers in self._numbers(MEASURED)]

    def _numbers(self, names: Sequence[str]) -> list[dict[str, float]]:
        drawn = self._draw.random((AGENTS, len(names))).tolist()
        return [dict(zip(names, values, strict=True)) for values in drawn]


def newest(snapshots: Path) -> int:
    """The round of the newest snapshot that counts; 0 if there is none."""
    there = (int(file.parent.name[6:]) for file in snapshots.glob("round-*/manifest.json"))
    return max(there, default=0)


class Disk:
    """What this process waits for its disk: each `fsync`, in whichever thread."""

    def __init__(self) -> None:
        """Watch it from now on."""
        self.seconds: list[float] = []
        self._sync = os.fsync
        os.fsync = self._timed

    def _timed(self, fd: Any) -> None:
        began = time.monotonic()
        self._sync(fd)
        self.seconds.append(time.monotonic() - began)


class LongRun:
    """A run of which every round is measured, some rounds at a time.

    Attributes:
        age: of the newest usable snapshot, at most, in seconds.
        size: of its snapshots, at most, in bytes.
        writing: seconds from the state that was copied to the manifest, of each snapshot.
    """

    def __init__(self, rounds: int, path: Path) -> None:
        """Begin.

        Args:
            rounds: their number.
            path: the folder.
        """
        tree = quadratic(AGENTS, rounds) | {"evaluate": {"every": 1}}
        plan = make_plan(validate(tree | {"snapshot": {"seconds": CADENCE}}))
        self._pool, self._folder, self._path = Told(plan), Folder(path), path
        self._folder.begin(plan.config, plan.graph, plan.A, plan.mixing_rate, plan.contents)
        self._keeper = Recovery(plan, self._folder)
        self._records = train(self._pool, plan, self._keeper)
        self.age, self.size, self.writing = 0.0, 0, dict[int, float]()
        self._done = array("d")  # when each round was
        self._looked = time.monotonic()

    def go(self, rounds: int) -> float:
        """Some more rounds, as `complete` does them.

        Args:
            rounds: how many.

        Returns:
            CPU seconds that the process took meanwhile, with all its threads.
        """
        began = time.process_time()
        for record in islice(self._records, rounds):
            now = time.monotonic()
            self._done.append(now)
            if now - self._looked > CADENCE / 8:
                self._look(now)
            if record.outcome is not None:
                self._folder.finish(record, self._keeper.seconds())
                self._pool.shutdown()
        return time.process_time() - began

    def _look(self, now: float) -> None:
        """How old is what would be used, and how large all of it?"""
        n, files = newest(self._path / "snapshots"), self._path.glob("snapshots/*/*")
        self._looked, self.age = now, max(self.age, now - self._done[n])
        with suppress(FileNotFoundError):  # being written, or old
            if n:
                manifest = self._path / f"snapshots/round-{n:06d}/manifest.json"
                ago = time.time() - manifest.stat().st_mtime
                self.writing.setdefault(n, now - self._done[n] - ago)
            self.size = max(self.size, sum(file.stat().st_size for file in files))


def in_turn(rounds: int, place: Path) -> tuple[LongRun, list[float], list[float]]:
    """A long run, and in turn with its last tenth the first one of another: on one machine.

    Args:
        rounds: of either run.
        place: for their folders.

    Returns:
        The first run, at its end; CPU seconds of blocks of its last tenth, and of the other's
        first one.
    """
    young, tenth = LongRun(rounds, place / "young"), rounds // 10
    young.go(1 + BLOCK)  # once: what is imported and looked up at first
    old = LongRun(rounds, place / "run")
    old.go(1 + rounds - tenth)
    blocks = [(old.go(BLOCK), young.go(BLOCK)) for _ in range(tenth // BLOCK)]
    last, first = zip(*blocks, strict=True)
    return old, [*last], [*first]


def measure(quick: bool) -> list[Row]:
    """The targets of long runs.

    Args:
        quick: a tenth of the rounds.

    Returns:
        The rows.
    """
    rounds, disk = 10_000 if quick else 100_000, Disk()
    with tempfile.TemporaryDirectory() as place:
        run, last, first = in_turn(rounds, Path(place))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        path = Path(place) / "run"
        events = (path / "events.parquet").exists()
        files = sorted(path.glob("rounds.parquet/*"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        of_a_round = (AGENTS + 1) * (len(TOLD) + len(MEASURED) - 1) + 2  # two of the centroid
        assert rows == rounds * of_a_round + (AGENTS + 1) * (len(MEASURED) - 1) + 2, rows
        assert not events
        assert json.loads((path / "final.json").read_text())["rounds_run"] == rounds
    about = f"{AGENTS} agents, {rounds:,} rounds, all metrics: {rows:,} rows in {len(files)} parts"
    writing, syncs = [*run.writing.values()], disk.seconds
    slowest = f"{median(writing):.2g} s in the median of {len(writing)}"
    waits = (
        f"the disk's share: {len(syncs)} calls of fsync, {1e3 * median(syncs):.2g} ms in the "
        f"median, {max(syncs):.2g} s at most; a snapshot needs two, one after the other"
    )
    return [
        row(
            "a round in the last tenth of a long run against one in the first",
            1e3 * sum(last) / (BLOCK * len(last)),
            "ms of CPU",
            reference=1e3 * sum(first) / (BLOCK * len(first)),
            limit=1.1,
            note=f"{about}; in turn with another run's first tenth",
        ),
        row(
            "age of the newest usable snapshot of a long run, at most",
            run.age,
            "s",
            limit=2 * CADENCE,
            note=f"snapshot.seconds = {CADENCE:g}",
        ),
        row("a snapshot until it counts, at most", max(writing), "s", limit=None, note=slowest),
        row("threads' waiting for the disk in a long run", sum(syncs), "s", limit=None, note=waits),
        row("memory of a long run", memory / 1e6, "MB", limit=None, note="of its process"),
        row("snapshots of a long run on disk, at most", run.size / 1e6, "MB", limit=None),
    ]


if __name__ == "__main__":
    tell(measure)
