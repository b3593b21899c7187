"""A bare model is judged as a trial's model is; the answers on linear models are closed forms."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from controls import THREAT, exact_robust_accuracy, plain, points, saturated
from torch import nn

import raydist
from raydist.adversary.threat import ThreatModel
from raydist.errors import InputError
from raydist.evaluation.folders import open_subject
from raydist.learning.data import load

QUICK = ("pgd10", "apgd-ce")
ORDER = {"linf": 1, "l2": 2}  # of the dual norm


class Linear(nn.Module):
    """Five classes; the images' balls lie inside the box."""

    def __init__(self, classes=5):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(classes, 25, generator=draw))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.w.T


def linear_points(count=32, classes=5):
    draw = torch.Generator().manual_seed(2)
    x = 0.35 + 0.3 * torch.rand(count, 1, 5, 5, generator=draw)
    y = Linear(classes)(x).argmax(1)
    y[:3] = (y[:3] + 1) % classes  # wrong without attack
    return x, y


def radii(model, x, y, norm):
    """The distance of each image to the nearest other label, negative if it is wrong: closed form.

    min over j of ((w_y − w_j)·x) / ‖w_y − w_j‖_*
    """
    w = model.w.detach().double().numpy()
    centred = x.flatten(1).double().numpy() - 0.5
    found = []
    for image, label in zip(centred, y.tolist(), strict=True):
        others = [j for j in range(len(w)) if j != label]
        d = w[label] - w[others]
        found.append(np.min(d @ image / np.linalg.norm(d, ORDER[norm], axis=1)))
    return np.array(found)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_verdict_on_a_linear_model_is_the_closed_form(norm):
    model, (x, y) = Linear(), linear_points()
    exact = radii(model, x, y, norm)
    eps = float(np.median(exact))
    kept = np.abs(exact / eps - 1) > 0.03  # an attack needs not find the last three percent
    x, y, exact = x[kept], y[kept], exact[kept]
    found = raydist.robustness(model, x, y, ThreatModel(norm, eps), quiet=True)
    assert found.verdicts["autoattack"].tolist() == (exact > eps).tolist()
    assert found.verdicts["clean"].tolist() == (exact > 0).tolist()
    assert found.accuracies == {"autoattack": (exact > eps).mean()}
    assert found.accuracy == found.numbers["autoattack_acc"] == (exact > eps).mean()
    assert 0.3 < found.accuracy < 0.6  # neither answer is all there is


def test_a_binary_model_is_judged_by_the_attacks_that_can_judge_it():
    w, x, y = points()
    x, y = x[:64], y[:64]
    with pytest.warns(UserWarning, match="this is not AutoAttack: of apgd-t .* 4 classes"):
        found = raydist.robustness(
            plain(w), x, y, THREAT, ("fgsm", "pgd10", "autoattack"), quiet=True
        )
    exact = exact_robust_accuracy(plain(w), x, y)
    assert found.accuracies == dict.fromkeys(("fgsm", "pgd10", "autoattack"), exact)
    assert found.masking == "trusted"
    assert "few-classes" in found.numbers["autoattack_flags"]


class Quantised(nn.Module):
    """The plain model on rounded pixels: no gradient reaches the image."""

    def __init__(self, w):
        super().__init__()
        self.score = plain(w)

    def forward(self, x):
        return self.score((x * 64).round() / 64)


@pytest.mark.parametrize(
    ("masked", "sign"), [(Quantised, "zero-gradient"), (saturated, "zero-gradient")]
)
def test_masked_gradients_are_named(masked, sign):
    w, x, y = points()
    model, x, y = masked(w), x[:96], y[:96]
    found = raydist.robustness(model, x, y, THREAT, ("pgd10", "square1000"), quiet=True)
    assert sign in found.masking.split(", ")
    assert "square-stronger" in found.masking.split(", ")
    assert found.accuracies["square1000"] < found.accuracies["pgd10"]


def test_a_model_that_draws_is_flagged_and_judged_alike_each_time():
    class Noisy(Linear):
        def forward(self, x):
            return super().forward(x + 0.1 * torch.randn_like(x))

    x, y = linear_points(32)
    threat = ThreatModel("linf", 0.02)
    first = raydist.robustness(Noisy(), x, y, threat, "pgd10", quiet=True)
    torch.rand(7)
    again = raydist.robustness(Noisy(), x, y, threat, "pgd10", quiet=True)
    assert "randomised" in first.masking
    assert first.verdicts.equals(again.verdicts)


def test_arrays_bytes_and_tensors_are_the_same_images():
    x, y = linear_points(16)
    x = (x * 255).round() / 255
    threat, model = ThreatModel("linf", 0.01), Linear()
    kinds = [
        (x, y),
        (x.numpy().astype(np.float64), y.numpy().astype(np.int32)),
        ((x * 255).round().to(torch.uint8), y.to(torch.uint8)),
    ]
    found = [raydist.robustness(model, *kind, threat, "pgd10", quiet=True) for kind in kinds]
    assert all(one.verdicts.equals(found[0].verdicts) for one in found)
    doubled = Linear().double()
    in_double = raydist.robustness(doubled, x, y, threat, "pgd10", quiet=True)
    assert in_double.verdicts.equals(found[0].verdicts)


