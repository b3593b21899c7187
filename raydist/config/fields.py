"""Parts of an experiment's tables: kinds of fields, and checks with one message each.

A message that begins with "expected" is completed by `raydist.config.experiment` with the dotted
key and the value. Budgets are fractions of the pixel range.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Table(BaseModel):
    """A table of the file: unknown keys, NaN and infinities are refused, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_flag(cls, value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        result = handler(value)
        if isinstance(value, bool) and not isinstance(result, bool):
            raise ValueError("expected a number")  # Python would take true for 1
        return result


class UserTable(Table):
    """A thing of the user's own: its name is "package.module:function"."""

    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of that function."""


def arguments(table: Table, *without: str) -> dict[str, Any]:
    """The keyword arguments for what a table names.

    Args:
        table: the table of the fields, or of the `params` for a thing of the user's own.
        *without: names of fields that are no arguments.

    Returns:
        Name of the argument -> value.
    """
    found = table.model_dump(exclude={"name", *without})
    own: dict[str, Any] = found.pop("params", {})
    return found | own


@dataclass(frozen=True)
class By:
    """A union of tables, of which a name chooses one: to be written into its `Annotated`.

    A member says by a Literal which names are its own. A `UserTable` takes all names with a colon,
    and a member whose name is any string all others. A bare string is the short form of a table
    with that name and the defaults.

    Attributes:
        default: the name of a table that names none.
        key: the field that holds the name.
    """

    default: str
    key: str = "name"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Choose by name before anything else is looked at, so that an error is of one member."""
        members: tuple[type[Table], ...] = get_args(source)

        def chosen(value: object) -> object:
            if isinstance(value, str):
                value = {self.key: value}
            if isinstance(value, dict):
                value = {self.key: self.default} | value
                self._check_keys(value, self._member(value[self.key], members), members)
            elif not isinstance(value, members):
                raise PydanticCustomError("model_type", "no table")
            return value

        def tag(value: Any) -> str:
            if isinstance(value, dict):
                return self._member(value[self.key], members).__name__
            return type(value).__name__

        choices = {member.__name__: handler.generate_schema(member) for member in members}
        return core_schema.no_info_before_validator_function(
            chosen, core_schema.tagged_union_schema(choices, tag)
        )

    def _member(self, name: object, members: tuple[type[Table], ...]) -> type[Table]:
        """The member that a name means."""
        for member in members:
            known = get_args(member.model_fields[self.key].annotation)
            own = isinstance(name, str) and ":" in name
            if name in known or (not known and own == issubclass(member, UserTable)):
                return member  # one that takes any string says so of what is none
        names = [name for member in members for name in self._names(member)]
        raise PydanticCustomError(
            "unknown_name", "no such name", {"key": self.key, "name": name, "known": names}
        )

    def _names(self, member: type[Table]) -> list[str]:
        """The names of a member as a message says them."""
        if issubclass(member, UserTable):
            return ['"package.module:function"']
        return [*get_args(member.model_fields[self.key].annotation)]

    def _check_keys(
        self, value: dict[str, Any], member: type[Table], members: tuple[type[Table], ...]
    ) -> None:
        """Check that no key is one that only other members have."""
        for key in value:
            takers = [other for other in members if key in other.model_fields]
            if takers and member not in takers:
                names = [name for other in takers for name in self._names(other) or ["any other"]]
                names = [f"your own {name}" if name[0] == '"' else name for name in names]
                found = {"key": key, "name": value[self.key], "takers": names}
                raise PydanticCustomError("other_member", "of another member", found)


def tables_in(annotation: Any) -> Iterator[type[Table]]:
    """The tables in an annotation: itself, an optional one, those of a union or of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    else:
        for part in getattr(annotation, "__args__", ()):
            yield from tables_in(part)


def fields_in(annotation: Any) -> dict[str, FieldInfo]:
    """The fields of the tables in an annotation, each name once."""
    found: dict[str, FieldInfo] = {}
    for table in tables_in(annotation):
        found = {**found, **{k: f for k, f in table.model_fields.items() if k not in found}}
    return found


def union_in(field: FieldInfo) -> By | None:
    """The rule by which a name chooses the table of a field; None where no name does."""
    parts = (*field.metadata, *(m for a in get_args(field.annotation) for m in get_args(a)[1:]))
    return next((part for part in parts if isinstance(part, By)), None)


def fill(table: Table, **values: Any) -> None:
    """Write what follows from other keys into a table that is being validated.

    Args:
        table: the frozen table.
        **values: its fields.
    """
    for name, value in values.items():
        object.__setattr__(table, name, value)


def parse_budget(value: object) -> float:
    """A budget as a float: a number, or a string such as "8/255".

    Args:
        value: the value in the file.

    Returns:
        The budget in units of the pixel range.

    Raises:
        ValueError: if it is not a finite number ≥ 0.

    Example:
        >>> parse_budget("8/255") == 8 / 255
        True
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        parts = value.split("/", 1) if isinstance(value, str) else [value]
        number = float(parts[0]) / float(parts[-1] if parts[1:] else 1)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError('expected a number or a fraction such as "8/255"') from None
    if not math.isfinite(number) or number < 0:
        raise ValueError('expected a finite number ≥ 0: write for example "8/255"')
    return number


def check_budget(key: str, value: float, norm: str) -> None:
    """A budget is no whole number of grey values.

    Args:
        key: its dotted key.
        value: the budget.
        norm: "linf" or "l2".

    Raises:
        ValueError: if it must be one; names the fraction that was meant.
    """
    if norm == "linf" and value > 1:
        raise ValueError(
            f"{key} is {value}, expected a fraction of the pixel range in [0, 1]: "
            f'write "{value:g}/255"'
        )
    if norm == "l2" and value >= 8:
        raise ValueError(
            f"{key} is {value}, expected an l2 distance in pixels of [0, 1], below 8: "
            f'write "{value:g}/255"'
        )


def check_rows(key: str, value: object) -> None:
    """The lists within a list are equally long.

    Args:
        key: its dotted key.
        value: a value that may be a list of lists.

    Raises:
        ValueError: if two of them are not.
    """
    rows = value if isinstance(value, list) else []
    lengths = sorted({len(row) for row in rows if isinstance(row, list)})
    if len(lengths) > 1:
        raise ValueError(
            f"{key} has rows of {lengths[0]} and of {lengths[-1]} numbers, "
            "expected the same length: write one number for each column"
        )


def increasing(fractions: list[float]) -> list[float]:
    """Fractions of a run, each larger than the one before.

    Args:
        fractions: the items of a list of fractions.

    Returns:
        The same.

    Raises:
        ValueError: if one is not.
    """
    if sorted(set(fractions)) != fractions:
        raise ValueError("expected increasing fractions of the run: write [0.5, 0.75]")
    return fractions


def in_rounds(span: float, rounds: int) -> int:
    """A span of a run as a number of rounds, rounded up.

    Args:
        span: rounds, or below 1 a fraction of the run.
        rounds: the length of the run.

    Returns:
        The number.

    Example:
        >>> in_rounds(0.1, 30), in_rounds(7, 30)
        (3, 7)
    """
    # 0.1 * 30 is a little above the whole number that is meant
    return int(span) if span >= 1 else math.ceil(round(span * rounds, 9))


def either(expected: str) -> WrapValidator:
    """One message for a field of several types, where pydantic gives one for each type."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {expected}") from None

    return WrapValidator(check)


Budget = Annotated[
    float,
    BeforeValidator(parse_budget),
    WithJsonSchema({"type": "number", "format": "budget"}),
]
Share = Annotated[float, Field(ge=0.0, le=0.5)]
Count = Annotated[
    Literal["all"] | Annotated[int, Field(ge=0)], either('"all" or a whole number, 0 or more')
]
NonNegative = Annotated[float, Field(ge=0.0)]
Span = Annotated[  # of a run
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
    either("a whole number of rounds, 1 or more, or a fraction of the run below 1"),
]
