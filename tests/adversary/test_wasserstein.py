import math
from functools import partial

import numpy as np
import pytest
import torch
from shifts import images, network, normal, worst_risk
from torch import nn

from raydist.adversary.attack import pgd
from raydist.adversary.objective import cross_entropies, dlr, kl_divergences, redlr
from raydist.adversary.threat import ThreatModel, rows
from raydist.adversary.wasserstein import (
    batch_budget,
    first_order_risk,
    gradient_power,
    moving,
    sensitivity,
    w_fgsm,
    w_pgd,
)
from raydist.measure.accuracy import w2_accuracy

UNBOUNDED = (-math.inf, math.inf)
NORMS = {"linf": math.inf, "l2": 2}
DUAL = {"linf": 1, "l2": 2}
DELTA = {"linf": 0.1, "l2": 0.5}
ATTACKS = {
    "w_pgd": partial(w_pgd, steps=8),
    "w_pgd, last": partial(w_pgd, steps=8, best=False),
    "w_pgd, ce": partial(w_pgd, steps=8, loss="ce"),
    "w_pgd, inf": partial(w_pgd, steps=8, order=math.inf),
    "w_fgsm": w_fgsm,
}
free = partial(w_pgd, bounds=UNBOUNDED, best=False)


def linear(size=6, classes=3, seed=0):
    model = nn.Linear(size, classes, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(normal(classes, size, seed=seed))
        model.bias.zero_()
    return model


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


def spent(x_adv, x, norm):
    return rows(x_adv - x).norm(p=NORMS[norm], dim=1).square().mean().sqrt().item()


# losses


def test_dlr_is_its_formula_on_sorted_logits():
    z, y = normal(50, 5), torch.arange(50) % 5
    top = z.sort(dim=1, descending=True).values
    own = z[torch.arange(50), y]
    other = torch.stack([z[i][torch.arange(5) != y[i]].max() for i in range(50)])
    expected = -(own - other) / (top[:, 0] - top[:, 2] + 1e-12)
    torch.testing.assert_close(dlr(z, y), expected)
    torch.testing.assert_close(dlr(7 * z + 3, y), expected)
    right = z.argmax(1) == y
    assert ((dlr(z, y) < 0) == right).all() and 0 < right.sum() < 50
    torch.testing.assert_close(redlr(z, y), torch.where(right, expected, 0))


def test_redlr_has_a_gradient_exactly_where_the_label_is_right():
    z, y = normal(50, 5).requires_grad_(), torch.arange(50) % 5
    grads = [torch.autograd.grad(f(z, y).sum(), z)[0] for f in (redlr, dlr)]
    right = z.argmax(1) == y
    assert (grads[0][~right] == 0).all() and (grads[1].abs().sum(1) > 0).all()
    torch.testing.assert_close(grads[0][right], grads[1][right])


@pytest.mark.parametrize("loss", [dlr, redlr])
def test_dlr_losses_need_three_classes(loss):
    with pytest.raises(ValueError, match=r'shape \(4, 2\), expected \(N, C\) with C >= 3.*"ce"'):
        loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))


# linear in x: the first-order expansion is exact