def test_a_callable_is_judged_and_nothing_is_left_behind():
    x, y = linear_points(16)
    body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(25), nn.Linear(25, 5)).train()
    body[1].eval()
    body[2].bias.requires_grad_(False)
    loose = torch.zeros(5, requires_grad=True)
    models = {"module": body, "method": body.forward, "function": lambda x: body(x) + loose}
    for kind, model in models.items():
        if kind == "function":
            body.eval()  # nobody else can
        modes = [module.training for module in body.modules()]
        needs = [tensor.requires_grad for tensor in body.parameters()]
        state = {name: value.clone() for name, value in body.state_dict().items()}
        drawn = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        raydist.robustness(model, x, y, ThreatModel("l2", 0.1), ("fab", "pgd10"), quiet=True)
        assert modes == [module.training for module in body.modules()]
        assert needs == [tensor.requires_grad for tensor in body.parameters()]
        assert loose.requires_grad
        assert all(tensor.grad is None for tensor in (*body.parameters(), loose)), kind
        assert all(torch.equal(state[name], value) for name, value in body.state_dict().items())
        assert torch.equal(drawn[0], torch.get_rng_state())
        assert drawn[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_without_a_budget_every_attack_is_none():
    x, y = linear_points(16)
    found = raydist.robustness(Linear(), x, y, ThreatModel("linf", 0.0), QUICK, quiet=True)
    assert found.accuracies == dict.fromkeys(QUICK, 13 / 16)


X, Y = linear_points(8)
NAN = X.clone()
NAN[3] = torch.nan


def diverged(x):
    out = Linear()(x)
    out[5] = torch.inf
    return out


WRONG = {
    "model is a str, expected a module": {"model": "net"},
    r"x is .* of shape \(8, 25\).*reshape": {"x": X.flatten(1)},
    "x runs from .* to 165.*, expected pixels in .*write x / 255$": {"x": X * 255},
    "x runs from nan": {"x": NAN},
    "x is a list, expected a tensor": {"x": X.tolist()},
    "x is empty": {"x": X[:0], "y": Y[:0]},
    "y is int64 of shape": {"y": Y[:5]},
    "y is float32 .*int64": {"y": Y.float()},
    "labels run from 1 to 5.*write y - 1": {"y": torch.arange(8) % 5 + 1},
    "threat is a float, expected a budget": {"threat": 0.1},
    'threat.eps is 8.0, expected .*"8/255"': {"threat": ThreatModel("linf", 8.0)},
    "threat.bounds is": {"threat": ThreatModel("linf", 0.1, (-1.0, 1.0))},
    'attack is "apgdce", .* apgd-ce': {"attacks": ("apgdce",)},
    'attack is "val_pgd10"': {"attacks": "val_pgd10"},
    "attacks is empty": {"attacks": ()},
    '"fab-t" cannot run|"apgd-t" cannot run': {
        "model": Linear(3),
        "y": Y % 3,
        "attacks": ("apgd-t",),
    },
    "batch is 0, expected": {"batch": 0},
    "seed is -1, expected": {"seed": -1},
    "device is 'gpu', expected": {"device": "gpu"},
    r"model gives \(8, 1\) for 8 images": {"model": lambda x: x.flatten(1)[:, :1]},
    "model gives tuple for 8 images": {"model": lambda x: (Linear()(x), None)},
    "model fails on images of shape .*RuntimeError": {"model": nn.Linear(3, 2)},
    "nan or infinite for image 5": {"model": diverged},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_told_in_one_line(message):
    good = {"model": Linear(), "x": X, "y": Y, "threat": THREAT, "attacks": ("pgd10",)}
    with pytest.raises(InputError, match=message) as told:
        raydist.robustness(**good | WRONG[message], quiet=True)
    assert "\n" not in str(told.value)


def few_digits():
    data = load("digits")
    x, y = data.test
    return {"train": data.train, "test": (x[:40], y[:40]), "classes": 10, "scale": 1 / 16}


TRIAL = {
    "topology": {"kind": "ring", "agents": 2},
    "rounds": 20,
    "data": {"set": f"{__name__}:few_digits", "batch": 16},
    "model": {"name": "linear"},
    "threat": {"norm": "linf", "eps": 0.15},
    "loss": "standard",
    "optim": {"lr": 0.2},
    "evaluate": {"autoattack": 0, "validation_images": 8, "test_images": 8},
    "seed": 3,
}


def test_a_trials_centroid_alone_is_judged_as_within_its_trial(tmp_path):
    raydist.run_experiment(TRIAL, out=tmp_path / "run")
    request = raydist.Request(parts=("robustness",), attacks=("pgd1", "apgd-dlr"))
    row = raydist.evaluate_runs(tmp_path / "run", request).iloc[0]
    subject = open_subject(tmp_path / "run")
    x, y = subject.data.test
    found = raydist.robustness(
        subject.model("centroid"),
        torch.tensor(x) / 16,
        y,
        ThreatModel("linf", 0.15),
        request.attacks,
        seed=3,
        quiet=True,
    )
    assert found.accuracies == {"pgd1": row["pgd1_acc"], "apgd-dlr": row["apgd_dlr_acc"]}
    frame = pd.read_parquet(tmp_path / "run/evaluation/images.parquet")
    frame = frame.set_index("image").loc[range(len(y))]
    for name in ("pgd1", "apgd-dlr"):  # one step from a random start: it depends on the seed
        assert frame[f"linf/0.15/{name}"].tolist() == found.verdicts[name].tolist()
