"""The typed experiment, and how a wrong one is told to the user.

An `Experiment` is frozen, complete and comparable: its hash names its trial. `raydist.study` reads
it from TOML; `validate` is the only door through which one enters.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from raydist.network.strategy import Strategy
from raydist.tables import (
    AgentResources,
    Attack,
    Data,
    Evaluate,
    Loss,
    Model,
    Optim,
    Stop,
    Table,
    Threat,
    Topology,
)


class InputError(ValueError):
    """Something that the user wrote is wrong: one line with value, expectation and remedy."""


class Experiment(Table):
    """One experiment, complete: what a trial needs to know and all that its result depends on."""

    strategy: Strategy = "diffusion"
    topology: Topology
    rounds: PositiveInt | None = None
    epochs: PositiveFloat | None = None  # passes over an agent's share, instead of rounds
    seed: int = Field(default=0, ge=0)
    dtype: Literal["float32", "float64"] = "float32"
    combine_buffers: bool = True  # running statistics of BatchNorm travel with the weights
    data: Data = Data()
    model: Model = Model()
    threat: Threat = Threat()
    attack: Attack = Attack()
    loss: Loss = Loss()
    optim: Optim = Optim()
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    agent: AgentResources = AgentResources()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.rounds is None) == (self.epochs is None):
            raise ValueError("expected either rounds or epochs: write rounds = 100")
        if self.attack.steps == 0 and (self.attack.alpha or 0.0) > self.threat.eps:
            raise ValueError(
                f"attack.alpha is {self.attack.alpha:g} but attack.steps is 0, so nothing would be "
                "attacked: write attack.steps = 10, or threat.eps = 0 to train without an attack"
            )
        if (self.data.set == "quadratic") != (self.model.name == "point") or (
            (self.data.set == "quadratic") != (self.loss.name == "quadratic")
        ):
            raise ValueError(
                'data.set = "quadratic", model.name = "point" and loss.name = "quadratic" '
                "belong together"
            )
        return self

    def alpha(self) -> float:
        """The attack step: as configured, else a quarter of the budget."""
        return self.threat.eps / 4 if self.attack.alpha is None else self.attack.alpha

    def digest(self) -> str:
        """Twelve hex digits that name this experiment; where it runs does not matter."""
        what = self.model_dump(mode="json", exclude={"agent": True, "data": {"root", "download"}})
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def validate(tree: Mapping[str, Any]) -> Experiment:
    """An experiment from plain nested values.

    Args:
        tree: tables and values as TOML gives them.

    Returns:
        The complete experiment.

    Raises:
        InputError: one line that says what is wrong, what was expected and what to write.

    Example:
        >>> validate({"topology": {"kind": "ring", "agents": 4}, "rounds": 1}).optim.lr
        0.1
    """
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error)) from None


def explain(error: ValidationError, table: type[BaseModel] = Experiment) -> str:
    """The first problem in one line; further ones are counted.

    Args:
        error: what pydantic found.
        table: the model that it was validating.

    Returns:
        Dotted key, value, what was expected.
    """
    problems = error.errors(include_url=False)
    problem = problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        line = f"{where} is not a known key" + _closest(table, problem["loc"])
    elif problem["type"] == "missing":
        line = f"{where} is missing"
    elif problem["type"] == "value_error" and isinstance(problem["input"], Mapping | BaseModel):
        line = message  # about several fields: names them itself
    else:
        line = f"{where} is {problem['input']!r}, {message[0].lower()}{message[1:]}"
    # A union reports every member that did not fit under the same key: that is one problem.
    keys = {problem["loc"][:2] for problem in problems}
    return line + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def _closest(table: Any, location: tuple[int | str, ...]) -> str:
    """The known keys beside an unknown one, the closest first in mind."""
    for part in location[:-1]:
        table = table.model_fields[str(part)].annotation
        if not hasattr(table, "model_fields"):  # an optional table
            table = next(t for t in table.__args__ if hasattr(t, "model_fields"))
    known = list(table.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f": did you mean {close[0]}?" if close else f": known here are {', '.join(known)}"
