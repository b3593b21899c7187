"""What a run leaves behind and how pandas reads it, on records written by hand."""

import ast
import json
import math
import pickle
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import raydist
from raydist.config.experiment import validate
from raydist.engine.ending import images_frame
from raydist.errors import InputError
from raydist.measure.columns import Known
from raydist.results.folder import Folder
from raydist.results.load import load, load_rounds
from raydist.results.record import Outcome, Record, frame_of

A = np.array([[0.75, 0.25], [0.25, 0.75]])
GRAPH = nx.path_graph(2)
START = Record(0, [{"distance": 0.0}, {"distance": 0.0}], {"val_loss": 3.0})
FIRST = Record(1, [{"loss": 1.0, "lr": 0.5}, {"loss": 2.0, "lr": 0.5}])
IMAGES = pd.DataFrame({"image": [0, 1], "label": [7, 3], "clean": [True, False]})
IMAGES.insert(0, "model", "centroid")
LAST = Record(
    2,
    [{"loss": 0.5}, {"loss": 1.0}],
    {"val_loss": 1.5},
    Outcome("completed", "", 2),
    {"clean_acc": 0.5, "pgd20_acc": 0.25, "strongest": "square"},
    IMAGES,
)
# trial, round, agent, metric, value
WRITTEN = [
    (0, "0", "distance", 0.0),
    (0, "1", "distance", 0.0),
    (0, "mean", "distance", 0.0),
    (0, "centroid", "val_loss", 3.0),
    (1, "0", "loss", 1.0),
    (1, "0", "lr", 0.5),
    (1, "1", "loss", 2.0),
    (1, "1", "lr", 0.5),
    (1, "mean", "loss", 1.5),
    (1, "mean", "lr", 0.5),
    (2, "0", "loss", 0.5),
    (2, "1", "loss", 1.0),
    (2, "mean", "loss", 0.75),
    (2, "centroid", "val_loss", 1.5),
]


def expected(trial, rows):
    frame = pd.DataFrame(
        [(trial, *row) for row in rows], columns=["trial", "round", "agent", "metric", "value"]
    )
    return frame.astype({"round": "int64", "agent": "agent", "value": "float64"})


def config(seed=0):
    return validate({"topology": {"kind": "path", "agents": 2}, "rounds": 2, "seed": seed})


def begin(path, seed=0):
    folder = Folder(path)
    folder.begin(config(seed), GRAPH, A, 0.5)
    return folder


def complete(path, last=LAST, seed=0):
    folder = begin(path, seed)
    for record in (START, FIRST, last):
        folder.add(record)
    folder.finish(last, 12.5)
    return folder


ERROR = """Failure # 1 (occurred at 2026-01-02_03-04-05)
\x1b[36mray::Trial.train()\x1b[39m (pid=17, ip=127.0.0.1, actor_id=5f)
  File "raydist/tune/trial.py", line 98, in step
    self.records = train(self._pool_for(plan), plan)
ValueError: the first of two
Failure # 2 (occurred at 2026-01-02_03-05-05)
  File "mine.py", line 3, in loss
    return 1 / 0
ZeroDivisionError: division by zero

"""


def test_a_complete_run_reads_back_as_it_was_written(tmp_path):
    complete(tmp_path / "run")
    pd.testing.assert_frame_equal(load_rounds(tmp_path / "run"), expected("run", WRITTEN))
    (row,) = load(tmp_path / "run").to_dict("records")
    assert row["trial"] == "run"
    assert (row["strategy"], row["seed"], row["threat.eps"]) == ("diffusion", 0, 8 / 255)
    assert (row["topology.kind"], row["topology.agents"]) == ("path", 2)
    assert (row["mixing_rate"], row["seconds"]) == (0.5, 12.5)
    assert (row["clean_acc"], row["pgd20_acc"], row["strongest"]) == (0.5, 0.25, "square")
    assert (row["status"], row["stop_reason"], row["rounds_run"]) == ("completed", "", 2)
    assert pd.isna(row["stop_round"])
    images = pd.read_parquet(tmp_path / "run" / "images.parquet")
    pd.testing.assert_frame_equal(images.drop(columns="weights"), IMAGES, check_dtype=False)
    labels = np.array([7, 5, 3])
    known = Known({"clean": {2: True, 0: False}})
    frame = images_frame({"centroid": known}, labels).astype(object)
    assert [*frame] == ["model", "image", "label", "clean", "flags"]
    assert frame.values.tolist() == [["centroid", 0, 7, False, ""], ["centroid", 2, 3, True, ""]]


