"""Tune's files of a trial lose no report to a kill, and a resumed trial goes on with them."""

import json
import os
import shutil

import pandas as pd
import pytest

from raydist import load, metrics
from raydist.storage import Storage
from raydist.tune.files import HAS_LOGGERS, PROGRESS, RESULTS, Past, TuneFiles
from raydist.tune.monitor import described

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


class Trial:
    """A trial as Tune's loggers see it; Tune lets them write in a folder of its own."""

    config, evaluated_params, checkpoint = {"seed": 0}, {"seed": 0}, None

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


class Queue:
    """In the place of TensorBoard's writer: what is not flushed is lost to a kill, as there."""

    def __init__(self, folder, **_):
        self.file = folder + f"/events.out.tfevents.{len(os.listdir(folder))}"
        self.late, self.data = [], b""
        self.flush()

    def add_scalar(self, tag, value, global_step):
        value = {"tag": tag, "simple_value": float(value)}
        event = event_pb2.Event(step=global_step, summary={"value": [value]})
        self.late.append(event.SerializeToString())

    def flush(self, lag=1):
        """All but the newest event, which is still on its way."""
        found = self.late[: len(self.late) - lag]
        del self.late[: len(found)]
        self.data += b"".join(len(e).to_bytes(8, "little") + bytes(4) + e + bytes(4) for e in found)
        with open(self.file, "wb") as file:
            file.write(self.data)

    def close(self):
        self.flush(lag=0)


def process(staging, folder, reports, ends=False):
    """One process with its loggers, which is killed if it does not end."""
    staging.mkdir()
    trial, files = Trial(staging), TuneFiles(folder)
    files._events._summary_writer_cls = Queue
    files.log_trial_start(trial)
    for i, result in enumerate(reports, start=1):
        files.log_trial_result(i, trial, result)
    if not ends:
        shutil.copytree(folder.root, staging / "killed")
    files.log_trial_end(trial)  # closes files
    if not ends:
        shutil.rmtree(folder.root)
        shutil.move(staging / "killed", folder.root)


def rows(storage):
    return [json.loads(line) for line in (storage / "t" / RESULTS).read_text().splitlines()]


def scalars(storage, tag):
    """What TensorBoard shows: (step, value), in the order of the files, one event a record."""
    found = []
    for file in sorted((storage / "t").glob("events*")):
        data = file.read_bytes()
        while len(data) >= 16:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found += [(event.step, v.simple_value) for v in event.summary.value if v.tag == tag]
            data = data[16 + length :]
    return found


END = {"done": True, "status": "completed", "clean_acc": 0.5}


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "study").mkdir()
    return tmp_path / "study"


def test_a_kill_loses_no_report(tmp_path, storage):
    """Nobody copies what lies in Tune's folder any more."""
    process(tmp_path / "a", Storage(storage), [report(n, i) for i, n in enumerate((0, 2, 4), 1)])
    assert [row["round"] for row in rows(storage)] == [0, 2, 4]
    assert pd.read_csv(storage / "t" / PROGRESS)["round"].tolist() == [0, 2, 4]
    assert json.loads((storage / "t" / "params.json").read_text()) == {"seed": 0}
    assert len(scalars(storage, "ray/tune/round")) == 3
    assert len(scalars(storage, "ray/tune/loss")) == 2  # until it is resumed


