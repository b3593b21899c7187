"""Signs of instability within one batch: gradients of the weights and along the attack.

In unstable training the norms of the weight gradient and of its KL part have spikes, and at the
same batches the weight gradients before and after the step point in different directions
(arXiv:2410.07675).

None of these functions leaves a trace: weights, their `.grad`, buffers, train or eval mode and the
global random state are as before. Weight gradients are taken in the mode the model is in, train
mode for what training sees; all else in eval mode, as attacks are.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from raydist.adversary.attack import PerSample, input_gradient
from raydist.adversary.awp import unit, untraced
from raydist.adversary.objective import cross_entropies, kl_divergences
from raydist.adversary.threat import ThreatModel, rows
from raydist.vector import flat, frozen


def weight_gradient(model: nn.Module, objective: Callable[[], Tensor]) -> Tensor:
    """∇_w of a scalar, as one vector.

    Args:
        model: the model at w.
        objective: computes the scalar from the model, such as a loss on a batch.

    Returns:
        The gradient, (P,), in the order of the trainable parameters; 0 for those without influence.
    """
    with untraced(model), torch.enable_grad():
        return _gradients(model, [objective()])[0]


def trades_gradients(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float
) -> dict[str, Tensor]:
    """The weight gradient of TRADES and of its two terms, CE + β KL, from one pass of each batch.

    The terms are those of `raydist.adversary.loss.trades`, and the clean batch passes first.

    Args:
        model: maps (N, ...) to logits (N, C).
        x: clean points, (N, ...).
        x_adv: adversarial points, (N, ...).
        y: labels, (N,).
        beta: weight β of the KL term.

    Returns:
        Vectors (P,): "ce"; "kl", without the factor β; and "total", ce + β kl.
    """
    with untraced(model), torch.enable_grad():
        clean, adversarial = model(x), model(x_adv)
        terms = cross_entropies(clean, y).mean(), kl_divergences(clean, adversarial).mean()
        ce, kl = _gradients(model, terms)
    return {"total": ce + beta * kl, "ce": ce, "kl": kl}


def _gradients(model: nn.Module, scalars: Sequence[Tensor]) -> list[Tensor]:
    """The flat gradient of each scalar, (P,)."""
    w = [p for p in model.parameters() if p.requires_grad]
    take = partial(torch.autograd.grad, retain_graph=len(scalars) > 1, materialize_grads=True)
    return [flat(take(scalar, w, allow_unused=True)) for scalar in scalars]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_i, b_i⟩ / (‖a_i‖ ‖b_i‖) of each row of (N, ...), in [−1, 1]; 0 where one is 0: (N,)."""
    return (rows(unit(a)) * rows(unit(b))).sum(dim=1).clamp(-1, 1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of two vectors (P,), in [−1, 1], such as weight gradients before and after a step.

    Args:
        a: a vector, (P,).
        b: another one, (P,).

    Returns:
        A scalar; 0 if one of them is 0.

    Example:
        >>> cosine(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor(0.6000)
    """
    return cosines(a.unsqueeze(0), b.unsqueeze(0)).squeeze(0)


def stepwise_cosine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    steps: int,
    alpha: float,
    loss: PerSample = cross_entropies,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Straightness of the attack's way: near 1 for a smooth loss, lower for a rugged one.

        (1/NT) Σ_i Σ_{t < T} cos(∇ℓ(x'_{i,t}), ∇ℓ(x'_{i,t+1}))

    along the iterates x'_0, ..., x'_T of PGD with a uniform start.

    Args:
        model: maps (N, ...) to logits.
        x: clean points inside the box, (N, ...).
        y: labels, (N,).
        threat: the set of allowed points.
        steps: the steps of PGD, T ≥ 1; T + 1 input gradients are taken.
        alpha: length α ≥ 0 of a step, in the units of eps.
        loss: `(outputs, y) -> (N,)`, what is ascended.
        generator: source of the random start.

    Returns:
        A scalar in [−1, 1]; a pair with a gradient that is 0 counts as 0.

    Raises:
        ValueError: steps is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected an integer >= 1: write 10")
    x_adv = threat.random_start(x, generator)
    grad, found = input_gradient(model, x_adv, y, loss), []
    for _ in range(steps):
        x_adv = threat.project(x_adv + alpha * threat.steepest(grad), x)
        last, grad = grad, input_gradient(model, x_adv, y, loss)
        found.append(cosines(last, grad))
    return torch.stack(found).mean()


def accuracies(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The fraction of clean and, counted on their own, of adversarial points that are right.

    An adversarial point counts whether or not its clean one is right, so the second number can be
    above the first: a sign of instability.

    Args:
        model: gives logits (N, C).
        x: clean points, (N, ...).
        x_adv: adversarial points, (N, ...).
        y: labels, (N,).

    Returns:
        Two scalars in [0, 1].
    """
    with frozen(model), torch.no_grad():
        clean, adversarial = (
            (model(points).argmax(1) == y).to(x.dtype).mean() for points in (x, x_adv)
        )
    return clean, adversarial
