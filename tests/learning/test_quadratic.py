import itertools

import numpy as np
import pytest

from raydist.learning.quadratic import Quadratic

RNG = np.random.default_rng(0)
CENTERS = RNG.normal(size=(3, 4))
HESSIAN = RNG.uniform(0.5, 2.0, size=(3, 4))
W = RNG.normal(size=4)
CASES = [(0.0, 0.0), (0.7, 0.0), (0.0, 0.3), (0.7, 0.3), (0.05, 1.0)]  # (noise, eps)
every_case = pytest.mark.parametrize(("noise", "eps"), CASES)


def central_difference(function, w, step=1e-5):
    units = step * np.eye(len(w))
    return np.array([(function(w + u) - function(w - u)) / (2 * step) for u in units])


@every_case
def test_gradient_and_hessian_are_derivatives_of_the_risk(noise, eps):
    task = Quadratic(CENTERS, HESSIAN, noise, eps)
    for k in range(3):
        slope = central_difference(lambda w, k=k: task.risk(k, w), W)
        assert task.gradient(k, W) == pytest.approx(slope, rel=1e-7, abs=1e-8)
        curvature = central_difference(lambda w, k=k: task.gradient(k, w), W)
        assert np.diag(task.hessian_at(k, W)) == pytest.approx(curvature, rel=1e-6, abs=1e-7)


@every_case
def test_risk_gradient_and_noise_are_moments_over_samples(noise, eps):
    task = Quadratic(CENTERS, HESSIAN, noise, eps)
    x = task.sample(1, 200_000, np.random.default_rng(3))
    losses = 0.5 * np.sum(HESSIAN[1] * (np.abs(W - x) + eps) ** 2, axis=1)
    gradients = HESSIAN[1] * (W - x + eps * np.sign(W - x))
    error = 5 / np.sqrt(len(x))  # five standard errors
    assert abs(losses.mean() - task.risk(1, W)) <= error * losses.std() + 1e-12
    assert np.all(
        np.abs(gradients.mean(axis=0) - task.gradient(1, W)) <= error * gradients.std(axis=0) + 1e-9
    )
    covariance = np.cov(gradients.T)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    # the variance of a sample covariance is below (kurtosis about 3) 4 of its scale
    assert np.all(
        np.abs(covariance - np.diag(task.noise_covariance(1, W))) <= 2 * error * scale + 1e-9
    )


def test_worst_perturbation_is_at_a_corner_of_the_box():
    task = Quadratic([[1.0, -2.0]], [1.0, 0.5], noise=0.0, eps=0.3)
    w, h = np.array([0.4, 0.1]), np.array([1.0, 0.5])
    residual = w - task.centers[0]
    corners = [residual - np.array(d) for d in itertools.product([-0.3, 0.3], repeat=2)]
    assert task.risk(0, w) == pytest.approx(max(0.5 * np.sum(h * r**2) for r in corners))


@pytest.mark.parametrize(
    ("eps", "hbar", "rbar"),
    [
        (0.0, 1.00000, 1.00000),
        (0.05, 1.03156, 1.06498),
        (0.2, 1.12623, 1.28238),
        (0.5, 1.31557, 1.81813),
        (1.0, 1.63114, 3.01026),
    ],
)
def test_adversarial_training_sharpens_the_risk_of_a_ring_of_centers(eps, hbar, rbar):
    centers = np.cos(2 * np.pi * np.arange(16) / 16)[:, None]
    task = Quadratic(centers, np.ones(1), noise=1.0, eps=eps)
    w = task.minimiser()
    assert w == pytest.approx([0.0], abs=1e-15)
    assert np.mean([task.hessian_at(k, w) for k in range(16)]) == pytest.approx(hbar, abs=5e-6)
    assert np.mean([task.noise_covariance(k, w) for k in range(16)]) == pytest.approx(
        rbar, abs=5e-6
    )


def test_without_perturbation_the_noise_is_that_of_the_samples():
    task = Quadratic(CENTERS, HESSIAN, noise=0.7)
    assert task.noise_covariance(2, W) == pytest.approx(0.49 * HESSIAN[2] ** 2)
    assert np.array_equal(task.hessian_at(2, W), HESSIAN[2])


