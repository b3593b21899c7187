"""The tables of the adversary: threat, attack, loss.

Each choice is independent of the others, of the strategy and of the graph.
"""

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from raydist.config.fields import (
    Budget,
    By,
    NonNegative,
    Table,
    UserTable,
    check_budget,
    fill,
    tables_in,
)


class ConstantEps(Table):
    """The budget is threat.eps in every round."""

    name: Literal["constant"]


class MovingEps(Table):
    """The budget goes from eps_min to eps_max, clipped at its target (arXiv:2006.08403)."""

    name: str
    eps_max: Budget | None = None
    """Budget at which the schedule ends; above threat.eps: reached before the end, clipped
    there. Without it threat.eps."""
    eps_min: Budget = 0.0
    """Budget at which the schedule begins."""
    per: Literal["epoch", "round"] = "round"
    """Interval at which the budget moves."""


class LinearEps(MovingEps):
    """Straight line."""

    name: Literal["linear"]


class CosineEps(MovingEps):
    """Half a cosine."""

    name: Literal["cosine"]


class OwnEps(UserTable):
    """A schedule of the user's own, "package.module:function"."""

    name: str
    per: Literal["epoch", "round"] = "round"
    """Interval at which the budget moves."""


EpsSchedule = Annotated[ConstantEps | LinearEps | CosineEps | OwnEps, By("constant")]


class AgentThreat(Table):
    """Threat of one agent, where it differs from the others'."""

    norm: Literal["linf", "l2"] | None = None
    """Norm of this agent; without it the common one."""
    eps: Budget | None = None
    """Budget of this agent; without it the common one."""


class Threat(Table):
    """The ball of perturbations that the agents train against and are judged by."""

    norm: Literal["linf", "l2"] = "linf"
    """Norm of perturbations."""
    eps: Budget = 8 / 255
    """Budget ε, a fraction of the pixel range."""
    schedule: EpsSchedule = ConstantEps(name="constant")
    """Course of the budget over the run."""
    agents: list[AgentThreat] | None = None
    """Threats of the agents' own, one table for each agent; {} is the common one."""

    @model_validator(mode="after")
    def _fraction(self) -> Self:
        check_budget("threat.eps", self.eps, self.norm)
        for k in range(len(self.agents or [])):
            check_budget(f"threat.agents[{k}].eps", self.of(k).eps, self.of(k).norm)
        if isinstance(self.schedule, MovingEps):
            self._reach(self.schedule)
        return self

    def _reach(self, schedule: MovingEps) -> None:
        """A schedule goes up to the target, unless it says how far, and not below it."""
        if schedule.eps_max is None:
            fill(self, schedule=schedule.model_copy(update={"eps_max": self.eps}))
        least, top = schedule.eps_min, self.eps if schedule.eps_max is None else schedule.eps_max
        check_budget("threat.schedule.eps_max", top, self.norm)
        if not least <= self.eps <= top:
            raise ValueError(
                f"threat.schedule goes from {least:g} to {top:g}, expected eps_min <= "
                f"threat.eps <= eps_max: threat.eps is {self.eps:g}"
            )

    def of(self, k: int) -> "Threat":
        """The threat of agent k, without the others'."""
        own = self.agents[k].model_dump(exclude_none=True) if self.agents else {}
        return self.model_copy(update={**own, "agents": None})


class AnyAttack(Table):
    """Attack of training."""

    name: str
    steps: Annotated[int, Field(ge=0)] = 10
    """Gradient steps; those of W-PGD and of telemetry's PGD too, whatever the attack itself
    makes."""


class NoAttack(AnyAttack):
    """Training points stay as they are."""

    name: Literal["none"]


class Stepped(AnyAttack):
    """An attack whose step can be chosen.

    `alpha` is the step at threat.eps; own and scheduled budgets take the same part of it. If it is
    not written, the experiment fills in `usual_alpha` of its threat. Whoever writes that very
    number says the same: agents ask `Own.alpha`, which takes the usual step of their own threat.
    """

    alpha: Budget | None = None
    """Step at threat.eps; own and scheduled budgets take the same part of it. Without it ε/4;
    of fgsm ε; of kl_pgd in l2 2 ε/steps."""

    def usual_alpha(self, norm: str, eps: float) -> float:
        """The step for a threat if none is written: ε / 4."""
        return eps / 4


