"""Values that the columns of a frame can hold: one of another kind makes a column of text."""

from typing import Any

from pydantic import ValidationError

from raydist.config.experiment import Experiment

HUGE = 10**300  # no number of ours; a float ends soon after


def cells(table: dict[str, Any]) -> dict[str, Any]:
    """The table, if columns of numbers and text can hold its values.

    Args:
        table: values by key.

    Returns:
        The same.

    Raises:
        TypeError: if one is a list, a table or a number that has no end.
    """
    for key, value in table.items():
        if isinstance(value, dict | list):
            raise TypeError(f"{key} is a {type(value).__name__}, expected a number or text")
        if isinstance(value, int) and abs(value) > HUGE:
            raise TypeError(f"{key} has {len(str(value))} digits, expected a number")
    return table


def check_config(config: dict[str, Any]) -> None:
    """Check that a configuration has numbers or text wherever an experiment has them.

    Other versions of raydist have other keys and names; those are no errors.

    Args:
        config: the configuration, written by any version.

    Raises:
        TypeError: as `cells`.
    """
    try:
        Experiment.model_validate(config)
    except ValidationError as error:
        for each in error.errors():
            # a part with a capital is the class that a name chose
            key = ".".join(str(part) for part in each["loc"] if not str(part)[:1].isupper())
            if each["type"] == "unknown_name":
                cells({f"{key}.{each['ctx']['key']}": each["ctx"]["name"]})
            elif each["type"] not in ("extra_forbidden", "missing", "other_member") and key:
                cells({key: each["input"]})
    cells({key: value for key, value in config.items() if not isinstance(value, dict | list)})
