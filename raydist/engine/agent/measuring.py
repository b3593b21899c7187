"""What an agent measures of a model, on its part of the images that all agents share out."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import numpy as np
import torch
from torch import nn

from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import Experiment
from raydist.engine.agent import risk, validation, verdicts
from raydist.engine.agent.foreign import drawn
from raydist.engine.agent.own import Own
from raydist.engine.agent.task import Split, build_model
from raydist.learning.subset import Index, evenly
from raydist.seeding import Purpose

SHARE = 32  # images that one agent measures at least: smaller parts cost more than they save


class AgentMeasures:
    """Validation and test images, and this agent's part of them."""

    def __init__(
        self,
        config: Experiment,
        agent: int,
        share: Split | None,
        held: Mapping[str, Split],
        scale: float,
        classes: int,
        device: torch.device,
    ) -> None:
        """Remember the images; nothing is copied.

        Args:
            config: the experiment.
            agent: the agent k.
            share: its private training images (None for the quadratic task, which has no images).
            held: the "validation" and "test" splits, and "risk" if there is one.
            scale: what brings pixels to [0, 1].
            classes: number of classes.
            device: where to compute.
        """
        self._config, self._agent, self._held = config, agent, held
        self._share = share or (np.zeros((0, 1)), np.zeros(0, np.int64))
        self._scale, self._classes, self._device = scale, classes, device
        self._threat = ThreatModel(config.threat.norm, config.threat.eps)
        self._orders: dict[str, Index] = {}

    def validate(self, model: nn.Module, n: int) -> validation.Sums:
        """Sums over this agent's part of the validation images, after round n."""
        part = self._part("validation", self._config.evaluate.validation_images, shared=True)
        with self._drawn(_first(part), n):
            return validation.validate(model, part, self._threat, self._config, n)

    def excess_risk(self, model: nn.Module, agents: Sequence[int] | None = None) -> float:
        """The mean of J_k(w) − J_k(w*) over some agents k, w* the start of the run.

        Args:
            model: at w.
            agents: the agents; None: all of them, which makes it J(w) − J(w*).

        Returns:
            The difference; exactly 0 at w*.
        """
        agents = range(self._config.topology.agents) if agents is None else agents
        return float(np.mean([self._risk(model, k) - self._start_risks[k] for k in agents]))

    @cached_property
    def _start_risks(self) -> list[float]:
        """J_k(w*) of every agent k."""
        start = build_model(self._config, self._held["risk"][0].shape[1:], self._classes)
        start.to(self._device)
        return [self._risk(start, k) for k in range(self._config.topology.agents)]

    def _risk(self, model: nn.Module, k: int) -> float:
        with self._drawn(k):
            return risk.risk(model, self._config, self._held["risk"], k, self._scale, self._device)

    def judge(self, model: nn.Module, shared: bool) -> verdicts.Verdicts:
        """Verdicts on test images.

        Args:
            model: gives logits.
            shared: this agent's part of the images, for a model that all agents judge together;
                else all of them.

        Returns:
            The verdicts.
        """
        wanted = self._config.evaluate
        part = self._part("test", wanted.test_images, shared)
        attacked = self._part(
            "test", min(wanted.test_images, wanted.autoattack, key=_number), shared
        )
        curved = self._curved(wanted.hessian if shared else 0)
        with self._drawn(_first(part)):
            return verdicts.judge(
                model, part, attacked, self._threat, curved, self._config, self._classes
            )

    def _curved(self, images: int) -> validation.Part:
        """This agent's part of so many training images: drawn evenly, and as it sees them."""
        x, y = self._share
        agents = self._config.topology.agents
        mine = images // agents + (self._agent < images % agents)
        seen = Own(self._config, self._agent).images
        return validation.Part(evenly(y)[:mine], x, y, self._scale, self._device, seen)

    def _drawn(self, first: int, n: int = 0) -> AbstractContextManager[None]:
        """What a foreign model draws follows from what is measured, not from who measures it."""
        return drawn(self._config, Purpose.IN_MEASUREMENT, first, n, self._device)

    def _part(self, split: str, limit: int | str, shared: bool) -> validation.Part:
        """So many images of a split, drawn evenly; if shared out, one in S for S agents."""
        x, y = self._held[split]
        images = int(min(len(y), _number(limit)))
        chosen = np.sort(self._even(split)[:images])
        if shared:
            parts = min(self._config.topology.agents, max(1, images // SHARE))
            chosen = chosen[np.arange(images) % parts == self._agent]
        return validation.Part(chosen, x, y, self._scale, self._device)

    def _even(self, split: str) -> Index:
        """The order in which the images of a split are taken."""
        if split not in self._orders:
            self._orders[split] = evenly(self._held[split][1])
        return self._orders[split]


def _first(part: validation.Part) -> int:
    return int(part.index[0]) if len(part.index) else 0


def _number(count: int | str) -> float:
    """A count, with "all" as infinity."""
    return math.inf if isinstance(count, str) else count
