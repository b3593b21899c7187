"""The README is true: its examples run, its commands are the ones that CI runs, its names exist."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from raydist.config.experiment import validate
from raydist.config.study import from_tree, read

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_and_its_assertion_holds():
    example = next(block for block in blocks("python") if "import raydist" in block)
    assert len(example.strip().splitlines()) <= 13 and "assert" in example
    exec(compile(example, "README.md", "exec"), {})


def test_your_own_model_data_graph_and_loss_train(tmp_path, monkeypatch):
    import sys

    import raydist

    (tmp_path / "mine.py").write_text(blocks("python")[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = raydist.run_experiment(
        {
            "topology": {"kind": "mine:wheel", "agents": 6},
            "rounds": 20,
            "data": {"set": "mine:stripes", "params": {"n": 400}, "batch": 10},
            "model": {"name": "mine:net", "params": {"hidden": 16}},
            "loss": {"name": "mine:smooth", "params": {"amount": 0.2}},
            "threat": {"eps": 0.05},
            "evaluate": {"test_images": 64, "validation_images": 16, "autoattack": 16},
        }
    )
    sys.modules.pop("mine")
    assert result.final["clean_acc"] > 0.9
    assert result.final["autoattack_acc"] <= result.final["clean_acc"]


def test_the_study_in_the_readme_is_valid(tmp_path):
    study = blocks("toml")[0]
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "topologies").symlink_to(ROOT / "topologies")
    (tmp_path / "sweeps" / "cifar.toml").write_text(study)
    loaded = read(tmp_path / "sweeps" / "cifar.toml")
    assert loaded.trials == 3 * 2 * 5
    assert [loaded.experiment(point).threat.eps for point in loaded.corners()]


def lines(word):
    """The lines, without comments, of the block in which a word stands."""
    block = next(block for block in blocks("toml") if word in block)
    return re.findall(r"^[^#\n]+", block, re.MULTILINE)


@pytest.mark.parametrize("line", lines("periods"))
def test_every_line_of_the_recipes_is_valid(line):
    tree = tomllib.loads(line) | {"topology": {"kind": "ring", "agents": 4}, "rounds": 1}
    assert validate(tree)


@pytest.mark.parametrize("line", lines("asha"))
def test_every_search_in_the_readme_is_valid(line):
    base = {"topology": {"kind": "ring", "agents": 4}, "rounds": 1}
    axes = {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "seed": [0, 1]}
    study = from_tree(tomllib.loads(line) | {"base": base, "axes": axes})
    assert study.trials == 2 * study.search.samples


def test_every_study_in_the_readme_exists():
    studies = set(re.findall(r"`(\w+_(?:digits|quadratic|cifar100?))`", README))
    assert studies and all((ROOT / "sweeps" / f"{name}.toml").exists() for name in studies)


def test_rays_launcher_takes_the_cluster_of_the_readme():
    import jsonschema
    import ray.autoscaler

    (text,) = (block for block in blocks("yaml") if "cluster_name" in block)
    cluster = yaml.safe_load(text)
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    starts = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert all("RAY_AUTH_MODE=token ray start" in start for start in starts)


def test_the_kuberay_manifest_of_the_readme_is_whole():
    """KubeRay's schema is not installed with Ray: what it asks for is asked for here."""
    (text,) = (block for block in blocks("yaml") if "RayCluster" in block)
    manifest = yaml.safe_load(text)
    spec = manifest["spec"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert spec["authOptions"] == {"mode": "token"} and isinstance(spec["rayVersion"], str)
    groups = {"ray-head": spec["headGroupSpec"], "ray-worker": spec["workerGroupSpecs"][0]}
    for name, group in groups.items():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == name and re.fullmatch(r"[\w./-]+:[\w.]+", container["image"])
        # Ray takes its resources from the limits; Kubernetes wants whole GPUs, asked for once
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert all(isinstance(amount, str) for amount in resources["limits"].values())
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    install_and_test = next(block for block in blocks("bash") if "pytest" in block).strip()
    assert install_and_test in script.splitlines()
    assert "sweeps/quickstart.toml" in script and "sweeps/quickstart.toml" in README


@pytest.mark.parametrize("family", ["models", "losses", "graphs", "sets"])
def test_the_names_in_the_readme_are_the_known_ones(family):
    from raydist.engine.agent.task import LOSSES
    from raydist.learning.data import SETS
    from raydist.learning.model import MODELS
    from raydist.network import topology

    row, known = {
        "models": ("model.name", set(MODELS)),
        "losses": ("loss.name", set(LOSSES)),
        "graphs": ("topology.kind", {*topology.FIXED, *topology.RANDOM}),
        "sets": ("data.set", {*SETS, "quadratic"}),
    }[family]
    line = next(line for line in README.splitlines() if line.startswith(f"| `{row}` |"))
    named = re.sub(r"\(.*?\)", "", line.split("|")[2])
    assert {name.strip() for name in named.split(",")} == known


def test_the_file_tree_of_the_readme_exists():
    tree = README.split("## Files")[1]
    named = re.findall(r"[\w/]+(?:\.py|/)(?=\s)", tree)
    folders = [f.name for f in (ROOT / "raydist").iterdir() if (f / "__init__.py").exists()]
    assert {f"{folder}/" for folder in folders} | {"cli.py", "sweep.py", "tests/"} <= {*named}
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "raydist" / name).exists(), name
