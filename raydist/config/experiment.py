"""The typed experiment, and how a wrong one is told to the user.

An `Experiment` is frozen, complete and comparable: its hash names its trial. `raydist.config.study`
reads it from TOML; `validate` is the only door through which one enters.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from raydist.config import values
from raydist.config.adversary import (
    Attack,
    Average,
    Awp,
    Loss,
    NoAttack,
    Optim,
    Pgd,
    PgdAt,
    Sgd,
    Stepped,
    Stop,
    Telemetry,
    Threat,
    Wasserstein,
    usual_attack,
)
from raydist.config.fields import (
    By,
    Own,
    Table,
    check_budget,
    fields_in,
    fill,
    increasing,
    tables_in,
)
from raydist.config.training import (
    AgentResources,
    Data,
    Evaluate,
    Images,
    KnownNetwork,
    Model,
    Pictures,
    Point,
    Snapshot,
    Topology,
)
from raydist.config.values import shown
from raydist.lookup import closest, same

LONGEST = 800  # characters of a line
SECRETS = (  # in a URL: the password before its host, a key among its parameters
    r"(?<![\w+.-])([A-Za-z][\w+.-]*://[^/\s@:]*:)[^/\s]+(?=@)",
    r"(?i)([?&][\w-]*(?:sig|token|secret|key|password)=)[^&\s]+",
)
RENAMED = {  # what earlier releases called it -> its name, and what to write
    "restarts": ("periods", "periods = [0.5, 0.75]"),
    "loss.awp": ("awp.gamma", "awp = { gamma = 0.005 }"),
    "evaluate.images": ("evaluate.validation_images", "evaluate.validation_images = 512"),
    "evaluate.test": ("evaluate.test_images", "evaluate.test_images = 360"),
}
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


def _as_table(value: object, key: str) -> object:
    """A bare name as the table that it stands for."""
    return {key: value} if isinstance(value, str) else value


def _bare(value: object) -> object:
    """A table that holds nothing but a name as that name."""
    return value["name"] if isinstance(value, dict) and [*value] == ["name"] else value


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
    `alpha` and δ through `engine.own.Own`. What is None after that is absent, except where things
    lie and what an agent reserves: the machine decides these.
    """

    # as network.strategy.Strategy: a configuration is read and refused before torch is there
    strategy: Annotated[
        Literal["centralized", "consensus", "diffusion", "local"], BeforeValidator(_bare)
    ] = "diffusion"
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
    data: Data = Images(set="digits")
    model: Model = KnownNetwork(name="small-cnn")
    threat: Threat = Threat()
    attack: Attack = Pgd(name="pgd")  # without a name: the attack of the loss
    loss: Loss = PgdAt(name="pgd_at")
    awp: Awp = Awp()
    optim: Optim = Sgd(name="sgd")
    average: Average | None = None
    # where the schedules of eps and learning rate begin again, as fractions of the run
    periods: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], AfterValidator(increasing)] = (
        Field(default_factory=list)
    )
    telemetry: Annotated[Telemetry, BeforeValidator(_no_number)] = Telemetry()
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
        """What a result depends on and differs from the defaults, as nested JSON values."""
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
    """As `raydist.config.values.plain`, with InputError instead of ValueError."""
    try:
        return values.plain(key, value)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_free(config: Experiment) -> None:
    """What no field describes, the parameters of the user's own, has finite numbers."""
    tables = {name: getattr(config, name) for name in ("data", "model", "loss")}
    free = {
        f"{name}.params": table.params for name, table in tables.items() if isinstance(table, Own)
    }
    if ":" in config.topology.kind:
        free["topology"] = config.topology.model_extra or {}
    for key, table in free.items():
        if line := values.not_finite(key, table):
            raise InputError(
                f"{line}, expected a finite number: JSON keeps no other; write 1e30, or a string"
            )


