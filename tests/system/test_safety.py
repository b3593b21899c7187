"""What must not happen: code from files, paths that escape, secrets in results."""

import ast
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import raydist
from raydist import run_experiment, run_sweep
from raydist.config.point import folder_name
from raydist.config.study import read
from raydist.engine.plan import make_plan
from raydist.errors import InputError

PACKAGE = Path(raydist.__file__).parent
FORBIDDEN = {
    "pickles that are read back": r"pickle\.loads?\(|allow_pickle=True|joblib|read_pickle|shelve",
    "Tune's own restore, which reads pickles": r"Tuner\.restore|tune\.run\(.*resume",
    "code from text": r"(?<![\w.])(eval|exec|compile)\(|shell=True|os\.system|yaml\.load\(",
}
SECRET = "4a1f-do-not-write-this-down"
SMALL = {
    "topology": {"kind": "ring", "agents": 3},
    "rounds": 2,
    "data": {"set": "digits", "batch": 4},
    "model": {"name": "linear"},
    "attack": {"steps": 1},
    "evaluate": {"validation_images": 8, "test_images": 8, "pgd": [1], "autoattack": 0},
}


WOULD = {  # lines that must be found
    "pickles that are read back": ["pickle.load(f)", "np.load(f, allow_pickle=True)"],
    "Tune's own restore, which reads pickles": ["tune.Tuner.restore(path)"],
    "code from text": ["eval(text)", "x = exec(text)", "run(line, shell=True)", "yaml.load(f)"],
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_line_of_the_package_does(what):
    assert all(re.search(FORBIDDEN[what], line) for line in WOULD[what])
    assert not re.search(FORBIDDEN[what], "model.eval()")
    files = sorted(PACKAGE.rglob("*.py"))
    assert {"sweep.py", "agent.py", "checkpoint.py"} <= {file.name for file in files}
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            assert not re.search(FORBIDDEN[what], line), f"{file}:{number}"


def test_torch_reads_weights_only():
    calls = [
        ast.unparse(node)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls and all("weights_only=True" in call for call in calls)


def test_functions_are_found_by_name_in_one_place_only():
    """What a configuration names is imported by `raydist.lookup` alone."""
    users = {f.name for f in PACKAGE.rglob("*.py") if "import_module" in f.read_text()}
    assert users == {"lookup.py", "__init__.py"}
    assert "_HOMES" in (PACKAGE / "__init__.py").read_text()  # a table of our own names


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.floats(), st.lists(st.text()))))
def test_a_trials_folder_is_one_name_below_the_studys(point):
    name = folder_name(point)
    assert Path("/runs/study", name).parent == Path("/runs/study")
    assert os.path.normpath(f"/runs/study/{name}") == f"/runs/study/{name}"
    assert len(name) < 120 and name.isascii() and name.isprintable()


def everything_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_environment_is_not_in_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDIST_TEST_SECRET", SECRET)
    run_experiment(SMALL, out=tmp_path / "run")
    found = everything_below(tmp_path / "run")
    assert b'"strategy": "diffusion"' in found and SECRET.encode() not in found


@pytest.mark.ray
def test_a_study_stays_in_its_folder_and_keeps_no_secrets(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDIST_TEST_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    nasty = ["../../x", "/etc/x", "..", "a/../../b"]
    study = {"base": SMALL, "axes": {"data.root": nasty}}  # which the digits do not look at
    frame = run_sweep(study, out=tmp_path / "out" / "study", pool="local")
    assert set(frame["status"]) == {"completed"} and set(frame["data.root"]) == set(nasty)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["study"]
    folders = [path for path in (tmp_path / "out" / "study").iterdir() if path.is_dir()]
    assert len(folders) == len(nasty)
    found = everything_below(tmp_path / "out")
    assert SECRET.encode() not in found
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        assert token.read_bytes().strip() not in found


@pytest.mark.parametrize(
    "key", ["model.name", "strategy", "data.set", "loss.name", "topology.kind"]
)
@pytest.mark.parametrize(
    "code", ["__import__('os').mkdir('HERE')", "$(mkdir HERE)", "`mkdir HERE`"]
)
def test_a_value_that_looks_like_code_stays_a_value(tmp_path, key, code):
    (tmp_path / "x.toml").write_text('rounds = 1\ntopology = { kind = "ring", agents = 2 }\n')
    marker = tmp_path / "ran"
    with pytest.raises(InputError):
        setting = f"{key}={code.replace('HERE', str(marker))}"
        make_plan(read(tmp_path / "x.toml", [setting]).only())
    assert not marker.exists()
