"""The risk around a model: along directions, over planes, on average over random directions.

    F(t) = J(w + Σ_i t_i d_i),   J(w) = (1/N) Σ_n ℓ(f_w(x'_n), y_n),   x'_n = attack(w; x_n)

(arXiv:1712.09913; with an attack that is made anew at every point, arXiv:2006.08403). A model is
moved in place, as a vector w (P,) of its trainable parameters in the order of `parameters()`, and
afterwards it is as before, bit for bit. Every value is a function of its own point and the seed
alone, so that points can be divided among processes.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from raydist.measure.curvature import Attack, attacked
from raydist.measure.derivatives import Batches, Loss
from raydist.seeding import Purpose, torch_generator
from raydist.vector import at, flat, frozen, trainable

Directions = Tensor | NDArray[np.float64]
Small = Literal["normalise", "zero"]


def filter_normalised(
    model: nn.Module, seed: int, index: int = 0, small: Small = "normalise"
) -> Tensor:
    """A random direction in which each filter has the norm that it has in the weights.

        d_j ← d_j ‖w_j‖ / ‖d_j‖,   d ~ N(0, I),   j: a slice along the first axis of a tensor

    (arXiv:1712.09913, section 4). One-dimensional parameters, biases and BatchNorm's, have slices
    of one element, d_j = ±|w_j| (as in the code of arXiv:2006.08403), or do not move at all (as in
    that of arXiv:1712.09913). With "normalise" the direction is as long as w.

    Args:
        model: at w.
        seed: the seed of the draw, ≥ 0.
        index: the number ≥ 0 of the direction; a seed has as many as are asked for.
        small: "normalise" or "zero", what becomes of one-dimensional parameters.

    Returns:
        The direction, (P,), a function of (w, seed, index), the same on every device.

    Raises:
        ValueError: `small` is neither.
    """
    if small not in ("normalise", "zero"):
        raise ValueError(f'small is {small!r}, expected "normalise" or "zero": write one of them')
    generator = torch_generator(Purpose.NOISE, seed, round=index)

    def direction(w: Tensor) -> Tensor:
        d = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        if w.ndim < 2 and small == "zero":
            return torch.zeros_like(w)
        slices = (len(w), -1) if w.ndim else (1, 1)
        norms = torch.linalg.vector_norm(w.detach().reshape(slices).double(), dim=1, keepdim=True)
        normalised: Tensor = F.normalize(d.view(slices)).to(w.device) * norms
        return normalised.view(w.shape).to(w.dtype)

    return flat(direction(w) for w in trainable(model).values())


def plane(first: Tensor, second: Tensor) -> Tensor:
    """Two directions as axes at a right angle: the second without its part along the first.

        e = d_2 − (⟨d_1, d_2⟩ / ‖d_1‖²) d_1,   d_2 ← e ‖d_2‖ / ‖e‖

    Args:
        first: d_1, (P,).
        second: d_2, (P,), such as another `filter_normalised` one.

    Returns:
        Both, (2, P), as long as before.

    Raises:
        ValueError: they are parallel, or one is 0.
    """
    a, b = first.double(), second.double()
    e = b - (a @ b) / (a @ a) * a
    if not e.norm() > 1e-6 * b.norm():
        raise ValueError("the directions of a plane are parallel or 0: write another index")
    return torch.stack([first, (e * (b.norm() / e.norm())).to(second.dtype)])


def unit_rise(values: ArrayLike, vectors: Directions) -> Tensor:
    """Hessian eigenvectors as axes on which the quadratic model rises by t²: d_i = √(2/λ_i) v_i.

        J(w + Σ_i t_i d_i) ≈ J(w) + Σ_i (t_i ⟨∇J(w), d_i⟩ + t_i²)

    At a minimum the level lines of a plane are circles as far as the quadratic model holds.

    Args:
        values: λ_i > 0, (m,).
        vectors: v_i of length 1, (m, P).

    Returns:
        (m, P).

    Raises:
        ValueError: an eigenvalue is not above 0.
    """
    curvatures = torch.as_tensor(np.asarray(values, dtype=np.float64))
    if not bool((curvatures > 0).all()):
        raise ValueError(f"values are {curvatures.tolist()}, expected eigenvalues above 0")
    rows = torch.as_tensor(vectors)
    return (2 / curvatures).sqrt().to(rows)[:, None] * rows


def risk(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss = F.cross_entropy,
    attack: Attack | None = None,
    seed: int = 0,
) -> float:
    """The mean loss of all samples at their attacked points, J(w), in eval mode.

    Args:
        model: maps (N, ...) to outputs.
        batches: (x, y) of any sizes, x (N, C, H, W) in [0, 1] and y (N,) for images.
        loss_fn: `(outputs, y) -> scalar`, the mean over a batch.
        attack: `(model, x, y, generator=...) -> x'`, run here; None is the clean risk.
        seed: the seed of the attack's draws, ≥ 0: a function of it and the number of the batch, the
            same wherever the model is.

    Returns:
        The risk.

    Raises:
        ValueError: the batches hold no sample.
    """
    points = batches if attack is None else attacked(model, batches, attack, seed)
    total, count = 0.0, 0
    with frozen(model), torch.no_grad():
        for x, y in points:
            total += len(y) * float(loss_fn(model(x), y))
            count += len(y)
    if count == 0:
        raise ValueError("batches hold no sample: write a list of (x, y), not an iterator")
    return total / count


def scan(
    model: nn.Module,
    directions: Directions,
    coordinates: ArrayLike,
    batches: Batches,
    loss_fn: Loss = F.cross_entropy,
    attack: Attack | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The risk at each of n points w + Σ_i t_i d_i; BatchNorm's running statistics stay as at w.

    Args:
        model: at w.
        directions: d_i, (m, P).
        coordinates: t, (n, m).
        batches: the batches, as in `risk`, like the arguments after it.
        loss_fn: mean loss of a batch.
        attack: run anew at each point.
        seed: the seed of the attack's draws.

    Returns:
        The risks, (n,); each depends on its own coordinates only.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.ones(1, 1), torch.tensor([[1.0]]))]
        >>> t = [[0.0], [1.0], [3.0]]  # (w − 1)² at w = 0, 1, 3, wherever the model is
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        >>> scan(model, torch.ones(1, 1), t, data, F.mse_loss).tolist()
        [1.0, 0.0, 4.0]
    """
    w = flat(trainable(model).values())
    axes = torch.as_tensor(directions, dtype=w.dtype, device=w.device)
    points = np.asarray(coordinates, dtype=np.float64)
    if points.ndim != 2 or axes.shape != (points.shape[1], len(w)):
        raise ValueError(
            f"coordinates have shape {points.shape} and directions {tuple(axes.shape)},"
            f" expected (n, m) and (m, {len(w)})"
        )
    risks = []
    for point in points.tolist():
        with at(model, w + sum(t * d for t, d in zip(point, axes, strict=True))):
            risks.append(risk(model, batches, loss_fn, attack, seed))
    return np.array(risks, dtype=np.float64)
