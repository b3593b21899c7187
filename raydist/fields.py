"""What the tables of an experiment are made of: kinds of fields, and checks with one message each.

A message that begins with "expected" is completed by `raydist.config` with the dotted key and the
value. Budgets are fractions of the pixel range.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)


def parse_budget(value: object) -> float:
    """A budget as a float: a number, or a string such as "8/255".

    Args:
        value: what stands in the file.

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
        value: what may be a list of lists.

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


def either(expected: str) -> WrapValidator:
    """One message for a field of several types, where pydantic gives one for each type."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {expected}") from None

    return WrapValidator(check)


Budget = Annotated[float, BeforeValidator(parse_budget)]
Share = Annotated[float, Field(ge=0.0, le=0.5)]
Count = Annotated[
    Literal["all"] | Annotated[int, Field(ge=0)], either('"all" or a whole number, 0 or more')
]
NonNegative = Annotated[float, Field(ge=0.0)]
