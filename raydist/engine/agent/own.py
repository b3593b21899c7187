"""What is an agent's own: its threat, its attack step, its budgets, how its images are changed.

Whatever depends on the threat, its schedule or the transforms of an agent asks here: nothing that
trains or measures an agent reads the common tables for itself.

`attack.alpha` and `loss.delta` are those of the common budget, threat.eps = ε. An agent with a
budget ε_k of its own takes the same fraction of it, and both follow the budget through the rounds
(arXiv:2006.08403). Where ε = 0 there is no such fraction, and they stand for ε_k itself: an agent
with ε_k = 0 has no budget, δ_k = 0, as beside ε > 0. Where no agent has one, δ is that of all.
What is not written, or is written as what it would be then, is the usual value of each threat.
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
        agent: its number k.
        threat: its set of allowed perturbations, at its full budget.
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
        """Its threat in round n of a run: all agents' budgets follow the common schedule."""
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
        """The step of its training attack.

        Args:
            threat: its own, at the budget of the moment.

        Returns:
            As configured; where that is the usual step of the common threat, that of its own.
        """
        table, common = self._config.attack, self._config.threat
        if not isinstance(table, Stepped) or table.alpha is None:
            return threat.eps
        if table.alpha == table.usual_alpha(common.norm, common.eps):
            return table.usual_alpha(threat.norm, threat.eps)
        return self._at(threat, table.alpha)

    def delta(self, threat: ThreatModel) -> float:
        """Its distributional budget δ_k of `loss.name = "wasserstein"`.

        Args:
            threat: its own, at the budget of the moment.

        Returns:
            As configured, ε_k where that is the common budget; 0 if ε_k = 0, unless that is so of
            all agents.
        """
        table = self._config.loss
        delta = table.delta if isinstance(table, Wasserstein) else None
        if delta is None or delta == self._config.threat.eps:
            return threat.eps
        return self._at(threat, delta)

    def images(self, x: Tensor) -> Tensor:
        """Images in [0, 1], (N, C, H, W), as this agent has them (`data.transforms`)."""
        return transformed(x, **self._change)

    def _at(self, threat: ThreatModel, value: float) -> float:
        """What `value`, of the common budget, is at this one."""
        if self._common:
            return value * threat.eps / self._common
        return value if self._alike else 0.0
