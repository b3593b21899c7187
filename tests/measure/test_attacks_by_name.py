"""Attacks by name: against the package itself, closed forms and enumeration."""

import math
import random
from functools import partial

import controls
import numpy as np
import pyautoattack
import pytest
import torch
from test_autoattack import PACKAGE_NORM, Mapped, Masked, digits, trained
from torch import nn

from raydist.adversary.attack import fgsm
from raydist.adversary.fosc import first_order_gap
from raydist.adversary.objective import margin
from raydist.adversary.threat import ThreatModel, rows
from raydist.evaluation.names import PRESETS
from raydist.measure import attacks
from raydist.measure.accuracy import correct, pgd_correct, w2_accuracy
from raydist.measure.attacks import Attack, breaks, column, parse, radii, skipped
from raydist.measure.autoattack import PACKAGE, attacked, perturbations
from raydist.measure.guard import Guarded, guarded

EPS = {"linf": 0.08, "l2": 0.5, "l1": 0.7}
NAMES = ("fgsm", "pgd10", "pgd5x3", "pgd10@1/100-margin", *PACKAGE[:-1], "square200")


@pytest.fixture(scope="module")
def nets():
    return {classes: trained(classes) for classes in (3, 10)}


@pytest.fixture(scope="module")
def net(nets):
    return nets[10]


@pytest.fixture(scope="module")
def images():
    x, y = digits(10)
    return x[-40:], y[-40:]


def threat(norm):
    return ThreatModel(norm, EPS[norm])


def run(name, model, images, norm="linf", **options):
    options = {"classes": 10, "batch": 16, "seed": 3, "threat": threat(norm)} | options
    return breaks(name, model, *images, options.pop("threat"), **options)


