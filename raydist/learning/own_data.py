"""Data sets of one's own: what a "package.module:function" returns, checked split by split."""

import math
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydist.learning.images import SPLITS, Data, check_alike, check_arrays, check_scales
from raydist.learning.readers import Split
from raydist.lookup import closest, resolve

KEYS = (*SPLITS, "classes", "scale")


def read(name: str, params: Mapping[str, Any]) -> tuple[dict[str, Split], int, float]:
    """The set that a function returns.

    Args:
        name: "package.module:function".
        params: its arguments.

    Returns:
        The splits "train", "test" and, where the set has one, "validation"; the number of classes;
        the factor to [0, 1].

    Raises:
        ValueError: it is no such set.
    """
    found = resolve(name)(**params)
    if isinstance(found, Data):
        splits = {part: getattr(found, part) for part in SPLITS}
        check_scales(splits, found.scale, stated=True)
        return splits, found.classes, found.scale
    if not isinstance(found, Mapping) or not {"train", "test"} <= found.keys():
        got = f"keys {list(found)}" if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f'data set "{name}" returned {got}, expected a raydist.learning.data.Data or a dict '
            'with "train" and "test", each a pair (x, y)'
        )
    for key in found:
        if key not in KEYS:
            known, meant = ", ".join(f'"{each}"' for each in KEYS), closest(str(key), KEYS)
            raise ValueError(
                f'data set "{name}" returned the key {key!r}, expected some of {known}'
                + (f': did you mean "{meant}"?' if meant else "")
            )
    return _from_dict(found)


def _from_dict(found: Mapping[str, Any]) -> tuple[dict[str, Split], int, float]:
    splits = {part: _pair(part, found[part]) for part in SPLITS if part in found}
    for part, (x, y) in splits.items():
        check_alike(part, x, splits["train"][0])
        if len(y) == 0:
            raise ValueError(f"{part} is empty, expected at least one sample: leave it out")
    scale = found.get("scale")
    if scale is not None and not (_is(Real, scale) and 0 < scale < math.inf):
        raise ValueError(f"scale is {scale!r}, expected the factor that makes pixels 0 to 1: 1/255")
    guess = 1 / 255 if splits["train"][0].dtype == np.uint8 else 1.0
    check_scales(splits, float(scale or guess), stated=scale is not None)
    _check_labels(splits)
    classes = found.get("classes", max(int(y.max()) for _, y in splits.values()) + 1)
    if not (_is(Integral, classes) and classes > 0):
        raise ValueError(f"classes is {classes!r}, expected their number")
    return splits, int(classes), float(scale or guess)


def _check_labels(splits: Mapping[str, Split]) -> None:
    """Labels that are judged occur in train, or nobody can learn them."""
    known = {*splits["train"][1].tolist()}
    for name, (_, y) in splits.items():
        unknown = sorted({*y.tolist()} - known)
        if not unknown:
            continue
        some = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        line = f"{name} has the labels {some}, which do not occur in train"
        if len(unknown) == len({*y.tolist()}):
            raise ValueError(f"{line}, and no others: number the classes of both alike")
        warnings.warn(f"{line}: no model can learn them", stacklevel=2)


def _is(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _array(what: str, values: Any) -> NDArray[Any]:
    """Values of one shape as an array; ValueError if they are not."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{what} is a list of parts of unlike shapes, expected one shape (C, H, W) for all "
            "images and one label for each: crop, pad or resize them, and write np.stack(images)"
        ) from error


def _pair(name: str, pair: Any) -> Split:
    """The user's pair with types made ours: floats to float32, whole labels to int64."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name} is a {type(pair).__name__}, expected a pair (x, y) of arrays")
    x, y = (_array(f"{name} {which}", part) for which, part in zip("xy", pair, strict=True))
    x = x.astype(np.float32) if np.issubdtype(x.dtype, np.floating) else x
    y = y.astype(np.int64) if np.issubdtype(y.dtype, np.integer) else y
    check_arrays(name, (x, y))
    return x, y
