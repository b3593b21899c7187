"""What must not be imported: it takes seconds."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "numpy", "pandas", "matplotlib", "networkx", "fsspec")
ANSWERED = """
import runpy, sys
sys.argv = [{module!r}, *{arguments!r}]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as left:
    print("exit", left.code, *[name for name in {heavy!r} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("module", "arguments", "code"),
    [
        ("raydist.sweep", ["--help"], 0),
        ("raydist.evaluate", ["--help"], 0),
        ("raydist.config", ["loss"], 0),
        ("raydist.config", ["lss"], 2),
        ("raydist.sweep", ["study.toml", "optimm.lr=1"], 2),
        ("raydist.run", ["study.toml"], 2),
    ],
)
def test_help_and_a_misspelt_key_are_answered_at_once(module, arguments, code, tmp_path):
    (tmp_path / "study.toml").write_text('[base]\nstrategyy = "diffusion"\n')
    program = ANSWERED.format(module=module, arguments=arguments, heavy=HEAVY)
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout.splitlines()[-1] == f"exit {code}", run.stderr


def test_agents_import_only_what_they_need():
    program = "import sys, raydist.engine.pool.ray_actor; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(run.stdout.split())
    assert "torch" in loaded, run.stderr
    unneeded = {"networkx", "scipy", "pandas", "matplotlib", "sklearn", "torchvision", "ray.tune"}
    assert not loaded & (unneeded | {"curvlinops", "pyarrow", "rich", "typer"})


def test_a_run_needs_no_compiler():
    program = """
import sys
from raydist import run_experiment

for name in ("sgd", "adam", "deat", "AdamW"):
    run_experiment({
        "topology": {"kind": "ring", "agents": 3},
        "rounds": 2,
        "data": {"set": "digits", "batch": 4},
        "optim": {"name": name},
        "evaluate": {"test_images": 8, "validation_images": 8, "autoattack": 0},
    })
print("torch._dynamo" in sys.modules, sys.modules["torch"].__version__)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.startswith("False"), (run.stdout, run.stderr)


def test_what_is_imported_late_draws_nothing_from_pythons_global_randomness():
    """Rich does, when a process asks for its first run."""
    program = """
import random, sys
import raydist

before = random.getstate()
raydist.run_experiment, raydist.over_seeds
print(before == random.getstate(), "rich.style" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == ["True", "True"], (run.stdout, run.stderr)
