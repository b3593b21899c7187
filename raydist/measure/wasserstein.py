"""Robustness to an adversary whose W₂ budget is shared by a whole set of images.

    A_δ = inf {Q(right) : W₂(P, Q) ≤ δ},    V(δ) = sup {E_Q J : W₂(P, Q) ≤ δ},    R_δ = A_δ / A

(arXiv:2306.09844; arXiv:2502.09352). What attacks find bounds A_δ from above and V from below.
The attack couples all images, so all are needed at once; the model sees them `batch` at a time.
"""

import math

import torch
from torch import Tensor, nn

from raydist.adversary.objective import cross_entropies
from raydist.adversary.threat import Norm
from raydist.adversary.wasserstein import Loss, first_order_risk, sensitivity, w_pgd
from raydist.measure.accuracy import correct
from raydist.measure.cascade import fraction
from raydist.vector import frozen


def w_pgd_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    delta: float,
    *,
    steps: int = 50,
    norm: Norm = "linf",
    loss: Loss = "redlr",
    batch: int = 128,
) -> float:
    """The lowest accuracy over the iterates of W-PGD, x among them (arXiv:2306.09844).

    It bounds A_δ from above, loosely even for linear models; `raydist.measure.accuracy.w2_accuracy`
    from radii of single images is tighter.

    Args:
        model: gives logits (N, C); in eval mode meanwhile.
        x: images (N, ...) in [0, 1], on the device of the model: all that share the budget.
        y: labels, int64 (N,).
        delta: the budget δ ≥ 0, in units of x.
        steps: gradient steps ≥ 0.
        norm: the norm of one image's move, "linf", "l2" or "l1".
        loss: the loss that is ascended; the DLR losses need 3 classes, "ce" does not.
        batch: images per pass of the model, ≥ 1.

    Returns:
        The accuracy, in [0, 1].
    """
    x_adv = w_pgd(model, x, y, delta, steps=steps, norm=norm, loss=loss, batch=batch)
    return fraction(correct(model, x_adv, y, batch))


def value(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    delta: float,
    *,
    steps: int = 50,
    norm: Norm = "linf",
    batch: int = 128,
) -> float:
    """V(δ) of the cross-entropy, from below: its mean at the last iterate of W-PGD.

    Arguments as in `w_pgd_accuracy`, with the cross-entropy ascended. With delta = 0 it is V(0).

    Returns:
        The mean loss, ≥ 0.
    """
    x_adv = w_pgd(model, x, y, delta, steps=steps, norm=norm, loss="ce", best=False, batch=batch)
    with frozen(model), torch.no_grad():
        parts = zip(torch.split(x_adv, batch), torch.split(y, batch), strict=True)
        losses = torch.cat([cross_entropies(model(images), labels) for images, labels in parts])
    return float(losses.double().mean())


def w2_summary(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    delta: float,
    norm: Norm = "linf",
    *,
    steps: int = 50,
    loss: Loss = "redlr",
    batch: int = 128,
) -> dict[str, float]:
    """All numbers of a model under a W₂ budget (arXiv:2306.09844; arXiv:2502.09352).

    Args:
        model: gives logits (N, C); in eval mode meanwhile.
        x: images (N, ...) in [0, 1], N ≥ 1, on the device of the model: all that share the budget.
        y: labels, int64 (N,).
        delta: the budget δ ≥ 0, in units of x.
        norm: the norm of one image's move, "linf", "l2" or "l1".
        steps: gradient steps of W-PGD ≥ 0.
        loss: the loss that W-PGD ascends for its accuracy; the DLR losses need 3 classes.
        batch: images per pass of the model, ≥ 1.

    Returns:
        `w_pgd_acc`, the lowest accuracy over W-PGD; `w2_ratio`, R_δ by it, nan if nothing is right
        without attack.
        Of the cross-entropy: `sensitivity`, Υ; `w2_loss`, V(δ) by W-PGD; `w2_loss_first_order`,
        V(0) + δ Υ.

    Raises:
        ValueError: no image, or an argument out of its range.
    """
    upsilon = sensitivity(model, x, y, norm, batch=batch)
    clean = fraction(correct(model, x, y, batch))
    attacked = w_pgd_accuracy(model, x, y, delta, steps=steps, norm=norm, loss=loss, batch=batch)
    return {
        "w_pgd_acc": attacked,
        "w2_ratio": attacked / clean if clean > 0 else math.nan,
        "sensitivity": upsilon,
        "w2_loss": value(model, x, y, delta, steps=steps, norm=norm, batch=batch),
        "w2_loss_first_order": first_order_risk(
            value(model, x, y, 0.0, batch=batch), upsilon, delta
        ),
    }
