"""Attacks: one projected ascent, and its named forms.

    x' ← Π_S(x' + α · argmax_{‖d‖ ≤ 1} ⟨d, ∇_x' ℓ(x')⟩)                      (arXiv:1706.06083)

All take `(model, x, y, threat)` and return the last iterate. None leaves a trace: parameters, their
`.grad`, buffers, train or eval mode and the global random state are as before.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from raydist.adversary.objective import cross_entropies, kl_divergences
from raydist.adversary.threat import ThreatModel, rows
from raydist.lookup import resolve
from raydist.vector import frozen

Start = Literal["uniform", "zero", "normal"]
PerSample = Callable[[Tensor, Tensor], Tensor]
AttackLoss = Literal["ce", "kl"] | PerSample
Gradient = Callable[[nn.Module, PerSample, Tensor, Tensor], Tensor]
_Run = tuple[Tensor, ...]  # x_adv, x_last, grad
NORMAL_START = 0.001  # standard deviation of the "normal" start, as in the code of TRADES


class Ascent(NamedTuple):
    """Result of an attack: its points and its last gradient.

    Attributes:
        x_adv: the last iterate, (N, ...).
        x_last: the iterate before the last step, (N, ...).
        grad: gradient of each sample's loss at `x_last`, (N, ...); None if no step was taken.
    """

    x_adv: Tensor
    x_last: Tensor
    grad: Tensor | None


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: PerSample = cross_entropies
) -> Tensor:
    """∇_x ℓ(f(x_i), y_i) for each sample i, with the model frozen.

    Args:
        model: maps (N, ...) to outputs.
        x: points, (N, ...).
        y: labels, (N,).
        loss: `(outputs, y) -> (N,)`, one value per sample.

    Returns:
        Gradients, (N, ...): of the sum over samples, so independent of the batch size.
    """
    with frozen(model):
        return by_autograd(model, loss, x, y)


def by_autograd(model: nn.Module, loss: PerSample, x: Tensor, target: Tensor) -> Tensor:
    """∇_x ℓ(f(x_i), target_i) for each sample i, of a model that is frozen already."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        total = loss(model(x), target).sum()
    return torch.autograd.grad(total, x)[0]


def _objective(
    model: nn.Module, x: Tensor, y: Tensor, loss: AttackLoss
) -> tuple[PerSample, Tensor]:
    """The per-sample function of f(x') that is ascended, and the target beside it."""
    if loss == "kl":
        with torch.no_grad():
            return _divergences, model(x)
    return (loss if callable(loss) else cross_entropies), y


def _divergences(outputs: Tensor, clean: Tensor) -> Tensor:
    return kl_divergences(clean, outputs)


def _begin(x: Tensor, threat: ThreatModel, start: Start, generator: torch.Generator) -> Tensor:
    if start == "uniform":
        return threat.random_start(x, generator)
    if start == "normal":
        noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        return x + NORMAL_START * noise.to(x.device)
    return x


def _check(steps: int, alpha: float, start: str, restarts: int, loss: object) -> None:
    if steps < 0:
        raise ValueError(f"steps is {steps}, expected an integer >= 0: write 0 for no attack")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha is {alpha}, expected a finite number >= 0: write 2 / 255")
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}, expected an integer >= 1: write 1 for one run")
    if start not in get_args(Start):
        raise ValueError(f'start is {start!r}, expected "uniform", "zero" or "normal": write one')
    if not (callable(loss) or loss in ("ce", "kl")):
        raise ValueError(f'loss is {loss!r}, expected "ce", "kl" or a function of (outputs, y)')


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    alpha: float,
    start: Start = "uniform",
    restarts: int = 1,
    loss: AttackLoss = "ce",
    generator: torch.Generator | None = None,
    gradient: Gradient = by_autograd,
) -> Ascent:
    """The attack of `pgd`, with its last gradient.

    Args:
        model: maps (N, ...) to outputs.
        x: clean points inside the threat's box, (N, ...).
        y: labels, (N,).
        threat: the set of allowed points.
        steps: gradient evaluations T ≥ 0.
        alpha: length α ≥ 0 of a step, in the units of eps.
        start: "uniform" in the ball, "zero" (at x), or "normal", x + 0.001 N(0, I).
        restarts: number of runs ≥ 1; each sample keeps its run of highest final loss.
        loss: "ce", "kl" for KL(p(x) ‖ p(x')), or a function `(outputs, y) -> (N,)`.
        generator: source of the random start; None is a fresh one with seed 0, the same each call.
        gradient: the way in which the gradient of the frozen model is computed.

    Returns:
        The last iterate, the one before it and the gradient there. With steps = 0 or eps = 0 the
        points are x itself and the gradient is None.
    """
    _check(steps, alpha, start, restarts, loss)
    if steps == 0 or threat.eps == 0:
        return Ascent(x, x, None)
    x = x.detach()
    source = torch.Generator(x.device).manual_seed(0) if generator is None else generator

    with frozen(model):
        each, target = _objective(model, x, y, loss)

        def run() -> _Run:
            x_adv = _begin(x, threat, start, source)
            for _ in range(steps):
                x_last, grad = x_adv, gradient(model, each, x_adv, target)
                x_adv = threat.project(x_last + alpha * threat.steepest(grad, x_last), x)
            return x_adv, x_last, grad

        def value(x_adv: Tensor) -> Tensor:
            return each(model(x_adv), target)

        found = run() if restarts == 1 else _best(value, (run() for _ in range(restarts)))
    return Ascent(*found)


