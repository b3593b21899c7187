"""The tables of training: topology, data, model, optimiser, averages."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from raydist.config.fields import (
    By,
    NonNegative,
    Share,
    Table,
    UserTable,
    arguments,
    check_rows,
    either,
    increasing,
)


class ConstantRate(Table):
    """The learning rate is optim.lr in every round."""

    name: Literal["constant"]


class Cosine(Table):
    """The learning rate falls along half a cosine."""

    name: Literal["cosine"]
    final: NonNegative = 0.0
    """Learning rate at the end."""


class Piecewise(Table):
    """The learning rate is multiplied at milestones."""

    name: Literal["piecewise"]
    milestones: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]],
        Field(min_length=1, max_length=20),
        AfterValidator(increasing),
    ] = Field(examples=[[0.5, 0.75]])
    """Fractions of the run at which the rate is multiplied."""
    factor: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Factor by which it is multiplied."""


class OwnRate(UserTable):
    """A schedule of the user's own, "package.module:function"."""

    name: str


Schedule = Annotated[ConstantRate | Piecewise | Cosine | OwnRate, By("constant")]


class AnyOptim(Table):
    """The local step of an agent."""

    name: str
    lr: Annotated[float, Field(ge=0, le=10**6)] = 0.1
    """Learning rate."""
    weight_decay: NonNegative = 0.0
    """Weight decay: coupled in sgd and adam, decoupled in deat, else as the class has it."""
    combine: bool = False
    """Combine momentum and the like with the same A, as the weights are."""
    schedule: Schedule = ConstantRate(name="constant")
    """Course of the learning rate over the run."""

    def options(self) -> dict[str, Any]:
        """The options of the optimiser, as `learning.optim.build` calls them."""
        return arguments(self, "combine", "schedule") | {"name": self.name}


class Adam(AnyOptim):
    """Adam, as torch has it."""

    name: Literal["adam"]


class Deat(AnyOptim):
    """Diffusion-enhanced adversarial training (arXiv:2306.02618)."""

    name: Literal["deat"]
    k1: NonNegative = 1.0
    """Weight of the previous chain."""
    k2: Annotated[float, Field(ge=0, lt=1)] = 0.81
    """Decay of the averages."""
    normalise: bool = True
    """Divide the step by sqrt((1 + k1)² + k1²)."""


class Sgd(AnyOptim):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum."""
    nesterov: bool = False
    """Take the gradient ahead of the momentum."""

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum above 0: write momentum = 0.9")
        return self


class TorchOptim(AnyOptim):
    """A class of torch.optim, by its own name."""

    name: Literal[
        "ASGD",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    ]
    params: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the class."""


class OwnOptim(AnyOptim, UserTable):
    """An optimiser of the user's own, "package.module:Class"."""


Optim = Annotated[Sgd | Adam | Deat | TorchOptim | OwnOptim, By("sgd")]


class AnyAverage(Table):
    """An average of the weights over the run, judged beside the last centroid."""

    name: str
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the run at which the average begins."""


class Ema(AnyAverage):
    """Exponential moving average."""

    name: Literal["ema"]
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of a round."""


class Swa(AnyAverage):
    """Plain mean."""

    name: Literal["swa"]


Average = Annotated[Ema | Swa, By("ema")]


class Topology(Table):
    """The graph and its weights; further keys are the parameters of the kind."""

    model_config = ConfigDict(extra="allow")
    kind: str = Field(examples=["ring"])
    """Kind of graph: ring, path, star, complete, grid, torus, hypercube, erdos-renyi,
    random-regular, watts-strogatz, edges, or "package.module:function". Further keys are its
    parameters."""
    agents: int = Field(gt=0, le=4096, examples=[8])
    """Number K of agents."""
    seed: int = Field(default=0, ge=0)
    """Seed of a random graph."""
    weights: Annotated[
        str | list[list[float]], either("the name of a rule or the matrix as a list of rows")
    ] = "metropolis"
    """Combination matrix A: metropolis, averaging, uniform, edge-weights (those of a graph of
    your own), "package.module:function", or the matrix itself, whose columns sum to 1."""

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        check_rows("topology.weights", self.weights)
        return self


