"""What the end of a trial cannot measure is refused at the door, or named: it never loses a run."""

import sys

import pytest
import torch
from experiments import digits
from pyautoattack.square import SquareAttack
from torch import nn

from raydist import cli, load, load_rounds, run_experiment
from raydist.errors import InputError
from raydist.measure.guard import square_misfit
from raydist.run import main

END = {"every": 4, "validation_images": 8, "test_images": 8, "pgd": [1, 2], "autoattack": 0}
TREE = digits(rounds=4, model={"name": "linear"}, evaluate=END)


@pytest.mark.parametrize(
    "shape", [(24, 24), (32, 24), (28, 28), (32, 32), (12, 7), (6, 8), (4, 9), (10, 12), (5, 1)]
)
def test_square_is_refused_on_exactly_the_images_on_which_the_package_fails(shape):
    x = torch.rand(2, 1, *shape)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).eval()
    attack = SquareAttack(model, norm="L2", eps=1e-3, n_queries=2, device="cpu", seed=0)
    try:
        attack.perturb(x, model(x).argmax(1))
        fails = False
    except Exception:
        fails = True
    assert bool(square_misfit(x.shape[1:], "l2")) == fails
    assert not square_misfit(x.shape[1:], "linf")


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"attacks": ["square50"]}, r'names "square50", but its l2 form .* 12 x 7: leave it out'),
        ({"autoattack": 8}, r"evaluate.autoattack has a part, Square, .*write evaluate.autoattack"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_door(tmp_path, monkeypatch, evaluate, said):
    (tmp_path / "oblong.py").write_text(
        "import numpy as np\ndef images(classes=4):\n"
        "    x, y = np.zeros((80, 1, 12, 7), np.float32), np.arange(80) % classes\n"
        "    x[:, 0, 0, 0] = (y + 1) / 5\n    x[:, 0, 0, 1] = 1\n"
        "    return {'train': (x[:60], y[:60]), 'test': (x[60:], y[60:])}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = TREE | {"threat": {"norm": "l2", "eps": 0.1}, "evaluate": END | evaluate}
    tree["data"] = {"set": "oblong:images", "batch": 4, "validation": 0.2}
    with pytest.raises(InputError, match=said):
        run_experiment(tree, out=tmp_path / "run")
    tree["data"]["params"] = {"classes": 1}
    with pytest.raises(InputError, match="has one class, and nothing to tell apart"):
        run_experiment(tree | {"evaluate": END}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def fails(*_, **__):
    raise RuntimeError("CUDA error: out of memory\non this device")


@pytest.mark.parametrize(
    ("what", "named", "missing"),
    [
        ("raydist.measure.attacks.breaks", "apgd-ce", {"apgd_ce_acc"}),
        ("raydist.engine.agent.verdicts._traces", "hessian", {"hessian_trace"}),
        ("raydist.engine.agent.verdicts.stationarity", "fosc", set()),
        ("raydist.measure.accuracy.correct", "test images: agent 0", {"clean_acc", "pgd2_acc"}),
    ],
)
def test_a_failed_measurement_is_named_and_loses_nothing(
    tmp_path, monkeypatch, what, named, missing
):
    tree = TREE | {"evaluate": END | {"attacks": ["apgd-ce"], "hessian": 8}}
    whole = run_experiment(tree)
    monkeypatch.setattr(what, fails)
    found = run_experiment(tree, out=tmp_path / "run")
    (row,) = load(tmp_path / "run").to_dict("records")
    assert row["status"] == "completed"
    assert row["unmeasured"] == f"{named}: RuntimeError: CUDA error: out of memory on this device"
    assert (found.weights == whole.weights).all()
    assert (tmp_path / "run" / "weights" / "centroid.safetensors").exists()
    assert load_rounds(tmp_path / "run")["round"].max() == 4
    lost = {name for name in whole.final if name not in found.final}
    assert missing <= lost and "train_loss" in found.final
    kept = {"clean_acc", "pgd2_acc"} - missing
    assert all(found.final[name] == whole.final[name] for name in kept)


def test_weights_and_records_are_there_before_anything_is_judged(tmp_path, monkeypatch):
    def killed(*_):
        assert (tmp_path / "run" / "weights" / "agent-003.safetensors").exists()
        assert load_rounds(tmp_path / "run")["round"].max() == 4
        raise KeyboardInterrupt

    monkeypatch.setattr("raydist.engine.pool.pool.LocalPool.evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(TREE, out=tmp_path / "run")
    assert load(tmp_path / "run")["status"].tolist() == ["unfinished"]


def test_the_command_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raydist.measure.attacks.breaks", fails)
    (tmp_path / "x.toml").write_text(
        'topology = { kind = "ring", agents = 2 }\nrounds = 2\nmodel = { name = "linear" }\n'
        "evaluate.validation_images = 8\nevaluate.test_images = 8\n"
        'evaluate.autoattack = 0\nevaluate.attacks = ["fgsm"]\n'
    )
    monkeypatch.setattr(sys, "argv", ["run", "x.toml", "--quiet"])
    with pytest.raises(SystemExit) as left:
        cli.run(main)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 1 and "not measured in full: fgsm: RuntimeError: CUDA" in line
    assert line.endswith("python -m raydist.evaluate runs/x")
