"""The experiment: all tables, checked together and hashed.

An `Experiment` is frozen, complete and comparable: its hash names its trial. `raydist.config.study`
reads it from TOML; `validate` is the only door through which one enters.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from raydist.config import values
from raydist.config.adversary import (
    Attack,
    Awp,
    Loss,
    NoAttack,
    Pgd,
    PgdAt,
    Stepped,
    Threat,
    Wasserstein,
    usual_attack,
)
from raydist.config.fields import (
    Table,
    check_budget,
    fields_in,
    fill,
    increasing,
    union_in,
)
from raydist.config.messages import explain
from raydist.config.running import AgentResources, Evaluate, Snapshot, Stop, Telemetry
from raydist.config.training import (
    Average,
    Data,
    Images,
    KnownNetwork,
    Model,
    Optim,
    Pictures,
    Point,
    Sgd,
    Topology,
)
from raydist.config.values import shown
from raydist.errors import SECRETS, InputError
from raydist.lookup import one_of
from raydist.network.strategy import STRATEGIES

OWN_NAME = '"package.module:name"'  # of a strategy, which is a value


def _as_table(value: object, key: str) -> object:
    """A bare name as the table that it stands for."""
    return {key: value} if isinstance(value, str) else value


def _strategy(value: object) -> object:
    """The name of a strategy, also where a table holds nothing else."""
    name = value["name"] if isinstance(value, dict) and [*value] == ["name"] else value
    if not isinstance(name, str) or (":" not in name and name not in STRATEGIES):
        raise ValueError(f"expected {one_of([*STRATEGIES, OWN_NAME], name)}")
    return name


def _no_number(value: object) -> object:
    """Telemetry was a number in earlier releases."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"expected a table: write telemetry = {{ every = {value} }}")
    return value


