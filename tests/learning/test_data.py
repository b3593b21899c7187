import gzip
import hashlib
import os
import pickle
import socket

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from raydist.learning.data import Data, augment, batch_indices, load, to_tensor
from raydist.learning.model import NORMALISATION
from raydist.learning.readers import read_idx

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2])
MNIST_FILES = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (10, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def data_root():
    root = os.environ.get("RAYDIST_DATA")
    if not root:
        pytest.skip("RAYDIST_DATA is not set")
    return root


def load_or_skip(name, root, **kwargs):
    try:
        return load(name, root=root, **kwargs)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write_mnist(folder, zipped):
    folder.mkdir(parents=True)
    for name, array in MNIST_FILES.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))


def rows(*splits):
    """All (image, label) pairs of the splits, sorted."""
    return sorted((x.tobytes(), int(y)) for xs, ys in splits for x, y in zip(xs, ys, strict=True))


# the sets


def test_digits_are_split_without_loss_and_the_test_split_is_stratified():
    data, bundle = load("digits"), load_digits()
    whole = (bundle.images[:, None].astype(np.uint8), bundle.target)
    assert rows(data.train, data.validation, data.test) == rows(whole)
    assert (data.classes, data.scale, data.shape) == (10, 1 / 16, (1, 8, 8))
    shares = np.bincount(data.test[1]) / np.bincount(bundle.target)
    assert shares == pytest.approx([0.2] * 10, abs=0.01)


def test_another_seed_holds_out_other_samples_but_keeps_the_test_split():
    first, again, other = load("digits"), load("digits"), load("digits", seed=1)
    assert np.array_equal(first.validation[0], again.validation[0])
    assert not np.array_equal(first.validation[0], other.validation[0])
    assert np.array_equal(first.test[0], other.test[0])


@pytest.mark.parametrize(("fraction", "held"), [(0.0, 0), (0.1, 144), (0.5, 718)])
def test_validation_is_the_fraction_asked_for(fraction, held):
    data = load("digits", validation=fraction)
    assert len(data.validation[1]) == held
    assert len(data.train[1]) == 1437 - held


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_idx_sets_are_read_in_place(tmp_path, monkeypatch, name, folder, zipped):
    write_mnist(tmp_path / folder, zipped)
    before = sorted(path.name for path in (tmp_path / folder).iterdir())
    monkeypatch.setenv("RAYDIST_DATA", str(tmp_path))
    data = load(name, validation=0.25, download=True)  # nothing is missing: nothing is fetched
    images, labels = (MNIST_FILES[f"train-{part}-ubyte"] for part in ("images-idx3", "labels-idx1"))
    assert rows(data.train, data.validation) == rows((images, labels))
    assert np.array_equal(data.test[0][:, 0], MNIST_FILES["t10k-images-idx3-ubyte"])
    assert np.array_equal(data.test[1], np.arange(10))
    assert len(data.validation[1]) == 5
    assert sorted(path.name for path in (tmp_path / folder).iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "not an IDX file"),
        ("a", b"\0\0\x0d\x01" + bytes(8), "not an IDX file"),  # floats
        ("a", b"\0\0\x08\x03" + bytes(4), "not an IDX file"),  # the header is cut off
        ("a", idx(np.zeros((2, 3), np.uint8))[:-1], r"5 values, expected 6 for shape \(2, 3\)"),
        ("a.gz", gzip.compress(idx(np.zeros(9, np.uint8)), mtime=0)[:-9], "cannot be unpacked"),
        ("a.gz", b"<html>not found</html>", "cannot be unpacked"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte", "10 labels for the 20 images of tra"),
        ("t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte", "20 labels for the 10 images of t10"),
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", r"shape \(20,\), expected images"),
        ("t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte", r"\(10, 28, 28\), expected labels"),
    ],
)
def test_idx_files_under_anothers_name_are_named(tmp_path, name, other, message):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder, zipped=False)
    (folder / name).write_bytes(idx(MNIST_FILES[other]))
    with pytest.raises(ValueError, match=message) as caught:
        load("mnist", root=tmp_path)
    assert str(folder / name) in str(caught.value)


