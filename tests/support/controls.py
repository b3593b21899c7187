"""Three binary models whose robust accuracy is known exactly, to judge what detects masking.

A model scores x by h(w·(x − ½)); over the l∞ ball w·x fills an interval of half width ε‖w‖₁, so the
worst score is the minimum of h on an interval.
"""

import math

import torch
from torch import nn

from raydist.adversary.threat import ThreatModel

POINTS, SIDE, EPS = 2000, 4, 8 / 255
THREAT = ThreatModel("linf", EPS)
AMPLITUDE, FREQUENCY = 0.05, 400.0


class Score(nn.Module):
    """Logits (−s/2, s/2) of the score s = scale · (u + amplitude sin(frequency u))."""

    def __init__(self, w, scale=1.0, amplitude=0.0, frequency=0.0):
        super().__init__()
        self.w, self.scale, self.amplitude, self.frequency = w, scale, amplitude, frequency

    def forward(self, x):
        u = (x.flatten(1) - 0.5) @ self.w
        s = self.scale * (u + self.amplitude * torch.sin(self.frequency * u))
        return torch.stack([-s / 2, s / 2], dim=1)


def plain(w):
    return Score(w)


def saturated(w):
    """The cross-entropy is 0 in float32, and so is its gradient."""
    return Score(w, scale=1e5)


def rugged(w):
    """The gradient points anywhere."""
    return Score(w, amplitude=AMPLITUDE, frequency=FREQUENCY)


def points():
    """w and images (N, 1, 4, 4) whose balls lie inside the box, labelled by the plain score."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(SIDE**2, generator=generator)
    x = 0.2 + 0.6 * torch.rand(POINTS, 1, SIDE, SIDE, generator=generator)
    return w, x, ((x.flatten(1) - 0.5) @ w > 0).long()


def exact_robust_accuracy(model, x, y):
    """Share of points with min of (2y − 1) h(u) > 0 over the interval of u, in float64."""
    w = model.w.double()
    centre, radius = (x.flatten(1).double() - 0.5) @ w, EPS * w.abs().sum()
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
