"""The arrays of a data set, and what is wrong with arrays that a user brings.

A message names the split, what it holds, what was expected and the expression to write.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydist.learning.readers import Split

SPLITS = ("train", "validation", "test")
FAINT = 1 / 8  # of the range: what is never brighter was scaled by something else
MOST_CHANNELS = 4  # of images whose channels stand last: grey, colour, with transparency


@dataclass(frozen=True, eq=False)
class Data:
    """A data set for classification.

    Args:
        train: pair (x, y): x of shape (N, C, H, W), uint8 or float32, y of shape (N,), int64.
        validation: a pair like it, possibly of length 0.
        test: a pair like it.
        classes: number of classes; labels are 0..classes − 1.
        scale: x · scale is in [0, 1].

    Raises:
        ValueError: a split is not such a pair, or has images of another type or shape than train.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    scale: float

    def __post_init__(self) -> None:
        for name in SPLITS:
            pair = getattr(self, name)
            check_arrays(name, pair)
            check_alike(name, pair[0], self.train[0])
            if len(pair[1]):
                check_values(name, pair, self.classes, self.scale)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that name the content: images, labels, scale."""
        hashed = hashlib.sha256(repr((self.classes, self.scale)).encode())
        for x, y in (self.train, self.validation, self.test):
            hashed.update(repr((x.shape, str(x.dtype))).encode())
            for part in (x, y):
                hashed.update(np.ascontiguousarray(part).data)
        return hashed.hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width


def check_arrays(name: str, pair: Split) -> None:
    """Images (N, C, H, W) and as many labels.

    Args:
        name: the name of the split.
        pair: the split.

    Raises:
        ValueError: if they are not; says what to write.
    """
    x, y = pair
    if x.ndim != 4 or x.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"{name} x is {x.dtype} of shape {x.shape}, expected uint8 or float32 of shape "
            f"(N, C, H, W){_remedy(x)}"
        )
    if _channels_last(x):
        raise ValueError(
            f"{name} x has the shape {x.shape}, which is (N, H, W, C), expected (N, C, H, W): "
            "write x.transpose(0, 3, 1, 2)"
        )
    if y.shape != (len(x),) or y.dtype != np.int64:
        raise ValueError(
            f"{name} y is {y.dtype} of shape {y.shape}, expected int64 of shape ({len(x)},), "
            f"one label for each x{_remedy_of_labels(x, y)}"
        )
    if len(y) == 0 and name != "validation":
        raise ValueError(f"{name} is empty, expected at least one sample")


def check_alike(name: str, x: NDArray[Any], train: NDArray[Any]) -> None:
    """The images of a split are of the type and the shape of those in train.

    Args:
        name: the name of the split.
        x: its images.
        train: those of the training set.

    Raises:
        ValueError: if they are not.
    """
    if x.dtype != train.dtype:
        raise ValueError(
            f"{name} x is {x.dtype}, but train x is {train.dtype}: write both as uint8 in 0 to 255 "
            "or both as floats in [0, 1]"
        )
    if x.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"{name} x has images of shape {x.shape[1:]}, but train x of {train.shape[1:]}, both "
            "expected as one (C, H, W): write both with the same channels and size"
        )


def check_values(name: str, pair: Split, classes: int, scale: float) -> None:
    """Labels 0..classes − 1 and pixels in [0, 1].

    Args:
        name: the name of the split.
        pair: the split, not empty.
        classes: number of classes.
        scale: factor to [0, 1].

    Raises:
        ValueError: if some are outside.
    """
    x, y = pair
    if not 0 <= y.min() <= y.max() < classes:
        from_one = y.min() == 1 and y.max() == classes
        raise ValueError(
            f"{name} labels run from {y.min()} to {y.max()}, expected 0 to {classes - 1} for "
            f"{classes} classes" + (": write y - 1" if from_one else "")
        )
    low, high = float(x.min()) * scale, float(x.max()) * scale
    if low >= 0 and high <= 1 + 1e-6:
        return
    remedy = "normalise inside the model, and write pixels as they were before"
    if not math.isfinite(low + high):
        remedy = "leave out what is not a number"
    elif low >= 0 and high <= 255:
        remedy = 'write x / 255, or "scale": 1 / 255 beside "train"'
    raise ValueError(
        f"{name} x runs from {low:g} to {high:g}, expected pixels in [0, 1], or uint8: {remedy}"
    )


def check_scales(splits: Mapping[str, Split], scale: float, stated: bool) -> None:
    """All splits use the same range of pixels, and use it.

    Args:
        splits: the splits as the user gave them.
        scale: factor to [0, 1].
        stated: whether the user gave it; otherwise it is a guess from the type.

    Raises:
        ValueError: if a split is faint: far below the others, or below what its type can hold.
    """
    tops = {name: float(x.max()) for name, (x, y) in splits.items() if len(y)}
    for name, top in tops.items():
        if not math.isfinite(top):
            raise ValueError(
                f"{name} x runs up to {top:g}, expected pixels in [0, 1], or uint8: leave out what "
                "is not a number"
            )
    for name, top in tops.items():
        x = splits[name][0]
        if not stated and top * scale < FAINT:
            unit = f"{top:g}"
            raise ValueError(
                f"{name} x is {x.dtype} from {x.min():g} to {unit}, expected pixels up to "
                f'{1 / scale:g}: write "scale": {_one_by(top)} beside "train" if {unit} is white, '
                f'or "scale": {_one_by(1 / scale)} if the images are as dark as that'
                if top
                else f"{name} x is 0 everywhere, expected images"
            )
        if top < FAINT * tops["train"] or tops["train"] < FAINT * top:
            raise ValueError(
                f"{name} x runs up to {top:g}, but train x up to {tops['train']:g}: write both on "
                "the same scale"
            )


def _one_by(top: float) -> str:
    """The factor that makes `top` 1, as one writes it."""
    return "1" if top == 1 else f"1 / {top:g}"


def _channels_last(x: NDArray[Any]) -> bool:
    """Check whether (N, C, H, W) reads as (N, H, W, C): few columns, and rows as for a picture."""
    few = x.shape[3] <= MOST_CHANNELS < min(x.shape[1:3])
    return bool(few and max(x.shape[1:3]) <= 4 * min(x.shape[1:3]))


def _remedy(x: NDArray[Any]) -> str:
    """Remedy for images of another type or number of axes."""
    if x.ndim == 3:
        return ": write x[:, None] for images of one channel"
    if x.ndim == 2:
        side = math.isqrt(x.shape[1])
        sides = f"{side}, {side}" if side * side == x.shape[1] else "height, width"
        return f": write x.reshape(-1, 1, {sides})"
    if x.dtype.kind == "c":
        return ": write abs(x), or x.real and x.imag as two channels"
    if x.dtype == np.bool_:
        return ': write x.astype("float32")'
    if np.issubdtype(x.dtype, np.integer) and x.size and 0 <= x.min() <= x.max() <= 255:
        return ': write x.astype("uint8")'
    return ""


def _remedy_of_labels(x: NDArray[Any], y: NDArray[Any]) -> str:
    """Remedy for labels of another type or shape."""
    if y.shape == (x.shape[-1],) and len(y) != len(x):
        return ": write x.transpose(3, 2, 0, 1) if the images lie along the last axis"
    if y.ndim == 2 and len(y) == len(x):
        return ": write y[:, 0]" if y.shape[1] == 1 else ": write y.argmax(axis=1)"
    if y.dtype.kind in "UOM" and y.shape == (len(x),):
        return ": write np.unique(y, return_inverse=True)[1]"
    if y.dtype.kind == "c":
        return ': write y.real.astype("int64")'
    if y.dtype.kind in "fb" and y.shape == (len(x),) and np.all(y == np.round(y)):
        return ': write y.astype("int64")'
    return ""
