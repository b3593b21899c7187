"""What is measured of a model in training and at its end, in parts that agents share out.

Each agent measures a part of the images and returns plain sums or per-image verdicts; `add` and
`merge` put the parts together, so that the numbers do not depend on who measured what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary.attack import fgsm, frozen, input_gradient, pgd
from raydist.adversary.fosc import first_order_gap, relative_gap
from raydist.adversary.loss import cross_entropies
from raydist.adversary.threat import ThreatModel
from raydist.config import Experiment
from raydist.learning.data import to_tensor
from raydist.measure import accuracy
from raydist.measure.autoattack import autoattack
from raydist.measure.verdict import Verdict, concatenate
from raydist.seeding import Purpose, seed_for, torch_generator

Sums = dict[str, float]
FOSC_STEPS = 10  # FOSC is taken at the last point of PGD-10 (arXiv:2410.07675)


@dataclass(frozen=True)
class Part:
    """Some images of a split.

    Attributes:
        index: their positions in the split.
        x: all images of the split, (N, C, H, W), in units of `scale`.
        y: all labels, (N,).
        scale: what brings pixels to [0, 1].
        device: where to compute.
    """

    index: NDArray[np.int64]
    x: NDArray[Any]
    y: NDArray[np.int64]
    scale: float
    device: torch.device

    def tensors(self, index: NDArray[np.int64], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and labels at positions of the split."""
        x = to_tensor(self.x[index], self.scale, dtype, self.device)
        return x, torch.tensor(self.y[index], device=self.device)


@dataclass(frozen=True)
class Masks:
    """Per-image verdicts on some test images.

    Attributes:
        index: their positions in the test split.
        clean: right without attack.
        pgd: number of steps -> right under PGD.
        fosc: FOSC at the last PGD-10 point.
        attacked: positions of the images that AutoAttack was given.
        verdict: what it did to them; None if it was switched off.
    """

    index: NDArray[np.int64]
    clean: NDArray[np.bool_]
    pgd: dict[int, NDArray[np.bool_]]
    fosc: NDArray[np.float64]
    attacked: NDArray[np.int64]
    verdict: Verdict | None


