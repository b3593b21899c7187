"""Frames work as frames do; a file that cannot be read is named, and costs no other trial."""

import io
import json
import math
import shutil
import warnings

import pandas as pd
import pytest
from test_record import FIRST, LAST, START, begin

from raydist import load, load_events, load_rounds
from raydist.config.experiment import validate
from raydist.errors import InputError
from raydist.results import load as reading
from raydist.results.agents import agents
from raydist.results.folder import Folder
from raydist.results.record import Event

OPERATIONS = {
    "to_parquet": lambda frame: frame.to_parquet(io.BytesIO()),
    "drop_duplicates": lambda frame: frame.drop_duplicates(),
    "nunique": lambda frame: frame.nunique(),
    "value_counts": lambda frame: frame.value_counts(dropna=False),
    "groupby": lambda frame: [frame.groupby(name, dropna=False).size() for name in frame],
    "merge": lambda frame: frame.merge(frame, on="trial"),
    "concat": lambda frame: pd.concat([frame, frame]),
}


def whole(path, **change):
    """A finished run whose configuration holds lists and tables."""
    tree = {"topology": {"kind": "path", "agents": 2}, "rounds": 2, **change}
    folder = Folder(path)
    begin(path)
    text = (path / "experiment.json").read_text()
    config = validate(tree).model_dump(mode="json")
    (path / "experiment.json").write_text(json.dumps(json.loads(text) | {"config": config}))
    for record in (START, FIRST, LAST):
        folder.add(record)
    folder.tell(Event("agent died", "why", 1, (0, 1), 0, 2.0))
    folder.finish(LAST, 1.0)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("read", [load, load_rounds, load_events])
def test_frames_work_as_frames_do(tmp_path, read, operation):
    whole(tmp_path / "a", periods=[0.5], threat={"agents": [{}, {"eps": 0.1}]})
    whole(tmp_path / "b", periods=[])
    frame = read(tmp_path)
    cells = frame.astype(object).stack().tolist()
    assert not [cell for cell in cells if isinstance(cell, dict | list | tuple)]
    OPERATIONS[operation](frame)


def test_lists_and_what_is_of_unlike_kinds_are_text(tmp_path):
    whole(tmp_path / "a", periods=[0.5])
    whole(tmp_path / "b")
    (tmp_path / "c").mkdir()  # failed before it began; no study beside it to ask
    (tmp_path / "c" / "params.json").write_text(
        '{"threat.eps": "8/255", "topology": {"agents": 2}}'
    )
    (tmp_path / "c" / "error.txt").write_text("ValueError: no")
    frame = load(tmp_path)
    assert frame["periods"].tolist()[:2] == ["[0.5]", "[]"]
    assert frame["threat.eps"].tolist() == [str(8 / 255), str(8 / 255), "8/255"]
    assert frame["topology.agents"].tolist() == [2, 2, 2]
    frame.to_parquet(io.BytesIO())


def test_a_trial_that_failed_before_it_began_has_the_configuration_of_its_study(tmp_path):
    whole(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "params.json").write_text('{"threat.eps": "4/255"}')
    (tmp_path / "b" / "error.txt").write_text("ValueError: no")
    base = {"topology": {"kind": "path", "agents": 2}, "rounds": 7}
    study = {"name": "x", "base": base, "axes": {"threat.eps": ["4/255", "8/255"]}, "search": {}}
    (tmp_path / "study.json").write_text(json.dumps(study))
    frame = load(tmp_path).set_index("trial")
    assert frame["threat.eps"].to_dict() == {"a": 8 / 255, "b": 4 / 255}
    assert frame.loc["b", "rounds"] == 7 and frame.loc["b", "strategy"] == "diffusion"


def test_agents_are_numbers_beside_the_mean_and_the_centroid(tmp_path):
    whole(tmp_path / "a")
    rounds = load_rounds(tmp_path)
    loss = rounds[rounds["metric"] == "loss"]
    assert loss.query("agent == 0")["value"].tolist() == [1.0, 0.5]
    assert loss.query("agent == 'mean'")["value"].tolist() == [1.5, 0.75]
    assert loss[loss["agent"] < 2].groupby("agent")["value"].sum().to_dict() == {0: 1.5, 1: 3.0}
    assert set(rounds["agent"]) == {0, 1, "mean", "centroid"}
    assert rounds["agent"].isin([1, "centroid"]).sum() == (rounds["agent"] == 1).sum() + 2
    wide = loss.pivot(index="round", columns="agent", values="value")
    assert list(wide) == [0, 1, "mean"] and wide.loc[1].tolist() == [1.0, 2.0, 1.5]
    file = tmp_path / "rounds.parquet"
    rounds.to_parquet(file)
    pd.testing.assert_frame_equal(pd.read_parquet(file), rounds)
    assert rounds.merge(pd.DataFrame({"agent": [1]}), on="agent")["agent"].tolist() == [1] * 4


def test_the_column_of_agents_sorts_and_holds_nothing_else():
    column = pd.Series(agents(["centroid", 10, "2", "mean", None, 2]))
    assert column.sort_values().tolist() == [2, 2, 10, "mean", "centroid", None]
    assert column.isna().tolist() == [False] * 4 + [True, False]
    assert column.drop_duplicates().tolist() == ["centroid", 10, 2, "mean", None]
    assert (column == 2).tolist() == [False, False, True, False, False, True]
    assert not (column == "nobody").any() and (column != "nobody").all()
    column[0] = 3
    assert column.tolist()[0] == 3
    for wrong in ("max", -1, 1.5):
        with pytest.raises(ValueError, match=r"is no agent, expected a number from 0, \"mean\""):
            agents([wrong])