def test_the_frame_of_records_in_memory_is_the_one_on_disk(tmp_path):
    complete(tmp_path / "run")
    rows = [row for record in (START, FIRST, LAST) for row in record.rows()]
    memory = frame_of("run", rows)
    pd.testing.assert_frame_equal(memory, load_rounds(tmp_path / "run"))


def test_a_run_leaves_the_experiment_and_the_graph(tmp_path):
    complete(tmp_path / "run")
    experiment = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert experiment["hash"] == config().digest()
    assert validate(experiment["config"]) == config()
    graph = json.loads((tmp_path / "run" / "graph.json").read_text())
    assert graph.pop("nodes") == ["0", "1"]
    assert graph == {"edges": [[0, 1]], "directed": False, "A": A.tolist(), "mixing_rate": 0.5}
    assert not list((tmp_path / "run").rglob("*.part"))


def test_metrics_that_only_some_agents_have_are_averaged_over_those():
    record = Record(1, [{"loss": 1.0}, {"loss": 2.0, "lr": 0.5}, {}])
    assert record.mean == {"loss": 1.5, "lr": 0.5}


def test_a_study_has_one_row_for_each_trial_however_it_ended(tmp_path):
    complete(tmp_path / "b", seed=1)
    stopped = Record(2, LAST.agents, {}, Outcome("stopped", "FOSC too high", 2), {"clean_acc": 0.1})
    complete(tmp_path / "c", stopped, seed=2)
    diverged = Record(2, [{"loss": math.nan}] * 2, {}, Outcome("diverged", "loss is nan", 2))
    complete(tmp_path / "d", diverged, seed=3)
    begin(tmp_path / "e", seed=4)
    begin(tmp_path / "a", seed=0)
    (tmp_path / "a" / "error.txt").write_text(ERROR)
    (tmp_path / "f").mkdir()  # failed before it began: Tune's file only
    (tmp_path / "f" / "params.json").write_text('{"seed": 5}')
    (tmp_path / "f" / "error.txt").write_text("RuntimeError: no memory\n")
    (tmp_path / "plots").mkdir()
    (tmp_path / "study.json").write_text("{}")
    frame = load(tmp_path)
    assert frame["trial"].tolist() == list("abcdef")
    assert frame["seed"].tolist() == [0, 1, 2, 3, 4, 5]
    statuses = ["failed", "completed", "stopped", "diverged", "unfinished", "failed"]
    assert frame["status"].tolist() == statuses
    assert frame["error"].dropna().tolist() == [
        "ZeroDivisionError: division by zero",
        "RuntimeError: no memory",
    ]
    logs = [str(tmp_path / trial / "error.txt") for trial in "af"]
    assert frame["log"].dropna().tolist() == logs
    assert frame["stop_round"].dropna().tolist() == [2, 2]
    assert frame["stop_reason"].dropna().tolist() == ["", "FOSC too high", "loss is nan"]
    assert frame["clean_acc"].dropna().tolist() == [0.5, 0.1]


def test_rounds_of_a_study_are_all_in_one_frame(tmp_path):
    complete(tmp_path / "a")
    folder = begin(tmp_path / "b", seed=1)
    folder.add(START)
    folder.flush()
    folder.add(FIRST)  # not flushed: the process died
    begin(tmp_path / "c", seed=2)
    both = [expected("a", WRITTEN), expected("b", WRITTEN[:4])]
    pd.testing.assert_frame_equal(load_rounds(tmp_path), pd.concat(both, ignore_index=True))


def test_a_run_that_wrote_no_round_has_an_empty_frame(tmp_path):
    begin(tmp_path / "a")
    frame = load_rounds(tmp_path)
    assert frame.empty and list(frame) == ["trial", "round", "agent", "metric", "value"]


