"""A finished trial as what is measured."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import Experiment
from raydist.engine.agent.foreign import drawn
from raydist.engine.agent.own import Own
from raydist.engine.agent.task import DTYPES, build_model
from raydist.engine.source import shares_of
from raydist.errors import InputError
from raydist.evaluation.subject import ENSEMBLE, START, Subject
from raydist.learning import checkpoint
from raydist.learning.average import Ensemble
from raydist.learning.data import Data
from raydist.learning.subset import Index, evenly, in_turn
from raydist.results.folder import digest_of, digest_of_model
from raydist.results.identity import checkpoint_of
from raydist.seeding import Purpose
from raydist.storage import Storage

KEPT = 8  # models that stay in memory for what is measured next
_kept: dict[tuple[Path, str, str, str], nn.Module] = {}


@dataclass(frozen=True)
class Trial(Subject):
    """A finished trial.

    Attributes:
        folder: the trial's folder.
        config: its experiment.
        data: its images.
    """

    folder: Path
    config: Experiment
    data: Data
    main: ClassVar[str] = "centroid"

    @property
    def threat(self) -> ThreatModel:
        """Its own budget."""
        return ThreatModel(self.config.threat.norm, self.config.threat.eps)

    @property
    def seed(self) -> int:
        """Its own seed."""
        return self.config.seed

    @property
    def dtype(self) -> torch.dtype:
        """The type of its images and weights."""
        return DTYPES[self.config.dtype]

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

    def model(self, name: str) -> nn.Module:
        """Return the model of this name."""
        if name == ENSEMBLE:
            members = [self._load(file) for file in self._files("snapshot-*")]
            return Ensemble(members).eval()
        return self._load(None if name == START else self._files(name)[0])

    def loaded(self, name: str, weights: str) -> nn.Module:
        """Return the model of this name.

        Args:
            name: one of `models`.
            weights: its digest.

        Returns:
            The model.

        Raises:
            InputError: if the folder holds other weights by now.
        """
        key = self.folder, self.config.digest(), name, weights
        if key not in _kept and self.digest(name) != weights:
            raise InputError(f"{self.folder} was trained anew meanwhile: evaluate it again")
        _kept[key] = _kept.pop(key) if key in _kept else self.model(name)  # as the last one used
        for old in list(_kept)[:-KEPT]:
            del _kept[old]
        return _kept[key]

    def digest(self, name: str) -> str:
        """A hash of the weights' files and of the images."""
        if name != START:
            return digest_of_model(Storage(self.folder), name, self.data.digest)
        files = [name.encode(), self.config.digest().encode()]
        if begun := checkpoint_of(self.config):
            files.append(Path(begun).read_bytes())
        return digest_of(*files, self.data.digest.encode())

    def drawn(self, first: int) -> AbstractContextManager[None]:
        """Fix what a model draws; our own models draw nothing, so nothing is done for them."""
        return drawn(self.config, Purpose.IN_MEASUREMENT, first, 0, self.device)

    @cached_property
    def shares(self) -> list[Index]:
        """The positions of each agent's training images."""
        return shares_of(self.config, self.data.train[1])

    @cached_property
    def _owner(self) -> Index:
        """The agent of each training image."""
        owner = np.zeros(len(self.data.train[1]), np.int64)
        for agent, share in enumerate(self.shares):
            owner[share] = agent
        return owner

    def _order(self, split: str) -> Index:
        """The order of images; of training, as many images of each agent."""
        if split != "train":
            return super()._order(split)
        labels = self.data.train[1]
        return in_turn([share[evenly(labels[share])] for share in self.shares])

    def tensors(self, split: str, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images and labels; those of "train" as the agents that have them see them."""
        images, labels = super().tensors(split, index)
        if split == "train" and getattr(self.config.data, "transforms", None):
            whose = self._owner[index]
            for agent in np.unique(whose):
                mine = torch.from_numpy(whose == agent).to(self.device)
                images[mine] = Own(self.config, int(agent)).images(images[mine])
        return images, labels

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
