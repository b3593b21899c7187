"""What a round costs at the end of a long run, and how old the newest usable snapshot ever is.

16 agents on the quadratic task whose rounds are told, not computed: their numbers are drawn, so
what is measured is the driver, the records with all metrics, what is written, and the snapshots.
"""

import json
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from growth import quadratic
from targets import Row, row, tell

from raydist.config import validate
from raydist.engine.complete import FLUSH_SECONDS
from raydist.engine.driver import train
from raydist.engine.keeper import Keeper
from raydist.engine.plan import Plan, make_plan
from raydist.engine.pool import LocalPool
from raydist.folder import Folder

CADENCE = 2.0  # seconds between two snapshots
AGENTS = 16
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


def long_run(rounds: int, path: Path) -> tuple[list[float], float, int]:
    """Run; every round is measured.

    Args:
        rounds: their number.
        path: the folder.

    Returns:
        CPU seconds of each round, of the process with all its threads; the largest age of the
        newest usable snapshot in seconds; the largest number of bytes in its snapshots.
    """
    tree = quadratic(AGENTS, rounds) | {"evaluate": {"every": 1}, "snapshot": {"seconds": CADENCE}}
    plan = make_plan(validate(tree))
    pool, folder = Told(plan), Folder(path)
    folder.begin(plan.config, plan.graph, plan.A, plan.mixing_rate, plan.contents)
    keeper = Keeper(plan, folder)
    done, cpu, age, size = [time.monotonic()], [time.process_time()], 0.0, 0
    looked = flushed = done[0]
    for record in train(pool, plan, keeper):
        folder.add(record)
        now = time.monotonic()
        done.append(now)
        if now - flushed > FLUSH_SECONDS:
            folder.flush()
            flushed = now
        cpu.append(time.process_time())
        if now - looked > CADENCE / 8:
            looked = now
            age = max(age, now - done[newest(path / "snapshots")])
            with suppress(FileNotFoundError):  # being written, or old
                size = max(size, sum(f.stat().st_size for f in path.glob("snapshots/*/*")))
    folder.finish(record, keeper.seconds())
    pool.shutdown()
    return np.diff(cpu).tolist(), age, size


def measure(quick: bool) -> list[Row]:
    """The targets of long runs.

    Args:
        quick: a tenth of the rounds.

    Returns:
        The rows.
    """
    rounds = 10_000 if quick else 100_000
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "run"
        seconds, age, size = long_run(rounds, path)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        events = (path / "events.parquet").exists()
        files = sorted(path.glob("rounds.parquet/*"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        of_a_round = (AGENTS + 1) * (len(TOLD) + len(MEASURED) - 1) + 2  # two of the centroid
        assert rows == rounds * of_a_round + (AGENTS + 1) * (len(MEASURED) - 1) + 2, rows
        assert not events
        assert json.loads((path / "final.json").read_text())["rounds_run"] == rounds
    tenth = rounds // 10
    first, last = (1e3 * float(np.mean(part)) for part in (seconds[100:tenth], seconds[-tenth:]))
    about = f"{AGENTS} agents, {rounds:,} rounds, all metrics: {rows:,} rows in {len(files)} parts"
    return [
        row(
            "a round in the last tenth of a long run against one in the first",
            last,
            "ms of CPU",
            reference=first,
            limit=1.1,
            note=about,
        ),
        row(
            "age of the newest usable snapshot of a long run, at most",
            age,
            "s",
            limit=2 * CADENCE,
            note=f"snapshot.seconds = {CADENCE:g}",
        ),
        row("memory of a long run", memory / 1e6, "MB", limit=None, note="of its process"),
        row("snapshots of a long run on disk, at most", size / 1e6, "MB", limit=None),
    ]


if __name__ == "__main__":
    tell(measure)
