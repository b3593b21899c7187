"""Attacks for evaluation, by name.

    fgsm                                   one step of length ε from the image (arXiv:1412.6572)
    pgd<steps>[x<restarts>][@<step>]       cross-entropy, from uniform starts (arXiv:1706.06083)
    pgd<steps>[x<restarts>][@<step>]-margin   the margin instead (arXiv:1608.04644)
    apgd-ce, apgd-dlr, apgd-t              APGD, the last on targets (arXiv:2003.01690)
    fab, fab-t                             minimum norm (arXiv:1907.02044)
    square[<queries>]                      without gradients, 5000 queries (arXiv:1912.00049)
    module:function                        anyone's (model, x, y, threat, *, generator) -> points

Such as pgd20, pgd50x5, pgd100@1/255-margin, square1000. A step is ε / 4 unless it is given.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction

import numpy as np
from torch import Tensor, nn

from raydist.adversary.attack import by_name
from raydist.adversary.objective import margin
from raydist.adversary.threat import ThreatModel
from raydist.lookup import resolve
from raydist.measure.accuracy import pgd_correct
from raydist.measure.autoattack import PACKAGE, broken, perturbations
from raydist.measure.cascade import Mask
from raydist.measure.guard import NEEDS, Guarded, guarded, square_misfit
from raydist.measure.radii import radii
from raydist.seeding import Purpose, drawing, seed_for, torch_generator

__all__ = ["Attack", "breaks", "column", "parse", "radii", "skipped"]

EXAMPLES = ("fgsm", "pgd10", "pgd50x5", "pgd20-margin", "pgd100@1/255", *PACKAGE, "square1000")
GRAMMAR = (
    "fgsm, pgd<steps>[x<restarts>][@<step>][-margin], apgd-ce, apgd-dlr, apgd-t, fab, fab-t, "
    'square[<queries>] or "module:function"'
)
_PGD = re.compile(r"pgd([1-9]\d*)(?:x([1-9]\d*))?(?:@(\d+/\d+|\d*\.?\d+))?(-margin)?", re.ASCII)
_SQUARE = re.compile(r"square([1-9]\d*)?", re.ASCII)


@dataclass(frozen=True)
class Attack:
    """An attack as its name describes it.

    Attributes:
        kind: "fgsm", "pgd", a name of the package's, or "module:function".
        steps: the steps of PGD.
        restarts: runs of PGD; an image is broken if one of them breaks it.
        alpha: length of PGD's step; None is eps / 4.
        margin: whether PGD ascends the margin instead of the cross-entropy.
        queries: the queries of Square.
    """

    kind: str
    steps: int = 1
    restarts: int = 1
    alpha: float | None = None
    margin: bool = False
    queries: int = 5000


def parse(name: str) -> Attack:
    """The attack of a name.

    Args:
        name: by the grammar at the head of this module.

    Returns:
        The attack; "square" is "square5000".

    Raises:
        ValueError: if it is no attack; tells the grammar and the closest name.

    Example:
        >>> parse("pgd50x5")
        Attack(kind='pgd', steps=50, restarts=5, alpha=None, margin=False, queries=5000)
    """
    if ":" in name:
        resolve(name)
    if name == "fgsm" or name in PACKAGE or ":" in name:
        return Attack(name)
    if found := _SQUARE.fullmatch(name):
        return Attack("square", queries=int(found[1]))
    if found := _PGD.fullmatch(name):
        steps, restarts, step, last = found.groups()
        alpha = _length(step) if step else None
        if alpha != 0:
            return Attack("pgd", int(steps), int(restarts or 1), alpha, margin=last is not None)
    closest = get_close_matches(name.lower(), EXAMPLES, 1, cutoff=0.0)[0]
    raise ValueError(f'attack is "{name}", expected {GRAMMAR}: write for example {closest}')


def _length(step: str) -> float:
    """A step as a number; 0, which is none, where it divides by 0."""
    try:
        return float(Fraction(step))
    except ZeroDivisionError:
        return 0.0


def column(name: str) -> str:
    """Column of the accuracy under an attack in tables.

    Args:
        name: the name of an attack, or another entry of a preset.

    Returns:
        The name in letters, digits and underscores.

    Example:
        >>> column("apgd-ce"), column("val_pgd10"), column("pgd100@1/255")
        ('apgd_ce_acc', 'val_pgd10_acc', 'pgd100_step_1_255_acc')
    """
    return re.sub(r"\W", "_", name.replace("@", "_step_")) + "_acc"


def skipped(
    names: Collection[str], classes: int, shape: Sequence[int] | None = None, norm: str = "linf"
) -> dict[str, str]:
    """The attacks that need more classes, or images of another shape.

    Args:
        names: the names of attacks.
        classes: number of classes.
        shape: (C, H, W) of the images; None: whatever the attacks need.
        norm: the norm of the budget.

    Returns:
        Name -> why it cannot run, in words.

    Example:
        >>> skipped(["pgd10", "apgd-t"], classes=3)
        {'apgd-t': 'its targeted DLR loss needs 4 classes or more, and there are 3'}
    """
    needs = {name: NEEDS.get(parse(name).kind, (0, "")) for name in names}
    found = {
        name: f"its {loss} needs {least} classes or more, and there are {classes}"
        for name, (least, loss) in needs.items()
        if classes < least
    }
    misfit = square_misfit(shape, norm) if shape is not None else ""
    if misfit:
        found |= {name: misfit for name in names if parse(name).kind == "square"}
    return found


def breaks(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    classes: int,
    batch: int = 128,
    seed: int = 0,
    flags: set[str] | None = None,
) -> Mask:
    """Mask of the images that an attack takes away from the model.

    An image that is wrong without attack counts as broken. Random and trace state of the process,
    the model's mode and its gradients are left as found; the random state is the process' own, so
    one evaluation at a time in a process. The result is a function of (model, images, batch, seed).

    Args:
        name: the name of the attack.
        model: gives logits (N, classes), on the device of `x`.
        x: images, float32 (N, C, H, W) in [0, 1].
        y: labels, int64 (N,) in 0..classes − 1.
        threat: the ball around each image; its bounds must be (0, 1).
        classes: number of classes ≥ 2.
        batch: images per forward pass.
        seed: seed of the attack.
        flags: collects those names of `raydist.measure.cascade.FLAGS` that show up.

    Returns:
        (N,): True where the attack changes the label, or it was wrong before.

    Raises:
        ValueError: an unknown name, an attack that needs more classes, or an argument outside these
            ranges.
        FloatingPointError: a logit that is not finite, since NaN would count as robust.
    """
    attack, seen = parse(name), set() if flags is None else flags
    package = [attack.kind] if attack.kind in PACKAGE else []
    with guarded(model, x, y, threat, package, classes, batch, seed, seen) as guard:
        if ":" in name:
            return _by_own(name, guard, x, y, threat, batch, seed)
        if not package:
            return _by_gradient_steps(attack, guard, x, y, threat, batch, seed)
        run = perturbations(guard, threat, seed, x.device, attack.queries)
        wrong = broken(guard, run["clean"], x, y, np.arange(len(x)), batch)
        if threat.eps > 0:
            right = np.flatnonzero(~wrong)
            wrong[right] = broken(guard, run[attack.kind], x, y, right, batch)
    return wrong


def _by_own(
    name: str, guard: Guarded, x: Tensor, y: Tensor, threat: ThreatModel, batch: int, seed: int
) -> Mask:
    """`breaks` of an attack of the user's own, on the images that are right without it."""
    attack, draw = by_name(name, {}), torch_generator(Purpose.EVALUATE, seed, device=x.device)

    def perturb(x: Tensor, y: Tensor) -> Tensor:
        return attack(guard, x, y, threat, generator=draw)

    wrong = broken(guard, lambda x, y: x, x, y, np.arange(len(x)), batch)
    right = np.flatnonzero(~wrong)
    with drawing(Purpose.IN_CODE, seed, device=x.device):
        wrong[right] = broken(guard, perturb, x, y, right, batch)
    return wrong


def _by_gradient_steps(
    attack: Attack, guard: Guarded, x: Tensor, y: Tensor, threat: ThreatModel, batch: int, seed: int
) -> Mask:
    """`breaks` of FGSM and PGD; each restart only sees the images that the ones before it left."""
    fgsm = attack.kind == "fgsm"
    standing = np.arange(len(x))
    for restart in range(attack.restarts):
        kept = pgd_correct(
            guard,
            x[standing],
            y[standing],
            threat,
            steps=attack.steps,
            alpha=threat.eps if fgsm else attack.alpha,
            start="zero" if fgsm else "uniform",
            loss=margin if attack.margin else "ce",
            batch=batch,
            seed=seed if restart == 0 else seed_for(Purpose.EVALUATE, seed, agent=restart),
        )
        standing = standing[kept]
    wrong = np.ones(len(x), dtype=np.bool_)
    wrong[standing] = False
    return wrong
