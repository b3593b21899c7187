"""Accuracies: which images a model gets right, clean and under attack.

The functions on a model give one bool per image, so that images can be divided among processes
and the answers concatenated; `summary` turns the masks of all images into named numbers.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from raydist.adversary.attack import AttackLoss, Start, frozen, pgd
from raydist.adversary.threat import ThreatModel
from raydist.measure.verdict import Mask, Verdict, fraction
from raydist.seeding import Purpose, torch_generator


def correct(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> Mask:
    """Whether the model, in eval mode, gives each image its label.

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
    """Whether each image keeps its label under PGD (arXiv:1706.06083).

    An image that is wrong without attack counts as wrong: x itself is in the ball. The result is
    a function of (model, images, batch, seed).

    Args:
        model: gives logits (N, C).
        x: images (N, ...) within the threat's bounds, on the device of the model.
        y: labels, int64 (N,).
        threat: the set of allowed points.
        steps: gradient steps ≥ 0.
        alpha: length of a step; None is eps / 4 (2/255 at 8/255).
        start: of the ascent, as in `raydist.adversary.attack.ascend`.
        loss: what is ascended, as there.
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


def summary(
    clean: Mask,
    pgd: Mapping[int, Mask] | None = None,
    verdict: Verdict | None = None,
    images: ArrayLike | None = None,
) -> dict[str, float]:
    """Named accuracies from masks of all images.

    overestimation = (PGD-10 accuracy) − (lowest accuracy measured), both on the images that
    AutoAttack saw (arXiv:2410.07675).

    Args:
        clean: (N,), from `correct`.
        pgd: number of steps to (N,), from `pgd_correct`.
        verdict: of AutoAttack on M images.
        images: (M,) positions of those images among the N; None if they are all, in order.

    Returns:
        `clean_acc` and `pgd<steps>_acc` over the N images. With a verdict, over its M images:
        `apgd_ce_acc`, `apgd_t_acc`, `fab_t_acc`, `square_acc` (`fab_acc` with 2 or 3 classes),
        each the accuracy left AFTER that attack in the cascade, not against it alone;
        `autoattack_acc`, only if the standard ensemble was run; and `overestimation`, with the
        largest number of steps in the place of PGD-10 if that is missing, and absent without PGD.

    Raises:
        ValueError: if the masks are of different lengths.
    """
    pgd = pgd or {}
    for steps, mask in pgd.items():
        if len(mask) != len(clean):
            raise ValueError(f"pgd[{steps}] has {len(mask)} images, expected {len(clean)} as clean")
    named = {"clean_acc": clean} | {f"pgd{steps}_acc": mask for steps, mask in pgd.items()}
    if verdict is None:
        return {name: fraction(mask) for name, mask in named.items()}

    seen = np.arange(len(clean)) if images is None else np.asarray(images)
    if len(seen) != len(verdict.broken_by):
        raise ValueError(
            f"images has {len(seen)} positions, expected one for each of the verdict's "
            f"{len(verdict.broken_by)} images: write np.arange({len(verdict.broken_by)})"
        )
    left_by = {f"{name.replace('-', '_')}_acc": mask for name, mask in verdict.left_by.items()}
    del left_by["clean_acc"]
    if verdict.standard:
        left_by["autoattack_acc"] = verdict.robust
    result = {name: fraction(mask) for name, mask in (named | left_by).items()}
    if pgd:
        usual = fraction(pgd[10 if 10 in pgd else max(pgd)][seen])
        lowest = min(fraction(verdict.robust), *(fraction(mask[seen]) for mask in pgd.values()))
        result["overestimation"] = usual - lowest
    return result


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
