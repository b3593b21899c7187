"""The tables of an experiment: every field, its default, its range.

A message about one field is completed by `raydist.config` with the dotted key and the value; a
message about several fields names them itself. Budgets are fractions of the pixel range.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from raydist.fields import (
    Budget,
    Count,
    NonNegative,
    Share,
    check_budget,
    check_rows,
    either,
)


class Table(BaseModel):
    """A table of the file: unknown keys, NaN and infinities are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_flag(cls, value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        result = handler(value)
        if isinstance(value, bool) and not isinstance(result, bool):
            raise ValueError("expected a number")  # Python would take true for 1
        return result


class Topology(Table):
    """The graph and its weights; further keys are the parameters of the kind."""

    model_config = ConfigDict(extra="allow")
    kind: str = Field(examples=["ring"])
    agents: PositiveInt = Field(examples=[8])
    seed: int = Field(default=0, ge=0)
    weights: Annotated[
        str | list[list[float]], either("the name of a rule or the matrix as a list of rows")
    ] = "metropolis"

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        check_rows("topology.weights", self.weights)
        return self


class Data(Table):
    """The data set, its batches, and its partition over the agents."""

    set: str = "digits"
    batch: PositiveInt = 32  # per agent: the global batch is agents * batch
    root: str | None = None  # default: the environment variable RAYDIST_DATA, else "data"
    download: bool = False
    validation: Share = 0.1  # held out of the training set
    partition: Literal["iid"] = "iid"
    augment: Literal["auto", "none", "crop", "crop-flip"] = (
        "auto"  # auto: what is usual for the set
    )
    params: dict[str, Any] = {}  # for a set of your own, "module:function"
    centers: list[list[float]] | None = None  # the quadratic task: K points of M coordinates
    hessian: Annotated[  # its diagonal, common or per agent
        list[float] | list[list[float]] | None,
        either("a list of finite numbers, or one such list for each agent"),
    ] = None
    noise: NonNegative = 0.0

    @model_validator(mode="after")
    def _quadratic(self) -> Self:
        given = [k for k in ("centers", "hessian") if getattr(self, k) is not None]
        if self.set == "quadratic" and len(given) < 2:
            raise ValueError('data.set = "quadratic" needs both centers and hessian')
        if self.set != "quadratic" and (given or self.noise):
            key = (*given, "noise")[0]
            raise ValueError(
                f'data.{key} belongs to data.set = "quadratic", not to "{self.set}": remove it'
            )
        check_rows("data.centers", self.centers)
        check_rows("data.hessian", self.hessian)
        return self


class Model(Table):
    """What every agent trains."""

    name: str = "small-cnn"
    width: PositiveFloat = 1.0  # factor on the number of channels
    start: list[float] | None = None  # the point model's w_0
    params: dict[str, Any] = {}  # for a model of your own, "module:function"


class Threat(Table):
    """The ball of perturbations that the agents train against and are judged by."""

    norm: Literal["linf", "l2"] = "linf"
    eps: Budget = 8 / 255

    @model_validator(mode="after")
    def _fraction(self) -> Self:
        check_budget("threat.eps", self.eps, self.norm)
        return self


class Attack(Table):
    """How adversarial examples are made in training; the loss chooses the attack by default."""

    name: Literal["pgd", "fgsm", "kl_pgd"] | None = None
    steps: Annotated[int, Field(ge=0)] = 10
    alpha: Budget | None = None  # default: eps / 4, as in the papers
    start: Literal["uniform", "zero"] | None = None  # default: zero for fgsm, else uniform
    restarts: PositiveInt = 1


class Loss(Table):
    """The robust loss."""

    name: str = "pgd_at"
    beta: NonNegative | None = None  # of TRADES; default 6
    params: dict[str, Any] = {}  # for a loss of your own, "module:function"

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.beta is not None and self.name != "trades":
            raise ValueError(
                f'loss.beta belongs to the loss "trades", not to "{self.name}": remove it'
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
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] | None = None
    factor: PositiveFloat | None = None
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
        return self

    def params(self) -> dict[str, Any]:
        """The parameters that were given."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Optim(Table):
    """The local step of an agent."""

    name: Literal["sgd"] = "sgd"
    lr: NonNegative = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _nesterov(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum above 0: write momentum = 0.9")
        return self


class Evaluate(Table):
    """What is measured during training (on validation images) and at its end (on test images)."""

    every: PositiveInt | None = None  # rounds between validations; default: a tenth of the run
    images: PositiveInt = 512  # validation images at most
    test: Count = "all"  # test images for clean and PGD accuracy
    pgd: list[PositiveInt] = [10, 20]  # numbers of PGD steps
    autoattack: Count = "all"  # test images; 0 switches AutoAttack off
    agents: bool = False  # every agent too, not only the centroid
    batch: PositiveInt = 256


class FoscRule(Table):
    """When training counts as unstable: FOSC too high for `patience` measurements in a row."""

    threshold: PositiveFloat | None = None  # absolute
    relative: Annotated[float, Field(gt=1)] | None = None  # multiple of the running median
    patience: PositiveInt = 3
    warmup: Annotated[int, Field(ge=0)] = 0  # measurements that are only remembered
    on: Literal["validation", "train"] = "validation"
    form: Literal["published", "box", "relative"] = "published"

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


class Stop(Table):
    """When a trial is ended early."""

    fosc: FoscRule | None = None


class AgentResources(Table):
    """What one agent reserves; the default divides the machine that is found."""

    cpus: PositiveFloat | None = None
    gpus: NonNegative | None = None
