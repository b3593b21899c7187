"""Every README is true: examples run, commands are understood, names and links exist."""

import importlib
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from raydist.config.experiment import validate
from raydist.config.keys import OWN, keys, markdown
from raydist.config.study import from_tree, read

ROOT = Path(__file__).parents[2]
FOLDERS = ("raydist", "sweeps", "topologies", "analysis", "tests")
FILES = [ROOT / "README.md", *(f for name in FOLDERS for f in (ROOT / name).rglob("README.md"))]
TEXTS = {str(file.relative_to(ROOT)): file.read_text() for file in sorted(FILES)}
README = TEXTS["README.md"]
BASE = {"topology": {"kind": "ring", "agents": 4}, "rounds": 1}


def blocks(language, name=None):
    """The blocks of a language, in one README or in all of them."""
    texts = TEXTS.values() if name is None else [TEXTS[name]]
    return [b for text in texts for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def settings():
    """The lines of TOML that are no studies, without comments."""
    short = (block for block in blocks("toml") if "[base]" not in block)
    return [line for block in short for line in re.findall(r"^[^#\n]+", block, re.MULTILINE)]


def commands():
    """Yield what the READMEs tell to type, each command as its words."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(r"`((?:pytest|python|pip) [^`\n]+)`", "\n".join(TEXTS.values()))
    lines += [span.replace("\\|", "|") for span in inline]
    lines += [found for file in (ROOT / "sweeps").glob("*.toml") for found in in_comments(file)]
    for line in lines:
        for part in re.split(r" && | -- (?=python)", re.sub(r"\[.*?\.\.\.\]", "", line)):
            words = shlex.split(part, comments=True)
            while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "nice"):
                words = words[1:]
            if words:
                yield words


def in_comments(file):
    text = re.sub(r"\\\n#", "", file.read_text())
    return re.findall(r"^#\s+(python .*)$", text, re.MULTILINE)


def known_options(words):
    """Check the words behind `python -m` as typer does, and the study that they set."""
    package = (ROOT / words[0].replace(".", "/")).is_dir()
    app = typer.Typer()
    app.command()(importlib.import_module(f"{words[0]}{'.__main__' * package}").main)
    context = typer.main.get_command(app).make_context(words[0], list(words[1:]))
    file = context.params.get("file")
    if file is not None and str(file) != "FILE":
        study = read(ROOT / file, context.params["settings"] or [])
        assert study.experiment(next(study.corners()))


def check_python(words):
    if words[0] == "-m":
        known_options(words[1:])
        return
    script = (ROOT / words[0]).read_text()
    for flag in (word for word in words[1:] if word.startswith("--")):
        assert flag in script or f"\n    {flag[2:].replace('-', '_')}: " in script, flag


def check_pytest(words):
    marks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    for word, before in zip(words, ["", *words], strict=False):
        if before == "-m":
            assert word in {mark.partition(":")[0] for mark in marks["markers"]}
        elif "/" in word:
            assert (ROOT / word).exists()


def check_pip(words):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in re.findall(r"^\.\[(\w+)\]$", "\n".join(words), re.MULTILINE):
        assert name in extras["optional-dependencies"]


def check_ray(words):
    from ray.scripts.scripts import cli

    command = cli
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
    assert command is not cli and {w for w in words if w.startswith("--")} - {"--"} <= known


CHECKS = {"python": check_python, "pytest": check_pytest, "pip": check_pip, "ray": check_ray}


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_is_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "export":
        assert re.match(r"RA[Y_A-Z]+=", words[1])
    elif words != ["ray", "up", "cluster.yaml"]:
        CHECKS[words[0]](words[1:])


@pytest.mark.parametrize("name", TEXTS)
def test_no_table_is_cut_in_two(name):
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = table.splitlines()
        assert lines[1:] and re.fullmatch(r"\|(-+:?\|)+", lines[1]), table
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1, table


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), target
        page = file / "README.md" if file.is_dir() else file
        assert not anchor or anchor in anchors(page.read_text()), target


def test_the_readme_is_short_and_links_to_all_others():
    assert len(README.splitlines()) <= 200
    assert {*TEXTS} - {"README.md"} <= {*re.findall(r"\]\(([\w/]+/README\.md)", README)}


def test_the_example_runs_and_its_assertion_holds():
    example = blocks("python", "README.md")[0]
    assert len(example.strip().splitlines()) <= 13 and "assert" in example
    exec(compile(example, "README.md", "exec"), {})


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write the file mine.py of a README where a run looks for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name):
        (text,) = (block for block in blocks("python", name) if "# mine.py" in block)
        (tmp_path / "mine.py").write_text(text)

    yield write
    sys.modules.pop("mine")


def test_your_own_model_data_graph_and_loss_train(mine):
    import raydist

    mine("raydist/README.md")
    result = raydist.run_experiment(
        {
            "topology": {"kind": "mine:wheel", "agents": 6, "weights": "mine:lazy"},
            "rounds": 20,
            "data": {"set": "mine:stripes", "params": {"n": 400}, "batch": 10},
            "model": {"name": "mine:net", "params": {"hidden": 16}},
            "loss": {"name": "mine:smooth", "params": {"amount": 0.2}},
            "threat": {"eps": 0.05},
            "evaluate": {"test_images": 64, "validation_images": 16, "autoattack": 16}
            | {"attacks": ["mine:corner"]},
        }
    )
    assert result.final["clean_acc"] > 0.9
    assert result.final["mine_corner_acc"] <= result.final["clean_acc"]
    assert result.final["autoattack_acc"] <= result.final["clean_acc"]


def test_your_own_attack_optimiser_schedules_and_partition_train(mine):
    import raydist

    mine("raydist/README.md")
    result = raydist.run_experiment(
        BASE
        | {
            "rounds": 3,
            "strategy": "mine:slow",
            "attack": "mine:corner",
            "data": {"set": "digits", "batch": 8, "partition": "mine:by_label"},
            "threat": {"eps": 0.1, "schedule": "mine:warm"},
            "optim": {"name": "mine:Signs", "lr": 1e-3, "schedule": "mine:warm"},
            "evaluate": {"test_images": 16, "validation_images": 16, "autoattack": 0},
        }
    )
    assert result.final["status"] == "completed"


def test_the_own_loss_of_the_readme_trains(mine):
    import raydist

    mine("README.md")
    few = {"test_images": 8, "validation_images": 8, "autoattack": 0}
    result = raydist.run_experiment(
        BASE | {"loss": {"name": "mine:smooth", "params": {"amount": 0.2}}, "evaluate": few}
    )
    assert result.final["status"] == "completed"


@pytest.mark.parametrize("study", [block for block in blocks("toml") if "[base]" in block])
def test_every_study_that_is_shown_is_valid(study, tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "topologies").symlink_to(ROOT / "topologies")
    (tmp_path / "sweeps" / "cifar.toml").write_text(study)
    loaded = read(tmp_path / "sweeps" / "cifar.toml")
    assert loaded.trials == 3 * 2 * 5
    assert [loaded.experiment(point).threat.eps for point in loaded.corners()]


@pytest.mark.parametrize("line", settings())
def test_every_setting_that_is_shown_is_valid(line):
    tree = tomllib.loads(line)
    if "search" not in tree:
        assert validate(BASE | tree)
        return
    axes = {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "seed": [0, 1]}
    study = from_tree(tree | {"base": BASE, "axes": axes})
    assert study.trials == 2 * study.search.samples


def test_every_study_that_is_named_exists_and_each_is_named():
    files = {file.stem for file in (ROOT / "sweeps").glob("*.toml")}
    alike = re.findall(r"`(\w+_(?:digits|quadratic|cifar100?))`", "".join(TEXTS.values()))
    assert alike and {*alike} <= files
    assert files == {*re.findall(r"`(\w+)`", TEXTS["sweeps/README.md"])} & files


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
    install_and_test = next(b for b in blocks("bash", "README.md") if "pytest" in b).strip()
    assert install_and_test in script.splitlines()
    assert "sweeps/quickstart.toml" in script and "sweeps/quickstart.toml" in README


def test_the_keys_in_the_readme_are_those_of_the_tables():
    head, *_ = markdown().partition("\n")
    text = TEXTS["raydist/config/README.md"]
    assert text[text.index(head) :] == markdown(), "write what --markdown prints into it"


@pytest.mark.parametrize("family", ["models", "losses", "graphs", "sets"])
def test_the_names_in_the_readme_are_the_known_ones(family):
    from raydist.engine.agent.task import LOSSES
    from raydist.learning.data import SETS
    from raydist.learning.model import MODELS
    from raydist.network import topology

    key, known = {
        "models": ("model.name", MODELS),
        "losses": ("loss.name", LOSSES),
        "graphs": ("topology.kind", [*topology.FIXED, *topology.RANDOM]),
        "sets": ("data.set", [*SETS, "quadratic"]),
    }[family]
    (row,) = keys(key)
    listed = re.split(r"[:,] ", row.meaning.partition(", or ")[0])[1:]
    told = [name for names, _ in row.choices for name in names] or listed
    assert {*told} - {OWN} == {*known}


def test_the_file_tree_of_the_readme_exists():
    tree = README.split("## Where things are")[1]
    named = re.findall(r"[\w/]+(?:\.py|/)(?=\s)", tree)
    folders = [f.name for f in (ROOT / "raydist").iterdir() if (f / "__init__.py").exists()]
    assert {f"{folder}/" for folder in folders} | {"cli.py", "sweep.py", "tests/"} <= {*named}
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "raydist" / name).exists(), name
