"""What is known of a trial's models: an append-only file of JSON lines beside its results.

Each line is one measurement, written whole and synced, so that whatever was measured before the
process died is known afterwards, and nothing is measured twice. Weights are part of a measurement's
identity: of a model that was trained again nothing is known.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One measurement.

    Attributes:
        weights: digest of the model's weights.
        measure: what was measured, such as "test/linf/0.03137/apgd-ce".
        value: the result; with images, a list of one value for each.
        images: positions of the images in their split; None if it is not about single images.
        seconds: that it took.
        flags: warnings about the model, as in `raydist.measure.verdict.FLAGS`.
    """

    weights: str
    measure: str
    value: Any
    images: Sequence[int] | None = None
    seconds: float = 0.0
    flags: Sequence[str] = ()


class Ledger:
    """All entries about one trial, read once and appended to by one process."""

    def __init__(self, file: Path) -> None:
        """Read the entries so far; a last line that is torn is as if it had not been written.

        Args:
            file: the path; it need not exist.
        """
        self._file = file
        self._whole = 0  # length of the lines that are whole
        self._values: dict[tuple[str, str], Any] = {}
        self._images: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._flags: dict[str, set[str]] = defaultdict(set)
        for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
            try:
                entry = Entry(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self._whole += len(line)
            self.learn(entry)

    def learn(self, entry: Entry) -> None:
        """Take in an entry without writing it."""
        key = entry.weights, entry.measure
        self._seconds[key] += entry.seconds
        self._flags[entry.weights].update(entry.flags)
        if entry.images is None:
            self._values[key] = entry.value
        else:
            self._images[key].update(zip(entry.images, entry.value, strict=True))

    def append(self, entry: Entry) -> None:
        """Write an entry, synced to the disk, and take it in."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            line = json.dumps(asdict(entry)).encode() + b"\n"
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line)
        self.learn(entry)

    def value(self, weights: str, measure: str) -> Any:
        """The value of a measurement that is not about single images; None if it is not known."""
        return self._values.get((weights, measure))

    def images(self, weights: str, measure: str) -> dict[int, Any]:
        """Image -> value, of the images that are known."""
        return self._images.get((weights, measure), {})

    def all_values(self, weights: str) -> dict[str, Any]:
        """Measure -> value, of all that is known and not about single images."""
        return {measure: value for (of, measure), value in self._values.items() if of == weights}

    def all_images(self, weights: str) -> dict[str, dict[int, Any]]:
        """Measure -> image -> value, of all that is known about single images."""
        return {measure: known for (of, measure), known in self._images.items() if of == weights}

    def seconds(self, weights: str, measure: str) -> float:
        """That the measurement took in all."""
        return self._seconds.get((weights, measure), 0.0)

    def flags(self, weights: str) -> set[str]:
        """Every warning about these weights."""
        return self._flags.get(weights, set())
