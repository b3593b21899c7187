"""A target, as every benchmark tells it.

A benchmark is a file in this folder with a function `measure(quick) -> list[Row]`. A row is one
target: `target`, `measured`, `unit`, `reference`, `ratio`, `limit`, `met`, `note`; `reference` and
`ratio` are None where there is none, `limit` and `met` where a figure is told beside a target. The
limit is on the ratio if there is one, else on what was measured, unless the note says
"limit on measured".
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


def row(
    target: str,
    measured: float | None,
    unit: str,
    *,
    limit: float | None,
    reference: float | None = None,
    at_least: bool = False,
    note: str = "",
) -> Row:
    """One target.

    Args:
        target: its name.
        measured: the figure, in `unit`; None if there is none, which meets no limit.
        unit: of `measured` and `reference`.
        limit: of the ratio measured / reference if there is a reference, else of `measured`.
        reference: what it is compared with, in the same run.
        at_least: the limit is a lower one.
        note: what else must be said.

    Returns:
        The row.
    """
    ratio = None if measured is None or reference is None else measured / reference
    value = measured if ratio is None else ratio
    met = None
    if limit is not None:
        met = value is not None and bool(value >= limit if at_least else value <= limit)
    return {
        "target": target,
        "measured": measured,
        "unit": unit,
        "reference": reference,
        "ratio": ratio,
        "limit": limit,
        "met": met,
        "note": note,
    }


def used(each: Row) -> float | None:
    """How much of the limit is used: at most 1 where the target is met.

    Args:
        each: a row.

    Returns:
        Value over limit, or limit over value if the limit is a lower one; None without a limit.
    """
    value = each["measured"] if "limit on measured" in each["note"] else each["ratio"]
    value = each["measured"] if value is None else value
    if not each["limit"] or not value or each["met"] is None:
        return None
    share = float(value / each["limit"])
    return share if (share <= 1) == each["met"] else 1 / share


def tell(measure: Callable[[bool], Iterable[Row]]) -> None:
    """Print the rows of a benchmark as they are known, a line of JSON each; rough with --quick."""
    for each in measure("--quick" in sys.argv[1:]):
        print(json.dumps(each), flush=True)