@pytest.mark.parametrize("norm", NORMS)
def test_linear_losses_gain_delta_times_upsilon_with_budgets_as_their_slopes(norm):
    a, c, delta = normal(1, 7), normal(400, seed=3), 0.3
    model = nn.Linear(7, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(a)
    x = normal(400, 7, seed=4)

    def loss(outputs, slopes):
        return slopes * outputs[:, 0]

    upsilon = sensitivity(model, x, c, norm, loss)
    rms, dual = c.square().mean().sqrt(), a.norm(p=DUAL[norm])
    assert upsilon == pytest.approx((rms * dual).item(), rel=1e-12)

    def risk(points):
        return (c * (points @ a[0])).mean().item()

    best = first_order_risk(risk(x), upsilon, delta)
    for attack in (w_fgsm, free, partial(free, steps=7)):
        x_adv = attack(model, x, c, delta, norm=norm, loss=loss, bounds=UNBOUNDED)
        assert risk(x_adv) == pytest.approx(best, rel=1e-9)
        budgets = rows(x_adv - x).norm(p=NORMS[norm], dim=1)
        torch.testing.assert_close(budgets, delta * c.abs() / rms)
        assert budgets.square().sum().item() == pytest.approx(400 * delta**2)
    uniform = w_fgsm(model, x, c, delta, norm=norm, loss=loss, bounds=UNBOUNDED, order=math.inf)
    expected = risk(x) + delta * (c.abs().mean() * dual).item()
    assert risk(uniform) == pytest.approx(expected) and risk(uniform) < best - 0.1 * delta * upsilon


# logistic regression: V by duality


def logistic(n=300):
    w = normal(5, seed=7)
    model = nn.Linear(5, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.stack([-w / 2, w / 2]))
    x = normal(n, 5, seed=8) + 0.5 * w
    y = (x @ w + normal(n, seed=9) > 0).long()
    return model, x, y, w


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.2])
def test_logistic_loss_reaches_the_exact_worst_risk(norm, delta):
    model, x, y, w = logistic()
    dual = w.norm(p=DUAL[norm]).item()
    margins = (2 * y - 1) * (x @ w)
    exact = worst_risk(margins, dual, delta)

    def risk(points):
        with torch.no_grad():
            return cross_entropies(model(points), y).mean().item()

    attack = {"norm": norm, "loss": "ce", "bounds": UNBOUNDED, "best": False}
    one = risk(w_fgsm(model, x, y, delta, **attack))
    many = risk(w_pgd(model, x, y, delta, **attack))
    pointwise = risk(w_pgd(model, x, y, delta, **attack, order=math.inf))
    closed = nn.functional.softplus(delta * dual - margins).mean().item()
    assert pointwise == pytest.approx(closed, rel=1e-9)
    linearised = first_order_risk(risk(x), sensitivity(model, x, y, norm), delta)
    assert 0.998 * exact <= many <= exact * (1 + 1e-6)
    assert linearised < one < many
    assert pointwise < 0.99 * one


def test_sensitivity_is_its_closed_form():
    model, x, y, w = logistic()
    slopes = torch.sigmoid(-(2 * y - 1) * (x @ w))
    for norm, dual in DUAL.items():
        power = slopes * w.norm(p=dual)
        torch.testing.assert_close(gradient_power(model, x, y, norm), power)
        expected = power.square().mean().sqrt().item()
        assert sensitivity(model, x, y, norm) == pytest.approx(expected, rel=1e-12)


def test_sensitivity_of_one_process_is_that_pooled_from_shards():
    model, (x, y) = network(), images()
    powers = [gradient_power(model, x[i::3], y[i::3], "linf", "redlr") for i in range(3)]
    count = sum(len(p) for p in powers)
    pooled = math.sqrt(sum(p.square().sum().item() for p in powers) / count)
    assert len({len(p) for p in powers}) > 1  # shards of unequal size
    assert sensitivity(model, x, y, "linf", "redlr") == pytest.approx(pooled, rel=1e-12)


def test_the_divergence_from_the_clean_outputs_has_no_sensitivity():
    model, x, y, _ = logistic()
    clean = model(x).detach()
    assert sensitivity(model, x, y, "linf", lambda z, _: kl_divergences(clean, z)) < 1e-12


def test_tiny_gradients_keep_their_sensitivity_and_their_budget():
    model, (x, y) = network().float(), images()
    x = x.float()

    def tiny(z, labels):
        return 1e-30 * cross_entropies(z, labels)

    ratio = sensitivity(model, x, y, loss=tiny) / sensitivity(model, x, y)
    assert ratio * 1e30 == pytest.approx(1, rel=1e-5)
    attack = {"steps": 1, "bounds": UNBOUNDED, "best": False}
    points = [w_pgd(model, x, y, 0.1, **attack, loss=loss) for loss in ("ce", tiny)]
    torch.testing.assert_close(*points)
    assert spent(points[1], x, "linf") == pytest.approx(0.1, rel=1e-5)


