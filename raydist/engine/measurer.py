"""What an agent measures of a model, on its part of the images that all agents share out."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from raydist.adversary.threat import ThreatModel
from raydist.config import Experiment
from raydist.engine.task import Split
from raydist.measure import trained

SHARE = 32  # images that one agent measures at least: smaller parts cost more than they save


class Measurer:
    """Validation and test images, and this agent's part of them."""

    def __init__(
        self,
        config: Experiment,
        agent: int,
        held: Mapping[str, Split],
        scale: float,
        classes: int,
        device: torch.device,
    ) -> None:
        """Remember the images; nothing is copied.

        Args:
            config: the experiment.
            agent: the agent k.
            held: the "validation" and "test" splits.
            scale: what brings pixels to [0, 1].
            classes: number of classes.
            device: where to compute.
        """
        self._config, self._agent, self._held = config, agent, held
        self._scale, self._classes, self._device = scale, classes, device
        self._threat = ThreatModel(config.threat.norm, config.threat.eps)

    def validate(self, model: nn.Module, n: int) -> trained.Sums:
        """Sums over this agent's part of the validation images, after round n."""
        part = self._part("validation", self._config.evaluate.images, shared=True)
        return trained.validate(model, part, self._threat, self._config, n)

    def judge(self, model: nn.Module, shared: bool) -> trained.Masks:
        """Verdicts on test images.

        Args:
            model: gives logits.
            shared: this agent's part of the images, for a model that all agents judge together;
                else all of them.

        Returns:
            The verdicts.
        """
        wanted = self._config.evaluate
        part = self._part("test", wanted.test, shared)
        attacked = self._part("test", min(wanted.test, wanted.autoattack, key=_number), shared)
        return trained.judge(model, part, attacked, self._threat, self._config, self._classes)

    def _part(self, split: str, limit: int | str, shared: bool) -> trained.Part:
        """The first images of a split; if shared out, every S-th of them for S agents."""
        x, y = self._held[split]
        images = int(min(len(y), _number(limit)))
        chosen = np.arange(images)
        if shared:
            parts = min(self._config.topology.agents, max(1, images // SHARE))
            chosen = chosen[chosen % parts == self._agent]
        return trained.Part(chosen, x, y, self._scale, self._device)


def _number(count: int | str) -> float:
    """A count, with "all" as infinity."""
    return math.inf if isinstance(count, str) else count
