import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydist.adversary.threat import ThreatModel, rows
from raydist.adversary.wasserstein import first_order_risk, sensitivity, w_pgd

NORMS = ["linf", "l2", "l1"]
BOXES = [(0.0, 1.0), (-math.inf, math.inf)]


def draw(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bounds", BOXES)
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 2), size=st.integers(1, 6))
def test_projection_lands_in_ball_and_box_and_keeps_what_is_inside(norm, bounds, seed, eps, size):
    threat = ThreatModel(norm, eps, bounds)
    x, far = draw(seed, 4, 2, size), 6 * draw(seed + 1, 4, 2, size) - 3
    inside = threat.project(far, x)
    assert (threat.norm_of(inside - x) <= eps + 1e-12).all()
    assert (inside >= bounds[0]).all() and (inside <= bounds[1]).all()
    torch.testing.assert_close(threat.project(inside, x), inside, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "bounds"), [("linf", b) for b in BOXES] + [("l2", BOXES[1]), ("l1", BOXES[1])]
)
def test_projection_is_the_nearest_point_of_the_set(norm, bounds):
    # variational inequality of the Euclidean projection p of z: <z - p, s - p> <= 0 for all s in S
    threat = ThreatModel(norm, 0.4, bounds)
    x, z = draw(0, 1, 3), 6 * draw(1, 1, 3) - 3
    nearest = threat.project(z, x)
    generator = torch.Generator().manual_seed(2)
    others = threat.random_start(x.expand(5000, 3), generator)
    assert ((z - nearest) * (others - nearest)).sum(dim=1).max() <= 1e-12


def test_projection_on_the_l2_ball_is_radial():
    threat = ThreatModel("l2", 0.5)
    point = threat.project(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0 / 8]]))
    expected = torch.tensor([[3.0, -0.5]]) * 0.5 / math.hypot(3, 0.5) + torch.tensor([[0.0, 0.5]])
    torch.testing.assert_close(point, expected)


def test_projection_on_the_l1_ball_by_hand_and_by_bisection_of_the_threshold():
    threat = ThreatModel("l1", 1.0, BOXES[1])
    point = threat.project(torch.tensor([[0.9, -0.5, 0.1]]), torch.zeros(1, 3))
    torch.testing.assert_close(point, torch.tensor([[0.7, -0.3, 0.0]]))  # theta = 0.2
    delta = 4 * draw(0, 200, 30) - 2
    low, high = torch.zeros(200, 1).double(), delta.abs().amax(1, keepdim=True)
    for _ in range(60):
        theta = (low + high) / 2
        outside = (delta.abs() - theta).clamp_min(0).sum(1, keepdim=True) > 1
        low, high = torch.where(outside, theta, low), torch.where(outside, high, theta)
    expected = delta.sign() * (delta.abs() - high).clamp_min(0)
    found = threat.project(delta, torch.zeros_like(delta))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_steepest_direction_in_l1_is_the_first_of_the_largest():
    g = torch.tensor([[1.0, -3.0, 3.0]])
    assert ThreatModel("l1", 1.0).steepest(g).tolist() == [[0, -1, 0]]


def test_a_step_in_l1_passes_over_what_the_box_stops():
    threat, g = ThreatModel("l1", 1.0), torch.tensor([[5.0, -4.0, -3.0, 2.0]])
    stopped = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    assert threat.steepest(g, stopped).tolist() == [[0, 0, -1, 0]]
    assert threat.steepest(g, torch.tensor([[0.0, 1.0, 0.5, 0.5]])).tolist() == [[1, 0, 0, 0]]
    assert threat.steepest(g[:, :2], stopped[:, :2]).tolist() == [[0, 0]]


