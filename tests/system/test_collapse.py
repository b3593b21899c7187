"""Where robust training of a linear model ends at W = 0 (the linear models of arXiv:2006.08403).

The robust risk of softmax(W x) is convex in W. By Danskin's theorem its slope at W = 0 is, in the
direction D with v_k = mean(D) − D_k, class priors p_k and class means m_k,

    Σ_k p_k (⟨v_k, m_k⟩ + ε ‖v_k‖_*),    Σ_k v_k = 0,

so W = 0 is a minimum iff no slope is negative: iff ε ≥ ε* = min_t max_k ‖m_k − t / p_k‖. For l∞ the
pixels separate and, for each, intervals have a common point iff each two of them have one:

    ε* = max over pixels and classes i, j of (p_i m_i − p_j m_j) / (p_i + p_j)
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from torch import nn

from raydist.adversary.attack import fgsm
from raydist.adversary.loss import pgd_at
from raydist.adversary.objective import cross_entropies
from raydist.adversary.threat import ThreatModel

EVERYWHERE = (-math.inf, math.inf)


def threshold(means, priors):
    """The budget ε* and where it is reached: pixel, class i, class j."""
    p = priors[:, None, None]
    weighted = p * means[:, None, :]  # (K, 1, D)
    pairs = (weighted - weighted.transpose(1, 0, 2)) / (p + p.transpose(1, 0, 2))
    i, j, pixel = np.unravel_index(pairs.argmax(), pairs.shape)
    return pairs.max(), pixel, i, j


def slope(direction, means, priors, eps):
    """The robust risk's slope at W = 0 along directions (..., K, D)."""
    v = direction.mean(axis=-2, keepdims=True) - direction
    return ((v * means).sum(-1) + eps * np.abs(v).sum(-1)) @ priors


def worst(means, priors):
    """The direction whose slope turns negative first: two classes, one pixel."""
    _, pixel, i, j = threshold(means, priors)
    direction = np.zeros_like(means)
    direction[i, pixel], direction[j, pixel] = 1.0, -1.0
    return direction


def triangle():
    """Three classes of 20 points of the plane, and their means."""
    rng = np.random.default_rng(0)
    centers, y = np.array([[0.2, 0.1], [0.9, 0.5], [0.4, 1.0]]), np.repeat(range(3), 20)
    x = centers[y] + 0.1 * rng.standard_normal((60, 2))
    return x, y, np.array([x[y == k].mean(axis=0) for k in range(3)])


def digits():
    bundle = load_digits()
    x, y = bundle.data / 16, bundle.target
    return x, y, np.array([x[y == k].mean(axis=0) for k in range(10)]), np.bincount(y) / len(y)


def vertices(x, eps):
    """All corners of the boxes around the points (N, D): (2^D, N, D)."""
    corners = list(itertools.product([-eps, eps], repeat=x.shape[1]))
    return x + torch.tensor(corners, dtype=x.dtype)[:, None, :]


def robust_risk(weight, corners, y):
    """Mean of the worst cross entropy: convex in x, so that a corner has it."""
    outputs = (corners @ weight.T).flatten(0, 1)
    each = cross_entropies(outputs, y.repeat(len(corners))).view(len(corners), -1)
    return each.max(dim=0).values.mean()


def least_risk(x, y, eps, weight, steps=1500):
    """Subgradient descent with decreasing steps: the least risk seen, and the last weights."""
    weight, corners = weight.clone().requires_grad_(), vertices(x, eps)
    least = math.inf
    for n in range(steps):
        risk = robust_risk(weight, corners, y)
        least = min(least, risk.item())
        (gradient,) = torch.autograd.grad(risk, weight)
        weight.data -= 4.0 / (1 + n / 20) * gradient
    return least, weight.detach()


def by_linear_programme(means, priors):
    """ε* from its definition, pixel by pixel: min r with |m_k − t / p_k| ≤ r for all k."""
    inverse, ones = 1 / priors[:, None], np.ones((len(priors), 1))
    bounds = np.block([[-inverse, -ones], [inverse, -ones]])
    found = [linprog([0, 1], bounds, np.r_[-m, m], bounds=(None, None)).fun for m in means.T]
    return max(found)


def test_the_threshold_is_half_the_largest_range_of_the_means_of_balanced_classes():
    _, _, means = triangle()
    eps = threshold(means, np.full(3, 1 / 3))[0]
    assert eps == pytest.approx(np.ptp(means, axis=0).max() / 2, rel=1e-12)


def test_the_threshold_of_two_classes_is_the_largest_mean_of_y_x():
    means, priors = np.array([[0.3, 0.5, 0.1], [0.4, 0.1, 0.2]]), np.array([0.7, 0.3])
    eps = threshold(means, priors)[0]
    assert eps == pytest.approx(np.abs(priors * [1, -1] @ means).max(), rel=1e-12)


def test_the_threshold_with_priors_is_that_of_the_linear_programme():
    rng = np.random.default_rng(1)
    for classes in (2, 3, 5):
        means, priors = rng.random((classes, 4)), rng.dirichlet(np.ones(classes))
        expected = by_linear_programme(means, priors)
        assert threshold(means, priors)[0] == pytest.approx(expected, rel=1e-9)
    _, _, means, priors = digits()
    assert threshold(means, priors)[0] == pytest.approx(by_linear_programme(means, priors))


