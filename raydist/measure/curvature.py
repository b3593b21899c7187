"""Curvature of a loss in the parameters: flatness of J at w, clean or adversarial.

J, H and g are those of `raydist.measure.derivatives`, which says what all functions here share.

The adversarial loss has its Hessian here with the perturbations frozen: pass `attacked(...)` for
the batches, and say `FROZEN_NOTE` with the number.
"""

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from raydist.measure.derivatives import (
    Batches,
    Loss,
    gradient,
    hessian,
    projected_gradients,
    rows_of,
)
from raydist.measure.spectrum import Array, density, rademacher, top_pairs
from raydist.seeding import Purpose, torch_generator
from raydist.vector import frozen, trainable

__all__ = [
    "FROZEN_NOTE",
    "Attack",
    "attacked",
    "gradient",
    "hessian_pairs",
    "hessian_top",
    "hessian_trace",
    "projected_gradients",
    "spectral_density",
    "subspace",
    "trace_samples",
]

FROZEN_NOTE = (
    "Hessian at adversarial points that were found once at these weights and then held. On a linear"
    " model this is exact almost everywhere for linf, but for l2 it lacks a positive semi-definite"
    " term; on a network the points move with the weights for every norm."
)


class Attack(Protocol):
    """Any function with these arguments, `partial(pgd, threat=threat, steps=10, alpha=0.01)` too.

    Its draws come from `generator` alone. It is called with the model in eval mode.
    """

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator
    ) -> Tensor:
        """The adversarial points, (N, ...)."""


def trace_samples(
    model: nn.Module, loss_fn: Loss, batches: Batches, probes: int, seed: int
) -> Array:
    """vᵀ H v for each Rademacher probe v, whose mean over v is Tr(H) (Hutchinson).

    Probe i is a function of (seed, i) alone. With images divided among processes, the samples of
    all images are the averages of those of the shares, weighted by their numbers of images.

    Args:
        model: the model, as in `hessian`.
        loss_fn: the loss function, as in `hessian`.
        batches: the batches, as in `hessian`.
        probes: their number, ≥ 1.
        seed: seed of the probes, ≥ 0.

    Returns:
        (probes,).

    Raises:
        ValueError: fewer than one probe.
    """
    if probes < 1:
        raise ValueError(f"probes is {probes}, expected an integer >= 1: write 50")
    with hessian(model, loss_fn, batches) as H:
        drawn = (rademacher(H.shape[0], seed, i) for i in range(probes))
        return np.array([v @ H.matvec(v) for v in drawn])


def hessian_trace(
    model: nn.Module, loss_fn: Loss, batches: Batches, probes: int, seed: int
) -> tuple[float, float]:
    """Tr(H) by Hutchinson's estimator; exact with one probe if H is diagonal.

    Arguments as in `trace_samples`.

    Returns:
        The mean over the probes and its standard error, which is nan for one probe.

    Example:
        >>> model, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> batches = [(x, torch.zeros(2, 1))]  # J(w) = (w_1² + 4 w_2²) / 2
        >>> hessian_trace(model, nn.functional.mse_loss, batches, probes=2, seed=0)
        (5.0, 0.0)
    """
    samples = trace_samples(model, loss_fn, batches, probes, seed)
    error = samples.std(ddof=1) / math.sqrt(probes) if probes > 1 else math.nan
    return float(samples.mean()), float(error)


def hessian_pairs(
    model: nn.Module, loss_fn: Loss, batches: Batches, k: int, seed: int = 0
) -> tuple[Array, Array]:
    """The k largest eigenvalues of H (by sign, not size) and their eigenvectors.

    Args:
        model: the model, as in `hessian`.
        loss_fn: the loss function, as in `hessian`.
        batches: the batches, as in `hessian`.
        k: number of eigenvalues, 1..P.
        seed: seed of the start of the iteration.

    Returns:
        Eigenvalues (k,), descending, and as rows orthonormal eigenvectors (k, P), with the sign
        that makes the entry of largest size positive. The residual ‖H v − λ v‖ / ‖H‖ is at most
        2e-12 in float64 and 6e-6 in float32; if that is not reached, or k is not in 1..P,
        `spectrum.top_pairs` raises.
    """
    precision = torch.finfo(next(iter(trainable(model).values())).dtype).eps
    with hessian(model, loss_fn, batches) as H:
        return top_pairs(H, k, seed, precision**0.75)


def hessian_top(model: nn.Module, loss_fn: Loss, batches: Batches, k: int, seed: int = 0) -> Array:
    """The k largest eigenvalues of H, (k,), descending; arguments as in `hessian_pairs`."""
    return hessian_pairs(model, loss_fn, batches, k, seed)[0]


def spectral_density(
    model: nn.Module,
    loss_fn: Loss,
    batches: Batches,
    *,
    probes: int = 10,
    steps: int = 64,
    points: int = 1024,
    seed: int,
) -> tuple[Array, Array]:
    """The distribution of all P eigenvalues of H, each blurred; see `spectrum.density`.

    It costs probes · steps products. Other arguments as in `hessian` and `spectrum.density`.

    Returns:
        Grid (points,) and density (points,) with integral 1.
    """
    with hessian(model, loss_fn, batches) as H:
        return density(H, probes=probes, steps=steps, points=points, seed=seed)


def subspace(model: nn.Module, loss_fn: Loss, batches: Batches, basis: ArrayLike) -> Array:
    """Vᵀ H V, the Hessian within a subspace.

    Args:
        model: the model, as in `hessian`.
        loss_fn: the loss function, as in `hessian`.
        batches: the batches, as in `hessian`.
        basis: Vᵀ, orthonormal rows (m, P), such as the vectors of `hessian_pairs`.

    Returns:
        (m, m), symmetric.
    """
    rows = rows_of(basis, trainable(model))
    with hessian(model, loss_fn, batches) as H:
        products = np.stack([H.matvec(v) for v in rows])
    small: Array = rows @ products.T
    return (small + small.T) / 2


def attacked(model: nn.Module, batches: Batches, attack: Attack, seed: int) -> Batches:
    """The adversarial points at these weights, found once and then held (arXiv:2006.08403).

    Args:
        model: the model at w; in eval mode meanwhile.
        batches: clean (x, y).
        attack: `(model, x, y, generator=...) -> x_adv`; see `Attack`.
        seed: batch number b is attacked with draws that are a function of (seed, b).

    Returns:
        [(x_adv, y), ...], batches for the other functions.
    """

    def points(number: int, x: Tensor, y: Tensor) -> Tensor:
        draw = torch_generator(Purpose.EVALUATE, seed, round=number, device=x.device)
        return attack(model, x, y, generator=draw).detach()

    with frozen(model):
        return [(points(number, x, y), y) for number, (x, y) in enumerate(batches)]
