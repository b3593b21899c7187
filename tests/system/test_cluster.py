"""A cluster that is joined: its token, and the code that travels to its nodes."""

import subprocess
import sys
from pathlib import Path

import pytest
from nodes import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.long]

RUN = """
rounds = 1
topology = { kind = "ring", agents = 2 }
data = { set = "digits", batch = 4 }
model = { name = "linear" }
evaluate = { validation_images = 8, test_images = 8, pgd = [1], autoattack = 0 }
"""
TRAVEL = """
import os, sys
import mine
import ray
from raydist.engine.cluster.session import ray_session

def where():
    import beside, mine, raydist
    return [module.__file__ for module in (beside, mine, raydist)]

with ray_session(sys.argv[1]):
    os.rename(os.getcwd(), os.getcwd() + "-gone")  # which other machines never had
    print(*ray.get(ray.remote(where).remote()), sep="\\n")
"""


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as cluster:
        yield cluster


def started(command, folder, environment):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_who_has_not_the_token_is_told_so_in_one_line(cluster, tmp_path):
    (tmp_path / "x.toml").write_text(RUN)
    (tmp_path / "token").write_text("0" * 64)
    command = ["-m", "raydist.run", "x.toml", "--pool", "ray", "--quiet"]
    command += ["--address", cluster.address]
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    silent = cluster.joining()
    del silent["RAY_AUTH_MODE"]  # Ray sends no token to a written address unless it is told to
    cases = {
        "refuses this machine's token: put the cluster's own into": cluster.joining(**wrong),
        "asks for its token, and RAY_AUTH_MODE is not set: write export RAY_AUTH_MODE": silent,
    }
    runs = {
        said: started([*command, "--out", f"out{i}"], tmp_path, each)
        for i, (said, each) in enumerate(cases.items())
    }
    for said, run in runs.items():
        out, err = run.communicate(timeout=300)
        assert run.returncode == 2 and out == ""
        (line,) = err.splitlines()
        assert line.startswith(f"raydist: the Ray cluster at {cluster.address} {said}")
        assert "0" * 64 not in err and cluster.token.read_text() not in err
    assert {path.name for path in tmp_path.iterdir()} == {"x.toml", "token"}


def test_code_travels_to_nodes_that_have_none_of_it(cluster, tmp_path):
    """The package, the module that the user named, and what that imports from beside it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.py").write_text("import beside\n")
    (home / "beside").mkdir()
    (home / "beside" / "__init__.py").write_text("")
    run = started(["-c", TRAVEL, cluster.address], home, cluster.joining())
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    files = [Path(line) for line in out.splitlines()]
    assert [file.parent.name for file in files][::2] == ["beside", "raydist"]
    assert files[1].name == "mine.py"
    assert all("py_modules_files" in file.parts for file in files)