def test_numbers_that_json_does_not_know_become_missing(tmp_path):
    final = {"excess_risk": math.nan, "distance": math.inf, "clean_acc": 0.5}
    complete(tmp_path / "a", Record(2, LAST.agents, {}, Outcome("completed", "", 2), final))
    text = (tmp_path / "a" / "final.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (row,) = load(tmp_path).to_dict("records")
    assert pd.isna(row["excess_risk"]) and pd.isna(row["distance"]) and row["clean_acc"]


def test_final_numbers_are_those_of_the_same_experiment_only(tmp_path):
    folder = complete(tmp_path / "a")
    assert folder.final(config())["rounds_run"] == 2
    assert Folder(tmp_path / "b").final(config()) is None
    with pytest.raises(InputError, match=r"another experiment .seed is the default there, 1 here"):
        folder.final(config(seed=1))
    (tmp_path / "a" / "final.json").write_text('{"status": "comp')
    assert folder.final(config()) is None


@pytest.mark.parametrize("finished", [True, False])
def test_what_ran_is_never_overwritten_by_another_experiment(tmp_path, finished):
    folder = complete(tmp_path / "a")
    if not finished:
        folder.store.remove("final.json")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"another experiment .seed is .*write --out with a new"):
        begin(tmp_path / "a", seed=1)
    if finished:
        with pytest.raises(InputError, match="has run to its end"):
            begin(tmp_path / "a")
        (tmp_path / "a" / "experiment.json").write_text("{")
        with pytest.raises(InputError, match=r"a result, but its experiment.json is gone or dam"):
            begin(tmp_path / "a")
        (tmp_path / "a" / "experiment.json").write_bytes(before[tmp_path / "a/experiment.json"])
        folder.fail(ValueError("a later try"))  # is not written beside a result
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before


def test_files_that_were_not_written_whole_do_not_disturb(tmp_path):
    complete(tmp_path / "a")
    before = load(tmp_path), load_rounds(tmp_path)
    for name in ("experiment.json", "graph.json", "final.json", "images.parquet"):
        (tmp_path / "a" / f"{name}.part").write_bytes(b"\x00{half")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "experiment.json.part").write_text("{")
    for frame, old in zip((load(tmp_path), load_rounds(tmp_path)), before, strict=True):
        pd.testing.assert_frame_equal(frame, old)
    (tmp_path / "a" / "final.json").unlink()
    begin(tmp_path / "a")
    assert not list((tmp_path / "a").glob("*.part"))


@pytest.mark.parametrize("read", [load, load_rounds])
@pytest.mark.parametrize("where", ["", "nothing", "file.txt"])
def test_a_folder_without_runs_says_so(tmp_path, read, where):
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(InputError) as caught:
        read(tmp_path / where)
    assert str(caught.value) == (
        f"{tmp_path / where} holds no run: expected the folder that a sweep or run has written"
    )


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_is_read_back(tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    complete(tmp_path / "study" / "a")
    (tmp_path / "study" / "a" / "error.txt").write_text(ERROR)
    for name in ("error.pkl", "params.pkl", "checkpoint_000000.pkl"):
        (tmp_path / "study" / "a" / name).write_bytes(bomb)
    for name in ("tuner.pkl", "trainable.pkl"):
        (tmp_path / "study" / name).write_bytes(bomb)
    assert len(load(tmp_path / "study")) == 1 and len(load_rounds(tmp_path / "study"))
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)  # it is one that would have been noticed
    assert (tmp_path / "exploded").exists()


def names_used(module):
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name for alias in node.names)
            yield getattr(node, "module", None) or ""
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.mark.parametrize(
    "module", sorted(Path(raydist.__file__).parent.rglob("*.py")), ids=lambda m: m.stem
)
def test_no_module_knows_pickle(module):
    banned = {"pickle", "cloudpickle", "shelve", "joblib", "torch.load", "read_pickle"}
    used = {*names_used(module)}
    if module.stem == "checkpoint":  # others publish weights as torch files: tensors alone are read
        calls = [n for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.Call)]
        loads = [c for c in calls if ast.unparse(c.func) == "torch.load"]
        assert loads and all("weights_only=True" in ast.unparse(call) for call in loads)
        assert "pickle.load" not in used and "pickle.loads" not in used
        banned -= {"pickle", "torch.load"}  # and the error that a refused file raises
    assert not used & banned
    assert not {name for name in used if name.endswith((".cloudpickle", ".read_pickle"))}
