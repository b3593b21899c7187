"""Measurements by one agent: a model on the agent's part of the common images."""

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
            share: the agent's private training images (None for the quadratic task).
            held: the "validation" and "test" splits, and "risk" if there is one.
            scale: the factor that brings pixels to [0, 1].
            classes: number of classes.
            device: the device to compute on.
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
            model: the model at w.
            agents: the agents k; None: all of them, so the result is J(w) − J(w*).

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
            model: the model to judge, which returns logits.
            shared: True for this agent's part of the images, because all agents judge the model
                together; False for all images.

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
        """This agent's part of `images` training images, drawn evenly and transformed."""
        x, y = self._share
        agents = self._config.topology.agents
        mine = images // agents + (self._agent < images % agents)
        seen = Own(self._config, self._agent).images
        return validation.Part(evenly(y)[:mine], x, y, self._scale, self._device, seen)

    def _drawn(self, first: int, n: int = 0) -> AbstractContextManager[None]:
        """Seed a foreign model's draws by `first`, so that they do not depend on this agent."""
        return drawn(self._config, Purpose.IN_MEASUREMENT, first, n, self._device)

    def _part(self, split: str, limit: int | str, shared: bool) -> validation.Part:
        """Up to `limit` images of a split, drawn evenly; one in S of them if S agents share."""
        x, y = self._held[split]
        images = int(min(len(y), _number(limit)))
        chosen = np.sort(self._even(split)[:images])
        if shared:
            parts = min(self._config.topology.agents, max(1, images // SHARE))
            chosen = chosen[np.arange(images) % parts == self._agent]
        return validation.Part(chosen, x, y, self._scale, self._device)

    def _even(self, split: str) -> Index:
        """Random order in which images are taken from a split."""
        if split not in self._orders:
            self._orders[split] = evenly(self._held[split][1])
        return self._orders[split]


def _first(part: validation.Part) -> int:
    return int(part.index[0]) if len(part.index) else 0


def _number(count: int | str) -> float:
    """Turn a count into a number; "all" is infinity."""
    return math.inf if isinstance(count, str) else count
