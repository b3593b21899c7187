"""A model made ready for attacks, and everything around it left as found.

The package pyautoattack does not look at its arguments, counts NaN as robust, and leaves the random
state, the trace function and a counter of the process changed.
"""

import math
import sys
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace

import torch
from pyautoattack import checks
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.vector import frozen

Logits = Callable[[Tensor], Tensor]

# the least number of classes of an attack, and what needs it
NEEDS = {"apgd-dlr": (3, "DLR loss"), "apgd-t": (4, "targeted DLR loss")}


class Guarded(nn.Module):
    """A model under attack: its logits have the right shape, are finite, and have a gradient.

    That of a model that detaches its input is 0, and flagged.
    """

    def __init__(self, model: nn.Module, classes: int, flags: set[str]) -> None:
        """Guard a model.

        Args:
            model: gives logits (N, classes).
            classes: number of classes.
            flags: collects names of `raydist.measure.cascade.FLAGS`.
        """
        super().__init__()
        self.model, self.classes, self.flags = model, classes, flags

    def forward(self, x: Tensor) -> Tensor:
        """The logits.

        Args:
            x: images, (N, ...).

        Returns:
            (N, classes).

        Raises:
            ValueError: if they are of another shape.
            FloatingPointError: if one is not finite.
        """
        out: Tensor = self.model(x)
        if out.shape != (len(x), self.classes):
            shape = tuple(out.shape)
            raise ValueError(f"classes is {self.classes}, but the model's output is {shape}")
        # the sum first, which costs less: it is finite unless a logit is not, or all are huge
        if not math.isfinite(out.detach().sum().item()) and not bool(out.isfinite().all()):
            raise FloatingPointError("a logit is nan or infinite: the model has diverged")
        if x.requires_grad and torch.is_grad_enabled() and not out.requires_grad:
            self.flags.add("zero-gradient")
            out = out + 0 * x.sum()
        return out


@contextmanager
def guarded(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    package: Collection[str],
    classes: int,
    batch: int,
    seed: int,
    flags: set[str],
) -> Generator[Guarded]:
    """Surroundings of every attack: valid arguments, a model ready, no traces.

    Args:
        model: gives logits (N, classes).
        x: images, (N, ...) in [0, 1].
        y: labels, int64 (N,).
        threat: the ball around each image.
        package: names of the package's attacks that will run: they need float32 (N, C, H, W).
        classes: number of classes.
        batch: images per forward pass.
        seed: the seed of the process' random state meanwhile, for models that draw.
        flags: collects what the package's checks find on the first batch.

    Yields:
        The model, guarded, in eval mode with frozen parameters.
    """
    _validate_package(x, threat, classes, package)
    _validate(x, y, threat, classes, batch)
    guard = Guarded(model, classes, flags)
    with frozen(guard), _random_state_kept():
        torch.manual_seed(seed)
        if len(x) > 0:
            _check(partial(logits_of, guard), x[:batch], y[:batch], flags)
        yield guard


def logits_of(guard: Guarded, x: Tensor) -> Tensor:
    """A copy, since Square writes into its logits and they may be a view of x."""
    out: Tensor = guard(x)
    return out.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def flagger(seen: set[str], flag: str) -> SimpleNamespace:
    """Logger for the package: each warning becomes the flag, once."""
    return SimpleNamespace(warning=lambda message: seen.add(flag))


def _validate(x: Tensor, y: Tensor, threat: ThreatModel, classes: int, batch: int) -> None:
    if classes < 2:
        raise ValueError(f"classes is {classes}, expected >= 2")
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected a number of images >= 1: write 128")
    if threat.bounds != (0.0, 1.0):
        raise ValueError(f"threat.bounds is {threat.bounds}, expected (0.0, 1.0): rescale x")
    if not bool(((x >= 0) & (x <= 1)).all()):  # false for nan, too
        raise ValueError("x leaves [0, 1] or is nan, expected pixels in [0, 1]: write x / 255")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise ValueError(f"y is {y.dtype} {tuple(y.shape)}, expected int64 (N,): write y.long()")
    if not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"y leaves 0..{classes - 1}, expected labels below classes = {classes}")


def _validate_package(
    x: Tensor, threat: ThreatModel, classes: int, package: Collection[str]
) -> None:
    for name, (least, loss) in NEEDS.items():
        if name in package and classes < least:
            raise ValueError(
                f"classes is {classes}, expected >= {least} with {name}, for its {loss}: "
                "write another attack"
            )
    if package and (x.ndim != 4 or x.dtype != torch.float32):
        shape = tuple(x.shape)
        raise ValueError(f"x is {x.dtype} {shape}, expected float32 (N, C, H, W): write x.float()")
    misfit = square_misfit(x.shape[1:], threat.norm) if "square" in package else ""
    if misfit:
        raise ValueError(f"Square cannot run: {misfit}")


def square_misfit(shape: Sequence[int], norm: str) -> str:
    """Reason why the package's Square attack cannot run on images of a shape.

    Its l2 form tiles them with squares of side s = H // 5 from (H − 5 s) // 2 on, H the height. It
    fails where the last tile of a row or column leaves the image, as on 24 x 24 or 32 x 24.

    Args:
        shape: (C, H, W).
        norm: "linf", "l2" or "l1".

    Returns:
        The reason in words, or "".

    Example:
        >>> square_misfit((3, 32, 32), "l2"), square_misfit((3, 32, 24), "linf")
        ('', '')
        >>> square_misfit((3, 32, 24), "l2")
        'its l2 form does not tile images of 32 x 24'
    """
    height, width = shape[1:]
    side = height // 5
    begin = (height - 5 * side) // 2
    outside = any(begin + side * (n // max(side, 1)) > n for n in (height, width))
    if norm == "linf" or (side > 0 and (side == 1 or not outside)):
        return ""
    return f"its {norm} form does not tile images of {height} x {width}"


def _random_state_kept() -> AbstractContextManager[None]:
    """Restores torch's random states: each attack seeds all of them."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(range(torch.cuda.device_count()) if used else [])


def _check(logits: Logits, x: Tensor, y: Tensor, seen: set[str]) -> None:
    """The package's own checks of the model on one batch."""
    checks.check_randomized(logits, x, y, bs=len(x), logger=flagger(seen, "randomised"))
    checks.check_range_output(logits, x, logger=flagger(seen, "probabilities"))
    # this check counts into a global that is never reset, and ends all tracing
    trace, counts = sys.gettrace(), dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(counts, 0))
    try:
        checks.check_dynamic(logits, x, logger=flagger(seen, "dynamic"))
    finally:
        sys.settrace(trace)
        checks.funcs.update(counts)