def stationarity(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, draw: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The last PGD-10 point and FOSC there in its three forms.

    Args:
        model: gives logits.
        x: images, (N, ...).
        y: labels, (N,).
        threat: the set of allowed points.
        draw: source of the random start.

    Returns:
        x' and, each (N,): `fosc` as published, `fosc_box` on ball ∩ box, `fosc_relative` free of
        the scale of the loss.
    """
    alpha = threat.eps / 4
    x_adv = pgd(model, x, y, threat, steps=FOSC_STEPS, alpha=alpha, generator=draw)
    g = input_gradient(model, x_adv, y)
    return x_adv, {
        "fosc": first_order_gap(x, x_adv, g, threat),
        "fosc_box": first_order_gap(x, x_adv, g, threat, box=True),
        "fosc_relative": relative_gap(x, x_adv, g, threat),
    }


def validate(model: nn.Module, part: Part, threat: ThreatModel, config: Experiment, n: int) -> Sums:
    """Sums over some validation images; `add` makes means of them.

    Args:
        model: gives logits.
        part: the images.
        threat: the set of allowed points.
        config: the experiment.
        n: the round, for the draws.

    Returns:
        `count` and the sums of `val_loss` (clean cross-entropy), `val_clean_acc`, `val_pgd10_acc`,
        `val_fgsm_acc`, `val_fosc`, `val_fosc_box`, `val_fosc_relative`.
    """
    total: Sums = {"count": float(len(part.index))}
    agent = int(part.index[0]) if len(part.index) else 0
    draw = torch_generator(Purpose.EVALUATE, config.seed, agent, n, part.device)
    dtype = next(model.parameters()).dtype
    for first in range(0, len(part.index), config.evaluate.batch):
        x, y = part.tensors(part.index[first : first + config.evaluate.batch], dtype)
        x_adv, gaps = stationarity(model, x, y, threat, draw)
        x_fgsm = fgsm(model, x, y, threat)
        with frozen(model), torch.no_grad():
            logits, attacked, stepped = model(x), model(x_adv), model(x_fgsm)
        right = logits.argmax(1) == y
        sums = {
            "val_loss": cross_entropies(logits, y),
            "val_clean_acc": right,
            "val_pgd10_acc": right & (attacked.argmax(1) == y),
            "val_fgsm_acc": right & (stepped.argmax(1) == y),
            **{f"val_{name}": gap for name, gap in gaps.items()},
        }
        for name, values in sums.items():
            total[name] = total.get(name, 0.0) + float(values.sum())
    return total


def add(parts: Sequence[Sums]) -> Sums:
    """Means over all images, from the sums over parts of them."""
    count = sum(part.get("count", 0.0) for part in parts)
    names = dict.fromkeys(name for part in parts for name in part if name != "count")
    return {name: sum(part.get(name, 0.0) for part in parts) / count for name in names}


def judge(
    model: nn.Module,
    part: Part,
    attacked: Part,
    threat: ThreatModel,
    config: Experiment,
    classes: int,
) -> Masks:
    """Per-image verdicts on some test images: clean, PGD, AutoAttack, FOSC.

    Args:
        model: gives logits.
        part: the images for clean and PGD accuracy and FOSC.
        attacked: the images for AutoAttack.
        threat: the set of allowed points.
        config: the experiment; its `evaluate` says what is run.
        classes: number of classes.

    Returns:
        The verdicts.
    """
    wanted, dtype = config.evaluate, next(model.parameters()).dtype
    x, y = part.tensors(part.index, dtype)
    seed = seed_for(Purpose.EVALUATE, config.seed, int(part.index[0]) if len(y) else 0)
    gaps = []
    for first in range(0, len(y), wanted.batch):
        draw = torch_generator(Purpose.EVALUATE, seed, round=first, device=part.device)
        here = slice(first, first + wanted.batch)
        gaps.append(stationarity(model, x[here], y[here], threat, draw)[1]["fosc"])
    verdict = None
    if wanted.autoattack != 0:
        images = attacked.tensors(attacked.index, dtype)
        verdict = autoattack(
            model, *images, threat, classes=classes, batch=wanted.batch, seed=seed % 2**31
        )
    return Masks(
        index=part.index,
        clean=accuracy.correct(model, x, y, wanted.batch),
        pgd={
            steps: accuracy.pgd_correct(
                model, x, y, threat, steps=steps, batch=wanted.batch, seed=seed
            )
            for steps in wanted.pgd
        },
        fosc=torch.cat([*gaps, x.new_zeros(0)]).double().cpu().numpy(),
        attacked=attacked.index,
        verdict=verdict,
    )


def merge(parts: Sequence[Masks]) -> Masks:
    """The verdicts on all images, in the order of the images."""
    index = np.concatenate([part.index for part in parts])
    attacked = np.concatenate([part.attacked for part in parts])
    order, order_attacked = np.argsort(index), np.argsort(attacked)
    verdicts = [part.verdict for part in parts if part.verdict is not None]
    verdict = concatenate(verdicts) if verdicts else None
    if verdict is not None:
        verdict = Verdict(
            verdict.attacks, verdict.broken_by[order_attacked], verdict.seconds, verdict.observed
        )
    return Masks(
        index[order],
        np.concatenate([part.clean for part in parts])[order],
        {
            steps: np.concatenate([part.pgd[steps] for part in parts])[order]
            for steps in parts[0].pgd
        },
        np.concatenate([part.fosc for part in parts])[order],
        attacked[order_attacked],
        verdict,
    )


def summary(masks: Masks) -> dict[str, float | str]:
    """The named numbers of `accuracy.summary`, `fosc`, and AutoAttack's flags in words."""
    at = np.searchsorted(masks.index, masks.attacked)
    named: dict[str, float | str] = dict(
        accuracy.summary(masks.clean, masks.pgd, masks.verdict, at)
    )
    if masks.verdict is not None:
        named["autoattack_images"] = float(len(masks.attacked))
        named["autoattack_flags"] = ", ".join(masks.verdict.flags)
    return named | {"fosc": float(masks.fosc.mean())}
