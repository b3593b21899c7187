"""A model on its own under `python -m raydist.evaluate --model`: same ledger, same numbers."""

import json
from collections import Counter

import pandas as pd
import pytest
import torch
from torch import nn

import raydist
from raydist.adversary.threat import ThreatModel
from raydist.errors import InputError
from raydist.evaluate import main
from raydist.evaluation import run as evaluation
from raydist.evaluation.folders import functions_named
from raydist.evaluation.named import name_model
from raydist.learning.data import load

BUDGET = ThreatModel("linf", 0.05)
DATA = f"{__name__}:digits"
ASKED = raydist.Request(parts=("robustness",), attacks=("pgd10",), models=("model",))


def digits():
    data = load("digits")
    x, y = data.test
    return {"train": data.train, "test": (x[:70], y[:70]), "classes": 10, "scale": 1 / 16}


def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def other(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def three(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def broken(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(63, classes))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The class means as a linear classifier: (a·x − |a|²/2), saved as training scripts do."""
    x, y = load("digits").train
    x = torch.tensor(x).flatten(1).double() / 16
    means = torch.stack([x[y == label].mean(0) for label in range(10)])
    state = {"1.weight": means.float(), "1.bias": -(means**2).sum(1).float() / 2}
    file = tmp_path_factory.mktemp("weights") / "means.pt"
    torch.save({"state_dict": state}, file)
    return str(file)


def named(weights, out, builder="net", threat=BUDGET, settings=()):
    return name_model(f"{__name__}:{builder}", DATA, weights, threat, settings, str(out))


def counted(monkeypatch, stop_at=None):
    done = []

    def perform(unit, request, do=evaluation.perform):
        if len(done) == stop_at:
            raise KeyboardInterrupt
        done.append(unit)
        yield from do(unit, request)

    monkeypatch.setattr(evaluation, "perform", perform)
    return done


def right(folder):
    frame = pd.read_parquet(folder / "evaluation" / "images.parquet").set_index("image")
    return frame.sort_index()


def test_it_is_judged_as_the_module_in_memory(weights, tmp_path):
    row = raydist.evaluate_runs(named(weights, tmp_path), ASKED).iloc[0]
    module, data = net((1, 8, 8), 10), digits()
    module.load_state_dict(torch.load(weights)["state_dict"])
    x, y = data["test"]
    found = raydist.robustness(module, torch.tensor(x) / 16, y, BUDGET, ("pgd10",), quiet=True)
    assert row["pgd10_acc"] == found.accuracy < row["clean_acc"] == found.verdicts["clean"].mean()
    assert row["clean_acc"] > 0.8  # the checkpoint was read
    assert right(tmp_path)["linf/0.05/pgd10"].tolist() == found.verdicts["pgd10"].tolist()


def test_interrupted_it_goes_on_where_it_stopped(weights, tmp_path, monkeypatch):
    plain = raydist.evaluate_runs(named(weights, tmp_path / "plain"), ASKED)
    folder = named(weights, tmp_path / "torn")
    with monkeypatch.context() as patch:
        done = counted(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            raydist.evaluate_runs(folder, ASKED)
    with monkeypatch.context() as patch:
        more = counted(patch)
        frame = raydist.evaluate_runs(named(weights, tmp_path / "torn"), ASKED)
    assert len(done) == 2 and len(more) == 1  # 70 images in blocks of 32
    pd.testing.assert_frame_equal(frame.drop(columns="trial"), plain.drop(columns="trial"))
    pd.testing.assert_frame_equal(right(folder), right(tmp_path / "plain"))


def test_two_models_in_one_folder_do_not_mix(weights, tmp_path, monkeypatch):
    alone = raydist.evaluate_runs(named(None, tmp_path / "alone", "other"), ASKED)
    first = raydist.evaluate_runs(named(weights, tmp_path / "both"), ASKED)
    second = raydist.evaluate_runs(named(None, tmp_path / "both", "other"), ASKED)
    assert second["clean_acc"][0] == alone["clean_acc"][0] < 0.5 < first["clean_acc"][0]
    kept = json.loads((tmp_path / "both" / "evaluation.json").read_text())["model"]
    assert kept["pgd10_acc"] == alone["pgd10_acc"][0]
    done = counted(monkeypatch)
    again = raydist.evaluate_runs(named(weights, tmp_path / "both"), ASKED)
    assert not done  # the ledger has both
    pd.testing.assert_frame_equal(again, first)


def test_other_weights_or_another_seed_are_another_model_and_another_budget_is_not(
    weights, tmp_path, monkeypatch
):
    raydist.evaluate_runs(named(weights, tmp_path), ASKED)
    done = counted(monkeypatch)
    frame = raydist.evaluate_runs(named(weights, tmp_path, threat=ThreatModel("l2", 0.1)), ASKED)
    assert Counter(unit.task for unit in done) == {"judge": 3}
    assert all(unit.args["known"]["test/clean"] for unit in done)  # not judged again
    assert frame["pgd10_acc"][0] > 0.5
    done.clear()
    raydist.evaluate_runs(named(weights, tmp_path, settings=["seed=1"]), ASKED)
    assert [unit.args["known"]["test/clean"] for unit in done] == [{}, {}, {}]
    changed = {name: value + 1e-3 for name, value in torch.load(weights)["state_dict"].items()}
    torch.save(changed, tmp_path / "changed.pt")
    done.clear()
    raydist.evaluate_runs(named(tmp_path / "changed.pt", tmp_path), ASKED)
    assert [unit.args["known"]["test/clean"] for unit in done] == [{}, {}, {}]


def test_the_command_leaves_numbers_and_pictures_and_reads_its_folder_again(
    weights, tmp_path, capsys
):
    model = {"model": f"{__name__}:net", "checkpoint": weights, "data": DATA, "out": str(tmp_path)}
    asked = {"eps": "4/255", "norm": "l2", "attacks": "pgd10", "images": "12"}
    assert main(["data.validation=0.2"], **model, **asked, parts="robustness,hessian") == 0
    assert "pgd10 %" in capsys.readouterr().out
    for name in ("evaluation.csv", "images.parquet", "ledger.jsonl", "robustness.png"):
        assert (tmp_path / "evaluation" / name).stat().st_size > 0
    assert (tmp_path / "evaluation" / "flatness.png").exists()
    assert functions_named([tmp_path]) == [DATA, f"{__name__}:net"]
    numbers = json.loads((tmp_path / "evaluation.json").read_text())["model"]
    frame = raydist.evaluate_runs(tmp_path, raydist.Request(models=("model",), images=12))
    assert frame["pgd10_acc"][0] == numbers["pgd10_acc"]


NET = {"model": f"{__name__}:net", "data": DATA, "eps": "8/255", "quiet": True}
WRONG = {
    "what to evaluate": {"model": None, "data": None},
    "--data belongs to a model on its own": {"model": None, "runs": ["somewhere"]},
    "--data is missing": {"data": None},
    "--eps is missing": {"eps": None},
    "--models agents chooses among a trial's models": {"models": "agents"},
    '--eps is 8.0, expected .*"8/255"': {"eps": "8"},
    "resnet-18": {"model": "resnet18"},
    "has no nothing": {"model": f"{__name__}:nothing"},
    "cifar10": {"data": "cifar-10"},
    "which has no images": {"data": "quadratic"},
    "model.checkpoint.*nowhere.pt|nowhere.pt": {"checkpoint": "nowhere.pt"},
    "gives 3 logits, but .* has 10 classes": {"model": f"{__name__}:three"},
    "model fails on images of shape": {"model": f"{__name__}:broken"},
    "optim.lr says nothing about a model": {"runs": ["optim.lr=1"]},
    "is not a setting": {"runs": ["runs/quickstart"]},
    'attack is "pdg10"': {"attacks": "pdg10"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_told_in_one_line_before_anything_is_written(message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(**NET | WRONG[message])
    assert not list(tmp_path.iterdir())


def test_a_trials_folder_is_not_taken(weights, tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(InputError, match="holds a trial"):
        named(weights, tmp_path)
