import itertools
import math

import numpy as np
import pytest
from reference import leading_order, modal_excess_risk

from raydist.network import weights
from raydist.network.strategy import STRATEGIES
from raydist.network.theory import excess_risk
from raydist.network.topology import build

RING = weights.metropolis(build("ring", 16))
ANGLE = 2 * np.pi * np.arange(16) / 16


def circle():
    """Sixteen quadratics whose minimisers lie on a circle; w* = 0."""
    H = np.diag([1.0, 0.5])
    d = -np.stack([np.cos(ANGLE), np.sin(ANGLE)], axis=1) @ H
    return {
        "hessians": np.tile(H, (16, 1, 1)),
        "gradients": d,
        "noise": np.tile(H @ H, (16, 1, 1)),
        "lr": 0.05,
        "batch": 64,
    }


def problem(K=4, M=2, seed=0):
    """Another Hessian, gradient and noise at every agent, and a matrix that is not symmetric."""
    rng = np.random.default_rng(seed)
    B, L = rng.normal(size=(2, K, M, M))
    d = rng.normal(size=(K, M))
    A = rng.uniform(0.1, 1, size=(K, K))
    return {
        "A": A / A.sum(axis=0),
        "hessians": B @ B.transpose(0, 2, 1) + np.eye(M),
        "gradients": d - d.mean(axis=0),
        "noise": L @ L.transpose(0, 2, 1),
        "lr": 0.05,
        "batch": 3,
    }


TABLE = {
    "centralized": [1.3733e-06, 1.28789e-05, 1.56103e-05, 1.56104e-05],
    "diffusion": [6.408970e-04, 5.24503464e-02, 7.11164296e-02, 7.11164347e-02],
    "consensus": [7.250977e-04, 5.63463300e-02, 7.52470148e-02, 7.52470190e-02],
}
DIGITS = {"centralized": 4e-5, "diffusion": 1e-7, "consensus": 1e-7}  # as printed in TABLE


@pytest.mark.parametrize("strategy", TABLE)
def test_ring_of_sixteen_quadratics(strategy):
    risk = excess_risk(strategy, RING, **circle(), rounds=[1, 20, 200, math.inf])
    np.testing.assert_allclose(risk, TABLE[strategy], rtol=DIGITS[strategy])


@pytest.mark.parametrize("strategy", ["consensus", "diffusion"])
def test_heterogeneity_lies_in_one_mode_of_the_ring(strategy):
    mu, slow, h = 0.05, (1 + 2 * math.cos(math.pi / 8)) / 3, np.array([1.0, 0.5])
    g = 1 if strategy == "consensus" else slow
    f = slow - mu * h if strategy == "consensus" else slow * (1 - mu * h)
    n = np.array([1, 2, 3, 20])[:, None]
    by_hand = (h**3 * (mu * g * (1 - f**n) / (1 - f)) ** 2).sum(axis=1) / 4
    silent = circle() | {"noise": np.zeros((16, 2, 2))}
    risk = excess_risk(strategy, RING, **silent, rounds=[1, 2, 3, 20])
    np.testing.assert_allclose(risk, by_hand, rtol=1e-12)
    limit = (h**3 * (mu * g / (1 - f)) ** 2).sum() / 4
    np.testing.assert_allclose(
        excess_risk(strategy, RING, **silent, rounds=[math.inf]), limit, rtol=1e-12
    )


ADVERSARIAL = [  # eps, mean Hessian, mean noise, centralized, diffusion, consensus
    (0, 1.00000, 1.00000, 9.841e-06, 0.0185473, 0.0200013),
    (0.05, 1.03156, 1.06498, 1.0488e-05, 0.0202085, 0.0217803),
    (0.2, 1.12623, 1.28238, 1.2652e-05, 0.0256674, 0.0276180),
    (0.5, 1.31557, 1.81813, 1.7986e-05, 0.0387307, 0.0415453),
    (1.0, 1.63114, 3.01026, 2.9883e-05, 0.0667881, 0.0713140),
]


@pytest.mark.parametrize("eps, Hbar, Rbar, cen, dif, con", ADVERSARIAL)
def test_adversarial_quadratic(eps, Hbar, Rbar, cen, dif, con):
    m = -np.cos(ANGLE)  # w* - c_k; the loss is 1/2 (|w - x| + eps)^2 with x ~ N(c_k, 1)
    Phi = np.array([0.5 * (1 + math.erf(z / math.sqrt(2))) for z in m])
    phi = np.exp(-(m**2) / 2) / math.sqrt(2 * math.pi)
    H = 1 + 2 * eps * phi
    d = m + eps * (2 * Phi - 1)
    distance = 2 * phi + m * (2 * Phi - 1)
    R = m**2 + 1 + 2 * eps * distance + eps**2 - d**2
    assert H.mean() == pytest.approx(Hbar, abs=6e-6)
    assert R.mean() == pytest.approx(Rbar, abs=6e-6)
    for strategy, value in {"centralized": cen, "diffusion": dif, "consensus": con}.items():
        risk = excess_risk(
            strategy, RING, H[:, None, None], d[:, None], R[:, None, None], 0.02, 32, [150]
        )
        rtol = 6e-5 if strategy == "centralized" else 4e-6
        np.testing.assert_allclose(risk, value, rtol=rtol)