@pytest.mark.parametrize(("factor", "collapses"), [(0.8, False), (0.95, False), (1.05, True)])
def test_exact_robust_training_ends_at_zero_iff_the_budget_reaches_the_threshold(factor, collapses):
    x, y, means = triangle()
    eps = factor * threshold(means, np.full(3, 1 / 3))[0]
    x, y = torch.tensor(x), torch.tensor(y)
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    least, weight = least_risk(x, y, eps, start)
    size = (weight - weight.mean(dim=0)).abs().max()  # a common row changes no softmax
    if collapses:
        assert -1e-12 < least - math.log(3) < 1e-3
        assert size < 0.02
    else:
        assert least < math.log(3) - 1e-4
        assert size > 0.04


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_slopes_at_zero_are_those_of_the_exact_risk(factor):
    x, y, means = triangle()
    priors = np.full(3, 1 / 3)
    eps, h = factor * threshold(means, priors)[0], 1e-6
    corners, labels = vertices(torch.tensor(x), eps), torch.tensor(y)
    random = np.random.default_rng(2).standard_normal((20, 3, 2))
    for direction in [*random, worst(means, priors)]:
        risk = robust_risk(h * torch.tensor(direction), corners, labels).item()
        expected = slope(direction, means, priors, eps)
        assert (risk - math.log(3)) / h == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("factor", [0.999, 1.0, 1.001])
def test_on_digits_only_the_worst_direction_is_downhill_just_below_the_threshold(factor):
    _, _, means, priors = digits()
    star, _, i, j = threshold(means, priors)
    assert 0.1 < star < 0.5  # far above 8/255
    eps = factor * star
    exact = (priors[i] + priors[j]) * (eps - star)
    assert slope(worst(means, priors), means, priors, eps) == pytest.approx(exact, abs=1e-15)
    random = np.random.default_rng(3).standard_normal((2000, 10, 64))
    assert (slope(random, means, priors, eps) > 0).all()


def test_one_pair_of_classes_at_one_pixel_goes_downhill_first():
    _, _, means, priors = digits()
    star = threshold(means, priors)[0]
    sparse = np.zeros((64, 10, 10, 10, 64))  # pixel, class i, class j; (K, D)
    for pixel, i, j in np.ndindex(64, 10, 10):
        sparse[pixel, i, j, i, pixel] += 1.0
        sparse[pixel, i, j, j, pixel] -= 1.0
    assert slope(sparse, means, priors, 1.000001 * star).min() > -1e-15
    below = slope(sparse, means, priors, 0.999999 * star)
    assert (below < -1e-15).sum() == 1


def linear(weight):
    model = nn.Linear(*weight.shape[::-1], bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(weight))
    return model


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_the_attacked_loss_falls_from_zero_weights_iff_the_budget_is_below_the_threshold(factor):
    # near W = 0 the loss is linear in x, and one signed step is the worst case
    x, y, means, priors = digits()
    star, _, i, j = threshold(means, priors)
    x, y, h = torch.tensor(x), torch.tensor(y), 1e-6
    model = linear(h * worst(means, priors))
    x_adv = fgsm(model, x, y, ThreatModel("linf", factor * star, EVERYWHERE))
    measured = (pgd_at(model, x, x_adv, y).item() - math.log(10)) / h
    expected = (priors[i] + priors[j]) * (factor - 1) * star
    assert measured == pytest.approx(expected, abs=1e-6)
    assert (measured < 0) == (factor < 1)


def clusters():
    """Nine points in three classes around the origin, and half the least distance of classes."""
    centers = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=torch.float64)
    y = torch.arange(9) // 3
    noise = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = centers[y] + 0.1 * noise
    apart = torch.cdist(x, x, p=math.inf)[y[:, None] != y]
    return x, y, apart.min().item() / 2


def robust(weights, x, y, eps):
    """Which W (M, K, D) give every sample margins ⟨w_y − w_k, x⟩ > ε ‖w_y − w_k‖_1: (M,)."""
    differences = weights[:, y, None] - weights[:, None]  # (M, N, K, D)
    slack = (differences * x[:, None]).sum(-1) - eps * differences.abs().sum(-1)
    others = y[:, None] != torch.arange(weights.shape[1])
    return (slack > 0)[:, others].all(dim=1)


def random_weights(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 2, generator=generator, dtype=torch.float64)


def test_sets_of_robust_weights_shrink_with_the_budget_and_end_where_balls_meet():
    x, y, meet = clusters()
    weights = random_weights(20_000)
    sets = [robust(weights, x, y, factor * meet) for factor in (0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert all((smaller <= larger).all() for larger, smaller in itertools.pairwise(sets))
    counts = [int(each.sum()) for each in sets]
    assert all(larger > smaller for larger, smaller in itertools.pairwise(counts))
    assert counts[0] > 1000 and counts[-1] == 0


def test_robust_weights_are_those_that_no_corner_and_no_signed_step_fools():
    x, y, meet = clusters()
    weights, eps = random_weights(2000), 0.4 * meet
    outputs = torch.einsum("cnd,mkd->mcnk", vertices(x, eps), weights)
    safe = robust(weights, x, y, eps)
    assert torch.equal(safe, (outputs.argmax(-1) == y).flatten(1).all(dim=1))
    assert safe.sum() > 30
    for weight in weights[safe]:
        model = linear(weight)
        x_adv = fgsm(model, x, y, ThreatModel("linf", eps, EVERYWHERE))
        assert torch.equal(model(x_adv).argmax(1), y)
