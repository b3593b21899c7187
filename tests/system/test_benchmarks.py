"""The benchmark command: what it shows of targets, and that one failing file stops no other.

Nothing is timed here: a timed test would fail on a busy machine.
"""

import importlib
import io
import json
import sys
from pathlib import Path

import pytest
import typer
from matplotlib.colors import to_hex
from rich.console import Console

from raydist.engine.pool.pool import LocalPool

FOLDER = Path(__file__).parents[2] / "analysis" / "benchmarks"
NAMES = ("run", "targets", "show")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield tuple(importlib.import_module(name) for name in NAMES)
    for name in NAMES:
        sys.modules.pop(name, None)


def test_a_row_compares_the_ratio_if_there_is_one_else_what_was_measured(modules):
    row = modules[1].row
    assert row("a", 23, "passes", limit=23)["met"]
    assert not row("b", 12.0, "ms", limit=0.5, reference=20.0)["met"]
    assert row("c", 30.0, "1/s", limit=1.4, reference=20.0, at_least=True)["met"]
    assert row("d", 12.0, "ms", limit=None)["met"] is None


def test_the_share_of_a_limit_is_at_most_one_where_it_is_met(modules):
    row, used = modules[1].row, modules[1].used
    assert used(row("a", 23, "passes", limit=46)) == pytest.approx(0.5)
    assert used(row("b", 3.0, "ms", limit=0.5, reference=4.0)) == pytest.approx(1.5)
    assert used(row("c", 28.0, "x", limit=14.0, at_least=True)) == pytest.approx(0.5)
    assert used(row("d", 7.0, "x", limit=14.0, at_least=True)) == pytest.approx(2)
    assert used(row("e", 7.0, "x", limit=None)) is None
    by_hand = row("f", 2.0, "ms", limit=3.0, reference=1.0) | {"met": True}
    assert used(by_hand | {"note": "limit on measured"}) == pytest.approx(2 / 3)


def test_the_table_and_the_picture_tell_what_is_not_met_without_colour(modules):
    _, targets, show = modules
    rows = [
        targets.row("good", 3.0, "ms", limit=0.5, reference=12.0),
        targets.row("bad", 9.0, "ms", limit=0.5, reference=12.0, note="why"),
        targets.row("beside", 1.0, "ms", limit=None),
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(show.table(rows))
    good, bad, beside = console.export_text().strip().splitlines()[1:]
    assert "0.25" in good and "NOT" not in good and "met" in good
    assert "NOT MET" in bad and "why" in bad and "met" not in beside
    (ax,) = show.picture(rows).axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.5, 1.5])
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [False, True]
    assert [to_hex(bar.get_edgecolor()).upper() for bar in ax.patches] == [
        show.MET,
        show.MISSED,
    ]
    assert ["not met" in text.get_text() for text in ax.texts] == [False, True]


def test_a_run_without_figures_replaces_none(modules, tmp_path):
    run, targets, _ = modules
    file, none = tmp_path / "results.json", targets.row("g", None, "", limit=None)
    known = {"gpu": {"targets": [targets.row("g", 1.0, "ms", limit=3.0)]}}
    run.keep(known, file)
    run.keep({"gpu": {"targets": [none]}, "new": {"targets": [none]}}, file)
    run.keep({"gpu": {"failed": "no such wheel"}}, file)
    assert json.loads(file.read_text()) == {**known, "new": {"targets": [none]}}


