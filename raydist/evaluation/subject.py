"""A finished trial as what is measured: its experiment, its images, its models by name."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.config.experiment import Experiment, validate
from raydist.engine.agent.own import Own
from raydist.engine.agent.task import DTYPES, build_model
from raydist.engine.checks import checked
from raydist.engine.plan import forget_data, load_data, shares_of
from raydist.errors import InputError
from raydist.learning import checkpoint
from raydist.learning.average import Ensemble
from raydist.learning.data import Data, to_tensor
from raydist.learning.subset import Index, evenly, in_turn
from raydist.measure.cascade import FEW_CLASSES, STANDARD
from raydist.results.folder import digest_of, digest_of_model
from raydist.results.identity import checkpoint_of
from raydist.storage import Storage

START, ENSEMBLE, AGENTS = "start", "ensemble", "agents"
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Subject:
    """A finished trial.

    Attributes:
        folder: the trial's folder.
        config: its experiment.
        data: its images.
    """

    folder: Path
    config: Experiment
    data: Data

    @property
    def device(self) -> torch.device:
        """Where its models are measured."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def agents(self) -> list[str]:
        """The names of the agents' own models."""
        return [file.stem for file in self._files("agent-*")]

    @property
    def snapshots(self) -> list[str]:
        """The names of the centroids at the ends of periods."""
        return [file.stem for file in self._files("snapshot-*")]

    @property
    def models(self) -> list[str]:
        """The names of all models that can be measured."""
        single = [name for name in ("centroid", "average") if self._files(name)]
        together = [ENSEMBLE, *self.snapshots] if len(self.snapshots) > 1 else []
        begun = checkpoint_of(self.config)
        start = [START] if begun is None or Path(begun).exists() else []
        return [*single, *together, *self.agents, *start]

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The models meant by names, of which "agents" is all agents; unknown ones are left out."""
        wanted = [each for name in names for each in (self.agents if name == AGENTS else [name])]
        return [name for name in dict.fromkeys(wanted) if name in self.models]

    def model(self, name: str) -> nn.Module:
        """A model, in eval mode, on the device.

        Args:
            name: one of `models`.

        Returns:
            The model.
        """
        if name == ENSEMBLE:
            members = [self._load(file) for file in self._files("snapshot-*")]
            return Ensemble(members).eval()
        return self._load(None if name == START else self._files(name)[0])

    def digest(self, name: str) -> str:
        """What identifies a model and the images: a hash of the weights' files and of the images.

        Args:
            name: one of `models`.

        Returns:
            16 hexadecimal digits.
        """
        if name != START:
            return digest_of_model(Storage(self.folder), name, self.data.digest)
        files = [name.encode(), self.config.digest().encode()]
        if begun := checkpoint_of(self.config):
            files.append(Path(begun).read_bytes())
        return digest_of(*files, self.data.digest.encode())

    @property
    def members(self) -> tuple[str, ...]:
        """The attacks of the ensemble, in order."""
        return STANDARD if self.data.classes >= 4 else FEW_CLASSES

    def split(self, name: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Images as they are stored, and labels, of "train", "validation" or "test"."""
        found: tuple[NDArray[np.generic], NDArray[np.int64]] = getattr(self.data, name)
        return found

    @cached_property
    def shares(self) -> list[Index]:
        """The positions of each agent's training images."""
        return shares_of(self.config, self.data.train[1])

    @cached_property
    def _owner(self) -> Index:
        """Whose each training image is."""
        owner = np.zeros(len(self.data.train[1]), np.int64)
        for agent, share in enumerate(self.shares):
            owner[share] = agent
        return owner

    @cached_property
    def _orders(self) -> dict[str, Index]:
        """The order in which images are taken: of training, as many of each agent."""
        labels = self.data.train[1]
        parts = [share[evenly(labels[share])] for share in self.shares]
        held = {name: evenly(self.split(name)[1]) for name in ("validation", "test")}
        return held | {"train": in_turn(parts)}

    def chosen_images(self, split: str, images: int | str) -> Index:
        """So many images of a split, drawn evenly; all of them if there are fewer."""
        return self._orders[split][: None if isinstance(images, str) else images]

    def tensors(self, split: str, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and labels at some positions of a split, on the device.

        Args:
            split: its name; images of "train" are as the agents that have them see them.
            index: positions.

        Returns:
            Images and labels.
        """
        x, y = self.split(split)
        images = to_tensor(x[index], self.data.scale, DTYPES[self.config.dtype], self.device)
        if split == "train" and getattr(self.config.data, "transforms", None):
            whose = self._owner[index]
            for agent in np.unique(whose):
                mine = torch.from_numpy(whose == agent).to(self.device)
                images[mine] = Own(self.config, int(agent)).images(images[mine])
        return images, torch.tensor(y[index], device=self.device)

    def batches(self, split: str, images: int, size: int, skipped: int = 0) -> Batches:
        """Images of a split, drawn evenly, in batches.

        Args:
            split: its name.
            images: how many; all if there are fewer.
            size: of a batch.
            skipped: so many are left out before; none if no image would be left.

        Returns:
            Pairs of images and labels.
        """
        there = self._orders[split]
        skipped = skipped if skipped < len(there) else 0
        index = there[skipped : skipped + images]
        return [
            self.tensors(split, index[first : first + size]) for first in range(0, len(index), size)
        ]

    def _files(self, pattern: str) -> list[Path]:
        return sorted((self.folder / "weights").glob(f"{pattern}.safetensors"))

    def _load(self, file: Path | None) -> nn.Module:
        """The model of a file, or the start: for that alone the start's own checkpoint is read."""
        no_start = {"checkpoint": None, "key_map": "", "reset_last": False, "noise": 0.0}
        table = self.config.model.model_copy(update={} if file is None else no_start)
        config = self.config.model_copy(update={"model": table})
        model = build_model(config, self.data.shape, self.data.classes)
        if file is not None:
            checkpoint.load(model, file, finite=False)
        return model.to(self.device).eval()


def open_subject(folder: Path) -> Subject:
    """The trial in a folder, as its files are now.

    Args:
        folder: an absolute path.

    Returns:
        The trial.

    Raises:
        InputError: if no image model was trained to its end there.
    """
    try:
        text = (folder / "experiment.json").read_text()
        config = json.loads(text)["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no run: expected experiment.json in it") from error
    if not list((folder / "weights").glob("*.safetensors")):
        raise InputError(f"{folder} has no weights: the trial has not ended, resume its study")
    return _opened(folder, json.dumps(config))


def forget() -> None:
    """Read trials and images anew from now on: both may have changed meanwhile."""
    _opened.cache_clear()
    forget_data()


@lru_cache(maxsize=4)
def _opened(folder: Path, config: str) -> Subject:
    """The trial of a folder and what its experiment.json says: kept while both are the same."""
    try:
        experiment = validate(json.loads(config))
    except InputError as error:
        raise InputError(f"{folder}/experiment.json is of another release ({error})") from error
    if experiment.data.set == "quadratic":
        raise InputError(f'{folder} has no images to evaluate: its data.set is "quadratic"')
    return Subject(folder, experiment, checked("data", load_data, experiment))


def functions_named(folders: Iterable[Path]) -> list[str]:
    """The functions that the experiments of trials name, as "module:function"; none is imported.

    Args:
        folders: of trials.

    Returns:
        Each once; of a file that cannot be read, none.
    """
    found: dict[str, None] = {}
    for folder in folders:
        try:
            tree = json.loads((folder / "experiment.json").read_text())
        except (OSError, ValueError):
            continue
        found |= dict.fromkeys(_functions(tree))
    return list(found)


def _functions(tree: Any, key: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _functions(value, name)
    elif key in ("name", "set", "kind") and isinstance(tree, str):
        if re.fullmatch(r"[\w.]+:[\w.]+", tree):
            yield tree


def trials(runs: Iterable[Path]) -> list[Path]:
    """The folders of the trials in the folders of studies and single runs.

    Args:
        runs: folders.

    Returns:
        Absolute paths, each once.

    Raises:
        InputError: if one of them holds no run.
    """
    found: list[Path] = []
    for run in runs:
        root = run.expanduser().absolute()
        below = [root / "experiment.json", *sorted(root.glob("*/experiment.json"))]
        inside = [file.parent for file in below if file.exists()]
        if not inside:
            raise InputError(
                f"{run} holds no run: expected the folder that a sweep or run has written"
            )
        found += inside
    return list(dict.fromkeys(found))


def loaded(subject: Subject, name: str, weights: str) -> nn.Module:
    """A trial's model, kept for what is measured next.

    Args:
        subject: the trial.
        name: of the model.
        weights: its digest, which tells it from one that was trained later in this folder.

    Returns:
        The model.

    Raises:
        InputError: if the folder holds other weights by now.
    """
    return _loaded(subject.folder, subject.config.digest(), name, weights)


@lru_cache(maxsize=8)
def _loaded(folder: Path, config: str, name: str, weights: str) -> nn.Module:
    subject = open_subject(folder)
    if (subject.config.digest(), subject.digest(name)) != (config, weights):
        raise InputError(f"{folder} was trained anew meanwhile: evaluate it again")
    return subject.model(name)
