"""From verdicts on single images to numbers with names: the one place where that is done.

Attacks may have seen different images. A number is of those on which all that it is made of is
known, and `X_images` says beside `X` or `X_acc` how many they are. More verdicts never make a
number one of fewer images, nor do they take a sign of masked gradients away.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydist.measure import attacks, masking
from raydist.measure.cascade import FEW_CLASSES, FLAGS, STANDARD, Mask
from raydist.metrics import COUNTS, base, counted

CLEAN, ENSEMBLE = "clean", "ensemble"
SQUARE_BROKE = 0.002  # more than that share left to Square is a warning, as in the package
SPLITS = {"test": "", "validation": "val_"}  # what the names of a split's numbers begin with
OF_SEVERAL = ("overestimation", "masking")  # read from all accuracies together
Numbers = dict[str, float | str]
Values = NDArray[np.float64]  # one for each image, nan where it is not known


@dataclass(frozen=True)
class Known:
    """Verdicts on one model under one budget, image by image.

    Attributes:
        right: "clean", the attacks by name, "ensemble" -> image -> whether it stayed right. Of a
            member of the ensemble behind the first, only the images that were left to it; what it
            does alone stands under `alone(member)`. Of all others, the images that are wrong
            without attack too.
        values: "fosc", "fosc_relative", "zero_gradient" -> image -> number.
        flags: names of `raydist.measure.cascade.FLAGS` that were observed.
        members: the members of the ensemble, in their order.
    """

    right: Mapping[str, Mapping[int, bool]]
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    members: tuple[str, ...] = STANDARD


def alone(attack: str) -> str:
    """Name of an attack that sees all images, not only those that others left.

    Args:
        attack: its name.

    Returns:
        The name under which `Known.right` has it.

    Example:
        >>> alone("pgd10"), alone("apgd-t"), alone("square")
        ('pgd10', 'apgd-t-alone', 'square5000')
    """
    if attack in ("square", "square5000"):
        return "square5000"
    return f"{attack}-alone" if attack in ("apgd-t", "fab", "fab-t") else attack


def joined(earlier: Mapping[str, Any], later: Mapping[str, Any], prefix: str = "") -> Numbers:
    """Numbers with those of a later look at the same models; what belongs together stays together.

    Args:
        earlier: the numbers that are known.
        later: the later numbers of one model.
        prefix: the beginning of the names of its numbers among the earlier ones.

    Returns:
        All numbers. A number is replaced with all that belongs to it, if the later one is of as
        many images and probes. `OF_SEVERAL` are replaced if that holds for all accuracies of
        their split.

    Example:
        >>> joined({"masking": "unchecked", "masking_unchecked": "fosc"}, {"masking": "trusted"})
        {'masking': 'trusted'}
    """
    fewer = {
        base(name)
        for name, count in later.items()
        if name.partition("@")[0].endswith(COUNTS)
        and (count or 0) < (earlier.get(prefix + name) or 0)
    }
    fewer -= {split + name for split in SPLITS.values() for name in OF_SEVERAL}
    for split in {_split(name) for name in later if name.endswith("_acc") and base(name) in fewer}:
        fewer |= {split + name for name in OF_SEVERAL}
    taken = {prefix + name: value for name, value in later.items() if base(name) not in fewer}
    groups = {base(name) for name in taken}
    return {name: value for name, value in earlier.items() if base(name) not in groups} | taken


def _split(name: str) -> str:
    """The one of `SPLITS` with which the name of a number begins."""
    return max((split for split in SPLITS.values() if name.startswith(split)), key=len)


def columns(known: Known) -> Numbers:
    """Every number that follows from what is known, each of as many images as it can be.

    Args:
        known: the verdicts on a model.

    Returns:
        `clean_acc`, `pgd<steps>_acc` and so on, the accuracy under each attack alone;
        `apgd_ce_acc`, ..., `autoattack_acc`, what the ensemble leaves after each member (without
        the last name if it is not the standard one), `autoattack_flags`; the means of the values;
        `overestimation`; `masking` and `masking_unchecked`; with each of them `X_images`.
    """
    each = _per_image(known)
    found: Numbers = {f: math.nan for name in each for f in (name, counted(name))}
    gaps: list[tuple[bool, int, float]] = []  # one beyond chance, else one of most images
    judged: list[tuple[int, masking.Judgement]] = []
    for images in _image_sets(each):
        here = {name: values[images] for name, values in each.items() if _covers(values, images)}
        means = {name: float(values.mean()) for name, values in here.items()}
        n = int(images.sum())
        for name, value in means.items():
            found |= {name: value, counted(name): float(n)}
        gap = masking.overestimated(here)
        if gap is not None:
            means["overestimation"] = gap
            gaps.append((masking.beyond_chance(gap, n) > 0, n, gap))
        judged.append((n, masking.verdict(means, n)))
    flags = _flags(known, each)
    if gaps:
        _, n, found["overestimation"] = max(gaps)
        found["overestimation_images"] = float(n)
    if flags or ENSEMBLE in known.right:
        found["autoattack_flags"] = ", ".join(flags)
    if judged:
        found |= _masking(judged, flags)
    return found


def _masking(judged: list[tuple[int, masking.Judgement]], flags: tuple[str, ...]) -> Numbers:
    """The verdict of all checks, and the fewest images that one it rests on was made on."""
    whole = masking.together([judgement for _, judgement in judged], flags)
    signs = {name: n for n, found in judged for name in found.signs}  # the smallest sets are first
    clear = {name: n for n, found in judged for name in found.clear}
    # what it rests on are the checks that found a sign, or if none did, all that were made
    images = min((signs or clear).values(), default=0)
    found: Numbers = {"masking": whole.word, "masking_images": float(images)}
    return found | ({"masking_unchecked": ", ".join(whole.missing)} if whole.missing else {})


def _per_image(known: Known) -> dict[str, Values]:
    """Column -> 1 where the image is right, 0 where it is wrong, nan where that is not known."""
    images = sorted(known.right.get(CLEAN, {}))

    def of(values: Mapping[int, float]) -> Values:
        return np.array([values.get(i, np.nan) for i in images], dtype=np.float64)

    right = {name: of(verdicts) for name, verdicts in known.right.items()}
    found = {
        attacks.column(name): values
        for name, values in right.items()
        if name != ENSEMBLE and name not in known.members[1:]
    }
    if ENSEMBLE in right:
        found |= _cascade(right, known.members)
    names = {"zero_gradient": "zero_gradient_share"}
    return found | {names.get(name, name): of(values) for name, values in known.values.items()}


def _cascade(right: Mapping[str, Values], members: tuple[str, ...]) -> dict[str, Values]:
    """Accuracy after each member behind the first, on the images given to the ensemble."""
    left, found = right[CLEAN], {}
    nothing = np.full(len(left), np.nan)  # was left to a member
    for name in members:
        left = np.where(left == 1, right.get(name, nothing), left)
        found[attacks.column(name)] = np.where(np.isnan(right[ENSEMBLE]), np.nan, left)
    del found[attacks.column(members[0])]
    return found | ({"autoattack_acc": right[ENSEMBLE]} if members == STANDARD else {})


def _flags(known: Known, each: Mapping[str, Values]) -> tuple[str, ...]:
    """Flags that were observed, and those that follow from the verdicts."""
    raised = set(known.flags)
    if ENSEMBLE in known.right and len(known.members) > 1:
        before, after = (each[attacks.column(name)] for name in known.members[-2:])
        if np.nanmean(before - after) > SQUARE_BROKE:
            raised.add("square-stronger")
        if known.members == FEW_CLASSES:
            raised.add("few-classes")
    return tuple(flag for flag in FLAGS if flag in raised)


def _image_sets(each: Mapping[str, Values]) -> Iterator[Mask]:
    """The sets of images that have several columns in common, the smallest first."""
    single = {values.tobytes(): values for values in (~np.isnan(v) for v in each.values())}
    pairs = (a & b for a, b in combinations_with_replacement(single.values(), 2))
    common = {images.tobytes(): images for images in pairs if images.any()}
    yield from sorted(common.values(), key=lambda images: int(images.sum()))


def _covers(values: Values, images: Mask) -> bool:
    return not bool(np.isnan(values[images]).any())


def over_agents(agents: Sequence[Known]) -> Numbers:
    """Mean, worst and best of every accuracy over the agents, each on the images of all of them.

    Args:
        agents: the verdicts on each agent.

    Returns:
        `agents_mean_clean_acc`, `agents_worst_clean_acc` and so on, each with its `..._images`.
    """
    found: Numbers = {}
    each = [_per_image(known) for known in agents]
    images = [sorted(known.right.get(CLEAN, {})) for known in agents]
    names = [name for name in each[0] if name.endswith("_acc") and all(name in of for of in each)]
    for name in names:
        rows = [
            {i: v for i, v in zip(at, of[name].tolist(), strict=True) if not math.isnan(v)}
            for at, of in zip(images, each, strict=True)
        ]
        common = set(rows[0]).intersection(*rows)
        values = [float(np.mean([row[i] for i in common])) for row in rows] if common else []
        for how, over in (("mean", np.mean), ("worst", np.min), ("best", np.max)):
            if values:
                found[f"agents_{how}_{name}"] = float(over(values))
                found[f"agents_{how}_{base(name)}_images"] = float(len(common))
    return found