# accuracy


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "redlr"])
def test_w_pgd_accuracy_is_between_the_exact_and_the_clean_one(norm, loss):
    model, delta = linear(), {"linf": 0.05, "l2": 0.1}[norm]
    x = normal(400, 6, seed=2)
    with torch.no_grad():
        z = model(x)
        y = (z + 0.3 * normal(400, 3, seed=5)).argmax(1)
        rivals = range(3)
        gaps = torch.stack([z.gather(1, y[:, None])[:, 0] - z[:, j] for j in rivals])
        slopes = torch.stack(
            [(model.weight[y] - model.weight[j]).norm(p=DUAL[norm], dim=1) for j in rivals]
        )
    margins = torch.where(slopes > 0, gaps / slopes, math.inf).amin(dim=0).numpy()
    clean, exact = np.mean(margins > 0), w2_accuracy(margins, delta)
    assert clean == accuracy(model, x, y)
    x_adv = w_pgd(model, x, y, delta, norm=norm, loss=loss, bounds=UNBOUNDED)
    assert exact <= accuracy(model, x_adv, y) < clean - 0.02
    assert exact < np.mean(margins > delta)  # more than a radius for each can do


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "redlr"])
def test_w_pgd_is_the_published_loop_written_out_sample_by_sample(norm, loss):
    model, (x, y), steps = network().eval(), images(), 12
    r, s, delta = NORMS[norm], DUAL[norm], 3 * DELTA[norm]
    per_sample = {"ce": cross_entropies, "redlr": redlr}[loss]
    iterates, accuracies = [], []
    points = list(x.clone())
    for _ in range(steps):
        directions = []
        for i, point in enumerate(points):
            leaf = point.clone().requires_grad_()
            value = per_sample(model(leaf[None]), y[[i]])[0]
            g = torch.autograd.grad(value, leaf)[0]
            size = g.flatten().norm(p=s)
            directions.append(g.sign() * g.abs() ** (s - 1) * (size + 1e-8) ** (2 - s))
        mean = sum(d.flatten().norm(p=r) ** 2 for d in directions) / len(x)
        for i, d in enumerate(directions):
            points[i] = points[i] + 1.875 * delta / steps * d / (mean**0.5 + 1e-8)
        sizes = [(a - b).flatten().norm(p=r) for a, b in zip(points, x, strict=True)]
        c = min(1.0, delta / math.sqrt(sum(v.item() ** 2 for v in sizes) / len(x)))
        for i, size in enumerate(sizes):
            d = points[i] - x[i]
            d = d.clamp(-c * size, c * size) if norm == "linf" else c * d
            points[i] = (x[i] + d).clamp(0, 1)
        iterates.append(torch.stack(points))
        accuracies.append(accuracy(model, iterates[-1], y))
    attack = partial(w_pgd, model, x, y, delta, steps=steps, norm=norm, loss=loss)
    torch.testing.assert_close(attack(best=False), iterates[-1], rtol=0, atol=1e-6)
    assert accuracy(model, attack(), y) == min(accuracies) < accuracy(model, x, y)


