"""Data sets as arrays, the draw of a batch, and augmentation.

A set is read once and handed around as uint8 arrays: a batch becomes floats in [0, 1] on the
agent's device, by `to_tensor`, and is augmented there, by `augment`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydist.learning import own_data, readers
from raydist.learning.images import Data as Data
from raydist.learning.readers import Split, Splits
from raydist.lookup import OWN, ours
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
            "validation" (then nothing is held out), "classes" (default: the largest label + 1) and
            "scale", the factor to [0, 1]. Its x are uint8, or floats in [0, 1] unless "scale"
            says otherwise.
        root: the folder of the data sets; default: $RAYDIST_DATA, else "data".
        validation: the fraction of the training set to hold out, in [0, 0.5].
        download: fetch files that are missing (never otherwise).
        seed: the seed of the validation split.
        params: the arguments of a "package.module:function".

    Returns:
        The set's arrays.

    Raises:
        ValueError: the set is unknown, an argument is out of its range, or a set of one's own has
            splits that do not fit one another.

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
        splits, classes, scale = own_data.read(set, params or {})
        train, held = splits["train"], splits.get("validation")
        if held is None:
            train, held = _hold_out(train, validation, seed)
        return Data(train, held, splits["test"], classes, scale)
    if params:
        raise ValueError(f'data set "{set}" takes no {", ".join(params)}: remove it')
    reader, classes, scale = ours(SETS, set, "data.set", ("quadratic", OWN))
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


def transformed(x: Tensor, rotate: float = 0.0, brightness: float = 1.0) -> Tensor:
    """Images as this agent's camera sees them.

    Args:
        x: images in [0, 1], (N, C, H, W).
        rotate: degrees, anticlockwise about the middle; what comes from outside is black.
        brightness: factor ≥ 0 on all pixels, clipped at 1.

    Returns:
        A tensor like x; x itself if nothing changes.

    Example:
        >>> import torch
        >>> transformed(torch.full((1, 1, 2, 2), 0.4), brightness=0.5).unique()
        tensor([0.2000])
    """
    if rotate:
        from torchvision.transforms.v2 import functional  # not for agents that do not rotate

        x = functional.rotate(x, rotate)
    return x if brightness == 1 else (x * brightness).clamp(max=1.0)
