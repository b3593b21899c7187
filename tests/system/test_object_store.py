"""A killed and resumed study in an object store that speaks S3, over real processes.

The store is moto's server: `pip install "moto[server]" s3fs`. Without them this is skipped.
"""

import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from nodes import free_port, wait_for
from running import timeless

from raydist import load, load_events, load_rounds, run_sweep

pytest.importorskip("moto", reason='needs pip install "moto[server]" s3fs')
s3fs = pytest.importorskip("s3fs", reason='needs pip install "moto[server]" s3fs')
pytestmark = [pytest.mark.long, pytest.mark.ray]

STUDY = """
name = "stored"
[base]
topology = { kind = "ring", agents = 2 }
rounds = 400
data = { set = "digits", batch = 16 }
model = { name = "linear" }
attack = { steps = 2 }
evaluate = { every = 100, validation_images = 32, test_images = 64, pgd = [2], autoattack = 0 }
snapshot = { every = 40 }
agent = { cpus = 0.5 }
[axes]
strategy = ["consensus", "diffusion"]
"""


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A bucket that is there for every process of this test."""
    port = free_port()
    known = {"AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two"}
    known |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "moto.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    assert wait_for(lambda: "Running on" in (tmp_path / "moto.log").read_text())
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    yield files
    server.kill()
    server.wait()


def test_a_killed_study_in_an_object_store_resumes_and_changes_nothing(bucket, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    url = "s3://bucket/runs/stored"
    command = [sys.executable, "-m", "raydist.sweep"]

    def there(pattern):
        bucket.invalidate_cache()
        return bucket.glob(f"bucket/runs/stored/{pattern}")

    study = subprocess.Popen(
        [*command, "study.toml", "--out", url, "--quiet"], cwd=tmp_path, start_new_session=True
    )
    assert wait_for(lambda: there("*/snapshots/*/manifest.json"), 180)
    os.killpg(study.pid, signal.SIGKILL)
    study.wait()
    assert "unfinished" in load(url)["status"].tolist()
    resumed = subprocess.run(
        [*command, "--resume", url, "--quiet"], cwd=tmp_path, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert load_events(url)["replayed_from"].max() >= 40
    assert there("summary.png") and there("results.csv") and not (tmp_path / "s3:").exists()

    plain = run_sweep(tmp_path / "study.toml", out=tmp_path / "plain", quiet=True)
    found = load(url)
    assert found["status"].tolist() == ["completed"] * 2 and found["recoveries"].sum() >= 1
    cost = ["seconds", "recoveries", "seconds_lost"]
    pd.testing.assert_frame_equal(found.drop(columns=cost), plain.drop(columns=cost))
    pd.testing.assert_frame_equal(
        timeless(load_rounds(url)), timeless(load_rounds(tmp_path / "plain"))
    )
