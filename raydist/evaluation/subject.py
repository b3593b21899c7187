"""A finished trial as what is measured: its experiment, its images, its models by name."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.config import Experiment, InputError, validate
from raydist.engine.checks import checked
from raydist.engine.plan import load_data
from raydist.engine.task import DTYPES, build_model
from raydist.learning import checkpoint
from raydist.learning.average import Ensemble
from raydist.learning.data import Data, to_tensor

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
        checkpoint = self.config.model.checkpoint
        start = [START] if checkpoint is None or Path(checkpoint).exists() else []
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
        """What identifies the weights of a model: a hash of its files.

        Args:
            name: one of `models`.

        Returns:
            16 hexadecimal digits.
        """
        hashed = hashlib.sha256(name.encode() if name in (START, ENSEMBLE) else b"")
        if name == START:
            hashed.update(self.config.digest().encode())
        for file in self._files("snapshot-*" if name == ENSEMBLE else name):
            hashed.update(file.read_bytes())
        return hashed.hexdigest()[:16]

    def split(self, name: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Images as they are stored, and labels, of "train", "validation" or "test"."""
        found: tuple[NDArray[np.generic], NDArray[np.int64]] = getattr(self.data, name)
        return found

    def tensors(self, split: str, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and labels at some positions of a split, on the device."""
        x, y = self.split(split)
        images = to_tensor(x[index], self.data.scale, DTYPES[self.config.dtype], self.device)
        return images, torch.tensor(y[index], device=self.device)

    def batches(self, split: str, images: int, size: int, skipped: int = 0) -> Batches:
        """The first images of a split, in batches.

        Args:
            split: its name.
            images: how many; all if there are fewer.
            size: of a batch.
            skipped: so many are left out before; none if no image would be left.

        Returns:
            Pairs of images and labels.
        """
        there = len(self.split(split)[1])
        skipped = skipped if skipped < there else 0
        index = np.arange(skipped, min(skipped + images, there))
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


@lru_cache(maxsize=4)
def open_subject(folder: Path) -> Subject:
    """The trial in a folder.

    Args:
        folder: an absolute path.

    Returns:
        The trial.

    Raises:
        InputError: if no image model was trained to its end there.
    """
    try:
        config = validate(json.loads((folder / "experiment.json").read_text())["config"])
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{folder} holds no run: expected experiment.json in it") from error
    if config.data.set == "quadratic":
        raise InputError(f'{folder} has no images to evaluate: its data.set is "quadratic"')
    if not list((folder / "weights").glob("*.safetensors")):
        raise InputError(f"{folder} has no weights: the trial has not ended, resume its study")
    return Subject(folder, config, checked("data", load_data, config))


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


@lru_cache(maxsize=8)
def loaded(folder: Path, name: str, weights: str) -> nn.Module:
    """A trial's model, kept for what is measured next.

    Args:
        folder: of the trial, absolute.
        name: of the model.
        weights: its digest, which tells it from one that was trained later in this folder.

    Returns:
        The model.
    """
    return open_subject(folder).model(name)
