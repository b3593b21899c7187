"""The two kinds of task: classification of images, and a quadratic risk known exactly."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from raydist.adversary import objective
from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import Experiment
from raydist.config.training import Pictures, Quadratic
from raydist.engine.agent.measuring import AgentMeasures
from raydist.engine.agent.own import Own
from raydist.engine.agent.task import (
    DTYPES,
    Attack,
    Split,
    attack_named,
    loss_named,
    quadratic_of,
)
from raydist.engine.agent.validation import Sums
from raydist.learning import data as datasets
from raydist.seeding import Purpose, numpy_rng, torch_generator
from raydist.vector import FlatModel


class Task(ABC):
    """The part of an agent's learning that depends on its kind of data.

    Attributes:
        config: the experiment.
        agent: the agent k.
        own: the agent's threat, budgets and step.
        attack: (model, x, y, threat, generator, gradient by autograd unless given) -> adversarial
            points and the last gradient.
        loss: (model, x, x_adv, y) -> scalar.
    """

    attack: Attack
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]

    def __init__(self, config: Experiment, agent: int) -> None:
        """Take the agent's own settings; a subclass binds the attack and the loss."""
        self.config, self.agent, self.own = config, agent, Own(config, agent)

    @property
    def threat(self) -> ThreatModel:
        """This agent's set of allowed perturbations, at its full budget."""
        return self.own.threat

    @abstractmethod
    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """This agent's inputs and labels of round n ≥ 1."""

    @abstractmethod
    def sample(self, fraction: float, n: int) -> tuple[Tensor, Tensor]:
        """A random fraction of its images after round n, not augmented, and their labels."""

    @abstractmethod
    def measure(
        self, n: int, flat: FlatModel, center: Tensor, measures: AgentMeasures
    ) -> tuple[dict[str, float], Sums]:
        """Measure the state after round n, and the centroid.

        Args:
            n: the round.
            flat: this agent's model.
            center: the state of the centroid, (S,).
            measures: this agent's part of the common images.

        Returns:
            Numbers of this agent's own state; sums of the centroid over the agent's part of the
            validation images.
        """


class ImageTask(Task):
    """The classification of an agent's share of the images."""

    def __init__(
        self, config: Experiment, agent: int, share: Split, scale: float, device: torch.device
    ) -> None:
        """Bring the share to the device.

        Args:
            config: the experiment.
            agent: the agent k.
            share: the agent's images (N, C, H, W), in units of `scale`, and labels (N,).
            scale: the factor that brings pixels to [0, 1].
            device: the device to compute on.
        """
        super().__init__(config, agent)
        self.attack, self.loss = attack_named(config, self.own), loss_named(config)
        self._x, self._y = (torch.tensor(part, device=device) for part in share)
        self._scale, self._device = scale, device
        assert isinstance(config.data, Pictures)
        self._augment: str = config.data.augment
        if self._augment == "auto":
            self._augment = datasets.AUGMENTATION.get(config.data.set, "none")

    def _images(self, index: Tensor) -> Tensor:
        dtype = DTYPES[self.config.dtype]
        pixels = datasets.to_tensor(self._x[index], self._scale, dtype, self._device)
        return self.own.images(pixels)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """This agent's images and labels of round n ≥ 1, augmented."""
        config, device = self.config, self._device
        chosen = datasets.batch_indices(len(self._y), config.data.batch, config.seed, self.agent, n)
        index = torch.from_numpy(chosen)
        if device.type == "cuda":  # out of pinned memory, so that nothing waits for the device
            index = index.pin_memory().to(device, non_blocking=True)
        x = self._images(index)
        if self._augment != "none":
            draw = torch_generator(Purpose.AUGMENT, config.seed, self.agent, n, device)
            x = datasets.augment(x, draw, flip=self._augment == "crop-flip")
        return x, self._y[index]

    def sample(self, fraction: float, n: int) -> tuple[Tensor, Tensor]:
        """A random fraction of its images after round n, not augmented, and their labels."""
        rng = numpy_rng(Purpose.EVALUATE, self.config.seed, self.agent, n)
        count = len(self._y)
        chosen = rng.permutation(count)[: max(1, round(fraction * count))]
        index = torch.as_tensor(chosen, device=self._device)
        return self._images(index), self._y[index]

    def measure(
        self, n: int, flat: FlatModel, center: Tensor, measures: AgentMeasures
    ) -> tuple[dict[str, float], Sums]:
        """Measure passes through the share, the excess risk if asked for, and the centroid."""
        own = {"passes": n * self.config.data.batch / len(self._y)}
        measured = self.config.evaluate.excess_risk > 0
        if measured:
            with flat.at(flat.state()) as model:
                own["excess_risk"] = measures.excess_risk(model)
        with flat.at(center) as model:
            if measured:
                own["centroid_excess_risk"] = measures.excess_risk(model, [self.agent])
            return own, measures.validate(model, n)


class QuadraticTask(Task):
    """A quadratic risk: x ~ N(c_k, s² I), loss ½ (w − x)ᵀ H_k (w − x); no pixel box."""

    def __init__(self, config: Experiment, agent: int, device: torch.device) -> None:
        """Bind the Hessian of the agent.

        Args:
            config: the experiment.
            agent: the agent k.
            device: the device to compute on.
        """
        super().__init__(config, agent)
        self._risk, dtype = quadratic_of(config), DTYPES[config.dtype]
        hessian = torch.tensor(self._risk.hessian[agent], dtype=dtype, device=device)
        self._device, self._dtype = device, dtype
        each = partial(objective.quadratics, hessian=hessian)
        self.attack = attack_named(config, self.own, each)
        self.loss = partial(loss_named(config), hessian=hessian)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """This agent's samples of round n ≥ 1; labels are all 0."""
        rng = numpy_rng(Purpose.BATCH, self.config.seed, self.agent, n)
        drawn = self._risk.sample(self.agent, self.config.data.batch, rng)
        x = torch.tensor(drawn, dtype=self._dtype, device=self._device)
        return x, torch.zeros(len(x), dtype=torch.int64, device=self._device)

    def sample(self, fraction: float, n: int) -> tuple[Tensor, Tensor]:
        """Refuse: no loss of this task asks for a part of a share."""
        raise RuntimeError("the quadratic task has no share of images")

    def excess_risk(self, state: Tensor) -> float:
        """J(w) − J(w*), exactly."""
        return self._risk.excess_risk(state.cpu().double().numpy())

    def measure(
        self, n: int, flat: FlatModel, center: Tensor, measures: AgentMeasures
    ) -> tuple[dict[str, float], Sums]:
        """Measure the exact excess risk of the agent and of the centroid."""
        risks = self.excess_risk(flat.w.detach()), self.excess_risk(center)
        return dict(zip(("excess_risk", "centroid_excess_risk"), risks, strict=True)), {}


def build_task(
    config: Experiment, agent: int, share: Split | None, scale: float, device: torch.device
) -> Task:
    """Build an agent's task; arguments as in `ImageTask`, share None if there are no images."""
    if isinstance(config.data, Quadratic):
        return QuadraticTask(config, agent, device)
    assert share is not None
    return ImageTask(config, agent, share, scale, device)
