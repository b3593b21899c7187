"""The ledger of a trial's models: an append-only file of JSON lines beside its results.

Each line is one measurement, written whole and synced, so that whatever was measured before the
process died is known afterwards, and nothing is measured twice. Weights and images are part of a
measurement's identity: of a model that was trained again, or on other images, nothing is known. A
line that holds no measurement is left out and told of; those behind it count.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One measurement.

    Attributes:
        weights: digest of the model's weights and of the images, as `Subject.digest`.
        measure: the name of the measurement, such as "test/linf/0.03137/apgd-ce".
        value: the result; with images, a list of one value for each.
        images: positions of the images in their split; None if it is not about single images.
        seconds: the seconds that it took.
        flags: warnings about the model, from `raydist.measure.cascade.FLAGS`.
    """

    weights: str
    measure: str
    value: Any
    images: Sequence[int] | None = None
    seconds: float = 0.0
    flags: Sequence[str] = ()


class Ledger:
    """All entries about one trial, read once and appended to by one process.

    Attributes:
        file: the path.
        bad: the lines that hold no measurement, by number, and why.
    """

    def __init__(self, file: Path | None, before: Iterable[Entry] = ()) -> None:
        """Read the entries so far; a last line that is torn is as if it had not been written.

        Args:
            file: the path; it need not exist. None: nothing is written.
            before: the entries known before its first line.
        """
        self.file = file
        self.bad: dict[int, str] = {}
        self._values: dict[tuple[str, str], Any] = {}
        self._images: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._flags: dict[str, set[str]] = defaultdict(set)
        for entry in before:
            self.learn(entry)
        data = file.read_bytes() if file is not None and file.exists() else b""
        lines = data.split(b"\n")
        torn = _entry(lines[-1])  # not torn if it holds a measurement all the same
        self._whole = len(data) - (len(lines[-1]) if isinstance(torn, str) else 0)
        self._open = isinstance(torn, Entry)  # the last line has no end yet
        for number, line in enumerate(lines[: len(lines) - (not self._open)], start=1):
            found = _entry(line)
            if isinstance(found, Entry):
                self.learn(found)
            elif line.strip():
                self.bad[number] = found

    def learn(self, entry: Entry) -> None:
        """Take in an entry without writing it; what is known of an image stays."""
        key = entry.weights, entry.measure
        self._seconds[key] += entry.seconds
        self._flags[entry.weights].update(entry.flags)
        if entry.images is None:
            self._values[key] = entry.value
        else:
            known = self._images[key]
            known.update(dict(zip(entry.images, entry.value, strict=True)) | known)

    def append(self, entry: Entry) -> None:
        """Write an entry, synced to the disk, and take it in."""
        assert self.file is not None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.truncate(self._whole)
            file.seek(self._whole)
            line = b"\n" * self._open + json.dumps(asdict(entry)).encode() + b"\n"
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole, self._open = self._whole + len(line), False
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
        """The seconds that a measurement took in all."""
        return self._seconds.get((weights, measure), 0.0)

    def flags(self, weights: str) -> set[str]:
        """Every warning about these weights."""
        return self._flags.get(weights, set())


# what the value of a scan holds, by a part of its measure's name: the keys of a table, or a list
HOLDS: dict[str, tuple[str, ...]] = {
    "trace": ("mean", "error"),
    "top": (),
    "density": ("eigenvalue", "density"),
    "geometry": ("grad_norm", "grad_norm_clean"),
    "curve": ("t", "loss"),
    "eigenvectors": (),
    "plane-random": ("t", "s", "loss"),
    "plane-hessian": ("t", "s", "loss"),
    "path": ("t", "loss", "barrier"),
    "bezier": ("t", "curve", "line", "curve_barrier", "line_barrier"),
    "similarity": ("models", "cosine"),
    "w2": ("w_pgd_acc", "sensitivity"),
}


def _entry(line: bytes) -> Entry | str:
    """The measurement of a line, or why it is none."""
    try:
        tree = json.loads(line)
        entry = Entry(**tree)
    except (ValueError, RecursionError):
        return "it is not JSON"
    except TypeError:
        return "it has not the keys of a measurement"
    return _wrong(entry) or entry


def _wrong(entry: Entry) -> str:
    """The reason why an entry cannot be right, or ""."""
    if not (isinstance(entry.weights, str) and isinstance(entry.measure, str)):
        return "weights and measure are no text"
    if not _number(entry.seconds):
        return f"seconds is {entry.seconds!r}"
    if not (isinstance(entry.flags, list | tuple) and all(isinstance(f, str) for f in entry.flags)):
        return f"flags is {entry.flags!r}"
    if entry.images is None:
        return _wrong_scan(entry.measure, entry.value)
    if not isinstance(entry.images, list) or not isinstance(entry.value, list):
        return "images or value is no list"
    if len(entry.images) != len(entry.value):
        return f"it has {len(entry.value)} values for {len(entry.images)} images"
    if not all(type(i) is int and i >= 0 for i in entry.images):
        return "an image is no position"
    if not all(isinstance(v, bool) or _number(v) for v in entry.value):
        return "a value is no number"
    return ""


def _wrong_scan(measure: str, value: Any) -> str:
    keys = next((HOLDS[part] for part in measure.split("/") if part in HOLDS), None)
    if keys is None:
        return "its measure is unknown"
    if keys and not (isinstance(value, dict) and value.keys() >= set(keys)):
        return f"its value is not a table of {', '.join(keys)}"
    if not keys and not isinstance(value, list):
        return "its value is no list"
    names = "similarity" in measure.split("/")
    leaves = list(_leaves(value))
    if not leaves or not all(_number(v) or (names and isinstance(v, str)) for v in leaves):
        return "its value is not made of numbers"
    return ""


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _number(value: Any) -> bool:
    """Tell whether a value is a number; nan and infinities are, of a model that diverged."""
    if type(value) is int:
        return abs(value) < 2**1000
    return type(value) is float
