"""A study whose trials a scheduler ends early decides as if it had never been interrupted."""

import json
import logging
import os
from types import SimpleNamespace

import pytest
from experiments import QUADRATIC

from raydist import load, load_rounds
from raydist.config.study import from_tree
from raydist.storage import Storage
from raydist.tune.points import points
from raydist.tune.scheduler import DECISIONS, scheduler
from raydist.tune.trial import Job, Trial

ROUNDS = 6


class Killed(Exception):
    """The process is gone."""


class Metrics:
    """Nobody is told."""

    def __init__(self, study):
        self.tell = lambda *_: None


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("raydist.tune.trial.Metrics", Metrics)
    logger = logging.getLogger("raydist")
    before = logger.level, logger.handlers
    yield
    logger.level, logger.handlers = before


def searched(kind, lrs, every, **search):
    base = {**QUADRATIC, "rounds": ROUNDS, "snapshot": {"every": every}}
    table = {"scheduler": kind, "metric": "excess_risk", "grace": 2, **search}
    return from_tree({"base": base, "axes": {"optim.lr": lrs}, "search": table})


class Live:
    """A trial as a scheduler of Tune sees it."""

    def __init__(self, name, actor):
        self.name = name
        end_early = SimpleNamespace(remote=actor.end_early)
        self.temporary_state = SimpleNamespace(ray_actor=SimpleNamespace(end_early=end_early))

    def __str__(self):
        return self.name


def play(study, out, kill=0, heard=False):
    """What Tune does, one trial at a time; killed at a report that the scheduler heard, or not."""
    out.mkdir(exist_ok=True)
    (out / "lock").touch()  # what lies beside the trials
    job = Job(study, str(out), "local", [], os.getcwd())
    judge, actor, reports = scheduler(study, ROUNDS, Storage(out)), Trial.__new__(Trial), 0
    for point in points(study):
        actor.setup(point, job)
        live = Live(actor.folder.name, actor)
        judge.on_trial_add(None, live)
        while True:
            result = actor.step()
            assert result.get("status") != "failed", (out / live.name / "error.txt").read_text()
            reports += 1
            if reports == kill and not heard:
                actor._pool.settle()
                raise Killed
            done = result.get("done", False)
            (judge.on_trial_complete if done else judge.on_trial_result)(None, live, result)
            if reports == kill:
                actor._pool.settle()
                raise Killed
            if done:
                break
    return reports


def ends(out):
    frame = load(out)
    return {*zip(frame["trial"], frame["rounds_run"], frame["stop_reason"], strict=True)}


def decisions(out):
    kept = [json.loads(file.read_text()) for file in out.glob(f"*/{DECISIONS}")]
    every = sorted(
        (d["order"], d["round"], d["objective"], d["stop"]) for each in kept for d in each
    )
    assert [order for order, *_ in every] == list(range(len(every)))
    return every


CASES = {  # good and bad ones mixed, so that forgetting the earlier ones changes who is ended
    "asha": searched("asha", [0.05, 0.3, 0.01, 0.2, 0.04], 1, reduction=2),
    "asha, few snapshots": searched("asha", [0.05, 0.3, 0.01, 0.2, 0.04], 4, reduction=2),
    "median": searched("median", [0.3, 0.2, 0.1, 0.01, 0.15, 0.25], 1),
}


def values(out):
    """All that was measured but times."""
    frame = load_rounds(out)
    frame = frame[~frame["metric"].str.startswith("seconds")]
    return frame.set_index(["trial", "round", "agent", "metric"])["value"].sort_index()


def interrupted(case, tmp_path, step):
    """Kill at reports, one in so many, just before or just after the scheduler hears of it."""
    study = CASES[case]
    reports = play(study, tmp_path / "whole")
    expected, told = ends(tmp_path / "whole"), decisions(tmp_path / "whole")
    assert 1 < sum(bool(reason) for *_, reason in expected) < len(expected)
    for place in range(0, 2 * reports, step):
        kill, heard = place // 2 + 1, place % 2 == 1
        out = tmp_path / f"{kill}-{heard}"
        with pytest.raises(Killed):
            play(study, out, kill, heard)
        play(study, out)
        assert ends(out) == expected, (kill, heard)
        assert decisions(out) == told
    assert values(out).equals(values(tmp_path / "whole"))


@pytest.mark.parametrize("case", CASES)
def test_a_kill_changes_no_decision(case, tmp_path):
    interrupted(case, tmp_path, 29)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_kill_at_any_report_changes_no_decision(case, tmp_path):
    interrupted(case, tmp_path, 1)
