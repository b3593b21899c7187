"""The tables of an experiment: every field, its default, its range.

A message about one field is completed by `raydist.config` with the dotted key and the value; a
message about several fields names them itself. Budgets are fractions of the pixel range.
"""

import os
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
    Count,
    NonNegative,
    Share,
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
    agents: int = Field(gt=0, le=4096, examples=[8])
    seed: int = Field(default=0, ge=0)
    weights: Annotated[
        str | list[list[float]], either("the name of a rule or the matrix as a list of rows")
    ] = "metropolis"

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        check_rows("topology.weights", self.weights)
        return self


class Partition(Table):
    """How the training images are dealt out to the agents."""

    name: Literal["iid", "dirichlet", "shards", "quantity"] = "iid"
    alpha: PositiveFloat | None = None  # dirichlet, quantity: small is uneven; default 0.5
    shards: PositiveInt | None = None  # shards of one label each that an agent gets; default 2

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        owners = {"alpha": ("dirichlet", "quantity"), "shards": ("shards",)}
        for key, names in owners.items():
            if getattr(self, key) is not None and self.name not in names:
                raise ValueError(
                    f"data.partition.{key} belongs to {' and '.join(names)}, not to "
                    f'"{self.name}": remove it'
                )
        return self


class Transform(Table):
    """A fixed change of one agent's training images."""

    rotate: float = 0.0  # degrees
    brightness: NonNegative = 1.0  # factor


class Data(Table):
    """The data set, its batches, and its partition over the agents."""

    set: str = "digits"
    batch: int = Field(default=32, gt=0, le=10**6)  # per agent: all use agents * batch
    root: str | None = None  # default: the environment variable RAYDIST_DATA, else "data"
    download: bool = False
    validation: Share = 0.1  # held out of the training set
    partition: Partition = Partition()  # a name, or a table with its parameters
    augment: Literal["auto", "none", "crop", "crop-flip"] = (
        "auto"  # auto: what is usual for the set
    )
    transforms: list[Transform] | None = None  # one for each agent; {} changes nothing
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
        if 0 < self.noise < 1e-30:
            raise ValueError(f"data.noise is {self.noise:g}, expected 0 or 1e-30 and more: write 0")
        check_rows("data.centers", self.centers)
        check_rows("data.hessian", self.hessian)
        return self


class Model(Table):
    """What every agent trains."""

    name: str = "small-cnn"
    width: float = Field(default=1.0, gt=0, le=1000)  # factor on the number of channels
    start: list[float] | None = None  # the point model's w_0
    checkpoint: str | None = None  # weights to start from: .safetensors or a saved state dict
    key_map: Annotated[  # its names to ours: regular expressions, in order; or the published ones
        Literal["", "published"] | dict[str, str],
        either('"published" or a table of regular expressions'),
    ] = ""
    reset_last: bool = False  # fine-tuning: a new last layer
    noise: NonNegative = 0.0  # fine-tuning: standard deviation of noise on all weights
    params: dict[str, Any] = {}  # for a model of your own, "module:function"

    @model_validator(mode="after")
    def _fine_tuning(self) -> Self:
        for key in ("key_map", "reset_last", "noise"):
            if getattr(self, key) and self.checkpoint is None:
                raise ValueError(
                    f"model.{key} belongs to fine-tuning, but model.checkpoint is missing: write "
                    'checkpoint = "runs/.../weights/centroid.safetensors"'
                )
        return self


class Evaluate(Table):
    """What is measured during training (on validation images) and at its end (on test images)."""

    every: PositiveInt | None = None  # rounds between validations; default: a tenth of the run
    images: PositiveInt = 512  # validation images at most
    test: Count = "all"  # test images for clean and PGD accuracy, evenly over labels
    pgd: list[PositiveInt] = [10, 20]  # numbers of PGD steps
    autoattack: Count = "all"  # test images; 0 switches AutoAttack off
    attacks: list[
        str
    ] = []  # further attacks on the test images, by name: ["apgd-dlr", "square1000"]
    hessian: int = Field(
        default=0, ge=0
    )  # training images for the Hessian's trace; 0: not measured
    agents: bool = False  # every agent too, not only the centroid
    excess_risk: int = Field(default=0, ge=0)  # training images for J(w) − J(start)
    subspace: int = Field(default=0, ge=0)  # dimensions of its prediction; 0: not predicted
    batch: PositiveInt = 256


class Snapshot(Table):
    """How often the state of all agents is kept on disk, where, and how often it may be needed."""

    every: Annotated[int, Field(ge=0)] | None = (
        None  # rounds between two snapshots; 0 switches them off
    )
    seconds: PositiveFloat | None = None  # or seconds; default 30
    keep: PositiveInt = 2  # the last ones
    path: str | None = None  # any fsspec URL; default: snapshots/ in the trial's folder
    recoveries: Annotated[int, Field(ge=0)] = 3  # deaths of agents that a trial survives

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.every is not None and self.seconds is not None:
            raise ValueError("snapshot.every and snapshot.seconds are both given: remove one")
        if self.path is not None and "://" not in self.path and not os.path.isabs(self.path):
            raise ValueError(
                f'snapshot.path is "{self.path}", expected an absolute path or a URL that every '
                'node sees: write path = "/shared/snapshots" or "s3://bucket/snapshots"'
            )
        return self


class AgentResources(Table):
    """What one agent reserves; the default divides the machine that is found."""

    cpus: PositiveFloat | None = None
    gpus: NonNegative | None = None
    per_actor: PositiveInt = 1  # agents of one process, which take turns on their common share
