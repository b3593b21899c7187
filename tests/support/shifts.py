"""Images and a small net for distributional attacks, and the worst risk by brute force."""

import math

import torch
from torch import nn


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(64, 4),
        ).double()
        model(torch.rand(16, 1, 6, 6, dtype=torch.float64))
    return model


def images(n=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    x = x.mul(1.2).sub(0.1).clamp(0, 1)
    y = torch.randint(4, (n,), generator=generator)
    with torch.no_grad():  # most labels are the model's own
        own = network().eval()(x).argmax(1)
    return x, torch.where(torch.arange(n) % 5 == 0, y, own)


def worst_risk(margins, dual, delta):
    """min over g > 0 of g delta^2 + mean_i max_t [log(1 + exp(t dual - m_i)) - g t^2]."""
    t = 6 * torch.linspace(0, 1, 6001, dtype=torch.float64) ** 3  # fine where most moves are
    losses = nn.functional.softplus(t * dual - margins.unsqueeze(1))

    def value(log_g):
        g = math.exp(log_g)
        return g * delta**2 + (losses - g * t.square()).amax(dim=1).mean().item()

    low, high = math.log(0.1), math.log(1e3)  # convex in g, so one valley in log g
    for _ in range(60):
        third = (high - low) / 3
        if value(low + third) < value(high - third):
            high -= third
        else:
            low += third
    return value(low)
