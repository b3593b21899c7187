"""The tables of a training recipe: threat, attack, loss, optimiser, averages, early stopping.

Each choice is independent of the others, of the strategy and of the graph.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from raydist.config.fields import (
    Budget,
    By,
    NonNegative,
    Own,
    Table,
    check_budget,
    fill,
    increasing,
    tables_in,
)


class ConstantEps(Table):
    """The budget is threat.eps in every round."""

    name: Literal["constant"]


class MovingEps(Table):
    """The budget goes from eps_min to eps_max, clipped at its target (arXiv:2006.08403)."""

    name: str
    # above the target: reached before the end; None: threat.eps, which the table threat fills in
    eps_max: Budget | None = None
    eps_min: Budget = 0.0
    per: Literal["epoch", "round"] = "round"


class LinearEps(MovingEps):
    """In equal steps."""

    name: Literal["linear"]


class CosineEps(MovingEps):
    """Along half a cosine."""

    name: Literal["cosine"]


EpsSchedule = Annotated[ConstantEps | LinearEps | CosineEps, By("constant")]


class AgentThreat(Table):
    """What one agent trains against, where it differs from the others."""

    norm: Literal["linf", "l2"] | None = None
    eps: Budget | None = None


class Threat(Table):
    """The ball of perturbations that the agents train against and are judged by."""

    norm: Literal["linf", "l2"] = "linf"
    eps: Budget = 8 / 255
    schedule: EpsSchedule = ConstantEps(name="constant")
    agents: list[AgentThreat] | None = None  # one for each agent; {} is the common one

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
    """How adversarial examples are made in training."""

    name: str
    # gradient steps; those of W-PGD and of telemetry's PGD too, whatever the attack itself makes
    steps: Annotated[int, Field(ge=0)] = 10


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

    def usual_alpha(self, norm: str, eps: float) -> float:
        """The step for a threat if none is written: ε / 4."""
        return eps / 4


class Pgd(Stepped):
    """Projected gradient ascent of the loss."""

    name: Literal["pgd"]
    start: Literal["uniform", "zero"] = "uniform"
    restarts: PositiveInt = 1


class Fgsm(Stepped):
    """One step of ascent."""

    name: Literal["fgsm"]
    start: Literal["uniform", "zero"] = "zero"

    def usual_alpha(self, norm: str, eps: float) -> float:
        """The step for a threat if none is written: ε."""
        return eps


class KlPgd(Stepped):
    """Projected gradient ascent of the divergence from the clean output (arXiv:1901.08573)."""

    name: Literal["kl_pgd"]
    restarts: PositiveInt = 1

    def usual_alpha(self, norm: str, eps: float) -> float:
        """The step for a threat if none is written: ε / 4, in l2 2 ε / steps, as published."""
        return 2 * eps / max(1, self.steps) if norm == "l2" else eps / 4


Attack = Annotated[NoAttack | Pgd | Fgsm | KlPgd, By("pgd")]


class AnyLoss(Table):
    """What an agent minimises."""

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
    beta: NonNegative = 6.0  # of the published code


class Mart(AnyLoss):
    """Cross-entropy aware of which points are misclassified, and β times a divergence."""

    name: Literal["mart"]
    beta: NonNegative = 5.0  # of the published code


class Wasserstein(AnyLoss):
    """Distributional training (arXiv:2502.09352)."""

    name: Literal["wasserstein"]
    beta: NonNegative = 1.0  # weight of the distributional term; the paper gives none
    gamma: NonNegative = 0.0  # weight of the pointwise term
    # the distributional budget, as attack.alpha; None: threat.eps, which the experiment fills in
    delta: Budget | None = None
    eta: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the moving average Υ
    order: Literal["2", "inf"] = "2"  # of the distance


class QuadraticLoss(AnyLoss):
    """½ (w − x)ᵀ H_k (w − x), of the quadratic task."""

    attack = "fgsm"
    name: Literal["quadratic"]


class OwnLoss(AnyLoss, Own):
    """A loss of the user's own, "package.module:function"."""


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

    gamma: NonNegative = 0.0  # its size relative to the weights; 0: none


class ConstantRate(Table):
    """The learning rate is optim.lr in every round."""

    name: Literal["constant"]


