"""Attacks whose budget is shared by all samples: a ball of the Wasserstein distance.

    V(δ) = sup {E_Q J : W_p(P, Q) ≤ δ} = V(0) + δ Υ + o(δ)
    Υ = (E_P ‖∇_x J‖_s^q)^{1/q}

(arXiv:2306.09844 the attacks, arXiv:2502.09352 the training). Moving x to x' costs ‖x' − x‖_r,
changing a label is not allowed, and (p, q), (r, s) are conjugate. With p = 2 = q sample i moves by
b_i with (1/N) Σ b_i² ≤ δ²: as far as it is worth. p = ∞ is the threat of one radius for each.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from raydist.adversary.attack import PerSample, input_gradient
from raydist.adversary.objective import cross_entropies, dlr, redlr
from raydist.adversary.threat import Norm, ThreatModel, rows

Loss = Literal["ce", "dlr", "redlr"] | PerSample

RATIO = 1.875  # length of all steps together in units of delta, as in the authors' code


LOSSES: dict[str, PerSample] = {"ce": cross_entropies, "dlr": dlr, "redlr": redlr}


def gradient_power(
    model: nn.Module, x: Tensor, y: Tensor, norm: Norm = "linf", loss: Loss = "ce"
) -> Tensor:
    """‖∇_x J_i‖_s of each sample, the most that it gains per unit of its own move.

    Args:
        model: maps (N, ...) to logits (N, C).
        x: points, (N, ...).
        y: labels, (N,).
        norm: the norm of the moves, "linf" (s = 1), "l2" (s = 2) or "l1" (s = ∞).
        loss: "ce", "dlr", "redlr" or a function `(outputs, y) -> (N,)`. Not a divergence from
            the model's own clean outputs: its gradient at x is 0.

    Returns:
        (N,), ≥ 0, in units of the loss per unit of x.

    Raises:
        ValueError: unknown norm or loss.
    """
    return ThreatModel(norm, 0.0).dual_norm(input_gradient(model, x, y, _per_sample(loss)))


def sensitivity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: Norm = "linf",
    loss: Loss = "ce",
    batch: int | None = None,
) -> float:
    """Υ = ((1/N) Σ ‖∇_x J_i‖_s²)^{1/2}, the slope of V in the W₂ budget (arXiv:2306.09844).

    Of data in several places it is the root of the mean of all squares of `gradient_power`.
    Arguments as in `gradient_power`, with N ≥ 1; `batch` is the number of samples per pass of the
    model, None is all, and does not change the result.

    Returns:
        Υ ≥ 0, in units of the loss per unit of x.

    Raises:
        ValueError: no sample, none per pass, unknown norm or loss.
    """
    if len(x) == 0:
        raise ValueError("x has 0 samples, expected 1 or more: write x of shape (N, ...)")
    parts = _parts(x, y, batch)
    return float(_rms(torch.cat([gradient_power(model, *part, norm, loss) for part in parts])))


def moving(upsilon: float, estimate: float, eta: float) -> float:
    """Υ + η (estimate − Υ), kept up in training (arXiv:2502.09352, algorithm 1).

    Args:
        upsilon: Υ so far.
        estimate: the sensitivity at the present weights, on a part of the training set.
        eta: weight η of the estimate in [0, 1]; 1 forgets the past.

    Returns:
        The new value.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}, expected a number in [0, 1]: write 1.0")
    return upsilon + eta * (estimate - upsilon)


def batch_budget(delta: float, upsilon_batch: float, upsilon: float) -> float:
    """δ_B = δ Υ_B / Υ, the budget of one batch (arXiv:2502.09352, algorithm 1).

    Over batches of one size that make up the whole set the mean of δ_B² is δ², and the first-order
    move of a sample, δ_B ‖g_i‖_s / Υ_B, does not depend on its batch.

    Args:
        delta: the budget δ ≥ 0 of the whole set.
        upsilon_batch: the batch's sensitivity Υ_B ≥ 0.
        upsilon: the sensitivity of the whole set.

    Returns:
        The budget, in the units of delta; delta itself where the ratio tells nothing: Υ = 0, or a
        net that has diverged.

    Raises:
        ValueError: a negative argument.

    Example:
        >>> batch_budget(0.25, upsilon_batch=3.0, upsilon=2.0)
        0.375
    """
    for name, value in (("delta", delta), ("upsilon_batch", upsilon_batch), ("upsilon", upsilon)):
        if value < 0:
            raise ValueError(f"{name} is {value}, expected a number >= 0")
    share = upsilon_batch / upsilon if upsilon > 0 else math.nan
    return delta * share if math.isfinite(share) else delta


def first_order_risk(loss0: float, upsilon: float, delta: float) -> float:
    """V(0) + δ Υ: the worst risk at budget δ, but for o(δ) (arXiv:2306.09844).

    It is exact for losses linear in x and no more than V(δ) for convex ones (without a box).

    Args:
        loss0: V(0), the mean loss without attack.
        upsilon: Υ of the same loss.
        delta: the budget δ, in units of x.

    Returns:
        The risk, in units of the loss.
    """
    return loss0 + delta * upsilon


