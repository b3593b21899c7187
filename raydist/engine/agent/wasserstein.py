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

LOSS: wasserstein.Loss = "redlr"  # what W-PGD ascends, and Υ is measured with
TENTH = 0.1  # of an agent's share, for Υ


class Distributional:
    """W-PGD on an agent's batches; each takes its part of the budget from Υ.

    Attributes:
        upsilon: Υ, 0 before it is known.
    """

    def __init__(self, config: Experiment, model: nn.Module, task: Task) -> None:
        """Nothing is known of Υ.

        Args:
            config: the experiment.
            model: the agent's, as it is computed in training.
            task: its batches.
        """
        self.upsilon = 0.0
        self._config, self._model, self._task = config, model, task

    def attack(
        self, x: Tensor, y: Tensor, threat: ThreatModel, pointwise: Callable[[], Ascent]
    ) -> Ascent:
        """W-PGD with this batch's part of the budget, δ_B = δ_k Υ_B / Υ (algorithm 1).

        Under any other loss it is the pointwise attack.

        Args:
            x: inputs, (N, ...).
            y: labels, (N,).
            threat: this agent's, at the budget of the round; its norm is that of the distance.
            pointwise: the pointwise attack, whose points stand behind them if γ > 0.

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
        """Numbers of a round: `delta`, this agent's budget, and Υ once it is known."""
        if not isinstance(self._config.loss, Wasserstein):
            return {}
        known = {"sensitivity": self.upsilon} if self.upsilon else {}
        return known | {"delta": self._task.own.delta(threat)}

    def power(self, n: int) -> Tensor:
        """(Σ ‖∇_x J_i‖², N) over a random tenth of this agent's share, for the network's Υ.

        Args:
            n: the round after which it is taken.

        Returns:
            Two numbers, to be added up over the agents.
        """
        x, y = self._task.sample(TENTH, n)
        each = wasserstein.gradient_power(self._model, x, y, self._task.threat.norm, LOSS)
        return torch.stack([each.double().square().sum(), each.new_tensor(len(y)).double()])

    def learn(self, power: Tensor) -> None:
        """Υ ← Υ + η (Υ̂ − Υ), Υ̂ the root of the network's mean (the first one: Υ̂ itself)."""
        estimate = float((power[0] / power[1]).sqrt())
        assert isinstance(self._config.loss, Wasserstein)
        eta = 1.0 if self.upsilon == 0 else self._config.loss.eta
        self.upsilon = wasserstein.moving(self.upsilon, estimate, eta)
