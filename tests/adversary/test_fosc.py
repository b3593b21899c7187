import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raydist.adversary.attack import ascend, pgd
from raydist.adversary.fosc import first_order_gap, fosc, relative_gap
from raydist.adversary.threat import ThreatModel

NORMS = ["linf", "l2", "l1"]
UNBOUNDED = (-math.inf, math.inf)


def linear(seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(size, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(9, size, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(3, (9,), generator=generator)


def two_class(w):
    model = nn.Linear(len(w), 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.zeros_like(w), w]))
    return model


def largest_by_enumeration(g, low, high, eps, norm):
    """max <g, d> over the ball and low <= d <= high, one sample, by trying every face."""
    if norm == "linf":
        ends = [(max(a, -eps), min(b, eps)) for a, b in zip(low, high, strict=True)]
        return max(sum(a * b for a, b in zip(g, d, strict=True)) for d in itertools.product(*ends))
    if norm == "l1":
        # each coordinate is 0 or at an end of the box, but for one, which takes what is left
        best = 0.0
        for choice in itertools.product((0.0, 1, 2), repeat=len(g)):
            for free in range(len(g)):
                d = [0.0 if c == 0 else (low, high)[int(c) - 1][i] for i, c in enumerate(choice)]
                d[free] = 0.0
                left = eps - sum(map(abs, d))
                if left >= 0:
                    for end in (max(low[free], -left), min(high[free], left)):
                        d[free] = end
                        best = max(best, sum(a * b for a, b in zip(g, d, strict=True)))
        return best
    # each coordinate is at an end of the box, or free: d_free = t g_free, on the sphere
    best = 0.0
    for choice in itertools.product((0, 1, None), repeat=len(g)):
        d = [0.0 if c is None else (low, high)[c][i] for i, c in enumerate(choice)]
        free = [i for i, c in enumerate(choice) if c is None]
        left, length = eps**2 - sum(v * v for v in d), math.hypot(*(g[i] for i in free))
        if left < -1e-12 or not all(map(math.isfinite, d)):
            continue
        for i in free:
            d[i] = math.sqrt(max(left, 0.0)) * g[i] / length if length else 0.0
        if all(a - 1e-12 <= v <= b + 1e-12 for a, v, b in zip(low, d, high, strict=True)):
            best = max(best, sum(a * b for a, b in zip(g, d, strict=True)))
    return best


coordinate = st.floats(-3, 3).filter(lambda v: v == 0 or abs(v) > 1e-3)
pixel = st.sampled_from([0.0, 1.0, 0.5, 0.9, 0.03])
vectors = st.lists(st.tuples(pixel, coordinate), min_size=1, max_size=4)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), UNBOUNDED])
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=150)
@given(pairs=vectors, eps=st.sampled_from([0.0, 0.05, 0.4, 5.0]))
def test_the_maximum_on_ball_and_box_equals_exact_enumeration(norm, bounds, pairs, eps):
    x, g = (torch.tensor([column], dtype=torch.float64) for column in zip(*pairs, strict=True))
    low, high = ([bound - v for v in x[0].tolist()] for bound in bounds)
    expected = largest_by_enumeration(g[0].tolist(), low, high, eps, norm)
    gap = first_order_gap(x, x, g, ThreatModel(norm, eps, bounds), box=True)
    assert gap.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), eps=st.floats(0.001, 2))
def test_both_gaps_are_ordered_and_above_what_any_point_of_the_set_gains(norm, seed, eps):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(30, 5, generator=generator).mul(1.4).sub(0.2).clamp(0, 1)
    g = torch.randn(30, 5, generator=generator)
    threat = ThreatModel(norm, eps)
    x_adv, other = (threat.random_start(x, generator) for _ in range(2))
    published = first_order_gap(x, x_adv, g, threat)
    boxed = first_order_gap(x, x_adv, g, threat, box=True)
    relative = relative_gap(x, x_adv, g, threat)
    assert ((0 <= boxed) & (boxed <= published)).all()
    assert ((0 <= relative) & (relative <= 2)).all()
    assert (boxed >= ((other - x_adv) * g).sum(dim=1) - 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_at_the_optimum_gives_no_negative_value(norm):
    generator, threat = torch.Generator().manual_seed(0), ThreatModel(norm, 8 / 255)
    x, g = torch.rand(2, 500, 20, generator=generator)
    optimum = threat.project(x + threat.eps * threat.steepest(g), x)
    for box in (False, True):
        assert (first_order_gap(x, optimum, g, threat, box) >= 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_box_in_reach_both_gaps_agree(norm):
    model, x, y = linear()
    threat = ThreatModel(norm, 0.1, (-10.0, 10.0))
    x_adv = threat.random_start(x, torch.Generator().manual_seed(0))
    published, boxed = (fosc(model, x, x_adv, y, threat, box) for box in (False, True))
    torch.testing.assert_close(boxed, published, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 7])
def test_linear_model_closed_form_after_each_step(norm, steps):
    # a constant direction: after t steps of length a, FOSC is max(eps - t a, 0) ||g||_*
    w = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    model, eps, alpha = two_class(w), 0.25, 0.06
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1] * 4)
    threat = ThreatModel(norm, eps, UNBOUNDED)
    x_adv = pgd(model, x, y, threat, steps=steps, alpha=alpha, start="zero")
    z = (x_adv @ w) * (1 - 2 * y)
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    expected = max(eps - steps * alpha, 0.0) * z.sigmoid() * dual  # |d CE / d score| = sigmoid(z)
    for box in (False, True):
        values = fosc(model, x, x_adv, y, threat, box)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-10)


def test_the_box_removes_the_floor_of_coordinates_at_the_end_of_their_range():
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    model, threat = two_class(w), ThreatModel("linf", 0.1)
    x, y = torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64), torch.tensor([1])  # moves down
    x_adv = pgd(model, x, y, threat, steps=5, alpha=0.1, start="zero")
    slope = (-(x_adv @ w)).sigmoid()
    torch.testing.assert_close(fosc(model, x, x_adv, y, threat), 0.1 * slope)
    torch.testing.assert_close(
        fosc(model, x, x_adv, y, threat, box=True), torch.zeros(1).double(), rtol=0, atol=1e-12
    )


def test_relative_gap_does_not_see_the_scale_and_is_the_share_left():
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    threat, x = ThreatModel("linf", 0.1), torch.full((1, 3), 0.5, dtype=torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        for share in (0.0, 0.25, 1.0):
            point = x + 0.1 * share * w.sign()
            gap = relative_gap(x, point, scale * w.unsqueeze(0), threat)
            assert gap.item() == pytest.approx(1 - share, abs=1e-12)
    assert relative_gap(x, x, torch.zeros(1, 3).double(), threat).item() == 0
    assert relative_gap(x, x, torch.full((1, 3), math.nan).double(), threat).isnan().all()


def test_fosc_is_of_single_samples_and_leaves_the_model_alone():
    model, x, y = linear()
    model.train()
    threat = ThreatModel("linf", 0.1)
    with torch.no_grad():
        together = fosc(model, x, x, y, threat)
    alone = torch.cat([fosc(model, x[[i]], x[[i]], y[[i]], threat) for i in range(len(x))])
    torch.testing.assert_close(together, alone)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_free_gap_of_the_last_gradient_equals_a_new_measurement():
    model, x, y = linear()
    threat = ThreatModel("l2", 0.3)
    found = ascend(model, x, y, threat, steps=3, alpha=0.1)
    free = first_order_gap(x, found.x_last, found.grad, threat)
    torch.testing.assert_close(free, fosc(model, x, found.x_last, y, threat))