def test_an_l1_budget_may_be_shared():
    # a loss linear in x: V(delta) = V(0) + delta Upsilon exactly
    x, w = draw(0, 20, 5), draw(1, 20, 5) - 0.5
    model, y = torch.nn.Identity(), torch.arange(20)

    def loss(outputs, labels):
        return (outputs * w[labels]).sum(dim=1)

    upsilon = sensitivity(model, x, y, "l1", loss)
    assert upsilon == pytest.approx(w.abs().amax(1).square().mean().sqrt().item())
    x_adv = w_pgd(model, x, y, 0.3, norm="l1", loss=loss, bounds=BOXES[1], best=False)
    moved = ThreatModel("l1", 0.0).norm_of(x_adv - x)
    assert moved.square().mean().sqrt() == pytest.approx(0.3)
    expected = first_order_risk(loss(x, y).mean().item(), upsilon, 0.3)
    assert loss(x_adv, y).mean().item() == pytest.approx(expected)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_is_uniform_in_the_ball(norm):
    threat = ThreatModel(norm, 0.3, (-math.inf, math.inf))
    x = draw(0, 1, 3).expand(40_000, 3)
    delta = threat.random_start(x, torch.Generator().manual_seed(0)) - x
    share = (threat.norm_of(delta) / 0.3) ** 3  # volume inside the radius: uniform in [0, 1]
    assert share.max() <= 1 + 1e-9
    quantiles = torch.quantile(share, torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    torch.testing.assert_close(
        quantiles, torch.linspace(0.1, 0.9, 9, dtype=torch.float64), rtol=0, atol=0.015
    )
    torch.testing.assert_close(delta.mean(dim=0), torch.zeros(3).double(), rtol=0, atol=0.005)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_is_clipped_to_the_box_and_reproducible(norm):
    threat, x = ThreatModel(norm, 0.5), torch.ones(50, 3)
    first, second = (threat.random_start(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.min() < 1 and first.max() == 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_steepest_direction_attains_the_dual_norm_inside_the_unit_ball(norm, scale):
    threat = ThreatModel(norm, 1.0)
    g = (draw(3, 20, 2, 4) - 0.5) * scale
    direction = threat.steepest(g)
    torch.testing.assert_close(threat.norm_of(direction), torch.ones(20).double())
    torch.testing.assert_close(
        rows(direction * g).sum(dim=1), threat.dual_norm(g), atol=0, rtol=1e-9
    )


def test_steepest_direction_of_a_float32_gradient_whose_square_vanishes():
    g = torch.tensor([[3e-30, 4e-30]])
    assert g.square().sum() == 0
    torch.testing.assert_close(ThreatModel("l2", 1.0).steepest(g), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_direction_of_a_zero_gradient_is_zero(norm):
    g = torch.tensor([[0.0, 0.0], [0.0, -2.0]])
    assert torch.equal(ThreatModel(norm, 1.0).steepest(g), torch.tensor([[0.0, 0.0], [0.0, -1.0]]))


def test_norms_and_dual_norms_by_hand():
    delta = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
    linf, l2, l1 = (ThreatModel(norm, 1.0) for norm in NORMS)
    assert linf.norm_of(delta).tolist() == [4, 1]
    assert linf.dual_norm(delta).tolist() == [7, 1]
    assert l2.norm_of(delta).tolist() == [5, 1]
    assert l2.dual_norm(delta).tolist() == [5, 1]
    assert l1.norm_of(delta).tolist() == [7, 1]
    assert l1.dual_norm(delta).tolist() == [4, 1]
    assert linf.norm_of(torch.tensor([2.0, -3.0])).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("l0", 0.1), 'norm is .l0., expected one of: write "linf", "l2" or "l1"'),
        (("linf", -0.1), "eps is -0.1"),
        (("linf", math.nan), "eps is nan"),
        (("l2", math.inf), "eps is inf"),
        (("l2", 0.1, (1.0, 0.0)), "low < high"),
        (("l2", 0.1, (0.5, 0.5)), "low < high"),
        (("l2", 0.1, (0.0, math.nan)), "low < high"),
    ],
)
def test_bad_threats_are_refused_with_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        ThreatModel(*arguments)