def explain(error: ValidationError, table: type[Table], experiment: type[Table]) -> str:
    """The first problem in one line; further ones are counted.

    Args:
        error: what pydantic found.
        table: the model that it was validating.
        experiment: the model in which an unknown key is looked for too.

    Returns:
        Dotted key, value, what was expected.
    """
    problems = error.errors(include_url=False)
    unknown = [p["loc"][:-1] for p in problems if p["type"] == "extra_forbidden"]
    # A key that is missing beside one that is unknown was misspelt: that is one problem.
    problems = [p for p in problems if p["type"] != "missing" or p["loc"][:-1] not in unknown]
    line = _line(problems[0], table, experiment)
    return line + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _line(problem: ErrorDetails, table: type[Table], experiment: type[Table]) -> str:
    """One problem: key, value, what was expected, what to write."""
    (where, around, inner), kind = _place(problem["loc"], table), problem["type"]
    last, message = str(problem["loc"][-1:] and problem["loc"][-1]), problem["msg"]
    limits = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_key(where, nearest(last, fields_in(around), dotted_keys(experiment)))
    if kind == "missing":
        (example,) = fields_in(around)[last].examples or [...]
        return f"{where} is missing: write {last} = {shown(example)}"
    if kind == "other_member":
        takers, name = limits["takers"], shown(limits["name"])
        belongs = f"belongs to {', '.join(takers)}, not to {name}"
        if "any other" in takers:
            belongs = f"does not belong to {name}"
        return f"{where}.{limits['key']} {belongs}: remove it"
    if kind == "unknown_name":
        return (
            f"{where}.{limits['key']} is {shown(limits['name'])}, "
            f"expected {one_of(limits['known'], limits['name'])}"
        )
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        # About one value: to be completed. About several: names them itself.
        alone = message.startswith("expected ")
        return f"{where} is {shown(problem['input'])}, {message}" if alone else message
    if kind == "model_type":
        known = f"a table with keys such as {', '.join(fields_in(inner))}"
        return f"{where} is {shown(problem['input'])}, expected {known}"
    return f"{where} is {shown(problem['input'])}, expected {_expected(problem)}"


def unknown_key(where: str, hint: str) -> str:
    """The line about a key that there is not, or not any more.

    Args:
        where: the dotted key.
        hint: as `nearest` gives it.

    Returns:
        The line.
    """
    if where in RENAMED:
        name, example = RENAMED[where]
        return f"{where} is called {name} now: write {example}"
    return f"{where} is not a known key{hint}"


def one_of(names: list[str], written: object) -> str:
    """What was expected where only some names are known, and which of them was meant.

    Args:
        names: the names that there are.
        written: what the user wrote.

    Returns:
        Such as 'one of sgd, adam, deat: write "adam"'.
    """
    own = [name for name in names if name.startswith('"')]
    plain = [name for name in names if name not in own]
    known = f"one of {', '.join(plain)}" if plain[1:] else f'"{plain[0]}"'
    meant = closest(str(written), plain)
    return " or ".join([known, *own]) + (f': write "{meant}"' if meant else "")


def _expected(problem: ErrorDetails) -> str:
    """What pydantic expected, in our words."""
    kind, limits = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return one_of(re.findall(r"'(.*?)'", limits["expected"]), problem["input"])
    if kind in ("too_short", "too_long"):
        least, most = limits.get("min_length"), limits.get("max_length")
        return f"{most} values at most" if least is None else f"{least} values or more"
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


def _place(location: tuple[int | str, ...], table: type[Table]) -> tuple[str, Any, Any]:
    """The dotted key of a location, the table in which it stands, and what stands there.

    Args:
        location: as pydantic has it: below a union stands the name of the member's class.
        table: the outermost table.

    Returns:
        The key; the table, or the annotation of what holds it; the annotation of what is there.
    """
    where = ""
    around: Any = table
    inner: Any = table
    for part in location:
        members = {member.__name__: member for member in tables_in(inner)}
        if isinstance(part, int):  # a position in a list of tables
            where += f"[{part}]"
        elif len(members) > 1 and part in members:
            inner = members[part]
        else:
            where += f".{part}"
            around = inner
            inner = fields_in(around)[part].annotation if part in fields_in(around) else None
    return where.removeprefix(".") or "the experiment", around, inner


def nearest(name: str, known: Iterable[str], elsewhere: Iterable[str]) -> str:
    """What to add to a message about an unknown key.

    Args:
        name: the key.
        known: those of its table.
        elsewhere: the dotted keys of all tables.

    Returns:
        The same one in other letters or in another table; else the closest one; else all of them.
    """
    known = list(known)
    places = [key for key in known if same(name, key)]
    places = places or [key for key in elsewhere if same(name, key.rpartition(".")[2])]
    meant = " or ".join(places) if len(places) in (1, 2) else closest(name, known)
    return f": did you mean {meant}?" if meant else f": known here are {', '.join(known)}"


def dotted_keys(annotation: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted keys of a table and of those in it."""
    for name, field in fields_in(annotation).items():
        yield f"{above}{name}"
        if name not in ("agents", "transforms"):  # lists of tables
            yield from dotted_keys(field.annotation, f"{above}{name}.")


def short_form(key: str) -> str | None:
    """Where in a table stands the name that a bare string in its place would be; None: nowhere.

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
    parts = [*field.metadata, *(m for a in get_args(field.annotation) for m in get_args(a)[1:])]
    unions = [part.key for part in parts if isinstance(part, By)]
    return "name" if key == "strategy" else next(iter(unions), None)
