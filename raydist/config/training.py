"""The tables of an experiment: every field, its default, its range.

A message about one field is completed by `raydist.config.experiment` with the dotted key and the
value; a message about several fields names them itself. Budgets are fractions of the pixel range.
"""

import os
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from raydist.config.fields import (
    By,
    Count,
    NonNegative,
    Own,
    Share,
    Span,
    Table,
    check_rows,
    either,
)


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


class Iid(Table):
    """Shares of equal size, drawn at random."""

    name: Literal["iid"]


class Dirichlet(Table):
    """The parts of each label that the agents get are drawn from a Dirichlet distribution."""

    name: Literal["dirichlet"]
    alpha: PositiveFloat = 0.5  # its concentration: small is uneven


class Shards(Table):
    """Every agent gets shards of one label each."""

    name: Literal["shards"]
    shards: PositiveInt = 2  # how many


class Quantity(Table):
    """Shares of unequal size, drawn from a Dirichlet distribution."""

    name: Literal["quantity"]
    alpha: PositiveFloat = 0.5  # its concentration: small is uneven


Partition = Annotated[Iid | Dirichlet | Shards | Quantity, By("iid")]


class Transform(Table):
    """A fixed change of one agent's training images."""

    rotate: float = 0.0  # degrees
    brightness: NonNegative = 1.0  # factor


class AnyData(Table):
    """The batches of a data set."""

    set: str
    batch: int = Field(default=32, gt=0, le=10**6)  # per agent: all use agents * batch


class Pictures(AnyData):
    """Images, and their partition over the agents."""

    validation: Share = 0.1  # held out of the training set
    partition: Partition = Iid(name="iid")
    # auto: what is usual for the set
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    transforms: list[Transform] | None = None  # one for each agent; {} changes nothing


class Images(Pictures):
    """A published data set."""

    root: str | None = None  # None: $RAYDIST_DATA, else "data", wherever it is read
    download: bool = False


class OwnImages(Pictures, Own):
    """A data set of the user's own, "package.module:function"."""


class Quadratic(AnyData):
    """The quadratic task: x ~ N(c_k, noise² I), loss ½ (w − x)ᵀ H_k (w − x)."""

    set: Literal["quadratic"]
    centers: list[list[float]] = Field(examples=[[[1.0], [-1.0]]])  # K points of M coordinates
    hessian: Annotated[  # its diagonal, common or per agent
        list[float] | list[list[float]],
        either("a list of finite numbers, or one such list for each agent"),
    ] = Field(examples=[[1.0]])
    noise: NonNegative = 0.0

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if 0 < self.noise < 1e-30:
            raise ValueError(f"data.noise is {self.noise:g}, expected 0 or 1e-30 and more: write 0")
        check_rows("data.centers", self.centers)
        check_rows("data.hessian", self.hessian)
        return self


Data = Annotated[Quadratic | OwnImages | Images, By("digits", "set")]


class Point(Table):
    """The parameter of the quadratic task is the point w itself."""

    name: Literal["point"]
    start: list[float] | None = None  # w_0; None: the origin, which the experiment fills in


class Network(Table):
    """What a network starts from."""

    name: str
    width: float = Field(default=1.0, gt=0, le=1000)  # factor on the number of channels
    checkpoint: str | None = None  # weights to start from: .safetensors or a saved state dict
    key_map: Annotated[  # its names to ours: regular expressions, in order; or the published ones
        Literal["", "published"] | dict[str, str],
        either('"published" or a table of regular expressions'),
    ] = ""
    reset_last: bool = False  # fine-tuning: a new last layer
    noise: NonNegative = 0.0  # fine-tuning: standard deviation of noise on all weights

    @model_validator(mode="after")
    def _fine_tuning(self) -> Self:
        for key in ("key_map", "reset_last", "noise"):
            if getattr(self, key) and self.checkpoint is None:
                raise ValueError(
                    f"model.{key} belongs to fine-tuning, but model.checkpoint is missing: write "
                    'checkpoint = "runs/.../weights/centroid.safetensors"'
                )
        return self


class KnownNetwork(Network):
    """A network of a known architecture."""


class OwnNetwork(Network, Own):
    """A network of the user's own, "package.module:function"."""


Model = Annotated[Point | OwnNetwork | KnownNetwork, By("small-cnn")]


class Evaluate(Table):
    """What is measured during training (on validation images) and at its end (on test images)."""

    every: Span = 0.1  # between validations; of the quadratic task every round
    validation_images: PositiveInt = 512  # at most
    test_images: Count = "all"  # for clean and PGD accuracy, evenly over labels
    pgd: list[PositiveInt] = Field(default=[10, 20])  # numbers of PGD steps
    autoattack: Count = "all"  # test images; 0 switches AutoAttack off
    # further attacks on the test images, by name: ["apgd-dlr", "square1000"]
    attacks: list[str] = Field(default_factory=list)
    hessian: int = Field(default=0, ge=0)  # training images for its trace; 0: not measured
    agents: bool = False  # every agent too, not only the centroid
    excess_risk: int = Field(default=0, ge=0)  # training images for J(w) − J(start)
    subspace: int = Field(default=0, ge=0)  # dimensions of its prediction; 0: not predicted
    batch: PositiveInt = 256


class Snapshot(Table):
    """How often the state of all agents is kept on disk, where, and how often it may be needed."""

    # rounds between two snapshots; 0 switches them off; None: they are so many seconds apart
    every: Annotated[int, Field(ge=0)] | None = None
    seconds: PositiveFloat = 30.0
    keep: PositiveInt = 2  # the last ones
    path: str | None = None  # any fsspec URL; default: snapshots/ in the trial's folder
    recoveries: Annotated[int, Field(ge=0)] = 3  # deaths of agents that a trial survives

    @model_validator(mode="after")
    def _sound(self) -> Self:
        usual = type(self).model_fields["seconds"].default
        if self.every is not None and self.seconds != usual:
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
