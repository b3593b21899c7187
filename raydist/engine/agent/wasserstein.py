"""An agent's distributional attack, and its part of the network's Υ (arXiv:2502.09352)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raydist.adversary import wasserstein
from raydist.adversary.attack import Ascent
from raydist.adversary.threat import ThreatModel
from raydist.config.adversary import Wasserstein
from raydist.config.experiment import Experiment
from raydist.engine.agent.tasks import Task

LOSS: wasserstein.Loss = "redlr"  # W-PGD ascends it, and Υ is measured with it
TENTH = 0.1  # part of an agent's share, for Υ


class Distributional:
    """W-PGD on an agent's batches; Υ sets each batch's part of the budget.

    Attributes:
        upsilon: the network's Υ; 0 until it is known.
    """

    def __init__(self, config: Experiment, model: nn.Module, task: Task) -> None:
        """Begin with Υ unknown.

        Args:
            config: the experiment.
            model: the agent's model, as computed in training.
            task: the agent's task, which gives the batches.
        """
        self.upsilon = 0.0
        self._config, self._model, self._task = config, model, task

    def attack(
        self, x: Tensor, y: Tensor, threat: ThreatModel, pointwise: Callable[[], Ascent]
    ) -> Ascent:
        """W-PGD with this batch's part of the budget, δ_B = δ_k Υ_B / Υ (algorithm 1).

        Under any other loss this is the pointwise attack.

        Args:
            x: inputs, (N, ...).
            y: labels, (N,).
            threat: the agent's threat, at the budget of the round; its norm measures the distance.
            pointwise: the pointwise attack; its points follow the others if γ > 0.

        Returns:
            The points; the gradient of the pointwise attack, if there was one.
        """
        table, model = self._config.loss, self._model
        if not isinstance(table, Wasserstein):
            return pointwise()
        full = self._task.own.delta(threat)
        order = math.inf if table.order == "inf" else 2.0
        if table.order != "inf":
            batch = wasserstein.sensitivity(model, x, y, threat.norm, LOSS)
            full = wasserstein.batch_budget(full, batch, self.upsilon)
        points = wasserstein.w_pgd(
            model,
            x,
            y,
            full,
            steps=self._config.attack.steps,
            norm=threat.norm,
            loss=LOSS,
            order=order,
            bounds=threat.bounds,
            best=False,
        )
        if not table.gamma:
            return Ascent(points, x, None)
        found = pointwise()
        return found._replace(x_adv=torch.cat([points, found.x_adv]))

    def report(self, threat: ThreatModel) -> dict[str, float]:
        """Numbers of a round: `delta`, the agent's budget, and Υ once it is known."""
        if not isinstance(self._config.loss, Wasserstein):
            return {}
        known = {"sensitivity": self.upsilon} if self.upsilon else {}
        return known | {"delta": self._task.own.delta(threat)}

    def power(self, n: int) -> Tensor:
        """(Σ ‖∇_x J_i‖², N) over a random tenth of this agent's share, for the network's Υ.

        Args:
            n: the finished round.

        Returns:
            Two numbers, to be summed over the agents.
        """
        x, y = self._task.sample(TENTH, n)
        each = wasserstein.gradient_power(self._model, x, y, self._task.threat.norm, LOSS)
        return torch.stack([each.double().square().sum(), each.new_tensor(len(y)).double()])

    def learn(self, power: Tensor) -> None:
        """Set Υ ← Υ + η (Υ̂ − Υ), Υ̂ the root of the network's mean (at first: Υ ← Υ̂)."""
        estimate = float((power[0] / power[1]).sqrt())
        assert isinstance(self._config.loss, Wasserstein)
        eta = 1.0 if self.upsilon == 0 else self._config.loss.eta
        self.upsilon = wasserstein.moving(self.upsilon, estimate, eta)