def w_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    delta: float,
    *,
    steps: int = 50,
    norm: Norm = "linf",
    loss: Loss = "redlr",
    order: float = 2.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    best: bool = True,
    batch: int | None = None,
) -> Tensor:
    """Projected ascent in a ball of W₂ around all samples at once (W-PGD, arXiv:2306.09844).

    With g_i = ∇_x J_i(x_i'), from x' = x, and α = 1.875 δ / T, repeats

        x_i' ← Π(x_i' + α h(g_i) ‖g_i‖_s / Υ'),    Υ'² = (1/N) Σ ‖g_i‖_s²,

    h(g) the steepest direction: sign(g) for l∞, g/‖g‖₂ for l2. With d = x' − x, D the root mean
    square of ‖d_i‖_r and c = min(1, δ/D), Π clamps d_i to ± c ‖d_i‖_∞ for l∞ (it cuts only
    the largest entries) and is c d_i for l2 and l1; then it clips to the box. But for l2 within the
    box Π is not the nearest point; the result is in the ball.

    With order=inf each sample has the radius δ: h(g) without weights, and the ball's projection.

    Args:
        model: maps (N, ...) to logits (N, C).
        x: clean points inside the box, (N, ...): all that share the budget.
        y: labels, (N,).
        delta: the budget δ ≥ 0, in units of x.
        steps: gradient steps T ≥ 0.
        norm: the norm of one sample's move, "linf", "l2" or "l1".
        loss: the loss, as in `gradient_power`.
        order: p of the distance W_p, 2 or inf.
        bounds: the box (low, high).
        best: whether to return the iterate of lowest accuracy, x included and the later one of
            equals, as an evaluation reports it; otherwise the last one, as training uses it.
        batch: samples per pass of the model; None is all. The result is the same.

    Returns:
        The points x', (N, ...). With steps = 0 or delta = 0 they are x.

    Raises:
        ValueError: unknown norm, loss or order, or a number out of its range.
    """
    threat, each = ThreatModel(norm, delta, bounds), _per_sample(loss)
    _check(steps, order)
    if steps == 0 or delta == 0:
        return x
    x, alpha = x.detach(), RATIO * delta / steps
    direction, project = _RULES[order]
    x_adv = found = x
    fewest = len(x)
    for _ in range(steps):
        grad, right = _look(model, x_adv, y, each, batch)
        if right <= fewest:
            found, fewest = x_adv, right
        x_adv = project(threat, x_adv + alpha * direction(threat, grad), x)
    if best and _look(model, x_adv, y, each, batch)[1] > fewest:
        return found
    return x_adv


# W-FGSM: one step of length delta, which is what Π leaves of a longer one
w_fgsm = partial(w_pgd, steps=1, best=False)


def _per_sample(loss: Loss) -> PerSample:
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}, expected a function or one of: {', '.join(LOSSES)}")
    return LOSSES[loss]


def _check(steps: int, order: float) -> None:
    if steps < 0:
        raise ValueError(f"steps is {steps}, expected an integer >= 0: write 0 for no attack")
    if order not in _RULES:
        raise ValueError(f"order is {order}, expected the p of W_p: write 2 or math.inf")


def _parts(x: Tensor, y: Tensor, batch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    if batch is not None and batch < 1:
        raise ValueError(f"batch is {batch}, expected a number of samples >= 1: write 128")
    size = batch or max(1, len(x))
    return zip(torch.split(x, size), torch.split(y, size), strict=True)


def _look(
    model: nn.Module, x: Tensor, y: Tensor, loss: PerSample, batch: int | None
) -> tuple[Tensor, int]:
    """The gradients (N, ...), and the number of right labels, from one pass."""
    hits = []

    def watched(outputs: Tensor, labels: Tensor) -> Tensor:
        hits.append((outputs.argmax(1) == labels).sum())
        return loss(outputs, labels)

    grads = [input_gradient(model, *part, watched) for part in _parts(x, y, batch)]
    return torch.cat(grads), int(torch.stack(hits).sum())


def _rms(values: Tensor) -> Tensor:
    """Root mean square of (N,), in float64: the squares of tiny gradients must not vanish."""
    return values.double().square().mean().sqrt()


def _weighted(threat: ThreatModel, g: Tensor) -> Tensor:
    """h(g_i) ‖g_i‖_s / Υ', (N, ...): their sizes have root mean square 1 (0 if all g are)."""
    power = threat.dual_norm(g).double()
    upsilon = _rms(power)
    share = torch.where(upsilon > 0, power / upsilon, 0.0).to(g.dtype)
    return (share.unsqueeze(1) * rows(threat.steepest(g))).view(g.shape)


def _contract(threat: ThreatModel, x_adv: Tensor, x: Tensor) -> Tensor:
    """Π of `w_pgd`."""
    d = rows(x_adv - x)
    size = threat.norm_of(d)
    c = (threat.eps / _rms(size)).clamp(max=1.0)
    limit = (c * size).unsqueeze(1)
    inside = d.clamp(-limit, limit) if threat.norm == "linf" else c * d
    return (x + inside.view(x.shape)).clamp(*threat.bounds)


_Direction = Callable[[ThreatModel, Tensor], Tensor]
_Projection = Callable[[ThreatModel, Tensor, Tensor], Tensor]
_RULES: dict[float, tuple[_Direction, _Projection]] = {
    2.0: (_weighted, _contract),
    math.inf: (ThreatModel.steepest, ThreatModel.project),
}
