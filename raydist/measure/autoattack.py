"""AutoAttack (arXiv:2003.01690), attack by attack, through the package pyautoattack.

The attacks are the package's; what is around them is not used: its state file cannot be resumed,
its result is not per attack, and its custom version has other restarts.
"""

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyautoattack
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.measure.cascade import FEW_CLASSES, STANDARD, Cascade, Mask
from raydist.measure.guard import Guarded, flagger, guarded, logits_of

Perturb = Callable[[Tensor, Tensor], Tensor]  # (x, y) -> points

PACKAGE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
PACKAGE_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    classes: int,
    batch: int = 128,
    seed: int = 0,
    attacks: Sequence[str] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Cascade:
    """Worst case over an ensemble of attacks, image by image (arXiv:2003.01690, section 5).

    Each attack runs on the images that all attacks before it left. Meanwhile the model is in eval
    mode and its parameters are frozen; random and trace state of the process are left as found.
    The verdict is a function of (model, images, batch, seed). The random state is the process'
    own, so one evaluation at a time in a process.

    Args:
        model: gives logits (N, classes), on the device of `x`.
        x: images, float32 (N, C, H, W) in [0, 1].
        y: labels, int64 (N,) in 0..classes − 1.
        threat: the ball around each image; its bounds must be (0, 1). With eps = 0 the verdict
            is the clean one.
        classes: number of classes ≥ 2. From 4 on, the targeted attacks try min(9, classes − 1)
            targets (APGD-T in l1 at most 5); with 2 or 3 the default is APGD-CE, untargeted FAB and
            Square.
        batch: images per forward pass.
        seed: seed of every attack on every batch.
        attacks: names from `STANDARD` and `FEW_CLASSES`, in order; None is the full ensemble.
        on_progress: called with ("clean" or the attack, images done, images to do) per batch.

    Returns:
        Which attack broke which image, with seconds and flags.

    Raises:
        ValueError: an argument outside these ranges.
        FloatingPointError: a logit that is not finite, since NaN would count as robust.
    """
    names = (STANDARD if classes >= 4 else FEW_CLASSES) if attacks is None else tuple(attacks)
    known = dict.fromkeys((*STANDARD, *FEW_CLASSES))
    if not names or not set(names) <= set(known) or len(set(names)) < len(names):
        raise ValueError(f"attacks is {names}, expected different names from {tuple(known)}")
    seen = set() if names == STANDARD else {"few-classes" if classes < 4 else "partial"}
    broken_by = np.full(len(x), -1, dtype=np.int8)
    seconds = [0.0] * (1 + len(names))
    with guarded(model, x, y, threat, names, classes, batch, seed, seen) as guard:
        ensemble = perturbations(guard, threat, seed, x.device)
        for position, name in enumerate(("clean", *names) if threat.eps > 0 else ("clean",)):
            start = time.perf_counter()
            standing = np.flatnonzero(broken_by == -1)
            report = partial(on_progress, name) if on_progress else None
            hit = broken(guard, ensemble[name], x, y, standing, batch, report)
            broken_by[standing[hit]] = position
            seconds[position] = time.perf_counter() - start
    return Cascade(names, broken_by, tuple(seconds[1:]), frozenset(seen))


def broken(
    guard: Guarded,
    perturb: Perturb,
    x: Tensor,
    y: Tensor,
    index: NDArray[np.intp],
    batch: int,
    report: Callable[[int, int], None] | None = None,
) -> Mask:
    """Mask of the images that an attack breaks.

    Args:
        guard: the model, from `guarded`.
        perturb: the attack, from `perturbations`.
        x: all images.
        y: all labels.
        index: (M,) positions of the images to attack.
        batch: images per call of the attack.
        report: called with (images done, M) per batch.

    Returns:
        (M,): True where the attack's point gets another label.
    """
    found = np.zeros(len(index), dtype=np.bool_)
    for first in range(0, len(index), batch):
        part = index[first : first + batch]
        x_adv = attacked(perturb, x[part], y[part])
        with torch.no_grad():
            wrong = guard(x_adv).argmax(1) != y[part]
        found[first : first + batch] = wrong.cpu().numpy()
        if report:
            report(first + len(part), len(index))
    return found


@torch.no_grad()
def attacked(perturb: Perturb, x: Tensor, y: Tensor) -> Tensor:
    """The points of a package's attack; it takes views, which channels_last images refuse."""
    return perturb(x.contiguous(), y)


def perturbations(
    guard: Guarded, threat: ThreatModel, seed: int, device: torch.device, queries: int = 5000
) -> dict[str, Perturb]:
    """The package's attacks on a model, by name, and "clean".

    Args:
        guard: the model, from `guarded`.
        threat: the ball around each image, with eps > 0.
        seed: seed of every attack on every call.
        device: where the images are.
        queries: the queries of Square.

    Returns:
        Name -> function of (x, y) that gives points within the ball.
    """
    package = _package(guard, threat, seed, device)
    package.square.n_queries = queries
    fab_targeted, apgd_dlr = copy.copy(package.fab), copy.copy(package.apgd)
    fab_targeted.targeted, apgd_dlr.loss = True, "dlr"
    return {
        "clean": lambda x, y: x,
        "apgd-ce": package.apgd.perturb,
        "apgd-dlr": apgd_dlr.perturb,
        "apgd-t": package.apgd_targeted.perturb,
        "fab": package.fab.perturb,
        "fab-t": fab_targeted.perturb,
        "square": package.square.perturb,
    }


def fab_towards(guard: Guarded, threat: ThreatModel, device: torch.device) -> list[Perturb]:
    """FAB towards the most likely other class, the next, and so on, each for its own minimum norm.

    "fab-t" leaves an image as soon as one of them is inside the ball.

    Args:
        guard: the model, from `guarded`.
        threat: says the norm; points may lie outside its ball.
        device: where the images are.

    Returns:
        Functions of (x, y) that give points, x where none was found.
    """
    fab = _package(guard, threat, 0, device).fab  # nothing is drawn without restarts
    places = [copy.copy(fab) for _ in range(fab.n_target_classes)]
    for place, one in enumerate(places, start=2):  # 1 is the label itself
        one.target_class = place
    return [partial(one.attack_single_run, is_targeted=True) for one in places]


def _package(
    guard: Guarded, threat: ThreatModel, seed: int, device: torch.device
) -> pyautoattack.AutoAttack:
    """The package's own collection, with the parameters of its standard version."""
    package = pyautoattack.AutoAttack(
        partial(logits_of, guard),
        device=device,
        eps=threat.eps,
        norm=PACKAGE_NORM[threat.norm],
        seed=seed,
        version="custom",
    )
    sparse = threat.norm == "l1"
    package.apgd.n_restarts = 5 if sparse else 1
    package.fab.n_restarts = 1
    package.apgd.use_largereps = package.apgd_targeted.use_largereps = sparse
    package.apgd_targeted.n_target_classes = min(5 if sparse else 9, guard.classes - 1)
    package.fab.n_target_classes = min(9, guard.classes - 1)
    logger = flagger(guard.flags, "zero-gradient")
    package.apgd.logger = package.apgd_targeted.logger = logger
    return package
