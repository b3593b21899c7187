"""Three binary models whose robust accuracy is known exactly, to judge what detects masking.

A model scores x by h(w·(x − ½)); over the l∞ ball w·x fills an interval of half width ε‖w‖₁, so the
worst score is the minimum of h on an interval.
"""

import math

import pytest
import torch
from torch import nn

from raydist.adversary.attack import pgd
from raydist.adversary.fosc import fosc
from raydist.adversary.threat import ThreatModel

POINTS, SIZE, EPS = 2000, 10, 8 / 255
THREAT = ThreatModel("linf", EPS)
AMPLITUDE, FREQUENCY = 0.05, 400.0


class Score(nn.Module):
    """Logits (−s/2, s/2) of the score s = scale · (u + amplitude sin(frequency u))."""

    def __init__(self, w, scale=1.0, amplitude=0.0, frequency=0.0):
        super().__init__()
        self.w, self.scale, self.amplitude, self.frequency = w, scale, amplitude, frequency

    def forward(self, x):
        u = (x - 0.5) @ self.w
        s = self.scale * (u + self.amplitude * torch.sin(self.frequency * u))
        return torch.stack([-s / 2, s / 2], dim=1)


@pytest.fixture(scope="module")
def task():
    """Points whose balls lie inside the box, labelled by the plain score."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(SIZE, generator=generator)
    x = 0.2 + 0.6 * torch.rand(POINTS, SIZE, generator=generator)
    return w, x, ((x - 0.5) @ w > 0).long()


def exact_robust_accuracy(model, x, y):
    """Share of points with min of (2y − 1) h(u) > 0 over the interval of u, in float64."""
    w = model.w.double()
    centre, radius = (x.double() - 0.5) @ w, EPS * w.abs().sum()
    candidates = [(centre - radius).unsqueeze(1), (centre + radius).unsqueeze(1)]
    if model.amplitude:
        # critical points: 1 + amplitude frequency cos(frequency u) = 0
        turn = math.acos(-1 / (model.amplitude * model.frequency))
        span = (centre.abs().max() + radius).item() * model.frequency / (2 * math.pi)
        k = torch.arange(-math.ceil(span) - 1, math.ceil(span) + 2, dtype=torch.float64)
        u = torch.cat([(2 * math.pi * k + t) / model.frequency for t in (turn, -turn)])
        inside = (u - centre.unsqueeze(1)).abs() <= radius
        candidates.append(torch.where(inside, u, candidates[0]))
    u = torch.cat(candidates, dim=1)
    h = u + model.amplitude * torch.sin(model.frequency * u)
    worst = ((2 * y - 1).unsqueeze(1) * h).amin(dim=1)
    return (worst > 0).double().mean().item()


def measured(model, x, y):
    """Clean accuracy, PGD-10 accuracy, exact robust accuracy, mean FOSC."""
    x_adv = pgd(model, x, y, THREAT, steps=10, alpha=2 / 255)
    clean, robust = ((model(z).argmax(1) == y).double().mean().item() for z in (x, x_adv))
    return (
        clean,
        robust,
        exact_robust_accuracy(model, x, y),
        fosc(model, x, x_adv, y, THREAT).mean(),
    )


def test_plain_model_has_no_gap_and_no_fosc(task):
    w, x, y = task
    clean, robust, exact, mean_fosc = measured(Score(w), x, y)
    assert clean == 1
    assert robust == pytest.approx(exact, abs=1 / POINTS)  # float32 at the edge of one point
    assert 0.5 < exact < 0.9
    assert mean_fosc < 1e-6


def test_saturated_model_has_a_large_gap_that_fosc_does_not_see(task):
    w, x, y = task
    clean, robust, exact, mean_fosc = measured(Score(w, scale=1e5), x, y)
    assert clean == 1
    assert exact == exact_robust_accuracy(Score(w), x, y)
    assert robust - exact > 0.2
    assert mean_fosc < 1e-3  # where a slope of 1e5 would give 1e5 eps ||w||_1
    silent = fosc(Score(w, scale=1e5), x, x, y, THREAT) == 0
    assert silent.double().mean() > 0.95  # without a gradient nothing is left to gain


def test_rugged_model_has_a_large_gap_and_a_large_fosc(task):
    w, x, y = task
    clean, robust, exact, mean_fosc = measured(Score(w, 1.0, AMPLITUDE, FREQUENCY), x, y)
    assert exact < robust < clean < 1
    assert robust - exact > 0.2
    assert mean_fosc > 1