class Pgd(Stepped):
    """Projected gradient ascent of the loss."""

    name: Literal["pgd"]
    start: Literal["uniform", "zero"] = "uniform"
    """Start of the ascent: a uniform point of the ball, or the clean point."""
    restarts: PositiveInt = 1
    """Number of random starts, of which the worst counts."""


class Fgsm(Stepped):
    """One step of ascent."""

    name: Literal["fgsm"]
    start: Literal["uniform", "zero"] = "zero"
    """Start of the ascent: a uniform point of the ball, or the clean point."""

    def usual_alpha(self, norm: str, eps: float) -> float:
        """The step for a threat if none is written: ε."""
        return eps


class KlPgd(Stepped):
    """Projected gradient ascent of the divergence from the clean output (arXiv:1901.08573)."""

    name: Literal["kl_pgd"]
    restarts: PositiveInt = 1
    """Number of random starts, of which the worst counts."""

    def usual_alpha(self, norm: str, eps: float) -> float:
        """The step for a threat if none is written: ε / 4, in l2 2 ε / steps, as published."""
        return 2 * eps / max(1, self.steps) if norm == "l2" else eps / 4


class OwnAttack(AnyAttack, UserTable):
    """An attack of the user's own, "package.module:function"."""


Attack = Annotated[NoAttack | Pgd | Fgsm | KlPgd | OwnAttack, By("pgd")]


class AnyLoss(Table):
    """Objective of an agent."""

    name: str
    attack: ClassVar[str] = "pgd"  # with which it is trained unless the table attack names one


class Standard(AnyLoss):
    """Cross-entropy of the clean points."""

    attack = "none"
    name: Literal["standard"]


class PgdAt(AnyLoss):
    """Cross-entropy of the adversarial points."""

    name: Literal["pgd_at"]


class Trades(AnyLoss):
    """Cross-entropy and β times a divergence (arXiv:1901.08573)."""

    attack = "kl_pgd"
    name: Literal["trades"]
    beta: NonNegative = 6.0
    """Weight of the divergence, as in the published code."""


class Mart(AnyLoss):
    """Cross-entropy aware of which points are misclassified, and β times a divergence."""

    name: Literal["mart"]
    beta: NonNegative = 5.0
    """Weight of the divergence, as in the published code."""


class Wasserstein(AnyLoss):
    """Distributional training (arXiv:2502.09352)."""

    name: Literal["wasserstein"]
    beta: NonNegative = 1.0
    """Weight of the distributional term; the paper gives none."""
    gamma: NonNegative = 0.0
    """Weight of the pointwise term."""
    delta: Budget | None = None
    """Distributional budget at threat.eps, as attack.alpha; without it threat.eps."""
    eta: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Weight of the newest batch in the moving average Υ."""
    order: Literal["2", "inf"] = "2"
    """Order of the Wasserstein distance."""


class QuadraticLoss(AnyLoss):
    """½ (w − x)ᵀ H_k (w − x), of the quadratic task."""

    attack = "fgsm"
    name: Literal["quadratic"]


class OwnLoss(AnyLoss, UserTable):
    """A loss of the user's own."""


Loss = Annotated[
    Standard | PgdAt | Trades | Mart | Wasserstein | QuadraticLoss | OwnLoss, By("pgd_at")
]


def usual_attack(loss: object) -> str:
    """The attack that the paper of a loss trains with, by the name of the loss; else PGD."""
    members = [table for table in tables_in(Loss) if issubclass(table, AnyLoss)]
    known = {n: m.attack for m in members for n in get_args(m.model_fields["name"].annotation)}
    return known.get(loss, AnyLoss.attack) if isinstance(loss, str) else AnyLoss.attack


class Awp(Table):
    """Adversarial weight perturbation (arXiv:2004.05884), on top of any loss."""

    gamma: NonNegative = 0.0
    """Size of the weight perturbation, relative to the weights; 0: none."""
