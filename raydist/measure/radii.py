"""Distance of each image to another label, in the norm of a threat."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary.threat import Norm, ThreatModel
from raydist.measure.autoattack import PACKAGE, Perturb, attacked, fab_towards, perturbations
from raydist.measure.guard import Guarded, guarded

LEVELS = 8  # budgets per factor of 2 that are tried, so that images share calls
NEAR = 1 / 8  # what is found counts as the minimum if the attack fails this much, relatively, below
CUTS = 24  # halvings of a segment: down to the precision of float32


def radii(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: Norm,
    *,
    classes: int,
    eps_max: float | None = None,
    batch: int = 128,
    seed: int = 0,
    attack: str = "apgd-ce",
    halvings: int = 6,
) -> NDArray[np.float64]:
    """The smallest perturbation of each image that attacks find to change its label.

        r_i = min {‖δ‖ : argmax f(x_i + δ) ≠ y_i, x_i + δ in [0, 1]^D}

    Found from above: by FAB, which looks for a minimum norm (arXiv:1907.02044), towards each of the
    min(9, classes − 1) most likely other classes in 100 steps; and by bisection on the budget of an
    attack in a ball, from what is found downwards. Each point found is then moved towards x_i as
    far as its label stays wrong. Thus r_i is the length of a perturbation that exists; for a linear
    model it is exact to 1e-4, and to half a percent where the box cuts the ball. Randomness, and
    what is left as found, as in `raydist.measure.attacks.breaks`.

    Args:
        model: gives logits (N, classes), on the device of `x`.
        x: images, float32 (N, C, H, W) in [0, 1].
        y: labels, int64 (N,) in 0..classes − 1.
        norm: the norm of the perturbation.
        classes: number of classes ≥ 2.
        eps_max: largest budget > 0; None is one that contains the box.
        batch: images per forward pass.
        seed: seed of the attacks.
        attack: the attack in a ball, a name of pyautoattack's.
        halvings: the number of times, at most, that the attack is tried below what is found so
            far, ≥ 0; rarely more than once, since it rarely succeeds where FAB did.

    Returns:
        (N,): 0 where the image is wrong without attack, inf where nothing below eps_max breaks it.

    Raises:
        ValueError: an unknown attack or norm, one that needs more classes, or an argument outside
            these ranges.
        FloatingPointError: a logit that is not finite.
    """
    size = math.prod(x.shape[1:])
    box = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}  # contains [0, 1]^D
    reach = ThreatModel(norm, box.get(norm, 0.0) if eps_max is None else eps_max)
    if reach.eps == 0:
        raise ValueError(f"eps_max is {eps_max}, expected a number > 0: write 0.5")
    if attack not in PACKAGE:
        raise ValueError(f'attack is "{attack}", expected one of: {", ".join(PACKAGE)}')
    if halvings < 0:
        raise ValueError(f"halvings is {halvings}, expected an integer >= 0: write 6")
    with guarded(model, x, y, reach, ("fab-t", attack), classes, batch, seed, set()) as guard:

        def distances(perturb: Perturb, index: NDArray[np.intp]) -> NDArray[np.float64]:
            parts = [index[first : first + batch] for first in range(0, len(index), batch)]
            found = (_shortest(guard, perturb, x[i], y[i], reach) for i in parts)
            return np.concatenate([np.zeros(0), *found])

        def within(eps: float, index: NDArray[np.intp]) -> NDArray[np.float64]:
            ball = ThreatModel(norm, eps)
            return distances(perturbations(guard, ball, seed, x.device)[attack], index)

        found = distances(lambda images, _: images, np.arange(len(x)))  # 0 or inf
        right = np.flatnonzero(found)
        for perturb in fab_towards(guard, reach, x.device):
            found[right] = np.minimum(found[right], distances(perturb, right))
        far = np.flatnonzero(found > reach.eps)
        found[far] = within(reach.eps, far)
        failed, step = np.zeros(len(x)), np.full(len(x), NEAR)
        for _ in range(halvings):
            budgets = _next(found, failed, step)
            for eps in np.unique(budgets[budgets > 0]):
                todo = np.flatnonzero(budgets == eps)
                new = within(float(eps), todo)
                found[todo] = np.minimum(found[todo], new)
                failed[todo[np.isinf(new)]] = eps
            step = np.where(failed < budgets, np.minimum(2 * step, 0.5), step)
    return np.where(found <= reach.eps, found, math.inf)


@torch.no_grad()
def _shortest(
    guard: Guarded, perturb: Perturb, x: Tensor, y: Tensor, threat: ThreatModel
) -> NDArray[np.float64]:
    """Distances of an attack's points x' once moved back to where the label changes.

    Bisects t in [0, 1] on the segment x + t (x' − x), whose end x' is wrong.

    Returns:
        (N,); inf where the label stays right at x'.
    """
    x_adv = attacked(perturb, x, y)
    right = torch.zeros(len(x), *[1] * (x.ndim - 1), device=x.device)
    wrong = torch.ones_like(right)
    for _ in range(CUTS):
        middle = (right + wrong) / 2
        crossed = (guard(x.lerp(x_adv, middle)).argmax(1) != y).view(middle.shape)
        right, wrong = torch.where(crossed, right, middle), torch.where(crossed, middle, wrong)
    point = x.lerp(x_adv, wrong)
    length = threat.norm_of(point.double() - x.double())
    kept = guard(point).argmax(1) == y
    return length.masked_fill(kept, math.inf).cpu().numpy()


def _next(
    found: NDArray[np.float64], failed: NDArray[np.float64], step: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The budgets to try: a step below what is found, half way once the attack has failed.

    Returns:
        (N,), of `LEVELS`; 0 where nothing is left to try.
    """
    left = np.isfinite(found) & (found - failed > NEAR * found)
    middle = np.maximum(found * (1 - step), (failed + found) / 2)[left]
    budgets = np.zeros_like(found)
    budgets[left] = 2 ** (np.round(LEVELS * np.log2(middle)) / LEVELS)
    return np.where((failed < budgets) & (budgets < found), budgets, 0.0)
