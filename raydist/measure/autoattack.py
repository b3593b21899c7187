"""AutoAttack (arXiv:2003.01690), attack by attack, through the package pyautoattack.

The attacks are the package's; what is around them is not used: its state file cannot be resumed,
its result is not per attack, its custom version has other restarts, and it leaves the random
state, the trace function and a counter of the process changed.
"""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyautoattack
import torch
from pyautoattack import checks
from torch import Tensor, nn

from raydist.adversary.attack import frozen
from raydist.adversary.threat import ThreatModel
from raydist.measure.verdict import FEW_CLASSES, STANDARD, Mask, Verdict

Logits = Callable[[Tensor], Tensor]
Attack = Callable[[Tensor, Tensor], Tensor]


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
) -> Verdict:
    """Worst case over an ensemble of attacks, image by image (arXiv:2003.01690, section 5).

    Each attack runs on the images that all attacks before it left. Meanwhile the model is in eval
    mode and its parameters are frozen; random and trace state of the process are left as found.
    The verdict is a function of (model, images, batch, seed). The random state is the process'
    own, so one evaluation at a time in a process.

    An argument outside the ranges below is a ValueError. A logit that is not finite is a
    FloatingPointError, since NaN would count as robust.

    Args:
        model: gives logits (N, classes), on the device of `x`.
        x: images, float32 (N, C, H, W) in [0, 1].
        y: labels, int64 (N,) in 0..classes − 1.
        threat: the ball around each image; its bounds must be (0, 1). With eps = 0 the verdict
            is the clean one.
        classes: number of classes ≥ 2. From 4 on, the targeted attacks try min(9, classes − 1)
            targets; with 2 or 3 the default is APGD-CE, untargeted FAB and Square.
        batch: images per forward pass.
        seed: seed of every attack on every batch.
        attacks: names from `STANDARD` and `FEW_CLASSES`, in order; None is the full ensemble.
        on_progress: called with ("clean" or the attack, images done, images to do) per batch.

    Returns:
        Which attack broke which image, with seconds and flags.
    """
    names = (STANDARD if classes >= 4 else FEW_CLASSES) if attacks is None else tuple(attacks)
    _validate(x, y, threat, classes, batch, names)
    seen = set() if names == STANDARD else {"few-classes" if classes < 4 else "partial"}
    logits = partial(_logits, model, classes, seen)
    broken_by = np.full(len(x), -1, dtype=np.int8)
    seconds = [0.0] * (1 + len(names))
    with frozen(model), _random_state_kept():
        if len(x) > 0:
            _check(logits, x[:batch], y[:batch], seen)
        ensemble = _ensemble(logits, threat, classes, seed, x.device, seen)
        for position, name in enumerate(("clean", *names) if threat.eps > 0 else ("clean",)):
            start = time.perf_counter()
            standing = np.flatnonzero(broken_by == -1)
            for first in range(0, len(standing), batch):
                index = standing[first : first + batch]
                broken = _breaks(logits, ensemble[name], x[index], y[index])
                broken_by[index[broken]] = position
                if on_progress:
                    on_progress(name, first + len(index), len(standing))
            seconds[position] = time.perf_counter() - start
    return Verdict(names, broken_by, tuple(seconds[1:]), frozenset(seen))


