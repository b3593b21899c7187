"""Sources of a run's data: images with their shares, or quadratic risks.

Both classes have the same methods, so that no other module asks which of them a plan has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from raydist.config.experiment import Experiment
from raydist.config.training import (
    Dirichlet,
    Images,
    OwnImages,
    OwnPartition,
    Pictures,
    Quadratic,
    Quantity,
    Shards,
)
from raydist.engine.agent import risk
from raydist.engine.agent.task import Split
from raydist.engine.checks import check_images, check_quadratic, checked, input_of
from raydist.learning import data as datasets
from raydist.learning import partition
from raydist.lookup import resolve
from raydist.seeding import Purpose, drawing, numpy_rng


@dataclass(frozen=True)
class QuadraticSource:
    """Quadratic risks, whose samples are drawn and whose theory is exact."""

    config: Experiment
    data: ClassVar[datasets.Data | None] = None
    shares: ClassVar[list[NDArray[np.int64]]] = []
    contents: ClassVar[dict[str, str]] = {}
    epoch: ClassVar[int] = 1
    validation_images: ClassVar[int] = 0
    agent_bytes: ClassVar[float] = 0.0

    def share(self, k: int) -> Split | None:
        """None, because samples are drawn and no images are kept."""
        return None

    def held(self) -> dict[str, Split]:
        """No splits."""
        return {}

    def theory(self, A: NDArray[np.float64], rounds: Sequence[float]) -> dict[float, float]:
        """The excess risk with exact derivatives at the minimiser."""
        values = risk.predict_quadratic(self.config, A, rounds)
        return dict(zip(rounds, values.tolist(), strict=True))


@dataclass(frozen=True)
class ImageSource:
    """Images and their partition over the agents."""

    config: Experiment
    data: datasets.Data
    shares: list[NDArray[np.int64]]

    @property
    def contents(self) -> dict[str, str]:
        """The digest of the images."""
        return {"data": self.data.digest}

    @property
    def epoch(self) -> int:
        """Rounds in a pass over the mean share, K·B images each, without an incomplete one."""
        # not over one agent's share, because its size depends on seed and partition
        each = self.config.topology.agents * self.config.data.batch
        return max(1, len(self.data.train[1]) // each)

    @property
    def validation_images(self) -> int:
        """The number of validation images."""
        return len(self.data.validation[1])

    @property
    def agent_bytes(self) -> float:
        """Estimate of the memory of an agent's data: its share, and the test images."""
        agents = self.config.topology.agents
        return self.data.train[0].nbytes / agents + self.data.test[0].nbytes

    def share(self, k: int) -> Split | None:
        """The private training images and labels of agent k."""
        x, y = self.data.train
        return x[self.shares[k]], y[self.shares[k]]

    def held(self) -> dict[str, Split]:
        """The splits that all agents may see."""
        held = {"validation": self.data.validation, "test": self.data.test}
        return held | self._risk_images()

    def _risk_images(self) -> dict[str, Split]:
        """Images for the excess risk, equally many of each agent's share."""
        agents = self.config.topology.agents
        each = self.config.evaluate.excess_risk // agents
        if each == 0:
            return {}
        draws = (numpy_rng(Purpose.EVALUATE, self.config.seed, k) for k in range(agents))
        chosen = [
            draw.permutation(share)[:each] for draw, share in zip(draws, self.shares, strict=True)
        ]
        x, y = (part[np.concatenate(chosen)] for part in self.data.train)
        return {"risk": (x, y)}

    def theory(self, A: NDArray[np.float64], rounds: Sequence[float]) -> dict[float, float]:
        """The excess risk within `evaluate.subspace` dimensions, if configured."""
        if not self.config.evaluate.subspace:
            return {}
        images, shape = self._risk_images()["risk"], input_of(self.config, self.data)
        with drawing(Purpose.IN_MEASUREMENT, self.config.seed):
            values = risk.predict_network(self.config, A, images, shape, rounds)
        return dict(zip(rounds, values.tolist(), strict=True))


Source = QuadraticSource | ImageSource


def source_of(config: Experiment, images: datasets.Data | None) -> Source:
    """The source of a run, checked.

    Args:
        config: the experiment.
        images: the images of its data set, if at hand; default: read them.

    Returns:
        The source.
    """
    if isinstance(config.data, Quadratic):
        check_quadratic(config)
        return QuadraticSource(config)
    data = images or checked("data", load_data, config)
    shares = checked("data.partition", shares_of, config, data.train[1])
    check_images(config, data, min(len(share) for share in shares))
    return ImageSource(config, data, shares)


def images_of(config: Experiment) -> str:
    """Key of all settings that determine an experiment's images; "" if it has none."""
    if isinstance(config.data, Quadratic):
        return ""
    return config.data.model_dump_json(include={"set", "root", "validation", "params"})


def load_data(config: Experiment) -> datasets.Data:
    """Read the images of an experiment, once for all trials of this process."""
    table = config.data
    with drawing(Purpose.IN_CODE, 0):  # the same images for every seed
        if isinstance(table, OwnImages) and table.params:
            return datasets.load(table.set, validation=table.validation, params=table.params)
        if isinstance(table, OwnImages):
            return _cached(table.set, None, table.validation, False)
        assert isinstance(table, Images)
        return _cached(table.set, table.root, table.validation, table.download)


def forget_data() -> None:
    """Read images anew from now on."""
    _cached.cache_clear()


def shares_of(config: Experiment, labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The positions of each agent's training images.

    Args:
        config: the experiment.
        labels: the labels of the training set.

    Returns:
        K disjoint arrays that together hold every position.
    """
    assert isinstance(config.data, Pictures)
    table, agents, seed = config.data.partition, config.topology.agents, config.seed
    if isinstance(table, OwnPartition):
        with drawing(Purpose.IN_CODE, seed):
            shares = resolve(table.name)(labels.copy(), agents, seed, **table.params)
        return partition.check_own(table.name, shares, len(labels), agents)
    if isinstance(table, Dirichlet):
        return partition.dirichlet(labels, agents, table.alpha, seed)
    if isinstance(table, Quantity):
        return partition.quantity(len(labels), agents, table.alpha, seed)
    if isinstance(table, Shards):
        return partition.shards(labels, agents, table.shards, seed)
    return partition.iid(len(labels), agents, seed)


@lru_cache(maxsize=2)
def _cached(name: str, root: str | None, validation: float, download: bool) -> datasets.Data:
    """Read a plain data set, once for all trials of this process."""
    return datasets.load(name, root=root, validation=validation, download=download)
