"""The typed experiment, and how a wrong one is told to the user.

An `Experiment` is frozen, complete and comparable: its hash names its trial. `raydist.study` reads
it from TOML; `validate` is the only door through which one enters.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from raydist import values
from raydist.closest import closest, same
from raydist.fields import check_budget
from raydist.recipe import Attack, Average, Loss, Optim, Stop, Threat
from raydist.tables import AgentResources, Data, Evaluate, Model, Snapshot, Table, Topology
from raydist.values import shown as shown

LONGEST = 800  # characters of a line
SECRETS = (  # in a URL: the password before its host, a key among its parameters
    r"(?<![\w+.-])([A-Za-z][\w+.-]*://[^/\s@:]*:)[^/\s]+(?=@)",
    r"(?i)([?&][\w-]*(?:sig|token|secret|key|password)=)[^&\s]+",
)
REMEDIES = {  # what a user can do where the machine cannot
    errno.ENOSPC: "make room (df shows bytes, df -i the number of files)",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.EIO: "look after the disk",
    errno.ESTALE: "look after the network's file system",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


def printable(text: str) -> str:
    r"""Text that is not ours, as it may be shown and stored: no escapes, no passwords in URLs.

    Args:
        text: any; its line breaks stay.

    Returns:
        The text with control characters spelled out and credentials as "***".

    Example:
        >>> printable("ftp://me:secret@host/runs \x1b[31m")
        'ftp://me:***@host/runs \\x1b[31m'
    """
    shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in masked(text))
    return "".join(shown)


def masked(text: str) -> str:
    """Text with "***" for each password in a URL; to be asked for before text is shortened."""
    for secret in SECRETS:
        text = re.sub(secret, r"\1***", text)
    return text


def one_line(text: str) -> str:
    """Text as one line of printable characters, and no long one."""
    text = masked(text)
    line = printable(text[:LONGEST]).replace("\n", "\\n")
    return line if len(text) <= LONGEST else f"{line[: LONGEST - 3]}..."


class InputError(ValueError):
    """Something that the user wrote is wrong: one line with value, expectation and remedy."""

    def __init__(self, line: str) -> None:
        """Whatever the line quotes, it is one printable line."""
        super().__init__(one_line(line))


class MachineError(OSError):
    """What the machine refuses, a full disk, say: one line with what, why and remedy."""

    def __init__(self, line: str) -> None:
        """Whatever the line quotes, it is one printable line."""
        super().__init__(one_line(line))

    @classmethod
    def of(cls, what: str, error: BaseException) -> "MachineError":
        """What could not be done, and what helps where the machine says why.

        Args:
            what: in words, such as "/runs/one cannot be written".
            error: as the machine tells it.

        Returns:
            The error to raise.
        """
        number = getattr(error, "errno", None)
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        remedy = REMEDIES.get(number or 0, "")
        return cls(f"{what}: {why}{remedy and f': {remedy}'}")


class Experiment(Table):
    """One experiment, complete: what a trial needs to know and all that its result depends on."""

    # as network.strategy.Strategy: a configuration is read and refused before torch is there
    strategy: Literal["centralized", "consensus", "diffusion", "local"] = "diffusion"
    engine: Literal["agents", "train"] = "agents"  # train: centralized, data parallel on Ray Train
    topology: Topology = Field(examples=["topologies/ring8.toml"])
    rounds: PositiveInt | None = None
    epochs: PositiveFloat | None = None  # passes over the mean share, instead of rounds
    seed: int = Field(default=0, ge=0)
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["float32", "tf32", "bf16"] = "float32"  # of training's matrix products
    channels_last: bool = False  # memory format of images in training
    compile: bool = False  # torch.compile for the passes of training
    cuda_graphs: bool = False  # on a GPU: record the passes of training once, then replay them
    combine_buffers: bool = True  # running statistics of BatchNorm travel with the weights
    data: Data = Data()
    model: Model = Model()
    threat: Threat = Threat()
    attack: Attack = Attack()
    loss: Loss = Loss()
    optim: Optim = Optim()
    average: Average | None = None
    # Where the schedules of eps and learning rate begin again, as fractions of the run.
    restarts: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=list)
    telemetry: int = Field(default=0, ge=0)  # a closer look every so many rounds; 0: never
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    # How messages travel between actors: in the object store, or in memory that all of them share.
    exchange: Literal["objects", "board", "auto"] = "objects"
    agent: AgentResources = AgentResources()
    snapshot: Snapshot = Snapshot()

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
        check_budget("attack.alpha", self.attack.alpha or 0.0, self.threat.norm)
        if self.attack.steps == 0 and (self.attack.alpha or 0.0) > self.threat.eps:
            raise ValueError(
                f"attack.alpha is {self.attack.alpha:g} but attack.steps is 0, so nothing would be "
                "attacked: write attack.steps = 10, or threat.eps = 0 to train without an attack"
            )
        if sorted(set(self.restarts)) != self.restarts:
            raise ValueError(
                f"restarts is {self.restarts}, expected increasing fractions of the run: "
                "write [0.5, 0.75]"
            )
        owns = {"threat.agents": self.threat.agents, "data.transforms": self.data.transforms}
        for key, own in owns.items():
            if own is not None and len(own) != self.topology.agents:
                raise ValueError(
                    f"{key} has {len(own)} tables for topology.agents = {self.topology.agents}: "
                    "write one for each agent, {} where it is as the others"
                )
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
        return self

    def _check_budgets(self) -> None:
        """Budgets that follow another one have one to follow; Υ is of one norm."""
        threats = [self.threat.of(k) for k in range(len(self.threat.agents or []))]
        top, zero = self.threat.schedule.eps_max, self.threat.eps == 0
        if zero and top and (self.loss.delta or any(threat.eps for threat in threats)):
            raise ValueError(
                f"threat.schedule.eps_max is {top:g}, which counts in units of threat.eps, but "
                "that is 0: write threat.eps = 0.1, or remove eps_max"
            )
        norms = {threat.norm for threat in threats}
        if self.loss.name == "wasserstein" and self.loss.order != "inf" and len(norms) > 1:
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

    def average_decay(self) -> float | None:
        """The decay of the moving average of weights per round; None for a plain mean."""
        if self.average is None or self.average.name == "swa":
            return None
        return 0.995 if self.average.decay is None else self.average.decay

    def changed(self) -> dict[str, Any]:
        """What a result depends on and differs from the defaults, as nested JSON values."""
        data = {"root": True, "download": True}
        where = {"agent": True, "exchange": True, "snapshot": True}
        tree = self.model_dump(mode="json", exclude_defaults=True, exclude={**where, "data": data})
        return {key: value for key, value in tree.items() if key != "data" or value}

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
        tree: tables and values as TOML gives them, or those of NumPy (see `raydist.values`).

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
        raise InputError(explain(error)) from None
    _check_free(config)
    return config


def _check_secrets(key: str, value: object) -> None:
    """No value is a URL with a password: the results keep all values."""
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
    """As `raydist.values.plain`, with InputError instead of ValueError."""
    try:
        return values.plain(key, value)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_free(config: Experiment) -> None:
    """What no field describes, the parameters of the user's own, has finite numbers."""
    free = {f"{name}.params": getattr(config, name).params for name in ("data", "model", "loss")}
    if ":" in config.topology.kind:
        free["topology"] = config.topology.model_extra or {}
    for key, table in free.items():
        if line := values.not_finite(key, table):
            raise InputError(
                f"{line}, expected a finite number: JSON keeps no other; write 1e30, or a string"
            )


