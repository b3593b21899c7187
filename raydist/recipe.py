"""The tables of a training recipe: threat, attack, loss, optimiser, averages, early stopping.

Each choice is independent of the others, of the strategy and of the graph.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raydist.fields import Budget, NonNegative, check_budget
from raydist.tables import Table


class EpsSchedule(Table):
    """The budget over the run, clipped at its target (arXiv:2006.08403)."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    eps_max: Budget | None = None  # above the target: reached before the end; default the target
    eps_min: Budget | None = None
    per: Literal["epoch", "round"] = "round"

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.name == "constant" and (self.eps_max or self.eps_min) is not None:
            raise ValueError(
                'threat.schedule.eps_max and threat.schedule.eps_min do not belong to "constant": '
                'write name = "linear" or "cosine"'
            )
        return self


class AgentThreat(Table):
    """What one agent trains against, where it differs from the others."""

    norm: Literal["linf", "l2"] | None = None
    eps: Budget | None = None


class Threat(Table):
    """The ball of perturbations that the agents train against and are judged by."""

    norm: Literal["linf", "l2"] = "linf"
    eps: Budget = 8 / 255
    schedule: EpsSchedule = EpsSchedule()
    agents: list[AgentThreat] | None = None  # one for each agent; {} is the common one

    @model_validator(mode="after")
    def _fraction(self) -> Self:
        check_budget("threat.eps", self.eps, self.norm)
        for k in range(len(self.agents or [])):
            check_budget(f"threat.agents[{k}].eps", self.of(k).eps, self.of(k).norm)
        top, least = self.schedule.eps_max, self.schedule.eps_min or 0.0
        if top is not None:
            check_budget("threat.schedule.eps_max", top, self.norm)
        if not least <= self.eps <= (self.eps if top is None else top):
            raise ValueError(
                f"threat.schedule goes from {least:g} to {top or self.eps:g}, expected eps_min <= "
                f"threat.eps <= eps_max: threat.eps is {self.eps:g}"
            )
        return self

    def of(self, k: int) -> "Threat":
        """The threat of agent k, without the others'."""
        own = self.agents[k].model_dump(exclude_none=True) if self.agents else {}
        return self.model_copy(update={**own, "agents": None})


class Attack(Table):
    """How adversarial examples are made in training; the loss chooses the attack by default."""

    name: Literal["pgd", "fgsm", "kl_pgd"] | None = None
    steps: Annotated[int, Field(ge=0)] = 10
    alpha: Budget | None = None  # at threat.eps: own and scheduled budgets take the same part
    # default: eps / 4; of kl_pgd in l2 2 eps / steps; of fgsm eps
    start: Literal["uniform", "zero"] | None = None  # default: zero for fgsm, else uniform
    restarts: PositiveInt = 1


class Loss(Table):
    """The robust loss, and what goes on top of it."""

    name: str = "pgd_at"
    beta: NonNegative | None = None  # of trades (default 6), mart (5), wasserstein (1)
    gamma: NonNegative | None = None  # of wasserstein: weight of the pointwise term; default 0
    delta: Budget | None = None  # of wasserstein: the distributional budget, as alpha; default eps
    eta: Annotated[float, Field(gt=0, le=1)] | None = None  # of wasserstein: of Upsilon; default 1
    order: Literal["2", "inf"] | None = None  # of wasserstein: of the distance; default "2"
    awp: NonNegative = 0.0  # adversarial weight perturbation, relative size γ; 0 is none
    params: dict[str, Any] = Field(default_factory=dict)  # for a loss of your own

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        owners = {key: ["wasserstein"] for key in ("gamma", "delta", "eta", "order")}
        for key, names in {"beta": ["trades", "mart", "wasserstein"], **owners}.items():
            if getattr(self, key) is not None and self.name not in names:
                raise ValueError(
                    f'loss.{key} belongs to {", ".join(names)}, not to "{self.name}": remove it'
                )
        if self.params and ":" not in self.name:
            raise ValueError(
                'loss.params belongs to a loss of your own, "package.module:function", not to '
                f'"{self.name}": remove it'
            )
        return self


class Schedule(Table):
    """The learning rate over the run; milestones are fractions of it."""

    name: Literal["constant", "piecewise", "cosine"] = "constant"
    milestones: (
        Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(max_length=20)] | None
    ) = None
    factor: Annotated[float, Field(gt=0, le=10)] | None = None
    final: NonNegative | None = None

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        allowed = {"piecewise": {"milestones", "factor"}, "cosine": {"final"}}.get(self.name, set())
        for key in {"milestones", "factor", "final"} - allowed:
            if getattr(self, key) is not None:
                raise ValueError(
                    f'optim.schedule.{key} does not belong to the schedule "{self.name}": remove it'
                )
        if self.name == "piecewise" and not self.milestones:
            raise ValueError(
                'optim.schedule.milestones is missing for the schedule "piecewise": '
                "write milestones = [0.5, 0.75]"
            )
        if self.milestones and sorted(set(self.milestones)) != self.milestones:
            raise ValueError(
                f"optim.schedule.milestones is {self.milestones}, expected increasing fractions of "
                "the run: write [0.5, 0.75]"
            )
        return self

    def params(self) -> dict[str, Any]:
        """The parameters that were given."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Optim(Table):
    """The local step of an agent."""

    name: Literal["sgd", "adam", "deat"] = "sgd"
    lr: Annotated[float, Field(ge=0, le=10**6)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sgd
    nesterov: bool = False
    weight_decay: NonNegative = 0.0  # coupled in sgd and adam, decoupled in deat
    k1: NonNegative | None = None  # of deat (arXiv:2306.02618), default 1
    k2: Annotated[float, Field(ge=0, lt=1)] | None = None  # of deat, default 0.81
    normalise: bool | None = None  # of deat, default true: step / sqrt((1 + k1)² + k1²)
    combine: bool = False  # combine momentum and the like with the same A, as the weights are
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(
                f'optim.momentum and nesterov belong to "sgd", not to "{self.name}": remove them'
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum above 0: write momentum = 0.9")
        for key in self.deat():
            if self.name != "deat":
                raise ValueError(f'optim.{key} belongs to "deat", not to "{self.name}": remove it')
        return self

    def deat(self) -> dict[str, Any]:
        """The parameters of DEAT that were given."""
        return self.model_dump(include={"k1", "k2", "normalise"}, exclude_none=True)


class Average(Table):
    """An average of the weights over the run, judged beside the last centroid."""

    name: Literal["ema", "swa"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None  # of ema, per round; default 0.995
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0  # fraction of the run at which it begins

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.name == "swa" and self.decay is not None:
            raise ValueError('average.decay belongs to "ema", not to "swa": remove it')
        return self


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
