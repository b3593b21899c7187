"""Agents on two nodes with network stacks of their own: what they exchange crosses a link.

Needs the right to make network namespaces (root) and iproute2; skipped without them.
"""

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from nodes import Cluster, wait_for
from running import timeless

from raydist import load, load_events, load_rounds, run_experiment

ALLOWED = shutil.which("ip") and os.geteuid() == 0
pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.skipif(not ALLOWED, reason="needs iproute2 and root, for a network namespace"),
]
HERE, THERE = "10.203.0.1", "10.203.0.2"
ROUNDS = 300
RUN = f"""
rounds = {ROUNDS}
topology = {{ kind = "ring", agents = 2 }}
data = {{ set = "digits", batch = 16 }}
model = {{ name = "small-cnn" }}
attack = {{ steps = 2 }}
evaluate = {{ every = 50, validation_images = 32, test_images = 64, pgd = [2], autoattack = 0 }}
snapshot = {{ every = 50 }}
agent = {{ cpus = 1 }}
"""
HASTY = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "6",
}


def ip(*words):
    told = subprocess.run(["ip", *words], capture_output=True, text=True)
    if told.returncode:
        pytest.skip(f"ip {' '.join(words)}: {told.stderr.strip()}")


@pytest.fixture
def link():
    """A namespace, and the two ends of the link to it."""
    space = f"rd{secrets.token_hex(3)}"
    near, far = f"{space}a", f"{space}b"
    ip("netns", "add", space)
    ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
    ip("address", "add", f"{HERE}/24", "dev", near)
    ip("link", "set", near, "up")
    for words in (("address", "add", f"{THERE}/24", "dev", far), ("link", "set", far, "up")):
        ip("-n", space, *words)
    ip("-n", space, "link", "set", "lo", "up")
    yield space, near
    ip("netns", "delete", space)


def received(near):
    return int(Path(f"/sys/class/net/{near}/statistics/rx_bytes").read_text())


def test_weights_cross_a_network_and_a_cut_link_costs_rounds_but_no_number(link, tmp_path):
    space, near = link
    (tmp_path / "run.toml").write_text(RUN)
    out = tmp_path / "out"
    with Cluster(cpus=1, ip=HERE, **HASTY) as cluster:
        cluster.add(cpus=1, ip=THERE, within=("ip", "netns", "exec", space))
        cluster.wait()
        command = [sys.executable, "-m", "raydist.run", "run.toml", "--pool", "ray", "--quiet"]
        command += ["--address", cluster.address, "--out", str(out)]
        before = received(near)
        run = subprocess.Popen(command, cwd=tmp_path, env=cluster.joining())
        assert wait_for(lambda: list(out.glob("snapshots/*-000100/manifest.json")), 300), out
        message = 4 * 25_274
        assert received(near) - before > 90 * message  # one agent's weights came in every round
        ip("link", "set", near, "down")
        cluster.nodes.pop().kill()
        cluster.add(cpus=1, ip=HERE)
        assert run.wait(timeout=300) == 0
    events = load_events(out)
    assert (events["what"] == "agent died").any() and events["replayed_from"].max() >= 100
    plain = run_experiment(tmp_path / "run.toml")
    (row,) = load(out).to_dict("records")
    assert row["recoveries"] >= 1 and row["pgd2_acc"] == plain.final["pgd2_acc"]
    pd.testing.assert_frame_equal(timeless(load_rounds(out)), timeless(plain.rounds))
