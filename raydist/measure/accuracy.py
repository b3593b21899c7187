"""Accuracies: which images a model gets right, clean and under attack.

The functions on a model give one bool per image, so that images can be divided among processes
and the answers concatenated; `raydist.measure.columns` turns them into named numbers.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from raydist.adversary.attack import AttackLoss, Start, pgd
from raydist.adversary.threat import ThreatModel
from raydist.measure.cascade import Mask
from raydist.seeding import Purpose, torch_generator
from raydist.vector import frozen


def correct(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> Mask:
    """Mask of the images to which the model, in eval mode, gives their label.

    Args:
        model: gives logits (N, C).
        x: images (N, ...), on the device of the model.
        y: labels, int64 (N,).
        batch: images per forward pass, ≥ 1.

    Returns:
        (N,); False where a logit is not finite.
    """
    right = np.zeros(len(x), dtype=np.bool_)
    with frozen(model), torch.no_grad():
        for part in _parts(len(x), batch):
            logits = model(x[part])
            hit = (logits.argmax(1) == y[part]) & logits.isfinite().all(1)
            right[part] = hit.cpu().numpy()
    return right


def pgd_correct(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    alpha: float | None = None,
    start: Start = "uniform",
    loss: AttackLoss = "ce",
    batch: int,
    seed: int,
) -> Mask:
    """Mask of the images that keep their label under PGD (arXiv:1706.06083).

    An image that is wrong without attack counts as wrong: x itself is in the ball. The result is
    a function of (model, images, batch, seed).

    Args:
        model: gives logits (N, C).
        x: images (N, ...) within the threat's bounds, on the device of the model.
        y: labels, int64 (N,).
        threat: the set of allowed points.
        steps: gradient steps ≥ 0.
        alpha: length of a step; None is eps / 4 (2/255 at 8/255).
        start: the start of the ascent, as in `raydist.adversary.attack.ascend`.
        loss: the function that is ascended, as there.
        batch: images per forward pass, ≥ 1.
        seed: seed of the starts, ≥ 0.

    Returns:
        (N,); False where a logit is not finite.
    """
    alpha = threat.eps / 4 if alpha is None else alpha
    right = correct(model, x, y, batch)
    for number, part in enumerate(_parts(len(x), batch)):
        generator = torch_generator(Purpose.EVALUATE, seed, round=number, device=x.device)
        x_adv = pgd(
            model,
            x[part],
            y[part],
            threat,
            steps=steps,
            alpha=alpha,
            start=start,
            loss=loss,
            generator=generator,
        )
        right[part] &= correct(model, x_adv, y[part], batch)
    return right


def w2_accuracy(margins: ArrayLike, delta: float) -> float:
    """Accuracy left by an adversary with a W₂ budget that is shared among the images.

    The adversary moves image i by r_i, its distance to the nearest other label, and may spend
    (1/N) Σ r_i² ≤ δ² in all (the threat of arXiv:2306.09844). All images count alike, so
    taking the cheapest first breaks the most.

    Args:
        margins: (N,) distances r_i in the norm of the budget; ≤ 0 where the image is wrong
            without attack, inf where no distance breaks it.
        delta: the budget δ ≥ 0, in the same units.

    Returns:
        The fraction of images that keep their label, in [0, 1].

    Raises:
        ValueError: if there is no image, a margin is nan, or delta is negative.

    Example:
        >>> w2_accuracy([0.1, 0.2, 0.3, -1.0], delta=0.12)  # affords 0.1 and 0.2
        0.25
    """
    r = np.asarray(margins, dtype=np.float64)
    if r.ndim != 1 or r.size == 0 or bool(np.isnan(r).any()):
        raise ValueError(f"margins is of shape {r.shape}, expected (N,) with N >= 1 and no nan")
    if not delta >= 0:
        raise ValueError(f"delta is {delta}, expected a number >= 0: write 8 / 255")
    spent = np.cumsum(np.sort(r[r > 0]) ** 2) / r.size
    return float(np.count_nonzero(spent > delta**2) / r.size)


def _parts(images: int, batch: int) -> Iterator[slice]:
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected a number of images >= 1: write 128")
    return (slice(first, first + batch) for first in range(0, images, batch))
