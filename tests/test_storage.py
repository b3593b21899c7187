"""Runs at URLs are the runs in folders, and what cannot be stored is refused at the door."""

import json

import pandas as pd
import pytest
from experiments import QUADRATIC
from fsspec.implementations.memory import MemoryFileSystem
from running import timeless

from raydist import (
    cli,
    evaluate,
    evaluate_runs,
    load,
    load_events,
    load_rounds,
    run_experiment,
    run_sweep,
)
from raydist.errors import InputError
from raydist.storage import Storage, locate

TREE = QUADRATIC | {"snapshot": {"every": 4}}
IN_MEMORY = QUADRATIC | {"snapshot": {"path": "memory://snaps"}}
URL = "memory://bucket/runs/one"
WEIGHTS = ["agent-000", "agent-001", "agent-002", "centroid"]


@pytest.fixture(autouse=True)
def nothing_stored():
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_a_run_at_a_url_is_the_run_in_a_folder(tmp_path):
    run_experiment(TREE, out=URL)
    run_experiment(TREE, out=tmp_path / "one")
    other = Storage(tmp_path / "one")
    assert Storage(URL).names() == other.names()
    assert Storage(URL).names("weights") == [f"{name}.safetensors" for name in WEIGHTS]
    for name in [*(f"weights/{each}.safetensors" for each in WEIGHTS), "graph.json"]:
        assert Storage(URL).read(name) == other.read(name)
    rows = [load(where).drop(columns="seconds") for where in (URL, tmp_path / "one")]
    pd.testing.assert_frame_equal(*rows)
    pd.testing.assert_frame_equal(load("memory://bucket/runs"), load(URL))  # as a study
    rounds = [timeless(load_rounds(where)) for where in (URL, tmp_path / "one")]
    pd.testing.assert_frame_equal(*rounds)


def test_an_unfinished_run_at_a_url_goes_on_from_its_snapshot():
    plain = run_experiment(TREE, out=URL)
    Storage(URL).remove("final.json")
    assert load(URL)["status"].tolist() == ["unfinished"]
    again = run_experiment(TREE, out=URL, resume=True)
    (event,) = load_events(URL).to_dict("records")
    assert (event["what"], event["replayed_from"]) == ("run resumed", 8)
    assert again.final["excess_risk"] == plain.final["excess_risk"]
    pd.testing.assert_frame_equal(timeless(load_rounds(URL)), timeless(again.rounds))


def test_a_url_on_the_command_line_is_refused_as_one(capsys):
    with pytest.raises(SystemExit, match="2"), pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["evaluate", "s3://bucket/run"])
        cli.run(evaluate.main)
    assert "s3://bucket/run is a URL: copy" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch):
    """A bucket to read from; a folder that is in order shows it with the first file."""

    def refused(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refused)
    with pytest.raises(InputError, match=r"^memory:.*one cannot be written: Access Denied$"):
        run_experiment(TREE, out=URL)


def test_a_file_at_a_url_is_a_file_of_this_machine(tmp_path):
    for begin in ("", "file:", "file://", "file://localhost", "local://"):
        assert locate(f"{begin}{tmp_path}/a/") == str(tmp_path / "a")
    Storage(f"file://{tmp_path}/a").write("b/c.json", b"[1]")
    assert json.loads((tmp_path / "a" / "b" / "c.json").read_text()) == [1]


@pytest.mark.parametrize("path", ["s3://", "nosuch://bucket"])
def test_snapshots_at_no_place_are_refused_before_anything_is_written(tmp_path, path):
    tree = TREE | {"snapshot": {"path": path}}
    for refused in (
        lambda: run_experiment(tree, out=tmp_path / "run"),
        lambda: run_sweep({"base": tree}, out=tmp_path / "study"),
    ):
        with pytest.raises(InputError, match=f"^snapshot.path: {path} (cannot be|names no)"):
            refused()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (lambda: run_experiment(TREE, out="nosuch://bucket"), "nosuch://bucket cannot be reached"),
        (lambda: load("nosuch://bucket"), "nosuch://bucket cannot be reached: "),
        (lambda: load("memory://empty"), "memory://empty holds no run: expected"),
        (lambda: run_experiment(TREE, out="memory://full"), "exists: .* --resume memory://full"),
        (lambda: run_sweep({"base": TREE}, out=URL), "memory://.* lives in one process: write"),
        (lambda: run_experiment(TREE, "ray", out=URL), "memory://.* lives in one process: write"),
        (lambda: run_experiment(IN_MEMORY, "ray"), "memory://snaps lives in one .*: write snap"),
        (lambda: run_sweep({"base": IN_MEMORY}), "memory://snaps lives in one .*: write snap"),
        (lambda: run_experiment(TREE, out="s3://"), "s3:// names no folder: write s3://bucket"),
        (lambda: load("~nobody-of-that-name/run"), "~nobody-of-that-name/run cannot be found: "),
        (lambda: evaluate_runs("s3://bucket/run"), "s3://bucket/run is a URL: copy"),
    ],
)
def test_what_cannot_be_stored_or_read_is_one_line(what, line):
    Storage("memory://full").write("experiment.json", b"{}")
    with pytest.raises(InputError, match=line) as caught:
        what()
    assert "\n" not in str(caught.value)
    assert not Storage(URL).names()
