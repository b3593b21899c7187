"""A study: one experiment and the axes along which it varies, read from one TOML file.

Merged in one visible order: defaults < [base] < axis value < command line. An axis is a list (a
grid) or a table that names one of Ray Tune's search spaces, such as { loguniform = [1e-3, 1e-1] }.
"""

import copy
import dataclasses
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raydist.config.axes import check_axis, check_drawn, corners
from raydist.config.experiment import Experiment, plain, short_form, validate
from raydist.config.messages import dotted_keys, explain, unknown_key
from raydist.config.point import Point, value_label
from raydist.config.search import Search
from raydist.config.values import DEEPEST, shown
from raydist.errors import InputError
from raydist.lookup import nearest

TABLES = ("base", "axes", "stop", "search")
KEY = r"[\w-]+(\.[\w-]+)*"  # a dotted key
MOST_TRIALS = 100_000  # each takes some 30 kB of the driver's memory
DEEP = r"(?<![\w.-])[\w-]+(?:\.[\w-]+){100,}"  # one that no table has


@dataclass(frozen=True)
class Study:
    """A study's file, with the topologies that it names read in."""

    name: str
    base: dict[str, Any]
    axes: dict[str, list[Any] | dict[str, Any]] = field(default_factory=dict)
    search: Search = field(default_factory=Search)
    overrides: Point = field(default_factory=dict)

    @property
    def spaces(self) -> list[str]:
        """The axes that values are drawn from; of the others every combination runs."""
        lists = self.search.algorithm in ("random", "optuna")
        return [k for k, a in self.axes.items() if isinstance(a, dict) or (lists and k != "seed")]

    @property
    def samples(self) -> int:
        """Runs of the grid: one, or as many as draws from the search spaces."""
        return self.search.samples if self.spaces else 1

    @property
    def trials(self) -> int:
        """The number of trials, unless the spaces hold fewer different points."""
        spaces = self.spaces
        return self.samples * math.prod(len(a) for k, a in self.axes.items() if k not in spaces)

    def to_json(self) -> str:
        """The study with everything that it read from other files, for `from_json`."""
        return json.dumps(
            dataclasses.asdict(self) | {"search": self.search.model_dump(exclude_unset=True)},
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> "Study":
        """The study that `to_json` wrote, checked again; ValueError or TypeError if it did not."""
        tree = {**json.loads(text)}
        if "base" not in tree:
            raise TypeError("it has no base")
        return from_tree(tree, tree.pop("overrides", {}))

    def experiment(self, point: Mapping[str, Any]) -> Experiment:
        """The complete experiment at a point of the axes.

        Args:
            point: dotted keys and values of the axes.

        Returns:
            The experiment: defaults < base < point < command line.

        Raises:
            InputError: if it is not a valid one.
        """
        tree = copy.deepcopy(self.base)
        for key, value in {**point, **self.overrides}.items():
            _assign(tree, key, value)
        return validate(tree)

    def only(self) -> Experiment:
        """The one experiment of a study without axes.

        Returns:
            The experiment.

        Raises:
            InputError: if there are axes left.
        """
        if self.axes:
            key, axis = next(iter(self.axes.items()))
            example = value_label(axis[0]) if isinstance(axis, list) else "..."
            raise InputError(
                f"this is a study with the axes {', '.join(self.axes)}: write {key}={example} (and "
                "so on) to choose one experiment, or python -m raydist.sweep to run them all"
            )
        return self.experiment({})

    def corners(self) -> Iterator[Point]:
        """The points to check before anything starts: the grid, at both ends of every space."""
        return corners(self.axes, self.spaces)


def read(file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """A study from a TOML file.

    Args:
        file: the path; its tables may stand under [base] or at the top.
        overrides: "section.key=value" with the value in TOML syntax; a bare word is a string.

    Returns:
        The study; an axis that the command line fixes is no axis any more.

    Raises:
        InputError: if the file cannot be read or says something that is not understood.
    """
    if not isinstance(file, str | os.PathLike):
        raise InputError(
            f"{shown(file)} is no study and no experiment, expected a table or the path of a file"
        )
    path = Path(file)
    tree = _toml(path)
    tree.setdefault("name", path.stem)
    return from_tree(
        tree, parse_overrides(overrides), [Path.cwd(), path.parent, path.parent / ".."]
    )


def from_tree(
    tree: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    folders: Sequence[Path] = (),
) -> Study:
    """A study from plain nested values; arguments and errors as in `read`.

    Args:
        tree: the file's tables.
        overrides: dotted keys and values that win over everything.
        folders: folders that may hold topology files; default: the working folder.

    Returns:
        The study.

    Raises:
        InputError: if something is not understood.
    """
    rest = plain("the study", tree)
    overrides = plain("the command line", overrides or {})
    folders = folders or [Path.cwd()]
    name = rest.pop("name", "study")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{,59}", name):
        raise InputError(
            f"name is {shown(name)}, expected letters, digits, '_', '-' and '.', at most 60: it "
            "names a folder"
        )
    tables = _split(rest)
    base = tables["base"]
    if tables["stop"]:
        base["stop"] = tables["stop"]
    if "topology" in base:
        base["topology"] = _expand("topology", base["topology"], folders)
    for key in (*tables["axes"], *(overrides or {})):
        if key.count(".") > DEEPEST:
            raise InputError(
                f"{shown(key)} is nested too deeply, expected at most {DEEPEST} levels"
            )
    fixed = {k: _expand(k, v, folders) for k, v in (overrides or {}).items()}
    swept = {
        key: _expand_axis(key, axis, folders)
        for key, axis in tables["axes"].items()
        if not any(".".join(key.split(".")[:n]) in fixed for n in range(1, key.count(".") + 2))
    }
    for key, axis in swept.items():
        check_axis(key, axis)
        parts = key.split(".")
        for other in (".".join(parts[:n]) for n in range(1, len(parts))):
            if other in swept:
                raise InputError(f"axes.{other} and axes.{key} set the same value: remove one")
    try:
        search = Search.model_validate(tables["search"])
    except ValidationError as error:
        raise InputError("search." + explain(error, Search, Experiment)) from None
    study = Study(name, base, swept, search, fixed)
    check_drawn(study.axes, study.spaces, search.algorithm)
    if study.trials > MOST_TRIALS:
        raise InputError(
            f"the axes make {study.trials:,} trials, expected at most {MOST_TRIALS:,}: write fewer "
            'values, or search = { algorithm = "random", samples = 200 }'
        )
    return study


def _split(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables of a file; without [base], what stands at the top is the base."""
    tables = {key: tree.pop(key, {}) for key in TABLES if key in tree or key != "base"}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"{key} is {shown(table)}, expected a table: write [{key}]")
    for key in tree:
        if key not in Experiment.model_fields:
            known = ["name", *TABLES, *Experiment.model_fields]
            raise InputError(unknown_key(key, nearest(key, known, dotted_keys(Experiment))))
        if "base" in tables:
            raise InputError(f"{key} stands beside [base]: move it into [base]")
    return {"base": tree} | tables


def parse_overrides(overrides: Sequence[str]) -> Point:
    """Settings of the command line, "section.key=value", as dotted keys and values.

    Args:
        overrides: the pairs.

    Returns:
        Their values, parsed as TOML; what is not TOML is a string.

    Raises:
        InputError: if one has no key or no "=".

    Example:
        >>> parse_overrides(["optim.lr=1e-3", "strategy=diffusion", "threat.eps=8/255"])
        {'optim.lr': 0.001, 'strategy': 'diffusion', 'threat.eps': '8/255'}
    """
    parsed: Point = {}
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(KEY, key.strip()):
            raise InputError(f"{shown(pair)} is not a setting: write section.key=value")
        try:
            (value,) = tomllib.loads(f"value = {text}").values()
        except (ValueError, RecursionError):  # not TOML, or more than one value
            value = text.strip()
        parsed[key.strip()] = value
    return parsed


def _toml(path: Path) -> dict[str, Any]:
    text = ""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{path} cannot be read: it is a pipe or device, expected a file")
        text = path.read_text(encoding="utf-8")
        deep = re.search(DEEP, text)  # takes the parser hours
        if deep:
            raise InputError(f"{path} cannot be read: {shown(deep[0])} has too many parts")
        return tomllib.loads(text)
    except InputError:
        raise
    except tomllib.TOMLDecodeError as error:
        last = f"at line {len(text.splitlines())}, the last"
        line = str(error).replace("at end of document", last)
        raise InputError(f"{path} is not valid TOML: {line}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"{path} cannot be read: its tables are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} cannot be read: byte {error.start} is not UTF-8 text, expected a TOML file"
        ) from None
    except ValueError as error:  # a number or a path that Python does not take
        raise InputError(f"{path} cannot be read: {error}") from None


def _expand(key: str, value: Any, folders: Sequence[Path]) -> Any:
    """A topology that is given as a file becomes its table; everything else stays."""
    if key != "topology" or isinstance(value, dict):
        return value
    if not isinstance(value, str) or not value.endswith(".toml"):
        raise InputError(
            f"topology is {shown(value)}, expected a file or a table: write "
            'topology = "topologies/ring8.toml" or topology = { kind = "ring", agents = 8 }'
        )
    found = next((folder / value for folder in folders if os.path.isfile(folder / value)), None)
    if found is None:
        places = ", ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
        raise InputError(f"topology {value} was not found, looked in {places}")
    return _toml(found)


def _expand_axis(key: str, axis: Any, folders: Sequence[Path]) -> Any:
    """An axis whose values are expanded, as they stand in a list or in a choice."""
    if isinstance(axis, list):
        return [_expand(key, value, folders) for value in axis]
    if isinstance(axis, dict) and isinstance(axis.get("choice"), list):
        return axis | {"choice": [_expand(key, value, folders) for value in axis["choice"]]}
    return axis


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested tables."""
    *parents, last = key.split(".")
    for n, parent in enumerate(parents, 1):
        below = tree.setdefault(parent, {})
        if isinstance(below, str) and (name := short_form(".".join(parents[:n]))):
            below = tree[parent] = {name: below}
        if not isinstance(below, dict):
            raise InputError(f"{key} cannot be set: {parent} is {shown(below)}, not a table")
        tree = below
    tree[last] = copy.deepcopy(value)