def _validate(
    x: Tensor, y: Tensor, threat: ThreatModel, classes: int, batch: int, names: tuple[str, ...]
) -> None:
    known = dict.fromkeys((*STANDARD, *FEW_CLASSES))
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"attacks is {names}, expected different names from {tuple(known)}")
    if classes < (4 if "apgd-t" in names else 2):
        raise ValueError(f"classes is {classes}, expected >= 4 with apgd-t, >= 2 without")
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected a number of images >= 1: write 128")
    if threat.bounds != (0.0, 1.0):
        raise ValueError(f"threat.bounds is {threat.bounds}, expected (0.0, 1.0): rescale x")
    if x.ndim != 4 or x.dtype != torch.float32:
        shape = tuple(x.shape)
        raise ValueError(f"x is {x.dtype} {shape}, expected float32 (N, C, H, W): write x.float()")
    if not bool(((x >= 0) & (x <= 1)).all()):  # false for nan, too
        raise ValueError("x leaves [0, 1] or is nan, expected pixels in [0, 1]: write x / 255")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise ValueError(f"y is {y.dtype} {tuple(y.shape)}, expected int64 (N,): write y.long()")
    if not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"y leaves 0..{classes - 1}, expected labels below classes = {classes}")
    if threat.norm == "l2" and "square" in names and x.shape[2] < 5:
        raise ValueError(f"images are {x.shape[2]} high, expected >= 5 for the l2 Square attack")


def _logits(model: nn.Module, classes: int, seen: set[str], x: Tensor) -> Tensor:
    """The model, guarded: right shape, finite, a gradient even if it is zero, a fresh tensor."""
    out: Tensor = model(x)
    if out.shape != (len(x), classes):
        raise ValueError(f"classes is {classes}, but the model's output is {tuple(out.shape)}")
    if not bool(out.isfinite().all()):
        raise FloatingPointError("a logit is nan or infinite: the model has diverged")
    if x.requires_grad and torch.is_grad_enabled() and not out.requires_grad:
        seen.add("zero-gradient")  # the model detaches its input
        out = out + 0 * x.sum()
    # a copy, since Square writes into its logits and they may be a view of x
    return out.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _random_state_kept() -> AbstractContextManager[None]:
    """Restores torch's random states: each attack seeds all of them."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(range(torch.cuda.device_count()) if used else [])


def _flagger(seen: set[str], flag: str) -> SimpleNamespace:
    """What the package takes for a logger: each warning becomes the flag, once."""
    return SimpleNamespace(warning=lambda message: seen.add(flag))


def _check(logits: Logits, x: Tensor, y: Tensor, seen: set[str]) -> None:
    """The package's own checks of the model on one batch."""
    checks.check_randomized(logits, x, y, bs=len(x), logger=_flagger(seen, "randomised"))
    checks.check_range_output(logits, x, logger=_flagger(seen, "probabilities"))
    # this check counts into a global that is never reset, and ends all tracing
    trace, counts = sys.gettrace(), dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(counts, 0))
    try:
        checks.check_dynamic(logits, x, logger=_flagger(seen, "dynamic"))
    finally:
        sys.settrace(trace)
        checks.funcs.update(counts)


def _ensemble(
    logits: Logits,
    threat: ThreatModel,
    classes: int,
    seed: int,
    device: torch.device,
    seen: set[str],
) -> dict[str, Attack]:
    """The attacks by name, with the parameters of the standard version."""
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    package = pyautoattack.AutoAttack(
        logits, device=device, eps=threat.eps, norm=norm, seed=seed, version="custom"
    )
    package.apgd.n_restarts = package.fab.n_restarts = 1  # 5 otherwise
    targets = min(9, classes - 1)
    package.apgd_targeted.n_target_classes = package.fab.n_target_classes = targets
    package.apgd.logger = package.apgd_targeted.logger = _flagger(seen, "zero-gradient")
    fab_targeted = copy.copy(package.fab)
    fab_targeted.targeted = True
    return {
        "clean": lambda x, y: x,
        "apgd-ce": package.apgd.perturb,
        "apgd-t": package.apgd_targeted.perturb,
        "fab": package.fab.perturb,
        "fab-t": fab_targeted.perturb,
        "square": package.square.perturb,
    }


@torch.no_grad()
def _breaks(logits: Logits, attack: Attack, x: Tensor, y: Tensor) -> Mask:
    """(N,): True where the attack's point gets another label than y."""
    x_adv = attack(x.contiguous(), y)  # the package takes views, which channels_last refuses
    wrong: Mask = (logits(x_adv).argmax(1) != y).cpu().numpy()
    return wrong