def test_the_trial_is_the_folder_in_every_frame_though_it_was_renamed(tmp_path):
    whole(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    for read in (load, load_rounds, load_events):
        assert set(read(tmp_path)["trial"]) == {"after"}


BAD = {
    "empty": b"",
    "binary": b"\x00\xff\xfe{",
    "cut off": b'{"status": "compl',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "without what it needs": b"{}",
    "deep": b"[" * 100_000,
    "a folder": None,
    "another frame": b"parquet",
}
FILES = {
    load: ("experiment.json", "graph.json", "final.json", "evaluation.json"),
    load_rounds: ("rounds.parquet/part-000000.parquet",),
    load_events: ("events.parquet",),
}


def spoil(file, kind):
    file.unlink(missing_ok=True)
    if BAD[kind] is None:
        file.mkdir()
    elif kind == "another frame":
        pd.DataFrame({"x": [1]}).to_parquet(file)
    else:
        file.write_bytes(BAD[kind])


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_read_costs_its_trial_and_is_named(tmp_path, kind):
    whole(tmp_path / "a")
    for read, names in FILES.items():
        for name in names:
            if name == "evaluation.json" and kind in ("null", "without what it needs"):
                continue  # says nothing, which is right
            whole(tmp_path / "b")
            spoil(tmp_path / "b" / name, kind)
            with pytest.warns(UserWarning, match=f"{tmp_path}/b/{name} cannot be read"):
                assert set(read(tmp_path)["trial"]) == {"a"}
            with pytest.raises(InputError, match=f"b/{name} cannot be read .*: no trial is left"):
                with warnings.catch_warnings(action="ignore"):
                    read(tmp_path / "b")
            shutil.rmtree(tmp_path / "b")


@pytest.mark.parametrize(
    "value", [["x", {"a": None}], {"a": 1}, 10**400], ids=["list", "dict", "huge"]
)
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("final.json", "clean_acc"),
        ("final.json", "seconds"),
        ("graph.json", "mixing_rate"),
        ("experiment.json", "config/rounds"),
        ("experiment.json", "config/strategy"),
        ("experiment.json", "config/threat/eps"),
        ("experiment.json", "config/seed"),
        ("evaluation.json", "centroid/clean_acc"),
    ],
)
def test_a_value_of_the_wrong_kind_costs_its_trial_and_no_column(tmp_path, name, key, value):
    whole(tmp_path / "a")
    before = load(tmp_path)
    whole(tmp_path / "b")
    file = tmp_path / "b" / name
    tree = json.loads(file.read_text()) if file.exists() else {"centroid": {}}
    *above, last = key.split("/")
    table = tree
    for each in above:
        table = table[each]
    table[last] = value
    file.write_text(json.dumps(tree))
    with pytest.warns(UserWarning, match=f"{tmp_path}/b/{name} cannot be read .*{last}"):
        frame = load(tmp_path)
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("read", FILES)
def test_a_trial_whose_experiment_is_gone_is_named(tmp_path, read):
    whole(tmp_path / "a")
    whole(tmp_path / "b")
    (tmp_path / "b" / "experiment.json").unlink()
    with pytest.warns(UserWarning, match=f"{tmp_path}/b/experiment.json is gone: trial b is left"):
        assert set(read(tmp_path)["trial"]) == {"a"}
    with pytest.raises(InputError, match=r"b/experiment.json is gone: no trial is left"):
        with warnings.catch_warnings(action="ignore"):
            read(tmp_path / "b")


def test_events_that_cannot_be_read_cost_an_unfinished_trial_its_row(tmp_path):
    whole(tmp_path / "a")
    begin(tmp_path / "b")
    spoil(tmp_path / "b" / "events.parquet", "cut off")
    with pytest.warns(UserWarning, match="b/events.parquet cannot be read"):
        assert load(tmp_path)["trial"].tolist() == ["a"]


def test_an_error_of_any_bytes_is_told(tmp_path):
    begin(tmp_path / "a")
    (tmp_path / "a" / "error.txt").write_bytes(b"Failure\n\xff\xfe broke\n")
    assert load(tmp_path)["error"].tolist() == ["\ufffd\ufffd broke"]


def test_every_default_has_a_column_and_other_releases_are_read_as_they_wrote(tmp_path):
    whole(tmp_path / "a", loss="trades", threat={"eps": 0.1})
    whole(tmp_path / "b")
    file = tmp_path / "b" / "experiment.json"
    known = json.loads(file.read_text())
    known["config"] |= {"restarts": [], "telemetry": 0, "loss": {"name": "pgd_at", "awp": 0.0}}
    file.write_text(json.dumps(known))
    frame = load(tmp_path).set_index("trial")
    row = frame.loc["a"]
    assert (row["loss.beta"], row["attack.name"], row["attack.alpha"]) == (6.0, "kl_pgd", 0.025)
    assert (frame.loc["b", "loss.awp"], frame.loc["b", "telemetry"]) == (0.0, 0)


def test_what_is_missing_or_text_is_no_json():
    """In a column of values of several kinds."""
    assert [reading._text(value) for value in ("a", None, 0.5, True)] == ["a", None, "0.5", "true"]
    assert math.isnan(reading._text(math.nan))