def test_the_best_iterate_is_returned_unless_the_last_is_asked_for():
    # the middle class holds a strip that a long step jumps over
    model = nn.Sequential(nn.Linear(1, 3), nn.Identity()).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, -9.0]))
    x, y = torch.tensor([[0.2]], dtype=torch.float64), torch.tensor([0])
    heard = []

    def loss(z, labels):  # goes down through the boundary at 0, then up again
        heard.append(z[0, 0].item())
        return -z[:, 0] if heard[-1] > -0.25 else 2 * z[:, 0]

    attack = partial(w_pgd, model, x, y, 0.8, steps=2, bounds=UNBOUNDED, loss=loss)
    assert accuracy(model, attack(best=False), y) == 1
    assert accuracy(model, attack(), y) == 0
    upwards = {"bounds": UNBOUNDED, "loss": lambda z, _: z[:, 0]}
    clean = w_pgd(model, -x, y, 0.8, steps=2, **upwards)
    assert torch.equal(clean, -x)  # an attack that repairs is none
    # among equals the later one, with and without a change of accuracy
    assert w_pgd(model, x, y, 0.8, steps=2, **upwards).item() == pytest.approx(1.0)
    signs = iter([-1, -1, 1, 1])  # 0.4, -0.1, -0.4, 0.1
    there_and_back = {"bounds": UNBOUNDED, "loss": lambda z, _: next(signs) * z[:, 0]}
    assert w_pgd(model, 2 * x, y, 0.8, steps=3, **there_and_back).item() == pytest.approx(-0.4)


def test_w_fgsm_is_one_step_of_length_delta_along_the_weighted_signs():
    model, (x, y) = network(), images()
    leaf = x.clone().requires_grad_()
    g = torch.autograd.grad(cross_entropies(model.eval()(leaf), y).sum(), leaf)[0]
    sizes = g.abs().sum((1, 2, 3), keepdim=True)
    step = 0.1 * g.sign() * sizes / sensitivity(model, x, y)
    torch.testing.assert_close(w_fgsm(model, x, y, 0.1, loss="ce"), (x + step).clamp(0, 1))
    # nor is it taken back where it helps
    friend = w_fgsm(model, x, y, 0.1, loss=lambda z, y: -cross_entropies(z, y))
    torch.testing.assert_close(friend, (x - step).clamp(0, 1))
    right = [int((model(points).argmax(1) == y).sum()) for points in (x, friend)]
    assert right[0] < right[1]


# contract


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_in_ball_and_box(name, norm):
    model, (x, y) = network(), images()
    x_adv = ATTACKS[name](model, x, y, DELTA[norm], norm=norm)
    assert x_adv.shape == x.shape and not x_adv.requires_grad
    assert 0.3 * DELTA[norm] < spent(x_adv, x, norm) <= DELTA[norm] * (1 + 1e-6)
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_whole_budget_is_spent_without_a_box_and_on_the_right_samples_only(norm):
    model, (x, y) = network(), images()
    x_adv = w_fgsm(model, x, y, DELTA[norm], norm=norm, bounds=UNBOUNDED)
    assert spent(x_adv, x, norm) == pytest.approx(DELTA[norm], rel=1e-9)
    model.eval()
    wrong = model(x).argmax(1) != y
    assert wrong.any() and torch.equal(x_adv[wrong], x[wrong])


@pytest.mark.parametrize("norm", NORMS)
def test_order_inf_is_pgd_from_zero_with_the_same_steps(norm):
    model, (x, y), delta = network(), images(), DELTA[norm]
    expected = pgd(
        *(model, x, y, ThreatModel(norm, delta)),
        **{"steps": 9, "alpha": 1.875 * delta / 9, "start": "zero", "loss": "ce"},
    )
    attack = partial(w_pgd, model, x, y, delta, steps=9, norm=norm, loss="ce", best=False)
    assert torch.equal(attack(order=math.inf), expected)
    assert not torch.allclose(attack(), expected, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_the_result_does_not_depend_on_the_samples_per_pass(norm):
    model, (x, y) = network(), images()
    whole, parts = (
        w_pgd(model, x, y, DELTA[norm], steps=5, norm=norm, batch=batch) for batch in (None, 7)
    )
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_leaves_everything_as_it_was(name):
    model, (x, y) = network(), images()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].bias.grad = torch.full((4,), 7.0, dtype=torch.float64)

    def state():
        flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
        values = {key: value.tolist() for key, value in model.state_dict().items()}
        return flags, grads, values, torch.get_rng_state().tolist(), x.tolist(), x.requires_grad

    before = state()
    ATTACKS[name](model, x, y, 0.1)
    sensitivity(model, x, y)
    assert state() == before