def explain(error: ValidationError, table: type[BaseModel] = Experiment) -> str:
    """The first problem in one line; further ones are counted.

    Args:
        error: what pydantic found.
        table: the model that it was validating.

    Returns:
        Dotted key, value, what was expected.
    """
    problems = error.errors(include_url=False)
    unknown = [p["loc"][:-1] for p in problems if p["type"] == "extra_forbidden"]
    # A key that is missing beside one that is unknown was misspelt: that is one problem.
    problems = [p for p in problems if p["type"] != "missing" or p["loc"][:-1] not in unknown]
    line = _line(problems[0], table)
    return line + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _line(problem: ErrorDetails, table: type[BaseModel]) -> str:
    """One problem: key, value, what was expected, what to write."""
    location, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    where = "".join(parts).removeprefix(".") or "the experiment"
    if problem["type"] == "extra_forbidden":
        return f"{where} is not a known key{nearest(str(location[-1]), _fields(table, location))}"
    if problem["type"] == "missing":
        (example,) = _fields(table, location)[str(location[-1])].examples or [...]
        return f"{where} is missing: write {location[-1]} = {shown(example)}"
    if problem["type"] == "value_error":
        # About one value: to be completed. About several: names them itself.
        alone = message.startswith("expected ")
        return f"{where} is {shown(problem['input'])}, {message}" if alone else message
    return f"{where} is {shown(problem['input'])}, expected {_expected(problem, table)}"


def _expected(problem: ErrorDetails, table: type[BaseModel]) -> str:
    """What pydantic expected, in our words."""
    kind, limits = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        names = re.findall(r"'(.*?)'", limits["expected"])
        meant = closest(str(problem["input"]), names)
        known = f"one of {', '.join(names)}" if names[1:] else f'"{names[0]}"'
        return known + (f': write "{meant}"' if meant else "")
    if kind == "model_type":
        return f"a table with keys such as {', '.join(_fields(table, (*problem['loc'], '')))}"
    bound = next((f"{limits[name]:g}" for name in ("gt", "ge", "lt", "le") if name in limits), "")
    return {
        "greater_than": f"a number above {bound}",
        "greater_than_equal": f"{bound} or more",
        "less_than": f"a number below {bound}",
        "less_than_equal": f"{bound} or less",
        "int": "a whole number",
        "float": "a number",
        "finite": "a finite number",
        "bool": "true or false",
        "string": "a string",
        "list": "a list",
        "dict": "a table",
    }.get(kind if "than" in kind else kind.partition("_")[0], problem["msg"])


def _fields(table: Any, location: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """The fields of the table in which the last part of a location stands."""
    for part in location[:-1]:
        if not isinstance(part, int):  # a position in a list of tables
            table = _table_in(table.model_fields[part].annotation)
    fields: dict[str, FieldInfo] = table.model_fields
    return fields


def _table_in(annotation: Any) -> Any:
    """The table in an annotation: itself, an optional one, a list of them."""
    if hasattr(annotation, "model_fields"):
        return annotation
    inner = (_table_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((table for table in inner if table is not None), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a message about an unknown key.

    Args:
        name: the key.
        known: those of its table.

    Returns:
        The same one in other letters or in another table; else the closest one; else all of them.
    """
    known = list(known)
    places = [key for key in known if same(name, key)]
    places = places or [key for key in _keys(Experiment) if same(name, key.rpartition(".")[2])]
    meant = " or ".join(places) if len(places) in (1, 2) else closest(name, known)
    return f": did you mean {meant}?" if meant else f": known here are {', '.join(known)}"


def _keys(table: Any, above: str = "") -> Iterator[str]:
    """The dotted keys of a table and of those in it."""
    for name, field in table.model_fields.items():
        yield f"{above}{name}"
        inner = _table_in(field.annotation)
        if inner is not None and name not in ("agents", "transforms"):  # lists of tables
            yield from _keys(inner, f"{above}{name}.")
