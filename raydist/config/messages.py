"""Messages about wrong input: the first problem in one line, with key, value and remedy."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raydist.config.fields import Table, fields_in, tables_in
from raydist.config.values import shown
from raydist.lookup import nearest, one_of

RENAMED = {  # what earlier releases called it -> its name, and what to write
    "restarts": ("periods", "periods = [0.5, 0.75]"),
    "loss.awp": ("awp.gamma", "awp = { gamma = 0.005 }"),
    "evaluate.images": ("evaluate.validation_images", "evaluate.validation_images = 512"),
    "evaluate.test": ("evaluate.test_images", "evaluate.test_images = 360"),
}


def explain(error: ValidationError, table: type[Table], experiment: type[Table]) -> str:
    """The first problem in one line; further ones are counted.

    Args:
        error: the error of pydantic.
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
        hint: the hint that `nearest` gives.

    Returns:
        The line.
    """
    if where in RENAMED:
        name, example = RENAMED[where]
        return f"{where} is called {name} now: write {example}"
    return f"{where} is not a known key{hint}"


def _expected(problem: ErrorDetails) -> str:
    """The expectation of pydantic, in our words."""
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
        location: pydantic's location: below a union stands the name of the member's class.
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


def dotted_keys(annotation: Any, above: str = "") -> Iterator[str]:
    """Yield the dotted keys of a table and of those in it."""
    for name, field in fields_in(annotation).items():
        yield f"{above}{name}"
        if name not in ("agents", "transforms"):  # lists of tables
            yield from dotted_keys(field.annotation, f"{above}{name}.")
