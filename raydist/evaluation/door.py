"""The arguments of `raydist.robustness`, checked: what is wrong is told in one line."""

import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.config.fields import check_budget
from raydist.errors import InputError, whole
from raydist.evaluation.request import Request
from raydist.evaluation.subject import Subject
from raydist.evaluation.units import left_out
from raydist.learning.data import Data, to_tensor
from raydist.learning.images import check_arrays, check_values
from raydist.learning.readers import Split
from raydist.measure import attacks as by_name
from raydist.measure.columns import CLEAN
from raydist.measure.guard import square_misfit
from raydist.seeding import Purpose, drawing
from raydist.vector import frozen

Images = Tensor | NDArray[Any]


def count_classes(
    module: nn.Module, x: NDArray[Any], scale: float, at: torch.device, batch: int, seed: int
) -> int:
    """The number of a model's logits, all of which are finite.

    Args:
        module: the model.
        x: the images.
        scale: factor to [0, 1].
        at: the device.
        batch: images per pass.
        seed: the seed of the model's own draws.

    Returns:
        The number of classes.

    Raises:
        InputError: if the model fails on the images, or gives no logits (N, classes).
    """
    classes = 0
    with frozen(module), drawing(Purpose.IN_MEASUREMENT, seed, device=at), torch.no_grad():
        for first in range(0, len(x), batch):
            images = to_tensor(x[first : first + batch], scale, device=at)
            try:
                out = module(images)
            except Exception as error:
                shape = tuple(images.shape)
                raise InputError(
                    f"model fails on images of shape {shape}: {whole(error)}"
                ) from error
            if not isinstance(out, Tensor) or out.shape != (len(images), classes or _width(out)):
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise InputError(
                    f"model gives {got} for {len(images)} images, expected logits (N, classes) "
                    "of 2 or more classes: write a function that returns them"
                )
            classes = out.shape[1]
            bad = (~out.isfinite().all(1)).nonzero()
            if len(bad):
                image = first + int(bad[0])
                raise InputError(
                    f"model gives logits that are nan or infinite for image {image}, expected "
                    "numbers: its weights have diverged, or it needs other images"
                )
    return classes


def _width(out: Tensor) -> int:
    """The number of classes of some logits; -1 if they are of fewer than two."""
    return out.shape[1] if out.ndim == 2 and out.shape[1] > 1 else -1


def attack_names(attacks: Sequence[str] | str) -> tuple[str, ...]:
    """Names of attacks, each of which is one.

    Args:
        attacks: names, or one text of them with commas.

    Returns:
        The names as they were written.

    Raises:
        InputError: if there is none, or one is unknown; tells the closest.
    """
    names = tuple(attacks.replace(",", " ").split()) if isinstance(attacks, str) else tuple(attacks)
    if not names:
        raise InputError('attacks is empty, expected names: write ("pgd10", "autoattack")')
    for name in names:
        if name not in (CLEAN, "autoattack"):
            try:
                by_name.parse(name)
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"attacks: {error}") from error
    return names


def check_threat(threat: ThreatModel) -> None:
    """A budget is one of pixels in [0, 1].

    Args:
        threat: the budget.

    Raises:
        InputError: if it is not.
    """
    if not isinstance(threat, ThreatModel):
        raise InputError(
            f"threat is a {type(threat).__name__}, expected a budget: write "
            'raydist.adversary.threat.ThreatModel("linf", 8 / 255)'
        )
    try:
        check_budget("threat.eps", threat.eps, threat.norm)
    except ValueError as error:
        raise InputError(str(error)) from error
    if threat.bounds != (0.0, 1.0):
        raise InputError(f"threat.bounds is {threat.bounds}, expected (0.0, 1.0): rescale x")


def arrays(x: Images, y: Images) -> tuple[Split, float]:
    """Images as uint8 or float32, labels as int64.

    Args:
        x: images.
        y: labels.

    Returns:
        Both, and the factor that brings images to [0, 1].

    Raises:
        InputError: if they are not images (N, C, H, W) and as many labels.
    """
    images, labels = _array("x", x), _array("y", y)
    images = images.astype(np.float32) if images.dtype.kind == "f" else images
    labels = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
    if len(images) == 0:
        raise InputError("x is empty, expected at least one image")
    try:
        check_arrays("", (images, labels))
    except ValueError as error:
        raise InputError(str(error).strip()) from error
    scale = 1 / 255 if images.dtype == np.uint8 else 1.0
    _check_values((images, labels), int(labels.max()) + 1, scale)
    return (images, labels), scale


def _array(name: str, value: Images) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        kind = type(value).__name__
        raise InputError(
            f"{name} is a {kind}, expected a tensor or an array: write np.array({name})"
        )
    return value


def data_of(split: Split, classes: int, scale: float) -> Data:
    """Images and labels as a data set.

    Args:
        split: the images and labels.
        classes: number of classes.
        scale: factor to [0, 1].

    Returns:
        The set: its test images are these.

    Raises:
        InputError: if a pixel leaves [0, 1], or a label 0..classes − 1.
    """
    _check_values(split, classes, scale)
    x, y = split
    return Data(split, (x[:0], y[:0]), split, classes, scale)


def _check_values(split: Split, classes: int, scale: float) -> None:
    try:
        check_values("", split, classes, scale)
    except ValueError as error:  # which knows of tables where the scale stands
        raise InputError(str(error).strip().partition(', or "scale"')[0]) from error


def device_of(module: nn.Module, x: Images, device: torch.device | str | None) -> torch.device:
    """The device that computes: as asked, else that of the weights, else that of the images.

    Args:
        module: the model.
        x: the images.
        device: the device that was asked for.

    Returns:
        The device.

    Raises:
        InputError: if this machine has no such device.
    """
    if device is None:
        there = next(chain(module.parameters(), module.buffers()), None)
        there = x if there is None and isinstance(x, Tensor) else there
        return torch.device("cpu") if there is None else there.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(
            f"device is {str(device)!r}, expected one of this machine: {why}"
        ) from error
    return torch.device(device)


def check_attacks(subject: Subject, request: Request) -> None:
    """All attacks can run; of a smaller ensemble than AutoAttack's a warning tells.

    Args:
        subject: the subject that is judged.
        request: the attacks.

    Raises:
        InputError: if one cannot run on so few classes, or on images of this shape.
    """
    misfit = square_misfit(subject.data.shape, subject.threat.norm)
    if "autoattack" in request.attacks and misfit:
        raise InputError(f'attack "autoattack" cannot run: {misfit}: write "apgd-ce", "apgd-t"')
    for name, why in left_out(subject, request).items():
        if name != "autoattack":
            raise InputError(f'attack "{name}" cannot run: {why}: leave it out')
        warnings.warn(f"this is not AutoAttack: {why}", stacklevel=3)
