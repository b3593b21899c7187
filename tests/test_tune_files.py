"""Tune's files of a resumed trial are those of one that was never interrupted."""

import json
import shutil

import pandas as pd
import pytest

from raydist.engine.store import Store
from raydist.tune_files import PROGRESS, RESULTS, Past, loggers


class Trial:
    """A trial as Tune's loggers see it."""

    config, evaluated_params, checkpoint = {"seed": 0}, None, None

    def __init__(self, staging):
        self.local_path = str(staging / "t")
        self.init_local_path = lambda: (staging / "t").mkdir(parents=True, exist_ok=True)

    def __str__(self):
        return "t"


def report(n, i, **more):
    return {
        "round": n,
        "loss": 1.0 / (n + 1),
        "training_iteration": i,
        "time_total_s": 0.5 * i,
        **more,
    }


class Writer:
    """In the place of TensorBoard's."""

    steps = None

    def __init__(self, *_, **__):
        self.flush = self.close = lambda: None

    def add_scalar(self, name, value, global_step):
        if name == "ray/tune/round":
            self.steps.append((global_step, value))


def process(staging, storage, reports):
    """One process: its loggers work beside the storage, which then gets their files."""
    trial, callbacks = Trial(staging), loggers(Store(storage))
    for callback in callbacks:
        if hasattr(callback, "_summary_writer_cls"):
            callback._summary_writer_cls = Writer
        callback.log_trial_start(trial)
        for i, result in enumerate(reports, start=1):
            callback.log_trial_result(i, trial, result)
        callback.log_trial_end(trial)
    shutil.copytree(staging / "t", storage / "t", dirs_exist_ok=True)


def rows(storage):
    return [json.loads(line) for line in (storage / "t" / RESULTS).read_text().splitlines()]


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    monkeypatch.setattr(Writer, "steps", [])
    return Writer.steps


END = {"done": True, "status": "completed", "clean_acc": 0.5}


def test_files_of_a_resumed_trial_go_on(tmp_path, steps):
    storage = tmp_path / "study"
    first = [report(n, i) for i, n in enumerate((0, 2, 4, 6), start=1)]
    process(tmp_path / "a", storage, first)
    for name, torn in ((RESULTS, '{"round": 8, "lo'), (PROGRESS, "8,0.1")):  # by the kill
        file = storage / "t" / name
        file.write_text(file.read_text() + torn)
    late = [dict(reversed(report(n, i).items())) for i, n in enumerate((4, 6, 8), start=1)]
    process(tmp_path / "b", storage, [*late, report(8, 4, **END)])
    found = rows(storage)
    assert [row["round"] for row in found] == [0, 2, 4, 6, 8, 8]
    assert [row["training_iteration"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["time_total_s"] for row in found] == [0.5, 1.0, 1.5, 2.0, 3.5, 4.0]
    assert found[-1]["clean_acc"] == 0.5
    table = pd.read_csv(storage / "t" / PROGRESS)
    assert list(table) == ["round", "loss", "training_iteration", "time_total_s"]
    assert table["round"].tolist() == [0, 2, 4, 6, 8, 8]
    assert table["loss"].tolist() == pytest.approx([1.0 / (n + 1) for n in table["round"]])
    assert steps == list(zip([1, 2, 3, 4, 5, 6], [0, 2, 4, 6, 8, 8], strict=True))
    process(tmp_path / "c", storage, [report(8, 1, **END)])  # it had ended: told again
    assert rows(storage) == found and len(steps) == 6


def test_a_failed_trial_that_is_started_again_goes_on(tmp_path):
    storage = tmp_path / "study"
    process(tmp_path / "a", storage, [report(0, 1), {"status": "failed", "done": True}])
    process(tmp_path / "b", storage, [report(0, 1), report(1, 2), report(1, 3, **END)])
    assert [row.get("round") for row in rows(storage)] == [0, None, 1, 1]


def test_what_is_no_report_is_left_out():
    past = Past(b'{"round": 3}\n[1]\nnull\n\xff\n{"round": 5}\n{"rou')
    assert past.lines == ['{"round": 3}', '{"round": 5}']
    assert past.take({"round": 4}) is None
    assert past.take({"round": 7})["training_iteration"] == 3