class Experiment(Table):
    """One experiment, complete: what a trial needs to know and all that its result depends on.

    Every default is that of a field, but for those that follow from another key: the attack of the
    loss and how often the quadratic task is measured (`_named`), the step of the attack, δ = ε and
    the origin at which the quadratic task starts (`_fill`), the highest ε of a schedule (`Threat`).
    They are filled in for each point of a study, after axes and command line: a sweep over ε moves
    them along. The digest is of the filled experiment, and nothing remembers what was written, so
    writing a default down changes no digest. Agents with threats of their own read
    `alpha` and δ through `engine.agent.own.Own`. What is None after that is absent, except where
    things lie and what an agent reserves: the machine decides these.
    """

    strategy: Annotated[str, BeforeValidator(_strategy)] = "diffusion"
    """Rule by which agents combine what they send: centralized, consensus, diffusion, local, or
    "package.module:name"."""
    engine: Literal["agents", "train"] = "agents"
    """Engine: agents, each with a model of its own, or train, centralized alone and data
    parallel on Ray Train."""
    topology: Topology = Field(examples=["topologies/ring8.toml"])
    """Graph of the agents."""
    rounds: PositiveInt | None = None
    """Length of the run."""
    epochs: PositiveFloat | None = None
    """Length of the run in passes over the mean share, instead of rounds."""
    seed: int = Field(default=0, ge=0)
    """Seed of every draw."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of all numbers."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Precision of training's matrix products."""
    channels_last: bool = False
    """Memory format of images in training."""
    compile: bool = False
    """Use torch.compile for the passes of training."""
    cuda_graphs: bool = False
    """Record the passes of training on a GPU once, then replay them."""
    combine_buffers: bool = True
    """Combine BatchNorm's running statistics as the weights are."""
    data: Data = Images(set="digits")
    """Samples of the agents."""
    model: Model = KnownNetwork(name="small-cnn")
    """Model of every agent."""
    threat: Threat = Threat()
    """Ball of perturbations that the agents train against and are judged by."""
    attack: Attack = Pgd(name="pgd")
    """Attack of training; without a name the attack of the loss."""
    loss: Loss = PgdAt(name="pgd_at")
    """Objective of an agent."""
    awp: Awp = Awp()
    """Perturbation of weights."""
    optim: Optim = Sgd(name="sgd")
    """Local step of an agent."""
    average: Average | None = None
    """Average of the weights over the run."""
    periods: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], AfterValidator(increasing)] = (
        Field(default_factory=list)
    )
    """Fractions of the run at which the schedules of ε and learning rate begin again."""
    telemetry: Annotated[Telemetry, BeforeValidator(_no_number)] = Telemetry()
    """Closer look at training."""
    evaluate: Evaluate = Evaluate()
    """Measurements during training (on validation images) and at its end (on test images)."""
    stop: Stop = Stop()
    """Rule of instability, and the response to it."""
    exchange: Literal["objects", "board", "auto"] = "objects"
    """Way of messages between actors: the object store, memory that the actors of one node
    share, or auto: shared memory where it can be."""
    agent: AgentResources = AgentResources()
    """Share of the machine that an agent reserves."""
    snapshot: Snapshot = Snapshot()
    """Copies of the state of all agents on disk."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.rounds is None) == (self.epochs is None):
            raise ValueError(
                "neither rounds nor epochs is given: write rounds = 100"
                if self.rounds is None
                else "rounds and epochs are both given: remove one"
            )
        if self.dtype == "float64" and self.precision != "float32":
            raise ValueError(
                f'precision is "{self.precision}", which computes with less than dtype = '
                '"float64": remove one'
            )
        if self.precision == "tf32" and self.channels_last:
            raise ValueError(
                'precision is "tf32", which fails on GPUs with channels_last = true (cuDNN, seen '
                "on an H200): remove one"
            )
        transforms = self.data.transforms if isinstance(self.data, Pictures) else None
        owns = {"threat.agents": self.threat.agents, "data.transforms": transforms}
        for key, own in owns.items():
            if own is not None and len(own) != self.topology.agents:
                raise ValueError(
                    f"{key} has {len(own)} tables for topology.agents = {self.topology.agents}: "
                    "write one for each agent, {} where it is as the others"
                )
        self._check_attack()
        self._check_budgets()
        if (self.data.set == "quadratic") != (self.model.name == "point") or (
            (self.data.set == "quadratic") != (self.loss.name == "quadratic")
        ):
            raise ValueError(
                'data.set = "quadratic", model.name = "point" and loss.name = "quadratic" '
                "belong together"
            )
        if self.engine == "train":
            self._check_train()
        self._fill()
        return self

    @model_validator(mode="before")
    @classmethod
    def _named(cls, tree: Any) -> Any:
        """Write what follows from names into tables that do not say it."""
        if not isinstance(tree, dict):
            return tree
        loss, attack, data, evaluate = (
            _as_table(tree.get(key, {}), "set" if key == "data" else "name")
            for key in ("loss", "attack", "data", "evaluate")
        )
        if isinstance(attack, dict) and "name" not in attack:
            named = loss.get("name") if isinstance(loss, dict) else getattr(loss, "name", None)
            attack = attack | {"name": usual_attack(named)}
            if attack["name"] == "none":  # a study over losses says how the others are attacked
                others = fields_in(Attack).keys() - NoAttack.model_fields.keys()
                attack = {key: value for key, value in attack.items() if key not in others}
            tree = tree | {"attack": attack}
        if isinstance(data, dict) and data.get("set") == "quadratic" and isinstance(evaluate, dict):
            tree = tree | {"evaluate": {"every": 1} | evaluate}
        return tree

    def _fill(self) -> None:
        """Write what follows from values into tables that do not say it."""
        if isinstance(self.attack, Stepped) and self.attack.alpha is None:
            alpha = self.attack.usual_alpha(self.threat.norm, self.threat.eps)
            fill(self, attack=self.attack.model_copy(update={"alpha": alpha}))
        if isinstance(self.loss, Wasserstein) and self.loss.delta is None:
            fill(self, loss=self.loss.model_copy(update={"delta": self.threat.eps}))
        if isinstance(self.model, Point) and self.model.start is None:
            size = max(map(len, getattr(self.data, "centers", [])), default=0)
            fill(self, model=self.model.model_copy(update={"start": [0.0] * size}))

    def _check_attack(self) -> None:
        """A step that is written is one of the threat's units, and is made."""
        table, eps = self.attack, self.threat.eps
        if not isinstance(table, Stepped) or table.alpha is None:
            return
        if table.alpha == table.usual_alpha(self.threat.norm, eps):
            return
        check_budget("attack.alpha", table.alpha, self.threat.norm)
        if table.steps == 0 and table.alpha > eps:
            raise ValueError(
                f"attack.alpha is {table.alpha:g} but attack.steps is 0, so nothing would be "
                "attacked: write attack.steps = 10, or threat.eps = 0 to train without an attack"
            )

    def _check_budgets(self) -> None:
        """Budgets that follow another one have one to follow; Υ is of one norm."""
        threats = [self.threat.of(k) for k in range(len(self.threat.agents or []))]
        top, zero = getattr(self.threat.schedule, "eps_max", 0.0), self.threat.eps == 0
        delta = self.loss.delta if isinstance(self.loss, Wasserstein) else None
        if zero and top and (delta or any(threat.eps for threat in threats)):
            raise ValueError(
                f"threat.schedule.eps_max is {top:g}, which counts in units of threat.eps, but "
                "that is 0: write threat.eps = 0.1, or remove eps_max"
            )
        norms = {threat.norm for threat in threats}
        sensitive = isinstance(self.loss, Wasserstein) and self.loss.order != "inf"
        if sensitive and len(norms) > 1:
            raise ValueError(
                f"threat.agents have the norms {' and '.join(sorted(norms))}, but the sensitivity "
                'of loss.name = "wasserstein" is of one for all: write one, or loss.order = "inf"'
            )

    def _check_train(self) -> None:
        """One model for all agents, on workers of equal size, without snapshots."""
        needs = {
            'strategy = "centralized"': self.strategy == "centralized",
            "combine_buffers = true": self.combine_buffers,
            'exchange = "objects"': self.exchange == "objects",
            "snapshot.every = 0 or no table snapshot": self.snapshot
            in (Snapshot(), Snapshot(every=0)),
            "neither agent.cpus nor agent.gpus (but agent.gpus = 0 for CPUs)": self.agent
            in (AgentResources(), AgentResources(gpus=0)),
        }
        missing = [need for need, there in needs.items() if not there]
        if missing:
            raise ValueError(
                f'engine = "train" needs {" and ".join(missing)}: write that, or engine = "agents"'
            )

    def changed(self) -> dict[str, Any]:
        """The settings that change a result and differ from the defaults, as nested JSON values."""
        kept = self
        if isinstance(self.data, Images):  # wherever its files are
            here = self.data.model_copy(update={"root": None, "download": False})
            kept = self.model_copy(update={"data": here})
        where = {"agent", "exchange", "snapshot"}
        return kept.model_dump(mode="json", exclude_defaults=True, exclude=where)

    def digest(self, contents: Mapping[str, str] | None = None) -> str:
        """Twelve hex digits that name this experiment, wherever and however safely it runs.

        A key that a later release adds does not change them as long as it has its default.

        Args:
            contents: dotted key -> digest of the content of the file or set that the key names,
                which then stands for the name.

        Returns:
            The digits.
        """
        what: dict[str, Any] = self.changed()
        if contents and "model.checkpoint" in contents:
            what["model"] = {k: v for k, v in what["model"].items() if k != "checkpoint"}
        if contents:
            what["contents"] = dict(contents)
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def validate(tree: Mapping[str, Any]) -> Experiment:
    """An experiment from plain nested values.

    Args:
        tree: tables and values as TOML gives them, or those of NumPy (see `raydist.config.values`).

    Returns:
        The complete experiment.

    Raises:
        InputError: one line that says what is wrong, what was expected and what to write.

    Example:
        >>> validate({"topology": {"kind": "ring", "agents": 4}, "rounds": 1}).optim.lr
        0.1
    """
    try:
        whole = plain("the experiment", tree)
        _check_secrets("", whole)
        config = Experiment.model_validate(whole)
    except ValidationError as error:
        raise InputError(explain(error, Experiment, Experiment)) from None
    _check_free(config)
    return config


