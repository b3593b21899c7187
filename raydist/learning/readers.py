"""Data sets in their official file formats, as NumPy arrays.

Every reader takes (root, download) and returns (train, test), each a pair (x, y) with x uint8 of
shape (N, C, H, W) and y int64 of shape (N,). Nothing is written unless `download` is true and a
file is missing.
"""

import gzip
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Split = tuple[NDArray[Any], NDArray[np.int64]]
Splits = tuple[Split, Split]

MOST_LABEL = 9  # of MNIST and of Fashion-MNIST
DIGITS_TEST = 0.2  # share of the test split, which the set itself does not have


def digits(root: Path, download: bool) -> Splits:
    """Scikit-learn's bundled 1,797 digits of 8x8 pixels in 0..16, 20 % of each class for test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundle = load_digits()
    x, y = bundle.images[:, None].astype(np.uint8), bundle.target.astype(np.int64)
    # fixed, so that every run of every study is judged on the same images
    train, test = train_test_split(
        np.arange(len(y)), test_size=DIGITS_TEST, stratify=y, random_state=0
    )
    return (x[train], y[train]), (x[test], y[test])


def mnist(root: Path, download: bool) -> Splits:
    """MNIST from MNIST/raw, plain or .gz."""
    return _idx_pairs("MNIST", root, download)


def fashion_mnist(root: Path, download: bool) -> Splits:
    """Fashion-MNIST from FashionMNIST/raw, plain or .gz."""
    return _idx_pairs("FashionMNIST", root, download)


def cifar10(root: Path, download: bool) -> Splits:
    """CIFAR-10 from cifar-10-batches-py."""
    return _cifar("CIFAR10", root, download)


def cifar100(root: Path, download: bool) -> Splits:
    """CIFAR-100 (fine labels) from cifar-100-python."""
    return _cifar("CIFAR100", root, download)


def svhn(root: Path, download: bool) -> Splits:
    """SVHN, cropped digits, from train_32x32.mat and test_32x32.mat."""
    from torchvision.datasets import SVHN

    splits = []
    for split in ("train", "test"):
        missing = _missing(root, [SVHN.split_list[split][1]], download)
        data = _checked(root, SVHN, root, split=split, download=missing)
        splits.append((np.ascontiguousarray(data.data), data.labels.astype(np.int64)))
    return splits[0], splits[1]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    Args:
        path: the file; one that ends in .gz is unpacked in memory only.

    Returns:
        The array, uint8, in the shape that the file's header states.

    Raises:
        ValueError: the file is not IDX of unsigned bytes, or its length does not fit its header.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): fetch the file again") from None
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: fetch the file again")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).tolist()
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != math.prod(shape):
        raise ValueError(
            f"{path} holds {values.size} values, expected {math.prod(shape)} for shape "
            f"{tuple(shape)}: fetch the file again"
        )
    return values.reshape(shape)


def _idx_pairs(name: str, root: Path, download: bool) -> Splits:
    folder = root / name / "raw"
    stems = [
        f"{part}-{what}"
        for part in ("train", "t10k")
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    present = [
        next((p for p in (folder / s, folder / f"{s}.gz") if p.is_file()), None) for s in stems
    ]
    if missing := [f"{s}[.gz]" for s, path in zip(stems, present, strict=True) if path is None]:
        if not download:
            raise _not_found(folder, missing)
        from torchvision import datasets

        getattr(datasets, name)(root, download=True)
        present = [folder / stem for stem in stems]
    train, test = (_idx_pair(*present[n : n + 2]) for n in (0, 2))
    return train, test


def _idx_pair(images: Path | None, labels: Path | None) -> Split:
    """One split from its two files, which may have been mistaken for one another or for others."""
    assert images is not None and labels is not None
    x, y = read_idx(images), read_idx(labels)
    for path, array, axes, what in ((images, x, 3, "images"), (labels, y, 1, "labels")):
        if array.ndim != axes:
            raise ValueError(
                f"{path} holds an array of shape {array.shape}, expected {what} with {axes} "
                f"{'axes' if axes > 1 else 'axis'}: the file has another one's name, fetch it again"
            )
    if len(x) != len(y):
        raise ValueError(
            f"{labels} holds {len(y)} labels for the {len(x)} images of {images.name}: one of the "
            "files has another one's name, fetch them again"
        )
    if y.size and y.max() > MOST_LABEL:
        raise ValueError(
            f"{labels} holds labels up to {y.max()}, expected 0 to {MOST_LABEL}: fetch it again"
        )
    return x[:, None], y.astype(np.int64)


def _cifar(name: str, root: Path, download: bool) -> Splits:
    from torchvision import datasets

    reader = getattr(datasets, name)
    files = [file for file, _ in reader.train_list + reader.test_list] + [reader.meta["filename"]]
    missing = _missing(root / reader.base_folder, files, download)
    # each construction hashes all files, so one per split and no more
    train = _checked(root, reader, root, train=True, download=missing)
    test = _checked(root, reader, root, train=False, download=False)
    first, second = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))
        for part in (train, test)
    )
    return first, second


def _missing(folder: Path, files: Iterable[str], download: bool) -> bool:
    """Check whether files must be downloaded; raise if they are missing and must not be."""
    missing = [file for file in files if not (folder / file).is_file()]
    if missing and not download:
        raise _not_found(folder, missing)
    return bool(missing)


def _not_found(folder: Path, files: list[str]) -> FileNotFoundError:
    return FileNotFoundError(
        f"no {', '.join(files)} in {folder.absolute()}: set data.root or RAYDIST_DATA to the "
        "folder that holds the data sets, or data.download = true"
    )


def _checked(root: Path, reader: Any, *args: Any, **kwargs: Any) -> Any:
    """A torchvision reader whose complaint about checksums says what to do."""
    try:
        return reader(*args, **kwargs)
    except RuntimeError as error:
        if "corrupted" not in str(error):
            raise
        raise ValueError(
            f"the {reader.__name__} files in {root.absolute()} do not have their published "
            "checksums: delete them and fetch them again"
        ) from None
