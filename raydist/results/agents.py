"""The column `agent` of long frames: numbers of agents, beside "mean" and "centroid".

Pandas has no column type that holds numbers and words and goes to Parquet. This one compares with
both (`agent == 0`, `agent == "mean"`), sorts agents by number before the words, takes four bytes a
row, and is a dictionary of strings for Arrow, from which Parquet files bring it back.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray, ExtensionDtype, register_extension_dtype

MISSING, WORDS = -1, {2**31 - 2: "mean", 2**31 - 1: "centroid"}  # no agent has such a number
CODES = {word: code for code, word in WORDS.items()}


@register_extension_dtype
class AgentDtype(ExtensionDtype):
    """The type of the column; `frame.astype("agent")` makes one of numbers, words or their text."""

    name = "agent"
    type = object
    kind = "O"
    na_value: Any = None

    @classmethod
    def construct_array_type(cls) -> Any:
        """Implement `ExtensionDtype.construct_array_type`."""
        return Agents

    def __from_arrow__(self, array: pa.Array | pa.ChunkedArray) -> "Agents":
        """Called by Arrow when a file is read."""
        return Agents._from_sequence(array.to_pandas())


class Agents(ExtensionArray):
    """Its values: agent k is the code k, the words are codes above all agents."""

    def __init__(self, codes: NDArray[np.int32]) -> None:
        """Take codes as they are."""
        self._codes = codes

    @classmethod
    def _from_sequence(cls, scalars: Any, *, dtype: Any = None, copy: bool = False) -> Self:
        if isinstance(scalars, cls):
            return cls(scalars._codes.copy() if copy else scalars._codes)
        positions, known = pd.factorize(np.asarray(scalars, dtype=object))
        codes = np.array([*map(_code, known), MISSING], dtype=np.int32)  # the last for position -1
        return cls(codes[positions])

    @classmethod
    def _from_factorized(cls, values: Any, original: Self) -> Self:
        return cls(np.asarray(values, dtype=np.int32))

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[Self]) -> Self:
        return cls(np.concatenate([each._codes for each in to_concat]))

    @property
    def dtype(self) -> AgentDtype:
        """Implement `ExtensionArray.dtype`."""
        return AgentDtype()

    @property
    def nbytes(self) -> int:
        """Implement `ExtensionArray.nbytes`."""
        return self._codes.nbytes

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._codes)

    def __getitem__(self, item: Any) -> Any:
        """A number, a word or None; of more than one position, their array."""
        found = self._codes[pd.api.indexers.check_array_indexer(self, item)]
        return type(self)(found) if isinstance(found, np.ndarray) else _value(int(found))

    def __setitem__(self, key: Any, value: Any) -> None:
        """Numbers and words are taken as they are, and as text."""
        many = pd.api.types.is_list_like(value)
        where = pd.api.indexers.check_array_indexer(self, key)
        self._codes[where] = self._from_sequence(value)._codes if many else _code(value)

    def _compare(self, other: Any, how: str) -> Any:
        if isinstance(other, pd.Series | pd.Index | pd.DataFrame):
            return NotImplemented
        try:
            many = pd.api.types.is_list_like(other)
            codes = self._from_sequence(other)._codes if many else _code(other)
        except ValueError:  # nothing that is nobody's name equals one of them
            return np.full(len(self), how == "__ne__")
        return getattr(self._codes, how)(codes)

    def __eq__(self, other: Any) -> Any:
        """Elementwise."""
        return self._compare(other, "__eq__")

    def __ne__(self, other: Any) -> Any:
        """Elementwise."""
        return self._compare(other, "__ne__")

    def __lt__(self, other: Any) -> Any:
        """Elementwise: `agent < 4` are agents, because words come after all of them."""
        return self._compare(other, "__lt__")

    def __le__(self, other: Any) -> Any:
        """Elementwise."""
        return self._compare(other, "__le__")

    def __gt__(self, other: Any) -> Any:
        """Elementwise."""
        return self._compare(other, "__gt__")

    def __ge__(self, other: Any) -> Any:
        """Elementwise."""
        return self._compare(other, "__ge__")

    def isin(self, values: Any) -> NDArray[np.bool_]:
        """Implement `ExtensionArray.isin`."""
        known = [each for each in values if _named(each)]
        return np.isin(self._codes, self._from_sequence(known)._codes)

    def isna(self) -> NDArray[np.bool_]:
        """Implement `ExtensionArray.isna`."""
        found: NDArray[np.bool_] = self._codes == MISSING
        return found

    def take(self, indices: Any, *, allow_fill: bool = False, fill_value: Any = None) -> Self:
        """Implement `ExtensionArray.take`."""
        fill = MISSING if fill_value is None else _code(fill_value)
        codes = pd.api.extensions.take(self._codes, indices, allow_fill=allow_fill, fill_value=fill)
        return type(self)(np.asarray(codes, dtype=np.int32))

    def copy(self) -> Self:
        """Implement `ExtensionArray.copy`."""
        return type(self)(self._codes.copy())

    def _values_for_argsort(self) -> NDArray[np.int32]:
        return self._codes

    def _values_for_factorize(self) -> tuple[NDArray[np.int32], int]:
        return self._codes, MISSING

    def __arrow_array__(self, type: Any = None) -> pa.Array:
        """Called by Arrow when a file is written."""
        known, positions = np.unique(self._codes, return_inverse=True)
        words = pa.array([None if code == MISSING else str(_value(int(code))) for code in known])
        return pa.DictionaryArray.from_arrays(pa.array(positions, pa.int32()), words)


def agents(values: Iterable[Any]) -> Agents:
    """The column of numbers, words or their text."""
    return Agents._from_sequence(list(values))


def _value(code: int) -> int | str | None:
    return None if code == MISSING else WORDS.get(code, code)


def _named(value: Any) -> bool:
    try:
        _code(value)
    except ValueError:
        return False
    return True


def _code(value: Any) -> int:
    """The code of a number, a word or the text of one.

    Args:
        value: a number, a word, the text of one, or something missing.

    Returns:
        The code.

    Raises:
        ValueError: if it names no agent, nor "mean" or "centroid".
    """
    if isinstance(value, str):
        if value in CODES:
            return CODES[value]
        if value.isdecimal():
            return int(value)
    elif value is None or value is pd.NA or value != value:
        return MISSING
    elif isinstance(value, int | float | np.number) and value >= 0 and value == int(value):
        return int(value)
    raise ValueError(f'{value!r} is no agent, expected a number from 0, "mean" or "centroid"')
