"""The risk between two models: along the straight line, and along a curve that is trained low.

A state (S,) is a model's trainable parameters (P,) and behind them its running statistics.

On the straight line the running statistics are interpolated like the parameters: that is how
agents average them. On a Bezier curve they are measured anew at each point, as in arXiv:1802.10026;
`recalibrate` says how. A line with measured statistics is a curve of two control points.
"""

from math import comb

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from raydist.measure.curvature import Attack, attacked
from raydist.measure.derivatives import Batches, Loss
from raydist.measure.landscape import risk
from raydist.seeding import Purpose, numpy_rng, seed_for
from raydist.vector import at, frozen, kept, split, trainable, write

MOMENTUM = 0.9  # of the curve's SGD, as in the code of arXiv:2006.08403


def interpolate(first: Tensor, second: Tensor, t: float) -> Tensor:
    """The state (1 − t) w_1 + t w_2 on the line between two, exact at both ends.

    Args:
        first: w_1, (S,).
        second: w_2, (S,).
        t: in [0, 1]: beyond, a running variance may be negative.

    Returns:
        (S,).

    Raises:
        ValueError: t is out of its range.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"t is {t}, expected a number in [0, 1]: write 0.5 for the middle")
    return torch.lerp(first, second, t)


def path_risk(
    model: nn.Module,
    first: Tensor,
    second: Tensor,
    t: ArrayLike,
    batches: Batches,
    loss_fn: Loss = F.cross_entropy,
    attack: Attack | None = None,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The risk along the straight line between two states.

    Args:
        model: the model, of any state; left as it is.
        first: a state at t = 0, (S,).
        second: a state at t = 1, (S,), such as another agent's or the centroid's.
        t: points in [0, 1], (T,).
        batches: the batches, as in `landscape.risk`, like the three arguments after it.
        loss_fn: mean loss of a batch.
        attack: run anew at each point.
        seed: the seed of the attack's draws.

    Returns:
        The risks, (T,); each depends on its own t only.
    """
    risks = []
    for place in np.asarray(t, dtype=np.float64).tolist():
        with at(model, interpolate(first, second, place)):
            risks.append(risk(model, batches, loss_fn, attack, seed))
    return np.array(risks, dtype=np.float64)


def barrier(risks: ArrayLike, t: ArrayLike) -> float:
    """Height of the risk on a path above the line between its ends.

        max_t J(t) − [(1 − t) J(0) + t J(1)]

    (arXiv:2110.06296, definition 1; arXiv:1912.05671). Averaging two models whose line has no
    barrier costs nothing; 0 for a convex risk.

    Args:
        risks: J at the points, (T,).
        t: the points, (T,), increasing from 0 to 1.

    Returns:
        The height, ≥ 0.

    Raises:
        ValueError: t does not run from 0 to 1, or there is not one risk per point.

    Example:
        >>> barrier([1.0, 4.0, 2.0], [0.0, 0.5, 1.0])
        2.5
    """
    heights, points = np.asarray(risks, dtype=np.float64), np.asarray(t, dtype=np.float64)
    if heights.shape != points.shape or points.ndim != 1 or len(points) < 2:
        raise ValueError(
            f"risks have shape {heights.shape} and t {points.shape}, expected (T,) twice"
        )
    if points[0] != 0 or points[-1] != 1 or (np.diff(points) <= 0).any():
        raise ValueError("t does not increase from 0 to 1: write numpy.linspace(0, 1, 21)")
    return float((heights - ((1 - points) * heights[0] + points * heights[-1])).max())


def bezier(points: Tensor, t: float) -> Tensor:
    """The Bezier curve φ(t) = Σ_i C(n, i) (1 − t)^(n − i) t^i p_i (arXiv:1802.10026, section 3.2).

    Args:
        points: the n + 1 control points p_i, (n + 1, P).
        t: in [0, 1]; φ(0) = p_0 and φ(1) = p_n exactly.

    Returns:
        (P,), differentiable in `points`.

    Example:
        >>> bezier(torch.tensor([[0.0], [2.0], [0.0]]), 0.5)
        tensor([1.])
    """
    n = len(points) - 1
    coefficients = [comb(n, i) * (1 - t) ** (n - i) * t**i for i in range(n + 1)]
    return torch.tensor(coefficients, dtype=points.dtype, device=points.device) @ points


