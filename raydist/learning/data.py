"""Data sets as arrays, the draw of a batch, and augmentation.

A set is read once and handed around as uint8 arrays: a batch becomes floats in [0, 1] on the
agent's device, by `to_tensor`, and is augmented there, by `augment`.
"""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raydist.learning import readers
from raydist.learning.readers import Split, Splits
from raydist.seeding import Purpose, numpy_rng

AUGMENTATION = {"cifar10": "crop-flip", "cifar100": "crop-flip", "svhn": "crop"}  # others: none

# name: (reader, number of classes, factor to [0, 1])
SETS: dict[str, tuple[Callable[[Path, bool], Splits], int, float]] = {
    "digits": (readers.digits, 10, 1 / 16),
    "mnist": (readers.mnist, 10, 1 / 255),
    "fashion-mnist": (readers.fashion_mnist, 10, 1 / 255),
    "cifar10": (readers.cifar10, 10, 1 / 255),
    "cifar100": (readers.cifar100, 100, 1 / 255),
    "svhn": (readers.svhn, 10, 1 / 255),
}


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
        ValueError: a split is not such a pair.
    """

    train: Split
    validation: Split
    test: Split
    classes: int
    scale: float

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            pair = getattr(self, name)
            _check_arrays(name, pair)
            if len(pair[1]):
                _check_values(name, pair, self.classes, self.scale)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width


def load(
    set: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.1,
    download: bool = False,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
) -> Data:
    """A data set by its name.

    The validation split is a random subset of the training set. It does not follow the run's seed:
    all runs of a study choose their models on the same images, and train on the same others.

    Args:
        set: a name in `SETS`, or "package.module:function": the function is called with `params`
            and returns a `Data`, or a dict with the pairs "train" and "test" and, optionally,
            "classes" (default: the largest label + 1). Its x are uint8, or floats in [0, 1].
        root: the folder of the data sets; default: $RAYDIST_DATA, else "data".
        validation: the fraction of the training set to hold out, in [0, 0.5].
        download: fetch files that are missing (never otherwise).
        seed: the seed of the validation split.
        params: the arguments of a "package.module:function".

    Returns:
        The set's arrays.

    Raises:
        ValueError: the set is unknown, or an argument is out of its range.

    Example:
        >>> data = load("digits")
        >>> data.train[0].shape, data.validation[0].shape, data.test[0].shape
        ((1293, 1, 8, 8), (144, 1, 8, 8), (360, 1, 8, 8))
    """
    if not 0 <= validation <= 0.5:
        raise ValueError(
            f"data.validation is {validation}, expected a fraction of the training set in "
            "[0, 0.5]: write 0.1"
        )
    if ":" in set:
        found = _from_plugin(set, params or {})
        if isinstance(found, Data):
            return found
        train, test, classes, scale = found
    elif params:
        raise ValueError(f'data set "{set}" takes no {", ".join(params)}: remove it')
    elif set not in SETS:
        near = difflib.get_close_matches(set, SETS, n=1)
        hint = f': write "{near[0]}"' if near else ' or "package.module:function"'
        known = ", ".join([*SETS, "quadratic"])
        raise ValueError(f'data.set is "{set}", expected one of {known}{hint}')
    else:
        reader, classes, scale = SETS[set]
        folder = Path(root or os.environ.get("RAYDIST_DATA", "data")).expanduser()
        train, test = reader(folder, download)
    return Data(*_hold_out(train, validation, seed), test, classes, scale)


def batch_indices(
    share_size: int, batch: int, seed: int, agent: int, round: int
) -> NDArray[np.int64]:
    """The samples of one round: epochs of permutations, the incomplete last batch dropped.

    Args:
        share_size: number of samples N_k of the agent.
        batch: batch size B, at most N_k.
        seed: the run's seed.
        agent: the agent k.
        round: the round n ≥ 1.

    Returns:
        Indices into the agent's share, of shape (B,), a function of the arguments alone.

    Raises:
        ValueError: the batch is larger than the share, or a number is not positive.

    Example:
        >>> epoch = [batch_indices(6, 2, seed=0, agent=0, round=n) for n in (1, 2, 3)]
        >>> sorted(np.concatenate(epoch).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    if not 1 <= batch <= share_size:
        raise ValueError(
            f"data.batch is {batch}, expected 1 to {share_size}, the samples of agent {agent}: "
            "write a smaller batch, or give the agents larger shares"
        )
    if round < 1:
        raise ValueError(f"round is {round}, expected 1 or more: round 0 is the start")
    epoch, position = divmod(round - 1, share_size // batch)
    order = numpy_rng(Purpose.BATCH, seed, agent, epoch).permutation(share_size)
    return order[position * batch : (position + 1) * batch]


def to_tensor(
    x: NDArray[Any] | torch.Tensor,
    scale: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The images x · scale as floats on a device, transferred before they are widened.

    Args:
        x: images of shape (N, C, H, W); an array may be read-only and is copied.
        scale: factor to [0, 1].
        dtype: a floating type.
        device: where to.

    Returns:
        A tensor of the shape of x.
    """
    tensor = torch.tensor(x) if isinstance(x, np.ndarray) else x
    return tensor.to(device).to(dtype) * scale


def augment(
    x: torch.Tensor, generator: torch.Generator, pad: int = 4, flip: bool = True
) -> torch.Tensor:
    """Random crop after zero padding, and random horizontal flip, per image.

    Args:
        x: images of shape (N, C, H, W), on any device.
        generator: where the draws come from; one on the CPU gives the same draws on all devices.
        pad: zeros on each side, in pixels; 0: no crop.
        flip: whether each image is mirrored with probability 1/2.

    Returns:
        A new tensor of the shape and type of x.
    """
    n, channels, height, width = x.shape

    def draw(high: int) -> torch.Tensor:
        drawn = torch.randint(high, (n, 1), generator=generator, device=generator.device)
        return drawn.to(x.device)

    rows = torch.arange(height, device=x.device) + draw(2 * pad + 1)  # (N, H)
    columns = torch.arange(width, device=x.device) + draw(2 * pad + 1)  # (N, W)
    if flip:
        columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _hold_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """The training set without, and the validation set with, a random fraction of its samples."""
    x, y = train
    held = np.zeros(len(y), bool)
    order = numpy_rng(Purpose.SPLIT, seed).permutation(len(y))
    held[order[: round(fraction * len(y))]] = True
    return (x[~held], y[~held]), (x[held], y[held])


def _from_plugin(name: str, params: Mapping[str, Any]) -> Data | tuple[Split, Split, int, float]:
    from raydist.plugin import resolve

    found = resolve(name)(**params)
    if isinstance(found, Data):
        return found
    if not isinstance(found, dict) or not {"train", "test"} <= found.keys():
        got = f"keys {sorted(found)}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f'data set "{name}" returned {got}, expected a raydist.learning.data.Data or a dict '
            'with "train" and "test", each a pair (x, y)'
        )
    train, test = (_pair(part, found[part]) for part in ("train", "test"))
    classes = int(found.get("classes", max(train[1].max(), test[1].max()) + 1))
    return train, test, classes, 1 / 255 if train[0].dtype == np.uint8 else 1.0


def _pair(name: str, pair: Any) -> Split:
    """The user's pair with types made ours: floats to float32, whole labels to int64."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name} is a {type(pair).__name__}, expected a pair (x, y) of arrays")
    x, y = np.asarray(pair[0]), np.asarray(pair[1])
    x = x.astype(np.float32) if np.issubdtype(x.dtype, np.floating) else x
    y = y.astype(np.int64) if np.issubdtype(y.dtype, np.integer) else y
    _check_arrays(name, (x, y))
    return x, y


def _check_arrays(name: str, pair: Split) -> None:
    x, y = pair
    if x.ndim != 4 or x.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"{name} x is {x.dtype} of shape {x.shape}, expected uint8 or float32 of shape "
            "(N, C, H, W)"
        )
    if y.shape != (len(x),) or y.dtype != np.int64:
        raise ValueError(
            f"{name} y is {y.dtype} of shape {y.shape}, expected int64 of shape ({len(x)},), "
            "one label for each x"
        )
    if len(y) == 0 and name != "validation":
        raise ValueError(f"{name} is empty, expected at least one sample")


def _check_values(name: str, pair: Split, classes: int, scale: float) -> None:
    x, y = pair
    if not 0 <= y.min() <= y.max() < classes:
        raise ValueError(
            f"{name} labels run from {y.min()} to {y.max()}, expected 0 to {classes - 1} for "
            f"{classes} classes"
        )
    if not (x.min() >= 0 and x.max() * scale <= 1 + 1e-6):
        raise ValueError(
            f"{name} x runs from {x.min() * scale} to {x.max() * scale}, expected pixels in "
            "[0, 1], or uint8"
        )
