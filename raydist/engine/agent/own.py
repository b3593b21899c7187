"""Settings of a single agent: its threat, its attack step, its budgets, its image transforms.

Training and measuring code asks this module for an agent's threat, schedule and transforms, and
never reads the common tables itself.

`attack.alpha` and `loss.delta` belong to the common budget, threat.eps = ε. An agent with its own
budget ε_k scales both by ε_k / ε, and both follow the budget through the rounds
(arXiv:2006.08403). If ε = 0 there is no such ratio, so both values apply to ε_k unchanged; an agent
with ε_k = 0 then gets δ_k = 0, as it does if ε > 0. If no agent has a budget, all agents use δ.
A value left out, or written as its default, means the usual value of each agent's threat.
"""

import math

from torch import Tensor

from raydist.adversary.schedule import Timetable, eps_at
from raydist.adversary.threat import ThreatModel
from raydist.config.adversary import MovingEps, OwnEps, Stepped, Wasserstein
from raydist.config.experiment import Experiment
from raydist.config.training import Pictures
from raydist.learning.data import transformed

BOX, NO_BOX = (0.0, 1.0), (-math.inf, math.inf)


class Own:
    """The settings of one agent where agents may differ.

    Attributes:
        agent: the agent's number k.
        threat: the agent's set of allowed perturbations, at its full budget.
    """

    def __init__(self, config: Experiment, agent: int) -> None:
        """Take the agent's part of the experiment."""
        table = config.threat.of(agent)
        bounds = BOX if isinstance(config.data, Pictures) else NO_BOX
        self.agent, self.threat = agent, ThreatModel(table.norm, table.eps, bounds)
        self._config, self._common = config, config.threat.eps or table.eps
        self._alike = not any(other.eps for other in config.threat.agents or [])
        tables = config.data.transforms if isinstance(config.data, Pictures) else None
        self._change = tables[agent].model_dump() if tables else {}

    def in_round(self, n: int, times: Timetable) -> ThreatModel:
        """Threat of the agent in round n: every agent's budget follows the common schedule."""
        table, eps = self._config.threat.schedule, self._config.threat.eps
        if isinstance(table, OwnEps):
            whole = eps or 1.0
            part = eps_at(table.name, times.progress(n, table.per), whole, **table.params) / whole
        elif isinstance(table, MovingEps):
            bounds = {"eps_max": table.eps_max, "eps_min": table.eps_min}
            params = {name: value / eps for name, value in bounds.items() if value and eps}
            part = eps_at(table.name, times.progress(n, table.per), 1.0, **params)
        else:
            return self.threat
        return ThreatModel(self.threat.norm, part * self.threat.eps, self.threat.bounds)

    def alpha(self, threat: ThreatModel) -> float:
        """The step of the agent's training attack.

        Args:
            threat: the agent's threat, at the present budget.

        Returns:
            The configured step; the usual step of the agent's own threat, if the configured one is
            the usual step of the common threat.
        """
        table, common = self._config.attack, self._config.threat
        if not isinstance(table, Stepped) or table.alpha is None:
            return threat.eps
        if table.alpha == table.usual_alpha(common.norm, common.eps):
            return table.usual_alpha(threat.norm, threat.eps)
        return self._at(threat, table.alpha)

    def delta(self, threat: ThreatModel) -> float:
        """The distributional budget δ_k of `loss.name = "wasserstein"`.

        Args:
            threat: the agent's threat, at the present budget.

        Returns:
            The configured budget; ε_k, if the configured one equals the common budget; 0 if
            ε_k = 0, unless all agents have ε_k = 0.
        """
        table = self._config.loss
        delta = table.delta if isinstance(table, Wasserstein) else None
        if delta is None or delta == self._config.threat.eps:
            return threat.eps
        return self._at(threat, delta)

    def images(self, x: Tensor) -> Tensor:
        """Apply this agent's `data.transforms` to images in [0, 1], (N, C, H, W)."""
        return transformed(x, **self._change)

    def _at(self, threat: ThreatModel, value: float) -> float:
        """Scale `value` from the common budget to the budget of `threat`."""
        if self._common:
            return value * threat.eps / self._common
        return value if self._alike else 0.0
