"""First and second derivatives of a mean loss in the parameters, batch by batch.

    J(w) = (1/N) Σ_i ℓ(f_w(x_i), y_i),   g = ∇J(w),   H = ∇²J(w)

over the trainable parameters in the model's order, as one flat float64 vector (P,). `loss_fn`
gives the mean over the samples of a batch; batches may be of any sizes, every sample counts alike.
The model is frozen in eval mode meanwhile (BatchNorm with its running statistics) and left as
found. A derivative that is not finite is a FloatingPointError.
"""

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from raydist.measure.spectrum import Array
from raydist.vector import flat, frozen, split, trainable

with warnings.catch_warnings():  # a package below curvlinops still scripts its functions, and ...
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is")
    from curvlinops import HessianLinearOperator

    # ... so does torch, at the first forward-mode derivative of a process
    jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))
Parameters = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]


class _Mean(nn.Module):
    """A loss function in the form that curvlinops asks for."""

    reduction = "mean"

    def __init__(self, loss_fn: Loss) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.loss_fn(outputs, y)


@contextmanager
def hessian(model: nn.Module, loss_fn: Loss, batches: Batches) -> Generator[LinearOperator]:
    """The Hessian H of the mean loss as a linear operator on float64 vectors.

    Meanwhile the model is frozen. Products are made in the parameters' own dtype and on their
    device, batch by batch, one vector at a time. A product that is not finite is a
    FloatingPointError.

    Args:
        model: maps inputs to outputs; its trainable parameters are w.
        loss_fn: `(outputs, y) -> scalar`, the mean over a batch.
        batches: pairs (x, y), gone through once for every product.

    Yields:
        H, (P, P).
    """
    w = trainable(model)
    _samples(batches)
    with frozen(model):
        # its own check of determinism draws from the global random state
        exact = HessianLinearOperator(
            model, _Mean(loss_fn), list(w.values()), batches, check_deterministic=False
        )

        def product(v: Array) -> Array:
            return _finite(exact @ _like(v, w), "a product with the Hessian")

        yield LinearOperator(exact.shape, matvec=product, dtype=np.float64)


def gradient(model: nn.Module, loss_fn: Loss, batches: Batches) -> Array:
    """The mean gradient g, (P,); arguments as in `hessian`."""
    w = trainable(model)
    total, samples = np.zeros(sum(p.numel() for p in w.values())), _samples(batches)

    def loss(w: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss_fn(functional_call(model, w, (x,)), y)

    with frozen(model):
        for x, y in batches:
            slope = flat(grad(loss)(w, x, y).values())
            total += len(x) / samples * _finite(slope, "the gradient")
    return total


def projected_gradients(
    model: nn.Module, loss_fn: Loss, x: Tensor, y: Tensor, basis: ArrayLike, batch: int
) -> Array:
    """⟨∇_w ℓ(f_w(x_i), y_i), v_j⟩ for each sample i and basis vector j.

    Forward mode: one pass with the tangent v_j gives column j for a batch of samples, and no
    gradient of a single sample is ever held. In eval mode a sample does not see the others.

    Args:
        model: the model, as in `hessian`.
        loss_fn: the loss function, as in `hessian`; a single sample's ℓ is its value on a
            batch of one.
        x: inputs, (N, ...).
        y: labels, (N, ...).
        basis: rows v_j, (m, P).
        batch: samples in one pass, ≥ 1.

    Returns:
        (N, m); the mean of the rows is `basis @ gradient`.

    Raises:
        ValueError: batch is below 1, or basis is not (m, P).
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected a number of samples >= 1: write 128")
    w = trainable(model)
    rows = rows_of(basis, w)
    each = vmap(lambda output, label: loss_fn(output.unsqueeze(0), label.unsqueeze(0)))
    columns = np.empty((len(x), len(rows)))

    with frozen(model):
        for first in range(0, len(x), batch):
            part = slice(first, first + batch)

            def losses(w: dict[str, Tensor], part: slice = part) -> Tensor:
                return each(functional_call(model, w, (x[part],)), y[part])

            for j, v in enumerate(rows):
                tangent = dict(zip(w, split(_like(v, w), w.values()), strict=True))
                slopes = jvp(losses, (w,), (tangent,))[1]
                columns[part, j] = _finite(slopes, "the gradient")
    return columns


def _like(v: Array, w: Parameters) -> Tensor:
    """A vector in the dtype and on the device of the parameters."""
    p = next(iter(w.values()))
    return torch.as_tensor(v, dtype=p.dtype, device=p.device)


def _finite(t: Tensor, what: str) -> Array:
    array: Array = t.detach().double().cpu().numpy()
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{what} is not finite: the weights or the loss have diverged")
    return array


def _samples(batches: Batches) -> int:
    sizes = [len(x) for x, _ in batches]
    if not sizes or 0 in sizes:
        raise ValueError(f"batches is of sizes {sizes}, expected samples in each: write [(x, y)]")
    return sum(sizes)


def rows_of(basis: ArrayLike, w: Parameters) -> Array:
    """A basis for the parameters w.

    Args:
        basis: one vector in each row.
        w: the parameters, P numbers in all.

    Returns:
        The basis as float64, (m, P).

    Raises:
        ValueError: it has another shape.
    """
    rows = np.asarray(basis, dtype=np.float64)
    size = sum(p.numel() for p in w.values())
    if rows.ndim != 2 or rows.shape[1] != size:
        raise ValueError(f"basis is of shape {rows.shape}, expected (m, {size}), one vector a row")
    return rows