def test_labels_of_another_set_are_named_by_their_file(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder, zipped=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(10, 26, np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte holds labels up to 26, expected"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("mnist", "MNIST/raw", "train-images-idx3-ubyte[.gz]"),
        ("fashion-mnist", "FashionMNIST/raw", "t10k-labels-idx1-ubyte[.gz]"),
        ("cifar10", "cifar-10-batches-py", "data_batch_5"),
        ("cifar100", "cifar-100-python", "train, test"),
        ("svhn", "", "train_32x32.mat"),
    ],
)
def test_missing_files_are_named_with_their_place_and_remedy(tmp_path, name, folder, file):
    with pytest.raises(FileNotFoundError) as caught:
        load(name, root=tmp_path)
    message = str(caught.value)
    for part in (file, str(tmp_path / folder), "data.root", "RAYDIST_DATA", "data.download = true"):
        assert part in message
    assert "\n" not in message


def test_root_is_the_argument_then_the_environment_then_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYDIST_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "data" / "MNIST")):
        load("mnist")
    monkeypatch.setenv("RAYDIST_DATA", str(tmp_path / "shelf"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "shelf" / "MNIST")):
        load("mnist")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "mine" / "MNIST")):
        load("mnist", root=tmp_path / "mine")


def test_missing_files_are_fetched_where_asked_for(tmp_path, monkeypatch):
    def downloader(root, download):
        assert download
        write_mnist(root / "MNIST" / "raw", zipped=False)

    monkeypatch.setattr("torchvision.datasets.MNIST", downloader)
    assert load("mnist", root=tmp_path, download=True).test[0].shape == (10, 1, 28, 28)


