"""The subject of a measurement: models by name, images, a budget, a seed, and a folder.

A finished trial is one (`raydist.evaluation.trial`), a model on its own another one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.learning.data import Data, to_tensor
from raydist.learning.subset import Index, evenly
from raydist.measure.cascade import FEW_CLASSES, STANDARD
from raydist.seeding import Purpose, drawing

START, ENSEMBLE, AGENTS = "start", "ensemble", "agents"
Batches = list[tuple[Tensor, Tensor]]


class Subject(ABC):
    """Models under evaluation.

    Attributes:
        folder: the folder of the results.
        data: the images.
        main: the model of which pictures are drawn.
    """

    folder: Path
    data: Data
    main: ClassVar[str] = "model"

    @property
    @abstractmethod
    def threat(self) -> ThreatModel:
        """The budget, where none is asked for."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """The seed of all draws."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of images and weights."""
        return torch.float32

    @property
    def agents(self) -> list[str]:
        """The names of the models that are agents' own."""
        return []

    @property
    def snapshots(self) -> list[str]:
        """The names of the models at the ends of periods."""
        return []

    @property
    def models(self) -> list[str]:
        """The names of all models that can be measured."""
        return [self.main]

    @property
    def device(self) -> torch.device:
        """The device that measures."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The models meant by names, of which "agents" is all agents; unknown ones are left out."""
        wanted = [each for name in names for each in (self.agents if name == AGENTS else [name])]
        return [name for name in dict.fromkeys(wanted) if name in self.models]

    @abstractmethod
    def model(self, name: str) -> nn.Module:
        """A model, in eval mode, on the device.

        Args:
            name: one of `models`.

        Returns:
            The model.
        """

    def loaded(self, name: str, weights: str) -> nn.Module:
        """A model, kept for what is measured next.

        Args:
            name: one of `models`.
            weights: its digest, which tells it from one that was trained later.

        Returns:
            The model.
        """
        return self.model(name)

    @abstractmethod
    def digest(self, name: str) -> str:
        """A hash that identifies a model and the images.

        Args:
            name: one of `models`.

        Returns:
            16 hexadecimal digits.
        """

    def drawn(self, first: int) -> AbstractContextManager[None]:
        """Meanwhile what a model draws is a function of the seed and of the first image."""
        return drawing(Purpose.IN_MEASUREMENT, self.seed, first, 0, self.device)

    @property
    def members(self) -> tuple[str, ...]:
        """The attacks of the ensemble, in order."""
        return STANDARD if self.data.classes >= 4 else FEW_CLASSES

    def split(self, name: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Images as they are stored, and labels, of "train", "validation" or "test"."""
        found: tuple[NDArray[np.generic], NDArray[np.int64]] = getattr(self.data, name)
        return found

    @cached_property
    def _orders(self) -> dict[str, Index]:
        """The order in which images are taken."""
        return {name: self._order(name) for name in ("train", "validation", "test")}

    def _order(self, split: str) -> Index:
        return evenly(self.split(split)[1])

    def chosen_images(self, split: str, images: int | str) -> Index:
        """The positions of so many images of a split, drawn evenly; of all if there are fewer."""
        return self._orders[split][: None if isinstance(images, str) else images]

    def tensors(self, split: str, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and labels at some positions of a split, on the device.

        Args:
            split: its name.
            index: positions.

        Returns:
            Images and labels.
        """
        x, y = self.split(split)
        images = to_tensor(x[index], self.data.scale, self.dtype, self.device)
        return images, torch.tensor(y[index], device=self.device)

    def batches(self, split: str, images: int, size: int, skipped: int = 0) -> Batches:
        """Images of a split, drawn evenly, in batches.

        Args:
            split: its name.
            images: the number of images; all if there are fewer.
            size: the size of a batch.
            skipped: the number of images left out before; none if no image would be left.

        Returns:
            Pairs of images and labels.
        """
        there = self._orders[split]
        skipped = skipped if skipped < len(there) else 0
        index = there[skipped : skipped + images]
        return [
            self.tensors(split, index[first : first + size]) for first in range(0, len(index), size)
        ]