def by_name(name: str, params: Mapping[str, Any]) -> Callable[..., Tensor]:
    """An attack of the user's own, held to the contract of all.

    Args:
        name: "package.module:function" of a function
            (model, x, y, threat, *, generator, **params) -> points.
        params: its further keyword arguments.

    Returns:
        That function of (model, x, y, threat, *, generator). Meanwhile the model is in eval mode
        and has no trainable parameter. It raises ValueError for points that are no tensor as x is,
        or that the threat does not allow.
    """
    function = resolve(name)

    def attack(
        model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, generator: torch.Generator
    ) -> Tensor:
        with frozen(model), torch.enable_grad():
            found = function(model, x.clone(), y, threat, generator=generator, **params)
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (x.shape, x.dtype):
            got = type(found).__name__
            if isinstance(found, Tensor):
                got = f"{found.dtype} of shape {tuple(found.shape)}"
            raise ValueError(
                f'attack "{name}" returned {got}, expected points as its images: {x.dtype} of '
                f"shape {tuple(x.shape)}"
            )
        found = found.detach()
        if why := threat.outside(found, x):
            raise ValueError(
                f'attack "{name}" returned points that {why}: write threat.project(x_adv, x)'
            )
        return found

    return attack


def _best(value: Callable[[Tensor], Tensor], runs: Iterator[_Run]) -> _Run:
    """Per sample the run of highest final value."""
    best = next(runs)
    with torch.no_grad():
        highest = value(best[0])
        for run in runs:
            found = value(run[0])
            higher = (found > highest).unsqueeze(1)
            highest = torch.maximum(found, highest)
            best = tuple(
                torch.where(higher, rows(new), rows(old)).view(old.shape)
                for new, old in zip(run, best, strict=True)
            )
    return best


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    alpha: float,
    start: Start = "uniform",
    restarts: int = 1,
    loss: AttackLoss = "ce",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent's ascent (arXiv:1706.06083); arguments as in `ascend`.

    Returns:
        The points x', (N, ...).

    Example:
        >>> threat, x = ThreatModel("linf", 0.25), torch.tensor([[0.5, 0.5]])  # x: two logits
        >>> pgd(nn.Identity(), x, torch.tensor([1]), threat, steps=5, alpha=0.125, start="zero")
        tensor([[0.7500, 0.2500]])
    """
    return ascend(
        model,
        x,
        y,
        threat,
        steps=steps,
        alpha=alpha,
        start=start,
        restarts=restarts,
        loss=loss,
        generator=generator,
    ).x_adv


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    alpha: float | None = None,
    start: Start = "zero",
    loss: AttackLoss = "ce",
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step of `pgd`, of length eps unless `alpha` says otherwise (arXiv:1412.6572).

    With start="uniform" and alpha = 1.25 eps it is that of fast training (arXiv:2001.03994).
    Arguments as in `ascend`.

    Returns:
        The points x', (N, ...).
    """
    alpha = threat.eps if alpha is None else alpha
    return pgd(
        model, x, y, threat, steps=1, alpha=alpha, start=start, loss=loss, generator=generator
    )


def kl_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    alpha: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The inner maximiser of TRADES: ascent of KL(p(x) ‖ p(x')) (arXiv:1901.08573, algorithm 1).

    The start is x + 0.001 N(0, I), since the gradient of the KL term is 0 at x. The clean logits
    are computed once. Arguments as in `ascend`; y is not used.

    Returns:
        The points x', (N, ...).
    """
    inner = partial(pgd, start="normal", loss="kl", generator=generator)
    return inner(model, x, y, threat, steps=steps, alpha=alpha)