def _norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers with running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _measure(model: nn.Module, norms: list[_BatchNorm], batches: Batches) -> None:
    """Running statistics: the mean of each batch's own, weighted by its number of samples."""
    usual, seen = [norm.momentum for norm in norms], 0
    try:
        with frozen(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for x, _ in batches:
                seen += len(x)
                for norm in norms:
                    norm.momentum = len(x) / seen  # makes the moving average an average
                model(x)
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum


def recalibrate(
    model: nn.Module, batches: Batches, attack: Attack | None = None, seed: int = 0
) -> None:
    """Measure BatchNorm's running statistics anew, in place; nothing to do without BatchNorm.

    Mean and variance of each batch are averaged, weighted by samples (arXiv:1803.05407, section
    3.2), first at the clean points. Adversarial training has seen attacked ones: with an attack,
    the model with those statistics is attacked, and they are measured once more there.

    Args:
        model: keeps its parameters.
        batches: training data, (x, y), each of at least 2 samples.
        attack: the attack, as in `landscape.risk`.
        seed: the seed of the attack's draws.
    """
    norms = _norms(model)
    if not norms:
        return
    _measure(model, norms, batches)
    if attack is not None:
        _measure(model, norms, attacked(model, batches, attack, seed))


def connect(
    model: nn.Module,
    first: Tensor,
    second: Tensor,
    batches: Batches,
    loss_fn: Loss = F.cross_entropy,
    attack: Attack | None = None,
    *,
    bends: int = 3,
    steps: int,
    lr: float = 0.1,
    weight_decay: float = 1e-6,
    seed: int = 0,
) -> Tensor:
    """Train a Bezier curve of low risk between two models (arXiv:1802.10026, section 3.1).

        min over the bends of E_{t ~ U[0, 1]} J(φ(t)),   from the straight line, by SGD

    with one t per batch and the settings of arXiv:2006.08403. The loss is taken with the
    statistics of the batch, the attack with those of its clean points.

    Args:
        model: the model, of any state; left as it is.
        first: φ(0), fixed: parameters (P,) or a state (S,), whose statistics are not used.
        second: φ(1), likewise.
        batches: training data, (x, y), used in turn.
        loss_fn: mean loss of a batch.
        attack: the attack, as in `landscape.risk`; run at φ(t).
        bends: control points between the ends, ≥ 1.
        steps: SGD steps ≥ 0.
        lr: learning rate of the bends.
        weight_decay: the weight decay of the bends.
        seed: the seed of the t and the attack's draws.

    Returns:
        The control points, (bends + 2, P).

    Raises:
        ValueError: bends or steps is too small, or there is no batch.
    """
    if bends < 1 or steps < 0 or len(batches) == 0:
        raise ValueError(
            f"bends is {bends}, steps {steps}, with {len(batches)} batches: expected bends >= 1,"
            " steps >= 0 and a batch"
        )
    parameters = trainable(model)
    size = sum(p.numel() for p in parameters.values())
    ends = first[:size].detach(), second[:size].detach()
    line = [torch.lerp(*ends, i / (bends + 1)) for i in range(1, bends + 1)]
    inner = torch.stack(line).requires_grad_()
    optimiser = torch.optim.SGD([inner], lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)
    norms = _norms(model)
    tensors = [*parameters.values(), *model.buffers()]
    with kept(tensors), frozen(model), torch.enable_grad():
        for step, t in enumerate(numpy_rng(Purpose.BATCH, seed).random(steps).tolist()):
            batch = batches[step % len(batches)]
            w = bezier(torch.cat([ends[0][None], inner, ends[1][None]]), t)
            write(parameters.values(), w.detach())
            recalibrate(model, [batch])
            if attack is not None:
                draws = seed_for(Purpose.ATTACK, seed, round=step)
                batch = attacked(model, [batch], attack, draws)[0]
            x, y = batch
            named = dict(zip(parameters, split(w, parameters.values()), strict=True))
            for norm in norms:
                norm.train()
            loss = loss_fn(functional_call(model, named, (x,)), y)
            (inner.grad,) = torch.autograd.grad(loss, [inner])
            for norm in norms:
                norm.eval()
            optimiser.step()
    return torch.cat([ends[0][None], inner.detach(), ends[1][None]])


def curve_risk(
    model: nn.Module,
    points: Tensor,
    t: ArrayLike,
    batches: Batches,
    loss_fn: Loss = F.cross_entropy,
    attack: Attack | None = None,
    seed: int = 0,
    *,
    training: Batches | None = None,
) -> NDArray[np.float64]:
    """The risk along a Bezier curve, with running statistics measured at each point.

    Args:
        model: the model, of any state; left as it is.
        points: control points, (n + 1, P), from `connect`; two of them make a line.
        t: points in [0, 1], (T,).
        batches: the batches, as in `landscape.risk`, like the three arguments after it.
        loss_fn: mean loss of a batch.
        attack: run anew at each point.
        seed: the seed of the attack's draws.
        training: the data for `recalibrate`; None is `batches`.

    Returns:
        The risks, (T,); each depends on its own t only.
    """
    risks = []
    for place in np.asarray(t, dtype=np.float64).tolist():
        with at(model, bezier(points, place)):
            recalibrate(model, batches if training is None else training, attack, seed)
            risks.append(risk(model, batches, loss_fn, attack, seed))
    return np.array(risks, dtype=np.float64)