def _check_secrets(key: str, value: object) -> None:
    """Check that no value is a URL with a password: the results keep all values."""
    if isinstance(value, dict):
        for name, each in value.items():
            _check_secrets(f"{key}.{name}".removeprefix("."), each)
    elif isinstance(value, list):
        for n, each in enumerate(value):
            _check_secrets(f"{key}[{n}]", each)
    elif isinstance(value, str) and any(re.search(secret, value) for secret in SECRETS):
        raise InputError(
            f"{key} is {shown(value)}, which holds a password, and results keep what a study says: "
            "give it in the environment or in the files of that storage's own tools"
        )


def plain(key: str, value: object) -> Any:
    """Call `raydist.config.values.plain`, with InputError instead of ValueError."""
    try:
        return values.plain(key, value)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_free(config: Experiment) -> None:
    """Check that parameters of the user's own, which no field describes, are finite."""
    tables = {name: getattr(config, name) for name in ("data", "model", "loss", "attack", "optim")}
    tables |= {"optim.schedule": config.optim.schedule, "threat.schedule": config.threat.schedule}
    tables["data.partition"] = getattr(config.data, "partition", None)
    free = {f"{n}.params": t.params for n, t in tables.items() if hasattr(t, "params")}
    if ":" in config.topology.kind:
        free["topology"] = config.topology.model_extra or {}
    for key, table in free.items():
        if line := values.not_finite(key, table):
            raise InputError(
                f"{line}, expected a finite number: JSON keeps no other; write 1e30, or a string"
            )


def short_form(key: str) -> str | None:
    """The key of the name that a bare string in a table's place would be; None: there is none.

    Args:
        key: the dotted key of the table, such as "loss".

    Returns:
        "name", or "set" for "data".
    """
    *parents, last = key.split(".")
    around: Any = Experiment
    for parent in parents:
        field = fields_in(around).get(parent)
        around = None if field is None else field.annotation
    field = fields_in(around).get(last)
    if field is None:
        return None
    by = union_in(field)
    return "name" if key == "strategy" else (by.key if by else None)
