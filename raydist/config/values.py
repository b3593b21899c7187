"""The values of a configuration: what JSON keeps as it is, so that a run can be read back.

Taken everywhere are Python's and NumPy's numbers, strings, true and false, lists, tuples, ranges,
arrays, paths and tables of them. A number is taken as exactly what it holds: `np.float32(0.1)` is
0.10000000149011612.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

DEEPEST = 20  # tables within tables
LONGEST = 10**6  # values of one list
MOST = 1e30  # products of some such numbers stay finite
# What has no order, or more digits than a float, and what to write instead.
INSTEAD = {
    "set": "sorted(...)",
    "frozenset": "sorted(...)",
    "Fraction": '"8/255" for a budget, or float(...)',
    "Decimal": "float(...)",
    "longdouble": "float(...)",
}


def plain(key: str, value: object, depth: int = 0) -> Any:
    """A value as JSON knows it, no deeper, longer or larger than anything needs.

    Args:
        key: its dotted key.
        value: the user's value.
        depth: the number of tables and lists around it.

    Returns:
        Nested dicts and lists of None, bool, int, float and str.

    Raises:
        ValueError: it is something else (a date, a set), or cannot be kept exactly: a number that
            64 bits do not hold, tables without end.

    Example:
        >>> from pathlib import Path
        >>> plain("data", {"seeds": range(3), "root": Path("sets")})
        {'seeds': [0, 1, 2], 'root': 'sets'}
    """
    if depth > DEEPEST:
        raise ValueError(f"{key} is nested too deeply, expected at most {DEEPEST} levels")
    value = _without_numpy(value)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"{key} has the key {name!r}, expected a string")
        inside = f"{key}." if depth else ""
        return {str(n): plain(f"{inside}{n}", inner, depth + 1) for n, inner in value.items()}
    if isinstance(value, list | tuple | range):
        if len(value) > LONGEST:
            raise ValueError(f"{key} has {len(value)} values, expected {LONGEST} at most")
        return [plain(f"{key}[{n}]", inner, depth + 1) for n, inner in enumerate(value)]
    return value if value is None else _scalar(key, value)


def _scalar(key: str, value: object) -> bool | int | float | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > 63:
            raise ValueError(f"{key} has {value.bit_length()} bits, expected a number below 2^63")
        return int(value)
    if isinstance(value, float):
        if MOST < abs(value) < math.inf:
            raise ValueError(f"{key} is {value:g}, expected a number below {MOST:g}")
        return float(value)
    if isinstance(value, str | PurePath):
        text = str.__str__(value) if isinstance(value, str) else str(value)
        if not text.isascii() and text != text.encode(errors="replace").decode():
            raise ValueError(f"{key} is {shown(text)}, expected text that UTF-8 can hold")
        return text
    kind = type(value).__name__
    instead = INSTEAD.get(kind) or (hasattr(value, "tolist") and "its .tolist()")
    raise ValueError(
        f"{key} is {shown(value)} ({kind}), expected a number, a string, true, false, a list or a "
        "table" + (f": write {instead}" if instead else "")
    )


def _without_numpy(value: object) -> object:
    """Python's own value for a scalar or an array of NumPy, if it is exactly that."""
    np = sys.modules.get("numpy")  # not imported for a value that cannot be its
    if np is None or not isinstance(value, np.generic | np.ndarray) or isinstance(value, np.matrix):
        return value
    exact = value.dtype.kind in "biuUO" or (value.dtype.kind == "f" and value.dtype.itemsize <= 8)
    return value.tolist() if exact and not isinstance(value, np.ma.MaskedArray) else value


def not_finite(key: str, value: object) -> str | None:
    """The first number within a plain value that is none, with its key: "a.b is inf"."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{key} is {value}"
    inner = value.items() if isinstance(value, dict) else []
    found = [not_finite(f"{key}.{name}", each) for name, each in inner]
    if isinstance(value, list):
        found = [not_finite(f"{key}[{n}]", each) for n, each in enumerate(value)]
    return next((line for line in found if line is not None), None)


def shown(value: object) -> str:
    """A value as its file has it, on one line, shortened."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
