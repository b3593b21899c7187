"""A study on several nodes while its agents, trials, nodes and the study itself are killed.

The long forms, which tell what was killed: `pytest -m chaos -n 0 -s tests/system/test_chaos.py`.
The default suite kills agents at random in `test_recovery.py`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pandas as pd
import pytest
from nodes import Cluster, wait_for
from running import timeless

from raydist import load, load_events, load_rounds, run_experiment
from raydist.config.study import read

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

# Four agents of half a CPU on nodes of one CPU: the agents of a trial are never on one node.
STUDY = """
[base]
rounds = 800
topology = { kind = "ring", agents = 4 }
data = { set = "digits", batch = 8 }
model = { name = "linear" }
attack = { steps = 2 }
optim = { momentum = 0.9 }
average = { name = "ema" }
evaluate = { every = 100, validation_images = 32, test_images = 32, pgd = [2], autoattack = 0 }
snapshot = { every = 20, recoveries = 1000 }
agent = { cpus = 0.5 }
[axes]
strategy = ["diffusion", "consensus"]
"""
KILLS = 50
SHARES = {"agent": 6, "node": 3, "trial": 2, "study": 1}
TITLES = {"agent": "Actor", "trial": "Trainable"}


class Study:
    """A sweep on a cluster, as a process of its own that can be killed and begun again."""

    def __init__(self, cluster, folder, out, *settings):
        self.cluster, self.folder, self.out = cluster, folder, out
        self._start("study.toml", *settings, "--out", str(out))

    def _start(self, *arguments):
        command = [sys.executable, "-m", "raydist.sweep", *arguments, "--quiet"]
        command += ["--max-concurrent", "1", "--address", self.cluster.address]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=self.cluster.joining(), start_new_session=True
        )

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._start("--resume", str(self.out))

    @property
    def running(self):
        return self.process.poll() is None

    @property
    def progress(self):
        return sorted(self.out.glob("*/snapshots/*/manifest.json"))


def kill(what, study, draw):
    """Kill one of these, if there is one; a node is replaced by another."""
    cluster = study.cluster
    if what == "study":
        study.kill()
    elif what == "node":
        node = draw.choice(cluster.nodes[1:])
        node.kill()
        cluster.nodes.remove(node)
        cluster.add(cpus=1)
    else:
        titles = {pid: title for node in cluster.nodes for pid, title in node.processes().items()}
        found = sorted(pid for pid, title in titles.items() if TITLES[what] in title)
        if not found:
            return 0
        os.kill(draw.choice(found), signal.SIGKILL)
    return 1


def nothing_is_lost(study, settings, seconds):
    """All trials ended well, with the numbers of undisturbed runs in one process."""
    frame = load(study.out).set_index("strategy")
    assert frame["status"].tolist() == ["completed"] * 2
    rounds = load_rounds(study.out)
    assert not rounds.duplicated(["trial", "round", "agent", "metric"]).any()
    for strategy in frame.index:
        each = [*settings, f"strategy={strategy}"]
        plain = run_experiment(read(study.folder / "study.toml", each).only())
        assert frame.loc[strategy, "val_loss"] == plain.final["val_loss"]
        own = rounds[rounds["trial"] == frame.loc[strategy, "trial"]]
        pd.testing.assert_frame_equal(timeless(own), timeless(plain.rounds))
    gone_on, lost = frame["recoveries"].sum(), frame["seconds_lost"].sum()
    print(f"\n{study.out.name}: {len(frame)} trials, {gone_on:.0f} times gone on, {seconds:.0f} s")
    print(f"of which {lost:.0f} s lost; {load_events(study.out)['what'].value_counts().to_dict()}")


def test_a_node_is_lost_in_the_middle_and_another_one_joins(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    with Cluster(cpus=0) as cluster:
        cluster.add(cpus=1)
        cluster.add(cpus=1)
        cluster.wait()
        began = time.monotonic()
        study = Study(cluster, tmp_path, tmp_path / "study", "rounds=300")
        assert wait_for(lambda: len(study.progress) >= 2, 600)
        processes = [node.processes().values() for node in cluster.nodes[1:]]
        assert [sum("Actor" in title for title in titles) for titles in processes] == [2, 2]
        cluster.nodes.pop().kill()
        time.sleep(5.0)
        cluster.add(cpus=1)
        assert study.process.wait(timeout=1200) == 0
        nothing_is_lost(study, ["rounds=300"], time.monotonic() - began)
        assert load(study.out)["recoveries"].sum() >= 1


def test_fifty_deaths_change_nothing(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    draw, killed, seed = random.Random(0), Counter(), 0
    with Cluster(cpus=0) as cluster:
        cluster.add(cpus=1)
        cluster.add(cpus=1)
        cluster.wait()
        while killed.total() < KILLS:
            began, settings = time.monotonic(), [f"seed={seed}"]
            study = Study(cluster, tmp_path, tmp_path / f"study-{seed}", *settings)
            among_killers(study, draw, killed)
            nothing_is_lost(study, settings, time.monotonic() - began)
            seed += 1


def among_killers(study, draw, killed):
    """Until the study ends; one death in four may come while the one before is made good."""
    while study.running:
        before, patience = study.progress, time.monotonic() + draw.choice([0, 120, 120, 120])
        while study.running and study.progress == before and time.monotonic() < patience:
            time.sleep(0.2)
        time.sleep(draw.uniform(0.0, 3.0))
        what = draw.choices([*SHARES], [*SHARES.values()])[0]
        if study.running and killed.total() < KILLS:
            killed[what] += kill(what, study, draw)
            print(f"{time.strftime('%X')} {dict(killed)}", flush=True)
    assert study.process.returncode == 0