def simulate(strategy, A, hessians, gradients, factors, lr, batch, start, rounds):
    """The recursions agent by agent, over all sign patterns of the noise: an exact expectation."""
    K, M = gradients.shape
    signs = np.array(list(itertools.product([-1, 1], repeat=rounds * K * M)))
    signs = signs.reshape(len(signs), rounds, K, M)
    w = np.tile(-start, (len(signs), 1, 1))  # w* = 0
    for n in range(rounds):
        g = np.empty_like(w)
        for k in range(K):
            s = signs[:, n, k] @ factors[k].T / math.sqrt(batch)
            g[:, k] = w[:, k] @ hessians[k] + gradients[k] + s
        phi = w - lr * g
        if strategy == "centralized":
            w = np.repeat(w.mean(axis=1, keepdims=True), K, axis=1)
            w = w - lr * g.mean(axis=1, keepdims=True)
        elif strategy == "local":
            w = phi
        else:
            sent = phi if strategy == "diffusion" else w
            combined = np.empty_like(w)
            for k in range(K):
                combined[:, k] = sum(A[l, k] * sent[:, l] for l in range(K))
            w = combined if strategy == "diffusion" else combined - lr * g
    Hbar = hessians.mean(axis=0)
    slope = (w @ gradients.mean(axis=0)).sum()
    return (np.einsum("nki,ij,nkj->", w, Hbar, w) / 2 + slope) / (K * len(signs))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("K, M", [(2, 2), (4, 1)])