def test_no_budget_no_steps_or_no_gradient_is_no_attack():
    model, (x, y) = network(), images()
    assert w_pgd(model, x, y, 0.0) is x
    assert w_pgd(model, x, y, 0.1, steps=0) is x
    others = (model.eval()(x).argmax(1) + 1) % 4
    assert torch.equal(w_pgd(model, x, others, 0.1, steps=3), x)
    assert sensitivity(model, x, others, loss="redlr") == 0


# budgets of batches


def test_moving_average_runs_from_the_past_to_the_estimate():
    assert [moving(2.0, 5.0, eta) for eta in (0.0, 0.5, 1.0)] == [2.0, 3.5, 5.0]


@pytest.mark.parametrize("norm", NORMS)
def test_batch_budgets_make_the_first_step_that_of_the_whole_set(norm):
    model, (x, y), delta = network(), images(), DELTA[norm]
    attack = partial(w_fgsm, norm=norm, loss="ce", bounds=UNBOUNDED)
    order = gradient_power(model, x, y, norm).argsort()  # the batches differ
    x, y = x[order], y[order]
    upsilon, parts, budgets = sensitivity(model, x, y, norm), [], []
    for i in range(0, len(x), 10):
        part = x[i : i + 10], y[i : i + 10]
        budgets.append(batch_budget(delta, sensitivity(model, *part, norm), upsilon))
        parts.append(attack(model, *part, budgets[-1]))
    torch.testing.assert_close(torch.cat(parts), attack(model, x, y, delta))
    assert np.mean(np.square(budgets)) == pytest.approx(delta**2)
    assert max(budgets) > 1.1 * min(budgets)


def test_a_sensitivity_that_tells_nothing_leaves_the_budget_alone():
    nan, inf = math.nan, math.inf
    for pair in [(0.0, 0.0), (2.0, 0.0), (nan, 2.0), (2.0, nan), (inf, 2.0), (inf, inf)]:
        assert batch_budget(0.1, *pair) == pytest.approx(0.1)
    assert batch_budget(0.1, 0.0, 2.0) == pytest.approx(0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_net_that_has_diverged_is_no_error(norm):
    model, (x, y) = network(), images()
    with torch.no_grad():
        model[5].weight.fill_(math.nan)
    upsilon = sensitivity(model, x, y, norm)
    assert math.isnan(upsilon)
    budget = batch_budget(0.1, upsilon, upsilon)
    x_adv = w_pgd(model, x, y, budget, steps=2, norm=norm, loss="ce", best=False)
    assert x_adv.isnan().all() or torch.equal(x_adv, x)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda *a: w_pgd(*a, 0.1, loss="kl"), "loss is 'kl', expected .* ce, dlr, redlr"),
        (lambda *a: w_pgd(*a, 0.1, norm="l3"), "norm is 'l3'"),
        (lambda *a: w_pgd(*a, 0.1, order=1.0), "order is 1.0, expected .* write 2 or math.inf"),
        (lambda *a: w_pgd(*a, 0.1, steps=-1), "steps is -1, expected an integer >= 0"),
        (lambda *a: w_pgd(*a, 0.1, batch=0), "batch is 0, expected"),
        (lambda *a: w_pgd(*a, -0.1), r"eps is -0\.1"),
        (lambda m, x, y: sensitivity(m, x[:0], y[:0]), "x has 0 samples, expected 1 or more"),
        (lambda *a: sensitivity(*a, "l3"), "norm is 'l3'"),
        (lambda *a: moving(1.0, 1.0, 1.5), r"eta is 1\.5, expected a number in \[0, 1\]"),
        (lambda *a: batch_budget(0.1, -1.0, 1.0), "upsilon_batch is -1.0, expected a number >= 0"),
        (lambda *a: batch_budget(0.1, 1.0, -2.0), r"upsilon is -2\.0, expected a number >= 0"),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(network(), *images(4))
