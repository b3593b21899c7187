"""Similarity of two trained models: their perturbations, their parameters, their gradients.

The statistics that arXiv:2006.08403 compares models by. Models are left exactly as they are.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydist.adversary.threat import ThreatModel, rows
from raydist.measure.curvature import Attack, attacked, gradient
from raydist.measure.derivatives import Batches, Loss
from raydist.vector import flat

_unit = ThreatModel("l2", 1.0).steepest  # δ / ‖δ‖ of each row, 0 where δ = 0


def perturbations(model: nn.Module, batches: Batches, attack: Attack, seed: int = 0) -> Tensor:
    """Perturbations that an attack adds to each sample, δ = x' − x.

    Args:
        model: the attacked model, in eval mode.
        batches: (x, y) of any sizes.
        attack: `(model, x, y, generator=...) -> x'`.
        seed: the seed of the attack's draws, which are the same for every model.

    Returns:
        (N, D), one row per sample.
    """
    points = zip(batches, attacked(model, batches, attack, seed), strict=True)
    return torch.cat([rows(x_adv - x) for (x, _), (x_adv, _) in points])


def perturbation_similarity(delta_1: Tensor, delta_2: Tensor) -> tuple[float, float]:
    """Mean cosines of two models' perturbations of the same samples, and of their signs.

        (1/N) Σ_n cos(δ_n, δ'_n)   and   (1/N) Σ_n cos(sign δ_n, sign δ'_n)

    (the code of arXiv:2006.08403). A sample that one of them does not perturb counts as 0.

    Args:
        delta_1: (N, ...).
        delta_2: (N, ...).

    Returns:
        Both means, in [-1, 1]; for l∞ attacks at the corners of the ball they are equal.

    Raises:
        ValueError: the shapes differ, or there is no sample.

    Example:
        >>> perturbation_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[-4.0, 3.0]]))
        (0.0, 0.0)
    """
    if delta_1.shape != delta_2.shape or len(delta_1) == 0:
        raise ValueError(
            f"perturbations have shapes {tuple(delta_1.shape)} and {tuple(delta_2.shape)},"
            " expected the same (N, ...) twice, with a sample"
        )

    def cosine(a: Tensor, b: Tensor) -> float:
        return float((_unit(rows(a).double()) * _unit(rows(b).double())).sum(dim=1).mean())

    return cosine(delta_1, delta_2), cosine(delta_1.sign(), delta_2.sign())


def distance(first: nn.Module, second: nn.Module) -> float:
    """‖w_1 − w_2‖₂ over all parameters of two models of one kind, without running statistics.

    Args:
        first: a model.
        second: another one with parameters of the same shapes, on the same device.

    Returns:
        The distance.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError("the models have parameters of different shapes: expected the same kind")
    difference = flat(first.parameters()).double() - flat(second.parameters()).double()
    return float(torch.linalg.vector_norm(difference))


def gradient_norm(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss = F.cross_entropy,
    attack: Attack | None = None,
    seed: int = 0,
) -> float:
    """The norm of the mean gradient at the attacked points, ‖(1/N) Σ_n ∇_w ℓ(w; x'_n, y_n)‖₂.

    With one batch it is the statistic of arXiv:2006.08403, with all of them that of the whole set.

    Args:
        model: at w, in eval mode.
        batches: the batches, as in `landscape.risk`, like the arguments after it.
        loss_fn: mean loss of a batch.
        attack: run here; None is the clean gradient.
        seed: the seed of the attack's draws.

    Returns:
        The norm, over trainable parameters.

    Raises:
        ValueError: the batches hold no sample.
        FloatingPointError: the gradient is not finite.
    """
    points = batches if attack is None else attacked(model, batches, attack, seed)
    return float(np.linalg.norm(gradient(model, loss_fn, points)))