class Iid(Table):
    """Shares of equal size, drawn at random."""

    name: Literal["iid"]


class Dirichlet(Table):
    """Parts of each label, drawn from a Dirichlet distribution."""

    name: Literal["dirichlet"]
    alpha: PositiveFloat = 0.5
    """Concentration: small is uneven."""


class Shards(Table):
    """Shards of one label each."""

    name: Literal["shards"]
    shards: PositiveInt = 2
    """Number of shards of an agent."""


class Quantity(Table):
    """Shares of unequal size, drawn from a Dirichlet distribution."""

    name: Literal["quantity"]
    alpha: PositiveFloat = 0.5
    """Concentration: small is uneven."""


class OwnPartition(UserTable):
    """A partition of the user's own, "package.module:function"."""

    name: str


Partition = Annotated[Iid | Dirichlet | Shards | Quantity | OwnPartition, By("iid")]


class Transform(Table):
    """A fixed change of one agent's training images."""

    rotate: float = 0.0
    """Rotation in degrees."""
    brightness: NonNegative = 1.0
    """Factor of brightness."""


class AnyData(Table):
    """The batches of a data set."""

    set: str
    """digits, mnist, fashion-mnist, cifar10, cifar100, svhn"""
    batch: int = Field(default=32, gt=0, le=10**6)
    """Batch of an agent: all of them use K times as many samples."""


class Pictures(AnyData):
    """Images, and their partition over the agents."""

    validation: Share = 0.1
    """Part of the training set that is held out."""
    partition: Partition = Iid(name="iid")
    """Division of the training set among the agents."""
    augment: Literal["auto", "none", "crop", "crop-flip"] = "auto"
    """Augmentation; auto: what is usual for the set."""
    transforms: list[Transform] | None = None
    """Fixed changes of training images, one table for each agent; {} changes nothing."""


class Images(Pictures):
    """A published data set."""

    root: str | None = None
    """Folder of the data; without it $RAYDIST_DATA, else ./data, wherever it is read."""
    download: bool = False
    """Download what is not there."""


class OwnImages(Pictures, UserTable):
    """A data set of the user's own."""


class Quadratic(AnyData):
    """The quadratic task: x ~ N(c_k, noise² I), loss ½ (w − x)ᵀ H_k (w − x)."""

    set: Literal["quadratic"]
    centers: list[list[float]] = Field(examples=[[[1.0], [-1.0]]])
    """Minimisers of the agents: K points of M coordinates."""
    hessian: Annotated[
        list[float] | list[list[float]],
        either("a list of finite numbers, or one such list for each agent"),
    ] = Field(examples=[[1.0]])
    """Diagonal of the Hessian: M numbers, or K lists of them."""
    noise: NonNegative = 0.0
    """Standard deviation of the samples."""

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
    start: list[float] | None = None
    """Point w_0 at which all agents start; without it the origin."""


class Network(Table):
    """A network and its first weights."""

    name: str
    """linear, small-cnn, lenet, resnet-18, preact-resnet-18, wrn-16-4, wrn-28-10, wrn-34-10,
    vgg-16, senet-18"""
    width: float = Field(default=1.0, gt=0, le=1000)
    """Factor on the number of channels."""
    checkpoint: str | None = None
    """Weights to start from: a file of safetensors or a saved state dict."""
    key_map: Annotated[
        Literal["", "published"] | dict[str, str],
        either('"published" or a table of regular expressions'),
    ] = ""
    """Names of the checkpoint to ours: regular expressions, applied in order, or published for
    those of RobustBench and TRADES."""
    reset_last: bool = False
    """Start with a new last layer (fine-tuning)."""
    noise: NonNegative = 0.0
    """Standard deviation of noise on all weights at the start (fine-tuning)."""

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


class OwnNetwork(Network, UserTable):
    """A network of the user's own."""


Model = Annotated[Point | OwnNetwork | KnownNetwork, By("small-cnn")]