@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_equals_the_recursions_averaged_over_all_noise(strategy, K, M, slope):
    """Also around a point that is no minimiser, where the agents' gradients do not cancel."""
    rng = np.random.default_rng(K)
    factors = rng.normal(size=(K, M, M))
    case = problem(K, M) | {"noise": factors @ factors.transpose(0, 2, 1)}
    case["gradients"] = case["gradients"] + slope
    start = rng.normal(size=M) if strategy == "centralized" else rng.normal(size=(K, M))
    risks = excess_risk(strategy, **case, rounds=[3, 0, 1, 2], start=start)
    slow = {key: case[key] for key in ("A", "hessians", "gradients", "lr", "batch")}
    common = np.broadcast_to(start, (K, M))
    for n, risk in zip([3, 0, 1, 2], risks, strict=True):
        exact = simulate(strategy, **slow, factors=factors, start=common, rounds=n)
        assert risk == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_limit_is_where_many_rounds_lead(strategy):
    far, limit, first = excess_risk(strategy, **problem(), rounds=[4000, math.inf, 0])
    assert first == 0
    assert limit == pytest.approx(far, rel=1e-11)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_start_is_forgotten(strategy):
    starts = [excess_risk(strategy, **problem(), rounds=[0, math.inf], start=s) for s in (0, 5.0)]
    assert starts[0][0] < starts[1][0]
    assert starts[0][1] == starts[1][1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_modes_give_the_same_as_the_recursion(strategy):
    case = problem(K=6, M=3, seed=1)
    H = case["hessians"][0]
    A = weights.metropolis(build("edges", 6, edges=[[0, k] for k in range(1, 6)] + [[1, 2]]))
    rounds = [0, 1, 2, 7, 100, math.inf]
    case = case | {"A": A, "hessians": np.tile(H, (6, 1, 1))}
    modes = {key: case[key] for key in ("gradients", "noise", "lr", "batch")}
    modal = modal_excess_risk(strategy, A, H, **modes, rounds=rounds)
    np.testing.assert_allclose(modal, excess_risk(strategy, **case, rounds=rounds), rtol=1e-12)


@pytest.mark.parametrize("strategy", TABLE)
def test_modes_give_the_same_on_the_ring(strategy):
    case = circle()
    rounds = [1, 20, 200, math.inf]
    modal = modal_excess_risk(
        strategy, RING, case["hessians"][0], *list(case.values())[1:], rounds=rounds
    )
    np.testing.assert_allclose(
        modal, excess_risk(strategy, RING, **case, rounds=rounds), rtol=1e-12
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_risk_does_not_depend_on_the_point_around_which_it_is_written(strategy):
    """The same quadratics, noise and start, around their minimiser and around the start."""
    case, rounds = problem(seed=3), [0, 1, 5, 50, math.inf]
    H, away = case["hessians"], np.array([0.7, -0.4])
    moved = case | {"gradients": case["gradients"] + H @ away}
    here = excess_risk(strategy, **case, rounds=rounds, start=-away)
    there = excess_risk(strategy, **moved, rounds=rounds)
    assert there[0] == 0 and there[-1] < 0
    np.testing.assert_allclose(there, here - here[0], rtol=1e-10, atol=1e-14)


def test_one_agent_is_plain_training_under_every_strategy():
    case = problem(K=1) | {"A": np.ones((1, 1))}
    risks = [excess_risk(s, **case, rounds=[1, 10, math.inf], start=[1.0, 2.0]) for s in STRATEGIES]
    for risk in risks:
        np.testing.assert_allclose(risk, risks[0], rtol=1e-13)


def test_special_matrices_turn_one_strategy_into_another():
    case, rounds = problem(), [1, 2, 10, math.inf]
    mean, eye = np.full((4, 4), 1 / 4), np.eye(4)

    def risk(strategy, A):
        return excess_risk(strategy, **case | {"A": A}, rounds=rounds)

    np.testing.assert_allclose(risk("diffusion", mean), risk("centralized", eye), rtol=1e-12)
    np.testing.assert_allclose(risk("diffusion", eye), risk("local", mean), rtol=1e-12)
    np.testing.assert_allclose(risk("consensus", eye), risk("local", mean), rtol=1e-12)
    assert (risk("consensus", mean) > 1.01 * risk("centralized", eye)).all()


def test_centralized_limit_in_closed_form():
    mu, B, h = 0.05, 64, np.array([1.0, 0.5])
    expected = mu / (2 * 16 * B) * (h**2 / (2 - mu * h)).sum()
    risk = excess_risk("centralized", RING, **circle(), rounds=[math.inf])
    np.testing.assert_allclose(risk, expected, rtol=1e-12)


def test_ratios_of_a_homogeneous_ring():
    one = np.ones((16, 1, 1))
    cen, dif, con = (
        excess_risk(s, RING, one, np.zeros((16, 1)), one, 0.05, 1, [math.inf])[0]
        for s in ("centralized", "diffusion", "consensus")
    )
    assert dif / cen == pytest.approx(2.401, abs=5e-4)
    assert con / cen == pytest.approx(3.690, abs=5e-4)


@pytest.mark.parametrize("strategy", ["consensus", "diffusion"])
def test_leading_order_is_approached_linearly_in_the_learning_rate(strategy):
    case = problem(K=16, seed=2)
    A = weights.metropolis(build("erdos-renyi", 16, p=0.3))
    H, d = case["hessians"], case["gradients"]
    errors = []
    for lr in (1e-4, 1e-5):
        silent = (H, d, 0 * H, lr, 1, [math.inf])
        excess = excess_risk(strategy, A, *silent) - excess_risk("centralized", A, *silent)
        errors.append(excess[0] / leading_order(strategy, A, H, d, lr) - 1)
    assert abs(errors[1]) < 1e-3
    assert errors[0] == pytest.approx(10 * errors[1], rel=0.05)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_divergence_is_infinite(strategy):
    case = problem() | {"lr": 5.0}
    with np.errstate(all="raise", under="ignore"):
        risk = excess_risk(strategy, **case, rounds=[math.inf, 1, 5000])
    assert risk[0] == math.inf
    assert math.isfinite(risk[1])
    assert risk[2] == math.inf


def test_a_flat_direction_has_no_limit():
    flat = np.zeros((2, 1, 1))
    args = (np.full((2, 2), 0.5), flat, np.zeros((2, 1)), flat + 1, 0.1, 1, [math.inf])
    assert excess_risk("diffusion", *args)[0] == math.inf


def test_modes_diverge_where_consensus_does():
    # stable if and only if mu * theta < 1 + lambda_min, where diffusion still is
    A = np.array([[0.1, 0.9], [0.9, 0.1]])
    one, d = np.ones((2, 1, 1)), np.array([[1.0], [-1.0]])
    for lr, stable in ((0.19, True), (0.21, False)):
        for strategy in ("consensus", "diffusion"):
            modal = modal_excess_risk(strategy, A, one[0], d, one, lr, 1, [math.inf, 50])
            full = excess_risk(strategy, A, one, d, one, lr, 1, [math.inf, 50])
            np.testing.assert_allclose(modal, full, rtol=1e-10)
            assert math.isfinite(full[0]) == (stable or strategy == "diffusion")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"strategy": "gossip"}, 'strategy is "gossip", expected one of centralized,'),
        ({"A": np.eye(3)}, r"A has shape \(3, 3\), expected \(4, 4\)"),
        ({"hessians": np.eye(2)}, r"hessians has shape \(2, 2\), expected \(4, 2, 2\)"),
        ({"noise": np.eye(2)}, r"noise has shape \(2, 2\)"),
        ({"gradients": np.zeros(4)}, r"from gradients of shape \(4,\)"),
        ({"rounds": [1, -1]}, "round -1 in rounds: expected integers"),
        ({"rounds": [0.5]}, "round 0.5 in rounds"),
        ({"rounds": [math.nan]}, "round nan in rounds"),
    ],
)
def test_what_is_wrong_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        excess_risk(**{"strategy": "diffusion", "rounds": [1]} | problem() | change)


def test_no_rounds_give_no_risks():
    assert excess_risk("local", **problem(), rounds=[]).shape == (0,)
