"""Numbers under a shared budget, judged on models whose exact answer is known."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from shifts import images, network, normal, worst_risk
from torch import nn

from raydist.adversary.wasserstein import sensitivity
from raydist.measure.accuracy import w2_accuracy
from raydist.measure.wasserstein import value, w2_summary, w_pgd_accuracy

NORMS = {"linf": math.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
DELTA = {"linf": 0.01, "l2": 0.02, "l1": 0.03}


def logistic(n=400):
    """Two classes, log-odds w·(x − ½), with images (N, 1, 1, 5) well inside the box; w, margins."""
    w = 10 * normal(5, seed=7)
    x = 0.5 + 0.08 * normal(n, 5, seed=8) + 0.004 * w
    assert x.min() > 0.1 and x.max() < 0.9
    score = (x - 0.5) @ w
    y = (score + normal(n, seed=9) > 0).long()
    layer = nn.Linear(5, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-w / 2, w / 2]))
        layer.bias.copy_(-0.5 * layer.weight.sum(dim=1))
    return nn.Sequential(nn.Flatten(), layer), x.view(n, 1, 1, 5), y, w, (2 * y - 1) * score


class Seen(nn.Module):
    """A model that notes how many images it was given, and the labels that it gave them."""

    def __init__(self, model):
        super().__init__()
        self.model, self.sizes, self.labels = model, [], []

    def forward(self, x):
        outputs = self.model(x)
        self.sizes.append(len(x))
        self.labels.append(outputs.argmax(1))
        return outputs


# --- the loss


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_loss_of_the_logistic_model_reaches_the_exact_one_by_duality(norm, scale):
    model, x, y, w, margins = logistic()
    delta, dual = scale * DELTA[norm], w.norm(p=DUAL[norm]).item()
    # in units of x / 10, to which the multipliers and moves tried there are fitted
    exact = worst_risk(margins, dual / 10, 10 * delta)
    found = w2_summary(model, x, y, delta, norm=norm, loss="ce")
    assert 0.998 * exact <= found["w2_loss"] <= exact * (1 + 1e-6)
    assert found["w2_loss_first_order"] < found["w2_loss"]  # the loss is convex in x
    risk = nn.functional.softplus(-margins)
    slopes = torch.sigmoid(-margins) * dual
    first_order = risk.mean() + delta * slopes.square().mean().sqrt()
    assert found["sensitivity"] == pytest.approx(slopes.square().mean().sqrt().item())
    assert found["w2_loss_first_order"] == pytest.approx(first_order.item())
    assert value(model, x, y, 0.0) == pytest.approx(risk.mean().item())


@pytest.mark.parametrize("norm", NORMS)
def test_losses_linear_in_x_are_exact_to_first_order(norm):
    # logit 0 is far above the others z_j = c_j a·x, so the loss of label j is 900 − z_j
    a, c = normal(6, seed=1), torch.tensor([0.0, 1.0, 3.0, -2.0], dtype=torch.float64)
    layer = nn.Linear(6, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(c.unsqueeze(1) * a)
        layer.bias.copy_(torch.tensor([900.0, 0, 0, 0]))
    x, y = 0.5 + 0.01 * normal(90, 6, seed=2), torch.arange(90) % 3 + 1
    found = w2_summary(layer, x, y, 0.05, norm=norm)
    upsilon = c[y].square().mean().sqrt() * a.norm(p=DUAL[norm])
    expected = (900 - c[y] * (x @ a)).mean() + 0.05 * upsilon
    assert found["sensitivity"] == pytest.approx(upsilon.item(), rel=1e-12)
    assert found["w2_loss_first_order"] == pytest.approx(expected.item(), rel=1e-12)
    assert found["w2_loss"] - 900 == pytest.approx(expected.item() - 900, rel=1e-9)


def test_the_loss_is_that_of_the_last_iterate_and_the_accuracy_that_of_the_lowest():
    class Ditch(nn.Module):
        """Label 0 but in a narrow ditch, of which the slope outside knows nothing."""

        def forward(self, x):
            z = 1 - 0.1 * x.flatten(1) - 2 * torch.exp(-(((x.flatten(1) - 0.475) / 0.004) ** 2))
            return torch.cat([z, 0 * z], dim=1)

    x, y = torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64), torch.tensor([0])
    # steps of 0.9375 delta: to the ditch, and on to the end of the ball
    found = w2_summary(Ditch(), x, y, 0.4, loss="ce", steps=2)
    assert found["w2_loss"] == pytest.approx(math.log1p(math.exp(-0.95)))
    assert found["w_pgd_acc"] == 0


# --- the accuracy


def moved(model, x, w, radii, spent, norm):
    """The images of the `spent` smallest positive radii, a little past the plane."""
    step = {
        "linf": w.sign() / w.abs().sum(),
        "l2": w / w.square().sum(),
        "l1": torch.where(w.abs() == w.abs().max(), 1 / w, 0),
    }[norm]
    order = np.argsort(np.where(radii > 0, radii, np.inf))[:spent]
    with torch.no_grad():
        score = model(x).diff(dim=1)[:, 0]
    out = x.clone()
    for i in order:
        out[i] -= (1 + 1e-9) * (score[i] * step).view(1, 1, 5)
    return out


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_w2_accuracy_is_attained_on_the_linear_model_and_below_that_of_w_pgd(norm, scale):
    model, x, y, w, margins = logistic()
    delta, radii = scale * DELTA[norm], (margins / w.norm(p=DUAL[norm])).numpy()
    found = w2_summary(model, x, y, delta, norm, loss="ce")
    exact, clean = w2_accuracy(radii, delta), np.mean(radii > 0)
    # a plan that costs no more reaches it
    x_adv = moved(model, x, w, radii, round((clean - exact) * len(x)), norm)
    size = (x_adv - x).flatten(1).norm(p=NORMS[norm], dim=1)
    assert size.square().mean().sqrt() <= delta * (1 + 1e-6)
    assert (model(x_adv).argmax(1) == y).double().mean() == pytest.approx(exact)
    # and one image more costs too much
    over = moved(model, x, w, radii, round((clean - exact) * len(x)) + 1, norm)
    assert (over - x).flatten(1).norm(p=NORMS[norm], dim=1).square().mean() > (delta**2)
    pointwise = np.mean(radii > delta)
    assert exact < found["w_pgd_acc"] - 0.02 < clean - 0.02
    assert exact < pointwise - 0.02  # one radius for each can do less
    assert found["w2_ratio"] == pytest.approx(found["w_pgd_acc"] / clean)


def test_w2_accuracy_is_the_least_over_all_subsets():
    radii = normal(12, seed=4).numpy()
    for delta in (0.05, 0.1, 0.2, 0.4):
        affordable = [
            subset
            for count in range(13)
            for subset in itertools.combinations(range(12), count)
            if np.square(radii[list(subset)]).clip(min=0).sum() / 12 <= delta**2
        ]
        kept = [np.sum(np.delete(radii, subset) > 0) for subset in affordable]
        assert w2_accuracy(radii, delta) == min(kept) / 12


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "redlr"])
def test_w_pgd_accuracy_is_the_lowest_over_the_iterates(norm, loss):
    (x, y), seen = images(), Seen(network())
    delta = {"linf": 0.15, "l2": 0.8, "l1": 2.0}[norm]
    found = w_pgd_accuracy(seen, x, y, delta, steps=12, norm=norm, loss=loss, batch=40)
    iterates = [(labels == y).double().mean().item() for labels in seen.labels[:13]]
    assert len(seen.labels) == 14  # x, twelve iterates, and the one that is returned
    assert found == min(iterates) < iterates[0]


# --- the summary


@pytest.mark.parametrize("norm", NORMS)
def test_the_model_sees_no_more_than_a_batch_and_the_numbers_are_the_same(norm):
    (x, y), seen = images(), Seen(network())
    call = partial(w2_summary, x=x, y=y, delta=0.1, norm=norm, steps=6)
    parts, whole = call(seen, batch=7), call(network(), batch=1000)
    assert max(seen.sizes) == 7 and len(whole) == 5
    assert parts == pytest.approx(whole, rel=1e-12)
    assert whole["sensitivity"] == pytest.approx(sensitivity(network(), x, y, norm), rel=1e-12)


def test_without_budget_nothing_is_lost_and_without_a_right_image_there_is_no_ratio():
    model, (x, y) = network(), images()
    found = w2_summary(model, x, y, 0.0)
    assert found["w2_ratio"] == 1 and found["w2_loss"] == found["w2_loss_first_order"]
    with torch.no_grad():
        wrong = (model.eval()(x).argmax(1) + 1) % 4
    assert math.isnan(w2_summary(model, x, wrong, 0.1, steps=2)["w2_ratio"])


def test_the_model_is_left_as_found():
    model, (x, y) = network(), images()
    model[1].eval()
    model[0].weight.requires_grad_(False)

    def state():
        flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        values = {key: value.tolist() for key, value in model.state_dict().items()}
        return flags, values, [p.grad for p in model.parameters()], torch.get_rng_state().tolist()

    before = state()
    w2_summary(model, x, y, 0.1, steps=2)
    assert state() == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": torch.zeros(0, 1, 6, 6), "y": torch.zeros(0).long()}, "x has 0 samples"),
        ({"batch": 0}, "batch is 0, expected a number of samples >= 1"),
        ({"delta": -0.1}, r"eps is -0\.1"),
        ({"norm": "l3"}, "norm is 'l3'"),
    ],
)
def test_bad_arguments_are_refused(change, match):
    x, y = images()
    with pytest.raises(ValueError, match=match):
        w2_summary(network(), **{"x": x, "y": y, "delta": 0.1, "steps": 1} | change)
