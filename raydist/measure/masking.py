"""Signs that an attack by gradients overestimates robustness (gradient masking).

Each check takes plain numbers and tells whether its sign is there; `verdict` makes those whose
numbers were measured, on enough images. Accuracies are fractions, all of one model on the same
`images` in number; `least` is what is still honest. FOSC sees rugged losses only, and is 0 where
the gradient vanishes: no check is enough alone.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist import metrics
from raydist.adversary.objective import cross_entropies
from raydist.measure.cascade import FLAGS, Mask
from raydist.metrics import Metric
from raydist.vector import frozen

PLAIN = 0.2  # a gap that a check must be able to see: masked models have tens of points


def exceeds(gap: float, least: float, images: int) -> bool:
    """Test whether a gap g of two accuracies on the same N images is above `least` beyond chance.

        g − 2 √(g / N) > least

    √(g / N) is the standard error of g if few images make the gap and none counts the other way.
    With least = 0 it takes more than 4 images.

    Args:
        gap: the difference g, or a share of the images, in [−1, 1].
        least: threshold, ≥ 0.
        images: the number N ≥ 1.

    Returns:
        True if it is.

    Raises:
        ValueError: no image, or a gap outside its range.

    Example:
        >>> exceeds(0.02, least=0.002, images=200), exceeds(0.02, least=0.002, images=1000)
        (False, True)
    """
    if images < 1:
        raise ValueError(f"images is {images}, expected the number of images >= 1: write 1000")
    if not -1 <= gap <= 1:
        raise ValueError(f"gap is {gap}, expected a number in [-1, 1]: write 0.5 for 50 percent")
    return gap > least and gap - 2 * math.sqrt(gap / images) > least


def beyond_chance(gap: float, images: int) -> float:
    """The part of a gap that chance does not explain, as in `exceeds`; 0 if there is none.

    Args:
        gap: the gap, as in `exceeds`.
        images: the images, as in `exceeds`.

    Returns:
        A number in [0, 1].
    """
    return max(0.0, gap - 2 * math.sqrt(max(gap, 0.0) / images))


def overestimation(gap: float, images: int, least: float = 0.1) -> bool:
    """PGD-10 leaves far more than the strongest attack does (arXiv:2410.07675).

    Honest models of CIFAR-10 at 8/255 have gaps of 4 (adversarial training) to 7 points (MART);
    masked ones tens.

    Args:
        gap: PGD-10 accuracy minus the lowest measured.
        images: number of images.
        least: the gap that is still honest.

    Returns:
        True if the sign is there.
    """
    return exceeds(gap, least, images)


def square_stronger(square: float, pgd: float, images: int, least: float = 0.002) -> bool:
    """Square, which sees no gradient, leaves fewer images than PGD (arXiv:2410.07675)."""
    return exceeds(pgd - square, least, images)


def more_steps_weaker(few: float, many: float, images: int, least: float = 0.002) -> bool:
    """PGD with many steps leaves more images than with few (arXiv:1902.06705)."""
    return exceeds(many - few, least, images)


def one_step_stronger(fgsm: float, pgd: float, images: int, least: float = 0.002) -> bool:
    """FGSM leaves fewer images than PGD does (arXiv:1802.00420, section 3.1)."""
    return exceeds(pgd - fgsm, least, images)


def larger_eps_weaker(at_eps: float, at_larger: float, images: int, least: float = 0.002) -> bool:
    """The same attack leaves more images in a larger ball (arXiv:1802.00420)."""
    return exceeds(at_larger - at_eps, least, images)


def large_eps_survived(acc: float, images: int, least: float = 0.1) -> bool:
    """An attack without limits does not succeed everywhere (arXiv:1802.00420, section 3.1).

    Args:
        acc: accuracy under an iterative attack within a ball that holds every answer: ε = 0.5 or
            1 for l∞, where all pixels may turn grey.
        images: number of images.
        least: the accuracy of a constant answer, chance: 0.1 with ten classes.

    Returns:
        True if the sign is there.
    """
    return exceeds(acc, least, images)


def zero_gradient(share: float, images: int, least: float = 0.01) -> bool:
    """The gradient vanishes in floating point (arXiv:2003.01690, section 4).

    Args:
        share: the share of the images with an input gradient of 0, from `zero_gradients`.
        images: number of images.
        least: the share that is still honest: an odd image may be certain beyond float32.

    Returns:
        True if the sign is there.
    """
    return exceeds(share, least, images)


def not_stationary(relative: float, least: float = 0.2) -> bool:
    """PGD has not converged: the loss is rugged (FOSC, arXiv:2112.08304 and 2410.07675).

    Honest models have 0.00 to 0.04 after 10 steps of ε / 4. Where the gradient at the last point
    does not know where the steps came from the expected value is that of no step, about 1.

    Args:
        relative: mean of `raydist.adversary.fosc.relative_gap` after PGD-10; 0 is converged.
        least: the value that is still honest.

    Returns:
        True if the sign is there.
    """
    return relative > least


def ce_saturated(ce: float, dlr: float, images: int, least: float = 0.1) -> bool:
    """The scale-free DLR loss breaks far more than cross-entropy (arXiv:2003.01690, section 4).

    Args:
        ce: accuracy under APGD-CE.
        dlr: accuracy under APGD-DLR or APGD-T, alone or after APGD-CE.
        images: number of images.
        least: the gap that is still honest: as in `overestimation`, which it is a part of.

    Returns:
        True if the sign is there.
    """
    return exceeds(ce - dlr, least, images)


# the sign, and what it is read from: columns of a table, or what `_numbers` derives of them
CHECKS: dict[str, tuple[Callable[..., bool], tuple[str, ...]]] = {
    "overestimation": (overestimation, ("overestimation", "images")),
    "square-stronger": (square_stronger, ("square", "pgd", "images")),
    "more-steps-weaker": (more_steps_weaker, ("fewest_steps", "most_steps", "images")),
    "one-step-stronger": (one_step_stronger, ("fgsm_acc", "pgd10_acc", "images")),
    "larger-eps-weaker": (larger_eps_weaker, ("pgd10_acc", "pgd10_2eps_acc", "images")),
    "large-eps-survived": (large_eps_survived, ("pgd10_large_eps_acc", "images")),
    "zero-gradient": (zero_gradient, ("zero_gradient_share", "images")),
    "fosc": (not_stationary, ("fosc_relative",)),
    "ce-saturated": (ce_saturated, ("apgd_ce_acc", "dlr", "images")),
}
NOT_OF_MASKING = ("few-classes", "partial")  # flags that are about the ensemble
# no gradient of the cross-entropy alone can make these look clear
DECISIVE = frozenset({"overestimation", "square-stronger"})


@dataclass(frozen=True)
class Judgement:
    """Findings of the checks on one model, by their names in `CHECKS`.

    Attributes:
        signs: checks that found their sign of masking, and warnings that an attack raised.
        clear: checks that were made and did not.
        missing: checks that were not made: a number was not measured, or of so few images that a
            gap of 20 points would be no sign.
    """

    signs: tuple[str, ...]
    clear: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def word(self) -> str:
        """The signs; "trusted" if there is none and a check in `DECISIVE` was made; "unchecked"."""
        if self.signs:
            return ", ".join(self.signs)
        return "trusted" if DECISIVE.intersection(self.clear) else "unchecked"


def verdict(measured: Mapping[str, float], images: int) -> Judgement:
    """All checks whose numbers were measured.

    Read are: `overestimation` (else `pgd10_acc` minus the lowest accuracy, if an attack is among
    them that ascends another loss than cross-entropy), the accuracies under attacks by what
    `raydist.metrics` says of them (Square counts where it saw every image), `zero_gradient_share`
    and `fosc_relative`.

    Args:
        measured: numbers of one model by their names in tables; others are not looked at, and nan
            is not measured.
        images: number of images of every accuracy; the smallest, if they differ.

    Returns:
        Which signs are there, which are not, and which were not looked for.

    Example:
        >>> verdict({"pgd10_acc": 0.98, "autoattack_acc": 0.7}, images=1000).word
        'overestimation'
        >>> verdict({"pgd10_acc": 0.51, "autoattack_acc": 0.47}, images=1000).word
        'trusted'
    """
    numbers = _numbers(measured) | {"images": images}
    made = {
        name: check(*(numbers[key] for key in keys))
        for name, (check, keys) in CHECKS.items()
        if all(key in numbers for key in keys)
    }
    signs = tuple(name for name, found in made.items() if found)
    clear = tuple(name for name in made if name not in signs and _has_power(name, images))
    return Judgement(signs, clear, tuple(n for n in CHECKS if n not in (*signs, *clear)))


def _has_power(name: str, images: int) -> bool:
    """Test whether a check would see a gap of `PLAIN`; with `least` = 0.1 that takes 81 images."""
    check, keys = CHECKS[name]
    least: float = inspect.signature(check).parameters["least"].default
    return "images" not in keys or exceeds(PLAIN, least, images)


def together(judgements: Sequence[Judgement], flags: Collection[str] = ()) -> Judgement:
    """One judgement of a model from those on several sets of images.

    Args:
        judgements: on each set.
        flags: names of `raydist.measure.cascade.FLAGS` that attacks have raised.

    Returns:
        A sign on one set is a sign. A flag is one too, unless the check of that name was made,
        which allows for an odd image.
    """
    signs = {name for judgement in judgements for name in judgement.signs}
    clear = {name for judgement in judgements for name in judgement.clear} - signs
    signs |= {flag for flag in flags if flag not in clear and flag not in NOT_OF_MASKING}
    return Judgement(
        signs=tuple(name for name in dict.fromkeys((*CHECKS, *FLAGS)) if name in signs),
        clear=tuple(name for name in CHECKS if name in clear),
        missing=tuple(name for name in CHECKS if name not in signs | clear),
    )


def overestimated(right: Mapping[str, NDArray[np.float64]]) -> float | None:
    """PGD-10 accuracy minus the share of images that stand against every attack.

    Args:
        right: columns of a table -> 1 for each image that is right, else 0; all of the same images.

    Returns:
        The gap; None unless PGD-10 and an attack on another loss than cross-entropy are there.
    """
    budgets = {name: metrics.find(name).budget for name in right if name.endswith("_acc")}
    tried = [name for name, budget in budgets.items() if not budget]
    if "pgd10_acc" not in tried or not any(_not_ce(metrics.find(name)) for name in tried):
        return None
    worst = np.min([right[name] for name in tried], axis=0)
    return float((right["pgd10_acc"] - worst).mean())


def _not_ce(metric: Metric) -> bool:
    """Test whether a metric is an accuracy under an attack on another loss than cross-entropy."""
    return metric.attack != "" and metric.ascends != "ce"


def _steps(metric: Metric) -> int:
    """Steps of plain PGD, without restarts and with its usual step length; 0 for other metrics."""
    plain = metric.attack == "pgd" and metric.ascends == "ce" and metric.given.keys() == {"steps"}
    return int(metric.given["steps"]) if plain else 0


def _numbers(measured: Mapping[str, float]) -> dict[str, float]:
    """Measured numbers, and those that the checks read of them under names of their own."""
    known = {name: value for name, value in measured.items() if not math.isnan(value)}
    found = {name: metrics.find(name) for name in known}

    def lowest(wanted: Callable[[Metric], object]) -> float:
        return min((known[name] for name in known if wanted(found[name])), default=math.nan)

    steps = sorted((_steps(metric), name) for name, metric in found.items() if _steps(metric))
    pgd, not_ce = lowest(_steps), lowest(_not_ce)
    derived = {
        "overestimation": known.get("pgd10_acc", math.nan) - (pgd if pgd < not_ce else not_ce),
        "pgd": pgd,
        "square": lowest(lambda metric: metric.attack == "square" and metric.alone),
        "dlr": lowest(lambda metric: metric.ascends == "dlr"),
    }
    if len(steps) > 1:
        derived["fewest_steps"] = known[steps[0][1]]
        derived["most_steps"] = known[steps[-1][1]]
    numbers = {name: value for name, value in (derived | known).items() if not math.isnan(value)}
    if numbers.get("pgd10_acc") == 0:  # it cannot be too high, however far from converged PGD-10 is
        numbers.pop("fosc_relative", None)
    return numbers


def zero_gradients(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> Mask:
    """Mask of the images whose input gradient is exactly 0 (arXiv:2003.01690).

    A model that detaches its input has no gradient at all; that counts as 0.

    Args:
        model: gives logits (N, C); in eval mode meanwhile.
        x: images (N, ...), on the device of the model.
        y: labels, int64 (N,).
        batch: images per pass, ≥ 1.

    Returns:
        (N,).

    Raises:
        ValueError: no image per pass.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected a number of images >= 1: write 128")
    zero = []
    with frozen(model), torch.enable_grad():
        for images, labels in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
            images.requires_grad_()
            total = cross_entropies(model(images), labels).sum() + 0 * images.sum()
            grad = torch.autograd.grad(total, images)[0]
            zero.append((grad.flatten(1) == 0).all(dim=1))
    found: Mask = torch.cat(zero).cpu().numpy()
    return found