def write_cifar10(root, monkeypatch):
    """Five training batches and a test batch of two images each, with their checksums."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir()
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    images = RNG.integers(0, 256, (len(names), 2, 3, 32, 32), dtype=np.uint8)
    sums = []
    for name, batch in zip(names, images, strict=True):
        content = {"data": batch.reshape(2, -1), "labels": [1, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
        sums.append((name, hashlib.md5((folder / name).read_bytes()).hexdigest()))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    meta = dict(CIFAR10.meta, md5=hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return images


def test_cifar_comes_with_channels_first(tmp_path, monkeypatch):
    images = write_cifar10(tmp_path, monkeypatch)
    data = load("cifar10", root=tmp_path, validation=0)
    assert np.array_equal(data.train[0], images[:5].reshape(10, 3, 32, 32))
    assert np.array_equal(data.test[0], images[5])
    assert data.train[1].tolist() == [1, 9] * 5
    assert data.train[0].flags.c_contiguous


def test_cifar_with_wrong_checksums_is_refused(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_1").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"CIFAR10 files .* do not have their published checksums"):
        load("cifar10", root=tmp_path)


def test_svhn_is_read_from_its_matlab_files(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images = RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    lists = {}
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        labels = np.array([[10], [1], [2], [3], [9]], np.uint8)  # 10 is the digit 0
        savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": labels})
        lists[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", lists)
    data = load("svhn", root=tmp_path, validation=0)
    assert np.array_equal(data.train[0], images)
    assert data.test[1].tolist() == [0, 1, 2, 3, 9]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "train", "test"),
    [("mnist", (1, 28, 28), 60_000, 10_000), ("cifar10", (3, 32, 32), 50_000, 10_000)],
)
def test_official_sets_have_their_known_sizes_and_statistics(data_root, name, shape, train, test):
    data = load_or_skip(name, data_root)
    assert data.shape == shape
    assert len(data.validation[1]) == train // 10
    assert len(data.train[1]) == train - train // 10
    assert len(data.test[1]) == test
    if name == "cifar10":
        assert np.bincount(data.test[1]).tolist() == [1000] * 10
    whole = [x.astype(np.float32) * data.scale for x, _ in (data.train, data.validation)]
    mean = np.mean(np.concatenate(whole), axis=(0, 2, 3), dtype=np.float64)
    std = np.std(np.concatenate(whole), axis=(0, 2, 3), dtype=np.float64)
    assert mean == pytest.approx(NORMALISATION[name]["mean"], abs=5.1e-5)
    assert std == pytest.approx(NORMALISATION[name]["std"], abs=5.1e-5)


# sets of one's own


def own_bytes():
    return {"train": (X, Y), "test": (X[:3], Y[:3].astype(np.int32))}


def own_floats(size):
    x = torch.rand(size, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"train": [x, torch.arange(size) % 5], "test": (x, [4] * size)}


def own_validation(**changes):
    """Three splits of which none is a part of another."""
    return returns(validation=(X[1:4], Y[1:4]), **changes)


def own_grey_levels():
    x = X % 17
    return returns(train=(x, Y), test=(x, Y), scale=np.float64(1 / 16))


def own_data():
    return Data((X, Y), (X[:1], Y[:1]), (X[:2], Y[:2]), classes=5, scale=1 / 300)


def returns(**changes):
    return {**own_bytes(), **changes}


def test_a_dict_of_bytes_becomes_a_data_set():
    data = load(f"{__name__}:own_bytes", validation=0.5)
    assert (data.classes, data.scale, data.shape) == (3, 1 / 255, (1, 4, 4))
    assert rows(data.train, data.validation) == rows((X, Y))
    assert data.test[1].dtype == np.int64


@pytest.mark.filterwarnings("ignore:.*which do not occur in train")
def test_a_function_of_ones_own_gets_its_parameters():
    data = load(f"{__name__}:own_floats", params={"size": 8}, validation=0)
    assert (data.classes, data.scale, data.shape) == (5, 1.0, (2, 3, 3))
    assert data.train[0].dtype == np.float32


def test_a_data_object_is_taken_as_it_is():
    data = load(f"{__name__}:own_data", validation=0.5)
    assert (data.classes, data.scale, len(data.train[1]), len(data.validation[1])) == (
        *(5, 1 / 300),
        *(6, 1),
    )


@pytest.mark.filterwarnings("ignore:.*which do not occur in train")
def test_a_validation_split_of_ones_own_is_used_and_nothing_held_out():
    data = load(f"{__name__}:own_validation", validation=0.5)
    assert rows(data.train) == rows((X, Y))
    assert rows(data.validation) == rows((X[1:4], Y[1:4]))
    data = load(f"{__name__}:own_validation", params={"train": (X[:2], Y[:2])})
    assert data.classes == 3  # label 2 is in validation and test only


def test_some_labels_that_train_has_not_are_told():
    with pytest.warns(UserWarning, match="test has the labels 3, which do not occur in train: no"):
        load(f"{__name__}:own_validation", params={"test": (X, np.maximum(Y, 3 * (Y > 1)))})


def test_a_scale_of_ones_own_is_used():
    data = load(f"{__name__}:own_grey_levels", validation=0)
    assert data.scale * data.train[0].max() == 1 == data.scale * 16


@pytest.mark.parametrize(
    "shape",
    [
        *((6, 3, 8, 3), (6, 1, 28, 1), (6, 2, 3, 3), (6, 4, 9, 4)),  # channels are few, so first
        *((6, 12, 1, 1), (6, 1, 12, 1), (6, 22, 400, 1)),  # tables and time series
        *((6, 8, 8, 5), (6, 1, 1, 3), (6, 3, 32, 32)),
    ],
)
def test_shapes_that_may_be_n_c_h_w_are_taken(shape):
    x = np.ones(shape, np.float32)
    assert Data((x, Y), (x, Y), (x, Y), classes=3, scale=1.0).shape == shape[1:]


def no_dict():
    return X, Y


def no_test():
    return {"train": (X, Y)}


def no_pair():
    return returns(test=X)


def flat_images():
    return returns(train=(X.reshape(6, 16), Y))


def wrong_type():
    return returns(train=(X.astype(np.int32), Y))


FLOATS = (X / 255).astype(np.float32)


def floats(train, **changes):
    return returns(**{"train": (train, Y), "test": (FLOATS, Y)} | changes)


def bright():
    x = X.astype(np.float32)
    return floats(x, test=(x, Y))


def divided_in_test_only():
    return floats(X.astype(np.float32))


def standardised():
    return floats((FLOATS - 0.5) / 0.25)


def not_a_number():
    return floats(np.full((6, 1, 4, 4), np.nan))


def channels_last():
    return returns(train=(np.ones((6, 28, 20, 1), np.uint8), Y))


def no_channels():
    return returns(test=(X[:, 0], Y))


def images_last():
    return returns(train=(X.transpose(2, 3, 1, 0), Y))


def integers():
    return returns(test=(X.astype(np.int64), Y))


def masks():
    return returns(train=(X > 9, Y))


def other_type():
    return returns(test=(FLOATS, Y))


def other_type_in_validation():
    return own_validation(test=(X[:2], Y[:2])) | {"validation": (FLOATS, Y)}


def other_channels():
    return returns(test=(np.repeat(X, 3, 1), Y))


def other_size():
    return own_validation() | {"validation": (X[..., :3], Y)}


def zeros_and_ones():
    return returns(train=(X % 2, Y), test=(X % 2, Y))


def zeros_and_ones_in_test():
    return returns(test=(X % 2, Y), scale=1 / 255)


def divided_twice():
    return floats(FLOATS / 255)


def divided_twice_in_validation():
    return floats(FLOATS, validation=(FLOATS / 255, Y), scale=1)


def black():
    return returns(test=(X * 0, Y))


def data_of_two_scales():
    return Data((X, Y), (X % 2, Y), (X, Y), classes=3, scale=1 / 255)


def data_of_two_types():
    return Data((X, Y), (X, Y), (FLOATS, Y), classes=3, scale=1 / 255)


def one_hot():
    return returns(train=(X, np.eye(3)[Y]))


def words():
    return returns(train=(X, np.array(["a", "b", "c"])[Y]))


def from_one():
    return returns(train=(X, Y + 1), test=(X, Y + 1), classes=3)


def no_validation():
    return returns(validation=(X[:0], Y[:0]))


def half_a_class():
    return returns(classes=3.5)


def no_scale():
    return returns(scale=0)


def unknown_key():
    return returns(clases=3)


def val():
    return returns(val=(X, Y))


def short_labels():
    return returns(train=(X, Y[:5]))


def float_labels():
    return returns(train=(X, Y / 2))


def too_few_classes():
    return returns(classes=2)


def empty():
    return returns(test=(X[:0], Y[:0]))


def ragged():
    return returns(train=([[[[1, 2]]], [[[3]]]], [0, 1]))


def endless():
    return floats(FLOATS, test=(FLOATS * np.inf, Y))


def complex_images():
    return returns(train=(X.astype(complex), Y))


def dates():
    return returns(train=(X, np.datetime64("2026-01-01") + Y))


def disjoint():
    return returns(test=(X, Y + 3))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (ragged, r"train x is a list of parts of unlike shapes.* write np.stack\(images\)"),
        (endless, "test x runs up to (inf|nan).* leave out what is not a number"),
        (complex_images, r"train x is complex128 .*: write abs\(x\)"),
        (dates, r"train y is datetime64.* write np.unique\(y, return_inverse=True\)"),
        (disjoint, "test has the labels 3, 4, 5, which do not occur in train, and no others"),
        (zeros_and_ones, 'write "scale": 1 beside "train" if 1 is white, or "scale": 1 / 255 if'),
        (no_dict, r"returned tuple, expected a raydist\.learning\.data\.Data or a dict"),
        (no_test, r"returned keys \['train'\]"),
        (no_pair, "test is a ndarray, expected a pair"),
        (flat_images, r"train x is uint8 of shape \(6, 16\), expected"),
        (wrong_type, "train x is int32"),
        (bright, r"expected pixels in \[0, 1\]"),
        (not_a_number, r"expected pixels in \[0, 1\]"),
        (short_labels, r"train y is int64 of shape \(5,\), expected int64 of shape \(6,\)"),
        (float_labels, "train y is float64"),
        (channels_last, r"\(6, 28, 20, 1\), which is .* write x.transpose\(0, 3, 1, 2\)"),
        (no_channels, r"test x is uint8 of shape \(6, 4, 4\), expected .*: write x\[:, None\]"),
        (flat_images, r"write x.reshape\(-1, 1, 4, 4\)"),
        (images_last, r"of shape \(6,\), .* write x.transpose\(3, 2, 0, 1\)"),
        (integers, r'test x is int64 .* write x.astype\("uint8"\)'),
        (masks, r'train x is bool .* write x.astype\("float32"\)'),
        (other_type, "test x is float32, but train x is uint8: write both as uint8 in 0 to 255"),
        (other_type_in_validation, "validation x is float32, but train x is uint8"),
        (other_channels, r"test x has images of shape \(3, 4, 4\), but train x of \(1, 4, 4\)"),
        (other_size, r"validation x has images of shape \(1, 4, 3\), but train x of \(1, 4, 4\)"),
        (
            zeros_and_ones,
            'train x is uint8 from 0 to 1, expected pixels up to 255: write "scale": ',
        ),
        (zeros_and_ones_in_test, r"test x runs up to 1, but train x up to 2\d\d: write both on"),
        (
            divided_twice,
            r'train x is float32 from 0.* to 0.00\d+, expected .* write "scale": 1 / 0',
        ),
        (divided_twice_in_validation, "validation x runs up to 0.00"),
        (divided_in_test_only, r"test x runs up to 0.97\d*, but train x up to 2\d\d"),
        (black, "test x is 0 everywhere"),
        (data_of_two_scales, r"validation x runs up to 1, but train x up to 2\d\d"),
        (data_of_two_types, "test x is float32, but train x is uint8"),
        (bright, r'from? ?.* to 2\d\d, .* write x / 255, or "scale": 1 / 255 beside "train"'),
        (standardised, r"runs from -\d.* to \d.*, expected .* normalise inside the model"),
        (one_hot, r"y is float64 of shape \(6, 3\), .* write y.argmax\(axis=1\)"),
        (words, r"train y is <U1 .* write np.unique\(y, return_inverse=True\)\[1\]"),
        (from_one, "labels run from 1 to 3, expected 0 to 2 for 3 classes: write y - 1"),
        (no_validation, "validation is empty, expected at least one sample: leave it out"),
        (half_a_class, "classes is 3.5, expected their number"),
        (no_scale, "scale is 0, expected the factor"),
        (unknown_key, 'the key \'clases\', expected some of "train", .*: did you mean "classes"'),
        (val, "the key 'val', .*: did you mean \"validation\""),
        (too_few_classes, "labels run from 0 to 2, expected 0 to 1"),
        (empty, "test is empty"),
    ],
)
def test_wrong_sets_of_ones_own_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        load(f"{__name__}:{function.__name__}", validation=0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cifar-10", {}, 'write "cifar10"'),
        ("imagenet", {}, "expected one of digits, mnist"),
        ("digits", {"validation": 0.6}, "data.validation is 0.6"),
        ("digits", {"validation": -0.1}, "data.validation is -0.1"),
        ("digits", {"params": {"size": 3}}, "takes no size"),
        (f"{__name__}:missing", {}, "has no missing"),
    ],
)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(name, **arguments)


# batches


@given(
    size=st.integers(1, 40),
    batch=st.integers(1, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_an_epoch_draws_every_sample_at_most_once(size, batch, seed, epoch):
    if batch > size:
        with pytest.raises(ValueError, match=f"data.batch is {batch}, expected 1 to {size}"):
            batch_indices(size, batch, seed, 0, 1)
        return
    length = size // batch
    rounds = range(epoch * length + 1, (epoch + 1) * length + 1)
    drawn = np.concatenate([batch_indices(size, batch, seed, 2, n) for n in rounds])
    assert len(drawn) == length * batch == len(np.unique(drawn))
    assert drawn.min() >= 0 and drawn.max() < size


def test_batches_depend_on_seed_agent_and_epoch_alone():
    def epoch(seed, agent, number):
        rounds = range(5 * number + 1, 5 * number + 6)
        return np.concatenate([batch_indices(20, 4, seed, agent, n) for n in rounds]).tolist()

    assert epoch(0, 0, 0) == epoch(0, 0, 0)
    others = [epoch(0, 0, 0), epoch(1, 0, 0), epoch(0, 1, 0), epoch(0, 0, 1)]
    assert len({tuple(order) for order in others}) == 4


@pytest.mark.parametrize(("batch", "round"), [(0, 1), (4, 0)])
def test_batches_start_at_one(batch, round):
    with pytest.raises(ValueError, match=r"expected 1"):
        batch_indices(10, batch, 0, 0, round)


# tensors


@pytest.mark.parametrize(("scale", "top"), [(1 / 255, 255), (1 / 16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_brightest_pixel_is_exactly_one(scale, top, dtype):
    x = np.array([[[[0, top]]]], np.uint8)
    x.flags.writeable = False  # as what comes out of a store of shared objects
    for given_x in (x, torch.tensor(x)):
        tensor = to_tensor(given_x, scale, dtype, "cpu")
        assert tensor.dtype == dtype
        assert tensor.tolist() == [[[[0.0, 1.0]]]]


def test_a_tensor_is_a_copy_of_the_array():
    x = np.ones((1, 1, 1, 1), np.float32)
    to_tensor(x, 1.0)[0] = 7.0
    assert np.array_equal(x, np.ones_like(x))


def slow_augment(x, generator, pad, flip):
    """One image and one pixel at a time, from the same draws in the same order."""
    n, _, height, width = x.shape
    top = torch.randint(2 * pad + 1, (n, 1), generator=generator)
    left = torch.randint(2 * pad + 1, (n, 1), generator=generator)
    mirrored = torch.randint(2, (n, 1), generator=generator) if flip else torch.zeros(n, 1)
    out = torch.zeros_like(x)
    for i in range(n):
        for r in range(height):
            for c in range(width):
                source_r = r + top[i].item() - pad
                source_c = (width - 1 - c if mirrored[i] else c) + left[i].item() - pad
                if 0 <= source_r < height and 0 <= source_c < width:
                    out[i, :, r, c] = x[i, :, source_r, source_c]
    return out


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augment_is_crop_and_flip_pixel_by_pixel(pad, flip, dtype):
    x = torch.tensor(RNG.integers(0, 256, (10, 2, 6, 5))).to(dtype)
    state = torch.get_rng_state()
    fast = augment(x, torch.Generator().manual_seed(3), pad, flip)
    assert torch.equal(fast, slow_augment(x, torch.Generator().manual_seed(3), pad, flip))
    assert fast.dtype == dtype
    assert torch.equal(torch.get_rng_state(), state)


def test_augment_draws_all_shifts_and_flips_evenly():
    x = torch.zeros(20_000, 1, 5, 5)
    x[:, :, 2, 1] = 1.0
    x = augment(x, torch.Generator().manual_seed(0), pad=1)
    frequency = x.mean(0)[0]
    # column 1 is shifted to 0..2, its mirror image 3 to 2..4: each 1/6, both meet in column 2
    expected = torch.tensor([1 / 6, 1 / 6, 1 / 3, 1 / 6, 1 / 6]) / 3
    assert torch.allclose(frequency[1:4], expected.expand(3, 5), atol=0.01)
    assert frequency[[0, 4]].sum() == 0


def test_augment_without_crop_and_flip_changes_nothing():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(x, torch.Generator().manual_seed(0), pad=0, flip=False), x)