# --- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fgsm", Attack("fgsm")),
        ("pgd20", Attack("pgd", 20)),
        ("pgd50x5", Attack("pgd", 50, 5)),
        ("pgd100-margin", Attack("pgd", 100, margin=True)),
        ("pgd100@1/255", Attack("pgd", 100, alpha=1 / 255)),
        ("pgd7x2@.01-margin", Attack("pgd", 7, 2, 0.01, margin=True)),
        ("pgd7@0.01", Attack("pgd", 7, alpha=0.01)),
        ("apgd-ce", Attack("apgd-ce")),
        ("fab-t", Attack("fab-t")),
        ("square", Attack("square", queries=5000)),
        ("square5000", Attack("square")),
        ("square300", Attack("square", queries=300)),
    ],
)
def test_what_a_name_means(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("pgd", "pgd10"),
        ("pgd0", "pgd10"),
        ("PGD20-margin", "pgd20-margin"),
        ("pgd10x0", "pgd10"),
        ("pgd10-margn", "pgd20-margin"),
        ("pgd100@0/255", "pgd100@1/255"),
        ("pgd100@1/0", "pgd100@1/255"),
        ("apdg-ce", "apgd-ce"),
        ("fab_t", "fab-t"),
        ("square-1", "square"),
        ("autoattack", "square"),
        ("", "fgsm"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line_with_the_closest_one(name, closest):
    with pytest.raises(ValueError, match=r"expected fgsm, pgd<steps>") as refused:
        parse(name)
    message = str(refused.value)
    assert message.startswith(f'attack is "{name}", expected') and "\n" not in message
    if name not in ("autoattack", ""):
        assert message.endswith(f"write for example {closest}")


def test_every_name_has_a_column_of_its_own():
    names = [*NAMES, "pgd100", "pgd100@1/255", "square", "clean", "val_pgd10", "autoattack"]
    columns = [column(name) for name in names]
    assert len(set(columns)) == len(names)
    assert all(name.isidentifier() and name.endswith("_acc") for name in columns)
    assert column("pgd10") == "pgd10_acc" and column("apgd-ce") == "apgd_ce_acc"


def test_every_preset_names_attacks():
    for name in (name.removeprefix("val_") for names in PRESETS.values() for name in names):
        assert name in ("clean", "autoattack") or parse(name)
    assert PRESETS["2410.07675"] == ("val_pgd10", "clean", "pgd10", "autoattack")
    assert parse(PRESETS["2006.08403"][0]) == Attack("pgd", 100, alpha=1 / 255)


@pytest.mark.parametrize(
    ("classes", "expected"), [(2, {"apgd-dlr", "apgd-t"}), (3, {"apgd-t"}), (4, set())]
)
def test_attacks_that_few_classes_do_not_allow(classes, expected):
    reasons = skipped(NAMES, classes)
    assert set(reasons) == expected
    assert all(f"there are {classes}" in reason and "DLR" in reason for reason in reasons.values())
    x, y = digits(classes)
    for name in (*expected, "pgd3", "apgd-ce", "fab"):
        attack = partial(run, name, trained(classes, steps=20), (x[-6:], y[-6:]), classes=classes)
        if name in expected:
            with pytest.raises(
                ValueError, match=f"classes is {classes}, expected >= . with {name}"
            ):
                attack()
        else:
            assert attack().shape == (6,)


# --- agreement with the package


def directly(name, model, x, y, ball, classes, batch):
    """The package's own run of one attack: the labels it changes."""
    package = pyautoattack.AutoAttack(model, eps=ball.eps, norm=PACKAGE_NORM[ball.norm], seed=3)
    package.attacks_to_run = ["square" if name.startswith("square") else name]
    for attack in (package.apgd_targeted, package.fab):
        attack.n_target_classes = min(attack.n_target_classes, classes - 1)
    package.square.n_queries = 200
    with torch.random.fork_rng([]):
        x_adv, _ = package.run_standard_evaluation(x, y, batch_size=batch)
    return (model(x_adv).argmax(1) != y).numpy()


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", [name for name in NAMES if parse(name).kind in PACKAGE])
def test_every_verdict_equals_the_packages_own(nets, name, norm, classes):
    if skipped([name], classes):
        pytest.skip("needs more classes")
    x, y = digits(classes)
    x, y = x[-16:], y[-16:].clone()
    y[0] = (y[0] + 1) % classes  # wrong without attack
    ball = ThreatModel(norm, EPS[norm] * (4 if classes == 3 else 1.2))
    batch = 16 if name.endswith("-t") or norm == "l1" else 10
    found = run(name, nets[classes], (x, y), classes=classes, threat=ball, batch=batch)
    expected = directly(name, nets[classes], x, y, ball, classes, batch)
    np.testing.assert_array_equal(found, expected)
    assert found[0] and 1 < found.sum()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("norm", EPS)
def test_the_packages_points_lie_in_ball_and_box(norm, shape):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(shape[0], 2, 3, 3), nn.Flatten(), nn.LazyLinear(4))
        model(torch.zeros(1, *shape))
    generator = torch.Generator().manual_seed(0)
    x = (1.4 * torch.rand(3, *shape, generator=generator) - 0.2).clamp(0, 1)
    with torch.no_grad():
        y = model(x).argmax(1)
    ball, changed = ThreatModel(norm, 3 * EPS[norm]), 0
    with guarded(model, x, y, ball, PACKAGE, 4, 3, 0, set()) as guard:
        attack = perturbations(guard, ball, 0, x.device, queries=50)
        for name in ("apgd-ce", "apgd-t", "fab", "square"):
            x_adv = attacked(attack[name], x, y)
            assert x_adv.shape == x.shape and x_adv.min() >= 0 and x_adv.max() <= 1, name
            length = ball.norm_of(x_adv.double() - x.double())
            assert (length <= ball.eps * (1 + 1e-4)).all(), name
            changed += int((guard(x_adv).argmax(1) != y).sum())
    assert changed > 0


# --- FGSM and PGD


@pytest.mark.parametrize("norm", EPS)
def test_pgd_gives_the_verdicts_of_pgd_correct(net, images, norm):
    options = {"batch": 16, "seed": 3}
    usual = ~pgd_correct(net, *images, threat(norm), steps=10, **options)
    np.testing.assert_array_equal(run("pgd10", net, images, norm), usual)
    other = ~pgd_correct(net, *images, threat(norm), steps=10, alpha=0.01, loss=margin, **options)
    np.testing.assert_array_equal(run("pgd10@0.01-margin", net, images, norm), other)
    assert (usual != other).any() and 0 < usual.sum() < 40


@pytest.mark.parametrize("norm", EPS)
def test_fgsm_gives_the_verdicts_of_fgsm(net, images, norm):
    x, y = images
    x_adv = fgsm(net, x, y, threat(norm))
    expected = correct(net, x, y, 40) & correct(net, x_adv, y, 40)
    np.testing.assert_array_equal(run("fgsm", net, images, norm), ~expected)


def test_an_image_is_broken_if_any_restart_breaks_it_and_the_others_go_on_without_it(net, images):
    sizes = []

    def counted(x, logits):
        sizes.append(len(x))
        return logits

    options = {"batch": 40, "threat": ThreatModel("linf", 0.05)}
    one, two, nine = (
        run(f"pgd1x{n}@0.03", Mapped(net, counted), images, **options) for n in (1, 2, 9)
    )
    np.testing.assert_array_equal(one, run("pgd1@0.03", net, images, **options))
    assert (one <= two).all() and (two <= nine).all() and nine.sum() > one.sum()
    # 7 calls are the package's checks; a run is 1 before, 1 gradient, 1 after
    assert sizes[: 7 + 3] == [40] * 10
    assert sizes[10:20] == [40] * 10  # the second evaluation
    assert sizes[20:23] == [40 - one.sum()] * 3
    assert len(sizes) == 10 + 13 + 7 + 9 * 3


def test_the_margin_does_not_saturate_and_reaches_the_exact_accuracy():
    w, x, y = controls.points()
    x, y = x[:300], y[:300]
    model = controls.saturated(w)
    exact = controls.exact_robust_accuracy(model, x, y)
    blind, seeing = (
        1 - run(name, model, (x, y), classes=2, threat=controls.THREAT, batch=300).mean()
        for name in ("pgd10", "pgd10-margin")
    )
    assert seeing == pytest.approx(exact)
    assert blind > exact + 0.1


def test_margin_loss_by_hand():
    outputs = torch.tensor([[3.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
    assert margin(outputs, torch.tensor([0, 2])).tolist() == [-1, 4]


# --- a linear model


def linear(classes, side=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, side * side, generator=generator))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)  # nothing to tell at the grey image
    return model.requires_grad_(False)


def points(model, images=60, low=0.3, high=0.7, side=5, seed=1):
    """Images with their labels, every seventh wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(images, 1, side, side, generator=generator)
    y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % model[1].out_features
    return x.clamp(0, 1), y


def differences(model, x, y):
    """Score of the label over each class and its weights, (N, C) and (N, C, D), in float64."""
    w, b = model[1].weight.double(), model[1].bias.double()
    z = rows(x).double() @ w.T + b
    return z.gather(1, y.unsqueeze(1)) - z, w[y].unsqueeze(1) - w


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("norm", EPS)
def test_linear_model_verdicts_against_enumeration_of_the_classes(norm, classes):
    model = linear(classes)
    x, y = points(model, 20)
    score, w = differences(model, x, y)
    dual = torch.stack([ThreatModel(norm, 0.0).dual_norm(one) for one in w])
    radius = (score / dual).scatter(1, y.unsqueeze(1), math.inf).amin(1)
    ball = ThreatModel(norm, radius.sort().values[9:11].mean().item())
    assert ((radius - ball.eps).abs() > 1e-4 * ball.eps).all()  # no matter of rounding
    assert ball.eps < 0.3  # inside the box everywhere
    exact = (radius < ball.eps).numpy()
    assert exact.sum() == 10
    reach_it = {2: ["pgd40-margin", "apgd-ce", "fab"], 4: ["apgd-t", "fab", "fab-t"]}[classes]
    for name in [*reach_it, "fgsm", "pgd5x3", "square200"]:
        found = run(name, model, (x, y), classes=classes, threat=ball, batch=20)
        assert (found <= exact).all(), name
        assert name not in reach_it or (found == exact).all(), name


def exact_radius(x, score, w, norm):
    """Smallest ball that, within the box, lowers a score (J,) of one image to 0; inf if none."""
    low, high = 0.0, {"linf": 1.0, "l2": 5.0, "l1": 25.0}[norm]
    x = x.expand(len(w), -1)

    def reached(eps):
        return (first_order_gap(x, x, -w, ThreatModel(norm, eps), box=True) >= score).any()

    if not reached(high):
        return math.inf
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (-0.8, 1.8)])
def test_radii_of_a_linear_model_are_exact(norm, classes, low, high):
    # in the second case most pixels are 0 or 1: the box cuts the balls
    model = linear(classes)
    x, y = points(model, 15, low, high)
    # APGD in l1 is slow
    found = radii(model, x, y, norm, classes=classes, batch=16, halvings=int(norm != "l1"))
    score, w = differences(model, x, y)
    wrong = (model(x).argmax(1) != y).numpy()
    assert found.dtype == np.float64 and 0 < wrong.sum() < 15
    np.testing.assert_array_equal(found[wrong], 0)
    for i in np.flatnonzero(~wrong):
        others = [j for j in range(classes) if j != y[i]]
        exact = exact_radius(rows(x[[i]]).double(), score[i, others], w[i, others], norm)
        if math.isinf(exact):
            assert math.isinf(found[i])
            continue
        assert found[i] >= exact * (1 - 1e-5) - 1e-6
        assert found[i] <= exact * (1 + (1e-4 if low == 0.3 else 5e-3)) + 1e-6
        if (low, high) == (0.3, 0.7) and exact < 0.2:  # y w.x / ||w||_*
            dual = ThreatModel(norm, 0.0).dual_norm(w[i])[others]
            assert exact == pytest.approx((score[i, others] / dual).min().item(), abs=1e-7)


def test_radii_give_the_exact_accuracy_under_a_shared_budget():
    model = linear(2)
    x, y = points(model)
    score, w = differences(model, x, y)
    signed = torch.where(y == 0, score[:, 1], score[:, 0]).numpy()
    exact = signed / ThreatModel("linf", 0.0).dual_norm(w[:1, 1 - y[0]]).item()
    found = radii(model, x, y, "linf", classes=2)
    for delta in (0.0, 0.01, 0.02, 0.03):
        assert w2_accuracy(found, delta) == w2_accuracy(exact, delta)
    assert 0 < w2_accuracy(found, 0.02) < w2_accuracy(found, 0.0)


# --- radii of a net


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radii_of_a_net_are_consistent_with_attacks_in_a_ball(nets, norm):
    net, options = nets[3], {"classes": 3, "batch": 16}
    x, y = (part[-16:].clone() for part in digits(3))
    y[0] = (y[0] + 1) % 3
    found = radii(net, x, y, norm, **options)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found == 0, ~correct(net, x, y, 16))
    assert found[0] == 0
    eps = float(np.median(found))
    for name in ("apgd-ce", "fab"):
        broken = run(name, net, (x, y), threat=ThreatModel(norm, eps), **options)
        assert (found[broken] <= 1.15 * eps).all(), name  # the attack was tried so far below
    half = radii(net, x, y, norm, eps_max=eps, halvings=0, **options)
    assert (half[np.isfinite(half)] <= eps).all()
    np.testing.assert_array_equal(np.isinf(half[found > 1.15 * eps]), True)
    np.testing.assert_array_equal(np.isinf(half[found < 0.85 * eps]), False)


def test_the_attack_finds_what_fab_cannot(nets, monkeypatch):
    x, y = (part[-8:] for part in digits(3))
    masked = Masked(nets[3])  # no gradient: only Square moves
    standard = attacks.radii.__globals__["perturbations"]
    monkeypatch.setitem(
        attacks.radii.__globals__, "perturbations", lambda *given: standard(*given, queries=200)
    )
    blind, once, seeing = (
        radii(masked, x, y, "linf", classes=3, eps_max=0.7, attack=attack, halvings=halvings)
        for attack, halvings in (("apgd-ce", 2), ("square", 0), ("square", 3))
    )
    right = correct(masked, x, y, 8)
    assert np.isfinite(once[right]).sum() > np.isfinite(blind[right]).sum()
    assert (seeing <= once).all() and seeing[right].mean() < 0.95 * once[right].mean()
    assert (seeing[right] > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l0"}, "norm is 'l0'"),
        ({"eps_max": 0.0}, "eps_max is 0.0"),
        ({"eps_max": math.inf}, "eps is inf"),
        ({"attack": "pgd10"}, 'attack is "pgd10", expected one of: apgd-ce'),
        ({"attack": "clean"}, 'attack is "clean"'),
        ({"halvings": -1}, "halvings is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"classes": 3, "attack": "apgd-t"}, "classes is 3"),
    ],
)
def test_radii_refuse_bad_arguments(net, images, change, message):
    options = {"norm": "linf", "classes": 10} | change
    with pytest.raises(ValueError, match=message):
        radii(net, *images, **options)


def test_no_images_have_no_radii_and_no_verdicts(net, images):
    none = images[0][:0], images[1][:0]
    assert radii(net, *none, "l2", classes=10).shape == (0,)
    assert run("pgd10x2", net, none).shape == run("fab", net, none).shape == (0,)


# --- what every evaluation keeps


@pytest.mark.parametrize("name", NAMES)
def test_only_right_images_count_and_no_budget_is_no_attack(net, images, name):
    x, y = images[0][:12], images[1][:12].clone()
    y[::3] = (y[::3] + 1) % 10
    wrong = ~correct(net, x, y, 12)
    assert 0 < wrong.sum() < 12
    none = run(name, net, (x, y), threat=ThreatModel("linf", 0.0))
    np.testing.assert_array_equal(none, wrong)
    assert run(name, net, (x, y))[wrong].all()


def test_the_package_only_sees_images_that_are_right(net, images):
    sizes = []

    def counted(x, logits):
        sizes.append(len(x))
        return logits

    x, y = images[0], images[1].clone()
    y[:5] = (y[:5] + 1) % 10
    run("apgd-ce", Mapped(net, counted), (x, y), batch=40)
    right = int(correct(net, x, y, 40).sum())
    assert right <= 35 and sizes[7:10] == [40, right, right]


@pytest.mark.parametrize("name", ["fgsm", "pgd5x3", "apgd-dlr", "fab", "square200"])
def test_everything_is_left_as_found_and_the_result_is_a_function_of_the_arguments(name, images):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), trained(10, steps=5)[1:]).train()
    model[2].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    few = images[0][:10], images[1][:10]
    torch.manual_seed(0)
    random.seed(0)
    states = torch.get_rng_state(), random.getstate()
    first = run(name, model, few)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    torch.manual_seed(1)
    np.testing.assert_array_equal(run(name, model, few), first)
    assert [part.training for part in model] == [True, True, False]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["pgd3", "apgd-ce"])
def test_a_randomised_model_gives_the_same_verdicts_again_and_is_flagged(net, images, name):
    noisy = Mapped(net, lambda x, logits: logits + torch.randn(logits.shape))
    flags = set()
    first = run(name, noisy, images, flags=flags)
    assert flags == {"randomised"}
    torch.rand(3)
    np.testing.assert_array_equal(run(name, noisy, images), first)


@pytest.mark.parametrize("name", ["fgsm", "pgd3", "apgd-dlr", "square200"])
def test_logits_that_are_not_finite_never_count(net, images, name):
    def diverged(x, logits):
        seen = x.flatten(1).mean(1, keepdim=True) > images[0].flatten(1).mean(1).median()
        return torch.where(seen, math.nan, logits)

    with pytest.raises(FloatingPointError, match="diverged"):
        run(name, Mapped(net, diverged), images)


def test_flags_of_masked_models(net, images):
    few, flags = (images[0][:8], images[1][:8]), set()
    run("apgd-dlr", Masked(net), few, flags=flags)
    assert flags == {"zero-gradient"}
    for name in ("pgd3", "fab"):
        flags = set()
        run(name, Mapped(net, lambda x, _: net(x.detach()).softmax(1)), few, flags=flags)
        assert flags == {"zero-gradient", "probabilities"}


def test_the_package_takes_float32_images_only_and_pgd_any(images):
    x, y = images[0].double(), images[1]
    model = trained(10, steps=5).double()
    assert run("pgd3", model, (x, y)).shape == (40,)
    with pytest.raises(ValueError, match=r"write x.float\(\)"):
        run("apgd-ce", model, (x, y))
    with pytest.raises(ValueError, match=r"write x.float\(\)"):
        run("fab", nn.Linear(64, 10), (images[0].flatten(1), y))
    with pytest.raises(ValueError, match="write x / 255"):
        run("pgd3", model, (255 * x, y))


def test_a_guarded_model_is_the_model(net, images):
    flags = set()
    assert torch.equal(Guarded(net, 10, flags)(images[0]), net(images[0]))
    assert flags == set()
    with pytest.raises(ValueError, match=r"classes is 7, but the model's output is \(40, 10\)"):
        Guarded(net, 7, flags)(images[0])
