"""Adversarial weight perturbation: training at the worst weights nearby, not only the worst inputs.

    min_w max_{v ∈ V} (1/N) Σ_i max_{x'_i} ℓ(w + v; x'_i, y_i),   ‖v_l‖ ≤ γ ‖w_l‖ for each layer l

(arXiv:2004.05884). One training step is

    v_l = γ ‖w_l‖ g_l / ‖g_l‖,   g = ∇_w J(w),   then the optimiser's step from w with ∇_w J(w + v)

for every training loss J of `raydist.adversary.loss`. As published, v moves the weights with more
than one dimension only: biases and the scales and shifts of normalisation stay.

Parameters are changed in place and never replaced, so that views of them stay views.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.vector import kept

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
unit = ThreatModel("l2", 1.0).steepest  # g / ‖g‖ of each row, 0 where g = 0


@contextmanager
def untraced(model: nn.Module) -> Generator[None]:
    """Undo what forward passes leave behind: changed buffers and draws of the global randomness.

    The mode stays as it is: in train mode BatchNorm normalises by the batch, as in training, and
    its running statistics are restored afterwards.
    """
    tables = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    cuda = {p.get_device() for p in model.parameters() if p.is_cuda}
    with kept(model.buffers()), torch.random.fork_rng(devices=sorted(cuda)):
        try:
            yield
        finally:  # a pass may have put another buffer in the place of one
            for table, buffers in tables:
                table.update(buffers)


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The w_l that are perturbed: trainable, with more than one dimension, in the model's order."""
    return [p for p in model.parameters() if p.requires_grad and p.ndim > 1]


def perturbation(
    model: nn.Module, loss: Loss, x: Tensor, x_adv: Tensor, y: Tensor, gamma: float
) -> list[Tensor]:
    """One ascent step of the loss in the space of the weights, v_l = γ ‖w_l‖ g_l / ‖g_l‖.

    The model is used in the mode it is in, train mode as published, and left as it was: weights,
    `.grad`, buffers and the global random state.

    Args:
        model: the model at w.
        loss: a training loss `(model, x, x_adv, y) -> scalar`.
        x: clean points, (N, ...).
        x_adv: adversarial points, (N, ...).
        y: labels, (N,).
        gamma: relative size γ ≥ 0 of the perturbation, such as 0.005; 0 is plain training.

    Returns:
        v_l for each weight of `weights(model)`, in its shape; 0 where g_l = 0.

    Raises:
        ValueError: gamma is negative or not finite, or the model has no weight to perturb.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.fill_(2.0)
        >>> x = torch.ones(1, 1)
        >>> perturbation(model, lambda model, x, x_adv, y: model(x_adv).sum(), x, x, x, 0.25)
        [tensor([[0.5000]])]
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma is {gamma}, expected a finite number >= 0: write 0.005")
    moved = weights(model)
    if not moved:
        raise ValueError(
            "the model has no trainable weight with more than one dimension, which is all that"
            " weight perturbation moves: write gamma = 0 and train it plainly"
        )
    with untraced(model), torch.enable_grad():
        value = loss(model, x, x_adv, y)
        grads = torch.autograd.grad(value, moved, allow_unused=True, materialize_grads=True)
    return [
        gamma * torch.linalg.vector_norm(w.detach()) * unit(g.unsqueeze(0)).squeeze(0)
        for w, g in zip(moved, grads, strict=True)
    ]


@contextmanager
def perturbed(model: nn.Module, v: Sequence[Tensor]) -> Generator[nn.Module]:
    """Hold the model at w + v; afterwards its weights are w again, bit for bit.

    Gradients that are taken inside stay: those at w + v, from which the optimiser steps at w.

    Args:
        model: the model at w.
        v: one tensor per weight of `weights(model)`, in its shape.

    Yields:
        The model.

    Raises:
        ValueError: v does not fit the weights.
    """
    moved = weights(model)
    expected, given = [tuple(w.shape) for w in moved], [tuple(v_l.shape) for v_l in v]
    if expected != given:
        raise ValueError(f"v has shapes {given}, expected {expected}: write v = perturbation(...)")
    with kept(moved):
        with torch.no_grad():
            for w, v_l in zip(moved, v, strict=True):
                w.add_(v_l)
        yield model