def test_files_of_a_resumed_trial_go_on(tmp_path, storage):
    folder = Storage(storage)
    process(tmp_path / "a", folder, [report(n, i) for i, n in enumerate((0, 2, 4, 6), 1)])
    (events,) = (storage / "t").glob("events*")
    for file, torn in ((storage / "t" / RESULTS, b'{"round": 8, "lo'), (events, b"\x09\0\0")):
        file.write_bytes(file.read_bytes() + torn)  # by the kill, which came before the others
    file = storage / "t" / PROGRESS
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]) + "6,0.1")
    late = [dict(reversed(report(n, i).items())) for i, n in enumerate((4, 6, 8), start=1)]
    process(tmp_path / "b", folder, [*late, report(8, 4, **END)], ends=True)
    found = rows(storage)
    assert [row["round"] for row in found] == [0, 2, 4, 6, 8, 8]
    assert [row["training_iteration"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["time_total_s"] for row in found] == [0.5, 1.0, 1.5, 2.0, 3.5, 4.0]
    assert found[-1]["clean_acc"] == 0.5
    table = pd.read_csv(storage / "t" / PROGRESS)
    assert list(table) == ["round", "loss", "training_iteration", "time_total_s"]
    pd.testing.assert_frame_equal(table, pd.DataFrame(found)[list(table)])
    for tag in ("round", "loss"):
        steps = [(row["training_iteration"], pytest.approx(row[tag])) for row in found]
        assert scalars(storage, f"ray/tune/{tag}") == steps
    whole = {f.name: f.read_bytes() for f in (storage / "t").iterdir()}
    process(tmp_path / "c", folder, [report(8, 1, **END)], ends=True)  # it had ended: told again
    assert whole.items() <= {f.name: f.read_bytes() for f in (storage / "t").iterdir()}.items()
    assert len(scalars(storage, "ray/tune/round")) == 6


def test_a_failed_trial_that_is_started_again_goes_on(tmp_path, storage):
    folder = Storage(storage)
    process(tmp_path / "a", folder, [report(0, 1), {"status": "failed", "done": True}], ends=True)
    process(tmp_path / "b", folder, [report(0, 1), report(1, 2), report(1, 3, **END)], ends=True)
    assert [row.get("round") for row in rows(storage)] == [0, None, 1, 1]


def test_seconds_count_on_when_tune_starts_a_trials_process_again(tmp_path, storage):
    trial, files = Trial(tmp_path), TuneFiles(Storage(storage))
    for n in (0, 1):
        files.log_trial_start(trial)
        files.log_trial_result(1, trial, report(n, 1))
    files.log_trial_end(trial)
    assert [row["time_total_s"] for row in rows(storage)] == [0.5, 1.0]
    assert pd.read_csv(storage / "t" / PROGRESS)["training_iteration"].tolist() == [1, 2]


def test_at_a_url_the_files_are_there_when_a_trial_has_ended(tmp_path):
    folder = Storage("memory://tune-files/study")
    process(tmp_path / "a", folder, [report(0, 1), report(1, 2)], ends=True)
    process(tmp_path / "b", folder, [report(1, 1), report(2, 2, **END)], ends=True)
    for name in (RESULTS, PROGRESS, *(n for n in folder.names("t") if n.startswith("events"))):
        (tmp_path / "t").mkdir(exist_ok=True)
        (tmp_path / "t" / name).write_bytes(folder.read(f"t/{name}"))
    assert [row["round"] for row in rows(tmp_path)] == [0, 1, 2]
    assert pd.read_csv(tmp_path / "t" / PROGRESS)["round"].tolist() == [0, 1, 2]
    folder.remove("")


def test_a_study_that_was_moved_is_not_begun_anew(tmp_path, storage):
    storage.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        TuneFiles(Storage(storage)).log_trial_start(Trial(tmp_path))
    assert not storage.exists()


def test_studies_of_others_keep_tunes_own_loggers(storage, monkeypatch):
    monkeypatch.delenv(HAS_LOGGERS, raising=False)
    with TuneFiles(Storage(storage)):
        assert os.environ[HAS_LOGGERS] == "1"
    assert HAS_LOGGERS not in os.environ


def test_what_is_no_report_is_left_out():
    past = Past()
    lines = past.read(b'{"round": 3}\n[1]\nnull\n\xff\n{"round": 5, "time_total_s": "a"}\n{"rou')
    assert lines == ['{"round": 3}']
    assert past.take({"round": 2}) is None
    assert past.take({"round": 5})["training_iteration"] == 2


def test_a_trial_that_could_not_start_is_a_failed_one(tmp_path, storage):
    """Tune tells of its end alone."""
    folder = Storage(tmp_path / "study")
    with TuneFiles(folder) as files:
        folder.write("t/error.txt", b"RuntimeError: no such library")
        files.log_trial_end(Trial(tmp_path), failed=True)
    (row,) = load(folder.url).to_dict("records")
    assert (row["trial"], row["status"], row["seed"]) == ("t", "failed", 0)


def test_what_prometheus_is_told_is_ascii():
    told = {name: described(name) for name in metrics.SHOWN["prometheus"]}
    assert all(text.isascii() and text and "?" not in text for text in told.values()), told