@every_case
def test_minimiser_has_the_least_risk_in_every_direction(noise, eps):
    task = Quadratic(CENTERS, HESSIAN, noise, eps)
    best = task.minimiser()
    if noise > 0 or eps == 0:
        gradients = [task.gradient(k, best) for k in range(3)]
        assert np.mean(gradients, axis=0) == pytest.approx(np.zeros(4), abs=1e-14)
    for step in 0.01 * np.vstack([np.eye(4), -np.eye(4)]):
        assert task.excess_risk(best + step) > 0
    assert task.excess_risk(best) == 0


def test_closed_form_of_the_minimiser_agrees_with_bisection():
    closed = Quadratic(CENTERS, HESSIAN, noise=0.5, eps=0.0).minimiser()
    bisected = Quadratic(CENTERS, HESSIAN, noise=0.5, eps=1e-300).minimiser()
    assert closed == pytest.approx(bisected, abs=1e-14)


def test_large_budget_without_noise_moves_the_minimiser_to_the_weighted_median():
    task = Quadratic([[0.0], [1.0], [5.0]], [1.0], noise=0.0, eps=1e3)
    assert task.minimiser() == pytest.approx([1.0], abs=1e-14)


@every_case
def test_excess_risk_is_the_difference_of_mean_risks(noise, eps):
    task = Quadratic(CENTERS, HESSIAN, noise, eps)
    difference = np.mean([task.risk(k, W) - task.risk(k, task.minimiser()) for k in range(3)])
    assert task.excess_risk(W) == pytest.approx(difference, rel=1e-12)
    assert task.total_risk(W) == pytest.approx(np.mean([task.risk(k, W) for k in range(3)]))


def test_excess_risk_keeps_its_digits_close_to_the_minimiser():
    task = Quadratic(CENTERS, HESSIAN, noise=10.0)
    step = np.array([1e-9, 0.0, 0.0, 0.0])
    w = task.minimiser() + step
    exact = 0.5 * HESSIAN[:, 0].mean() * (w - task.minimiser())[0] ** 2
    assert task.excess_risk(w) == pytest.approx(exact, rel=1e-12)


def test_at_the_kink_without_noise_the_subgradient_is_zero():
    task = Quadratic(CENTERS, HESSIAN, noise=0.0, eps=0.3)
    at_center = CENTERS[0]
    assert np.array_equal(task.gradient(0, at_center), np.zeros(4))
    assert np.array_equal(task.noise_covariance(0, at_center), np.zeros(4))
    assert task.risk(0, at_center) == pytest.approx(0.5 * np.sum(HESSIAN[0]) * 0.09)


def test_common_hessian_is_that_of_every_agent():
    common = Quadratic(CENTERS, HESSIAN[0], noise=0.2, eps=0.1)
    repeated = Quadratic(CENTERS, np.tile(HESSIAN[0], (3, 1)), noise=0.2, eps=0.1)
    assert common.total_risk(W) == repeated.total_risk(W)


def test_samples_follow_the_generator_and_the_noise():
    task = Quadratic(CENTERS, HESSIAN, noise=0.5)
    x = task.sample(2, 100_000, np.random.default_rng(0))
    assert x.shape == (100_000, 4)
    assert x.mean(axis=0) == pytest.approx(CENTERS[2], abs=0.01)
    assert x.std(axis=0) == pytest.approx([0.5] * 4, rel=0.02)
    assert np.array_equal(x, task.sample(2, 100_000, np.random.default_rng(0)))
    exact = Quadratic(CENTERS, HESSIAN).sample(2, 3, np.random.default_rng(0))
    assert np.array_equal(exact, np.tile(CENTERS[2], (3, 1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [1.0]), r"expected \(K, M\)"),
        (([[1.0], [2.0, 3.0]], [1.0]), "inhomogeneous"),
        (([[1.0], [2.0]], [1.0, 2.0]), "expected 1 numbers above 0"),
        (([[1.0], [2.0]], [0.0]), "above 0"),
        (([[1.0], [2.0]], [float("nan")]), "above 0"),
        (([[1.0], [2.0]], [1.0], -1.0), "noise is -1.0"),
        (([[1.0], [2.0]], [1.0], 0.0, -1.0), "eps is -1.0"),
    ],
)
def test_bad_tasks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Quadratic(*arguments)
