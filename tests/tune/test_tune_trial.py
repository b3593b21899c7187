"""A trial as Tune drives it: what it tells, what its folder keeps, which agents it goes on with."""

import logging
import os
import re

import helpers_for_ray
import pytest
import ray
from experiments import experiment
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from raydist import load
from raydist.config.study import from_tree
from raydist.lock import Held
from raydist.results.record import Event, Record
from raydist.storage import Storage
from raydist.tune.monitor import Metrics, TrialLog
from raydist.tune.progress import TuneProgress
from raydist.tune.trial import Job, Trial


@pytest.fixture
def told(monkeypatch):
    """What Prometheus would be told: (metric, tags without the study) -> value."""
    found = {}

    class Metric:
        def __init__(self, name, description, tag_keys):
            self.name, self.keys = name, tag_keys

        def inc(self, value, tags):
            assert value > 0  # Ray refuses anything else
            self.set(found.get(self._key(tags), 0.0) + value, tags)

        def set(self, value, tags):
            assert tuple(tags) == self.keys
            found[self._key(tags)] = value

        def _key(self, tags):
            return (self.name, *(value for key, value in tags.items() if key != "study"))

    monkeypatch.setattr("raydist.tune.monitor.Counter", Metric)
    monkeypatch.setattr("raydist.tune.monitor.Gauge", Metric)
    return found


@pytest.fixture
def quiet_logger():
    logger = logging.getLogger("raydist")
    before = logger.level, logger.handlers
    yield logger
    logger.level, logger.handlers = before


def test_metrics_count_rounds_and_seconds_and_show_the_last_state(told):
    def info(attack, adapt):
        return {"seconds_attack": attack, "seconds_adapt": adapt, "fosc": attack}

    metrics = Metrics("s")
    metrics.tell("a", [Record(0, [{"disagreement": 3.0}] * 2, {"val_fosc": 0.25})], [])
    rounds = [Record(n, [info(1.0 * n, 0.5), info(3.0 * n, 0.5)]) for n in (1, 2)]
    event = Event("agent died", "", 2, 1, 0)
    metrics.tell("a", rounds, [event, Event("snapshot unusable", "", 2)])
    metrics.tell("b", [Record(1, [{"fosc": float("nan")}])], [])
    assert told == {
        ("raydist_rounds", "a"): 2,
        ("raydist_rounds", "b"): 1,
        ("raydist_seconds", "a", "attack"): 6.0,  # means of the rounds: 2 and 4
        ("raydist_seconds", "a", "adapt"): 1.0,
        ("raydist_fosc", "a"): 4.0,
        ("raydist_val_fosc", "a"): 0.25,
        ("raydist_disagreement", "a"): 3.0,
        ("raydist_recoveries", "a"): 1,
        ("raydist_recoveries", "b"): 0,
    }


def test_a_log_goes_on_after_an_earlier_try(tmp_path, quiet_logger):
    quiet_logger.setLevel(logging.INFO)
    for line in ("agent 1 died", "100 % here"):
        quiet_logger.handlers = [TrialLog(Storage(tmp_path / "a"))]
        quiet_logger.warning("%s", line)
    lines = (tmp_path / "a" / "log.txt").read_text().splitlines()
    assert [line.partition(" WARNING ")[2] for line in lines] == ["agent 1 died", "100 % here"]


def test_the_driver_keeps_little_of_a_trial_that_has_ended():
    trial = TuneTrial("raydist", stub=True)
    trial.update_last_result({f"metric {n}": 0.0 for n in range(50)} | {"training_iteration": 1})
    before = len(trial.get_json_state()[1])
    TuneProgress(1, Held(), quiet=True).on_trial_complete(1, [trial], trial)
    assert trial.last_result["metric 7"] == 0.0
    assert len(trial.get_json_state()[1]) < before / 4


def processes(out):
    """Of each trial, the process of each of its agents."""
    logs = {file.parent.name: file.read_text() for file in out.glob("*/log.txt")}
    return {name: re.findall(r"agent (\d): process (\d+)", text) for name, text in logs.items()}


def finish(trial):
    """Its last report."""
    while not (report := trial.step()).get("done"):
        pass
    return report


@pytest.mark.ray
@pytest.mark.long
def test_agents_stay_warm_after_a_trial_that_failed(ray_cluster, tmp_path, told, quiet_logger):
    tree = experiment(
        model={"name": "linear"},
        topology={"kind": "ring", "agents": 2},
        loss={"name": "helpers_for_ray:raising"},
    )
    budgets = [helpers_for_ray.BAD_EPS, 0.1, 0.03]
    study = from_tree({"base": tree, "axes": {"threat.eps": budgets}})
    job = Job(study, str(tmp_path / "study"), "ray", [ray_cluster], os.getcwd())
    trial = tune.with_parameters(Trial, job=job)(config={"threat.eps": budgets[0]})
    assert finish(trial) == {"status": "failed", "done": True}
    for eps in budgets[1:]:
        if eps == budgets[-1]:
            ray.kill(trial._pool._actors[1])
        trial.reset_config({"threat.eps": eps})
        assert finish(trial)["status"] == "completed"
    trial.cleanup()
    frame = load(job.out).set_index("threat.eps")
    assert frame["status"][budgets].tolist() == ["failed", "completed", "completed"]
    cold, warm, last = (processes(tmp_path / "study")[frame.loc[eps, "trial"]] for eps in budgets)
    assert cold == warm and last[0] == warm[0] and last[1] != warm[1]
    assert told["raydist_rounds", frame.loc[0.1, "trial"]] == 4