def test_a_failing_benchmark_is_told_in_a_line_and_the_others_go_on(modules, tmp_path, capsys):
    run = modules[0]
    (tmp_path / "helper.py").write_text("def other():\n    pass\n")
    (tmp_path / "bad.py").write_text("\ndef measure(quick):\n    raise OSError('no such peer')\n")
    (tmp_path / "good.py").write_text(
        "from targets import row\n\n\ndef measure(quick):\n"
        "    return [row('g', 1.0 + quick, 'ms', limit=3.0)]\n"
    )
    (tmp_path / "targets.py").write_text((FOLDER / "targets.py").read_text())
    (tmp_path / "results.json").write_text(json.dumps({"old": {"targets": []}}))
    with pytest.raises(typer.Exit) as ended:
        run.main(quick=True, out=tmp_path, folder=tmp_path)
    assert ended.value.exit_code == 1
    shown = capsys.readouterr().out
    assert "bad failed: OSError: no such peer" in shown and "1 of 1 targets met" in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["bad", "good", "old"]
    assert results["good"]["targets"][0]["measured"] == 2.0 and results["good"]["quick"]
    assert {"device", "cpus", "commit", "date", "load_before"} <= results["good"].keys()
    assert (tmp_path / "results.png").stat().st_size > 5_000


def test_an_unknown_benchmark_is_refused_before_anything_runs(modules, tmp_path, capsys):
    with pytest.raises(typer.Exit) as ended:
        modules[0].main(only="nonsense", out=tmp_path)
    assert ended.value.exit_code == 2 and not list(tmp_path.iterdir())
    assert '"nonsense", expected some of' in capsys.readouterr().err


# Peers

PEER = FOLDER / "peer"


@pytest.fixture
def peers(modules, monkeypatch):
    monkeypatch.syspath_prepend(str(PEER))
    names = ("peers", "ours", "trivial", "serve")
    yield importlib.import_module("peers")
    for name in names:
        sys.modules.pop(name, None)


def test_the_trivial_task_only_averages_and_averages_exactly(peers):
    ours, serve = importlib.import_module("ours"), importlib.import_module("serve")
    plan = ours.plan_of(parameters=40, rounds=9, exchange="objects", per_actor=1)
    assert all(sorted(plan.graph[k]) == sorted(serve.lattice(k)) for k in range(16))
    pool = LocalPool(plan)

    def rest():
        importlib.import_module("mute").mute(pool)
        return ours.reached(pool)

    found = ours.timed(pool, plan, rest)
    assert found["error"] < 1e-6 and found["seconds"] > 0


def test_contestants_take_turns_and_one_that_fails_is_told_with_its_reason(
    peers, monkeypatch, tmp_path
):
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "serve.py").write_text((PEER / "serve.py").read_text())
    good = "from serve import serve\nserve(lambda parameters, rounds: {answer})\n"
    answers = {
        peers.OBJECTS: "{'seconds': parameters * rounds / 1e9, 'error': 0.0}",
        peers.FLOWER: "{'seconds': 0.3, 'error': 0.0}",
        peers.DECENT: "{'seconds': 0.03, 'error': 0.5}",
        "fluke": "1 / 0",
    }
    contestants = {}
    for number, (name, answer) in enumerate(answers.items()):
        script = tmp_path / "peer" / f"c{number}.py"
        script.write_text(good.replace("{answer}", answer))
        contestants[name] = peers.Contestant(script.name)
    (tmp_path / "peer" / "dead.py").write_text("raise SystemExit('no such wheel')")
    contestants[peers.PACKED] = peers.Contestant("dead.py")
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr(peers, "CONTESTANTS", contestants)
    times, failed = peers.compete({"0.5 M": (3, 2), "11 M": (1, 2)}, tmp_path)
    assert times["0.5 M", peers.OBJECTS] == pytest.approx(1) and len(times) == 4
    assert failed[peers.PACKED] == "no such wheel" and "0.5 off" in failed[peers.DECENT]
    assert failed["fluke"].startswith("ZeroDivisionError")
    found = {each["target"]: each for each in peers.rows(times, failed)}
    flower = found["round at 0.5 M, one actor per agent / Flower"]
    assert flower["ratio"] == pytest.approx(1 / 300) and flower["met"]
    packed = found["round at 0.5 M, packed 2 x 8 / Decent-DP"]
    assert not packed["met"] and "no such wheel" in packed["note"]
    assert "ZeroDivision" in found["round at 11 M, fluke"]["note"]