class Piecewise(Table):
    """The learning rate is multiplied at milestones."""

    name: Literal["piecewise"]
    milestones: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]],
        Field(min_length=1, max_length=20),
        AfterValidator(increasing),
    ] = Field(examples=[[0.5, 0.75]])  # fractions of the run
    factor: Annotated[float, Field(gt=0, le=10)] = 0.1


class Cosine(Table):
    """The learning rate falls along half a cosine."""

    name: Literal["cosine"]
    final: NonNegative = 0.0


Schedule = Annotated[ConstantRate | Piecewise | Cosine, By("constant")]


class AnyOptim(Table):
    """The local step of an agent."""

    name: str
    lr: Annotated[float, Field(ge=0, le=10**6)] = 0.1
    weight_decay: NonNegative = 0.0  # coupled in sgd and adam, decoupled in deat
    combine: bool = False  # combine momentum and the like with the same A, as the weights are
    schedule: Schedule = ConstantRate(name="constant")

    def options(self) -> dict[str, Any]:
        """The options of the optimiser, as `learning.optim.build` calls them."""
        return self.model_dump(exclude={"combine", "schedule"})


class Sgd(AnyOptim):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum above 0: write momentum = 0.9")
        return self


class Adam(AnyOptim):
    """Adam, as torch has it."""

    name: Literal["adam"]


class Deat(AnyOptim):
    """Diffusion-enhanced adversarial training (arXiv:2306.02618)."""

    name: Literal["deat"]
    k1: NonNegative = 1.0  # weight of the previous chain
    k2: Annotated[float, Field(ge=0, lt=1)] = 0.81  # decay of the averages
    normalise: bool = True  # step / sqrt((1 + k1)² + k1²)


Optim = Annotated[Sgd | Adam | Deat, By("sgd")]


class AnyAverage(Table):
    """An average of the weights over the run, judged beside the last centroid."""

    name: str
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0  # fraction of the run at which it begins


class Ema(AnyAverage):
    """Exponential moving average."""

    name: Literal["ema"]
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.995  # per round


class Swa(AnyAverage):
    """Plain mean."""

    name: Literal["swa"]


Average = Annotated[Ema | Swa, By("ema")]


class Telemetry(Table):
    """A closer look at gradients and accuracies in training (arXiv:2410.07675)."""

    every: int = Field(default=0, ge=0)  # rounds; 0: never


class FoscRule(Table):
    """When training counts as unstable: FOSC too high for `patience` measurements in a row."""

    threshold: PositiveFloat | None = None  # absolute
    relative: Annotated[float, Field(gt=1)] | None = (
        None  # multiple of the median of what was calm before
    )
    patience: PositiveInt = 3
    warmup: Annotated[int, Field(ge=0)] = 0  # measurements that count as calm
    on: Literal["validation", "train"] = "validation"
    form: Literal["published", "box", "relative"] = "published"
    adv_above_clean: bool = False  # a sign too: adversarial above clean training accuracy

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.threshold is None and self.relative is None:
            raise ValueError("stop.fosc has no threshold and no relative: write threshold = 0.5")
        if self.on == "train" and self.form != "published":
            raise ValueError(
                f'stop.fosc.form is "{self.form}", expected "published" with on = "train": '
                'write on = "validation"'
            )
        return self


class Remedy(Table):
    """Gaussian noise on the inputs, before the attack, at the start of an epoch (2410.07675)."""

    amount: NonNegative = 0.1  # of the paper's N(0, 0.1)
    how: Literal["std", "variance"] = "std"  # what the 0.1 is: the paper does not say
    batches: PositiveInt = 10  # rounds of the next epoch that get it


class Stop(Table):
    """When training counts as unstable, and whether it then stops, is healed, or only watched."""

    fosc: FoscRule | None = None
    on_instability: Literal["stop", "heal", "watch"] = "stop"
    remedy: Remedy = Remedy()

    @model_validator(mode="after")
    def _rule(self) -> Self:
        if self.fosc is None and self.on_instability != "stop":
            raise ValueError(
                f'stop.on_instability is "{self.on_instability}", but nothing tells instability: '
                "write stop.fosc = { threshold = 0.5 }"
            )
        return self
