"""What is measured is appended in parts: all of it is there, and no part is written twice."""

import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from raydist import load_rounds
from raydist.results import rounds
from raydist.results.record import Record, frame_of, read_part
from raydist.results.rounds import Rounds, reached
from raydist.storage import Storage

ALL = 60


def record(n):
    agents = [{"loss": n + k / 8, "lr": 0.1} for k in range(3)]
    measured = {"val_loss": float(n)} if n % 5 == 0 else {}
    return Record(n, agents, measured, predicted={"theory": n / 2} if measured else {})


EXPECTED = frame_of("run", [row for n in range(ALL) for row in record(n).rows()])


def frame_in(store):
    store.write("experiment.json", b'{"config": {}}')
    return load_rounds(store.url)


@pytest.mark.parametrize("place", ["folder", "memory://bucket/run"])
@pytest.mark.parametrize(
    ("size", "died", "kept"), [(40, 30, 20), (100, 59, 0), (300, 50, 50), (60, 58, 57)]
)
def test_however_it_is_cut_all_rows_come_back(tmp_path, monkeypatch, place, size, died, kept):
    """Written in parts, cut by a kill behind a snapshot, continued from it."""
    store = Storage(place if "://" in place else tmp_path / "run")
    monkeypatch.setattr(rounds, "ROWS", size)
    first = Rounds(store, lambda: 1.5)
    for n in range(died + 1):
        first.add(record(n))
        if n % 7 == 0:
            first.flush()
    assert first.newest() == record(died)
    again = Rounds(store, lambda: 2.5)
    again.restore(*first.until(kept))
    again.clear()
    assert again.last == kept and reached(store)[0] <= kept  # nothing is read from behind it
    for n in range(max(kept - 1, 0), ALL):  # what was told before changes nothing
        again.add(record(n))
    again.flush()
    pd.testing.assert_frame_equal(frame_in(store), EXPECTED)
    assert reached(store) == (ALL - 1, 2.5)
    assert sum(len(read_part(part, "run")) for part in again.parts()) == len(EXPECTED)
    MemoryFileSystem.store.clear()


def test_a_flush_and_a_snapshot_cost_the_same_at_any_round(tmp_path, monkeypatch):
    """In bytes: what is written, read and held does not grow with the rounds behind it."""
    monkeypatch.setattr(rounds, "ROWS", 100)
    written, read = [], []
    write, read_one = Storage.write, Storage.read
    monkeypatch.setattr(
        Storage,
        "write",
        lambda self, name, data, **how: (written.append(len(data)), write(self, name, data, **how))[
            1
        ],
    )
    monkeypatch.setattr(
        Storage, "read", lambda self, name: (read.append(name), read_one(self, name))[1]
    )
    kept, costs = Rounds(Storage(tmp_path / "run"), lambda: 0.0), []
    for n in range(600):
        kept.add(record(n))
        kept.flush()
        costs.append((sum(written), len(read), len(kept.until(n)[1]), len(kept._rows.round)))
        written.clear()
    first, last = (np.max(part, axis=0) for part in (costs[20:120], costs[-100:]))
    assert (last <= 1.02 * first).all() and last[3] <= 110 and not read
    assert kept.until(580)[1] and len(read) <= 1  # one part at most, whichever round


def test_a_folder_without_rounds_has_reached_none(tmp_path):
    assert reached(Storage(tmp_path)) == (0, 0.0)


def test_what_runs_without_a_folder_is_all_there():
    kept = Rounds(None, lambda: 0.0)
    for n in range(ALL):
        kept.add(record(n))
    kept.flush()
    (part,) = kept.parts()
    pd.testing.assert_frame_equal(read_part(part, "run"), EXPECTED)
