"""The folders of what is evaluated: which there are, whose code they name, what lies in them."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import validate
from raydist.config.training import Pictures
from raydist.engine.checks import checked
from raydist.engine.source import forget_data, load_data
from raydist.errors import InputError
from raydist.evaluation.named import FILE, NamedModel
from raydist.evaluation.trial import Trial


def open_subject(folder: Path) -> Trial:
    """The trial in a folder, or the model that is named there, as the files are now.

    Args:
        folder: an absolute path.

    Returns:
        The trial, or the model.

    Raises:
        InputError: if no image model was trained to its end there.
    """
    single = (folder / FILE).exists()
    name = FILE if single else "experiment.json"
    try:
        tree = json.loads((folder / name).read_text())
        config, threat = tree["config"], tree["threat"] if single else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no run: expected experiment.json in it") from error
    if not single and not list((folder / "weights").glob("*.safetensors")):
        raise InputError(f"{folder} has no weights: the trial has not ended, resume its study")
    return _opened(folder, json.dumps(config), json.dumps(threat))


def forget() -> None:
    """Read trials and images anew from now on: both may have changed meanwhile."""
    _opened.cache_clear()
    forget_data()


@lru_cache(maxsize=4)
def _opened(folder: Path, config: str, threat: str) -> Trial:
    """The trial of a folder and what its file says: kept while both are the same."""
    try:
        experiment = validate(json.loads(config))
    except InputError as error:
        raise InputError(f"{folder}/experiment.json is of another release ({error})") from error
    if not isinstance(experiment.data, Pictures):
        raise InputError(f'{folder} has no images to evaluate: its data.set is "quadratic"')
    data, budget = checked("data", load_data, experiment), json.loads(threat)
    if budget is None:
        return Trial(folder, experiment, data)
    return NamedModel(folder, experiment, data, ThreatModel(**budget))


def functions_named(folders: Iterable[Path]) -> list[str]:
    """The functions that the experiments of trials name, as "module:function"; none is imported.

    Args:
        folders: the trials' folders.

    Returns:
        Each once; of a file that cannot be read, none.
    """
    found: dict[str, None] = {}
    for folder in folders:
        name = FILE if (folder / FILE).exists() else "experiment.json"
        try:
            tree = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            continue
        found |= dict.fromkeys(_functions(tree))
    return list(found)


def _functions(tree: Any, key: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _functions(value, name)
    elif isinstance(tree, list):
        for value in tree if key == "attacks" else []:
            yield from _functions(value, "name")
    elif key in ("name", "set", "kind", "weights", "strategy") and isinstance(tree, str):
        if re.fullmatch(r"[\w.]+:[\w.]+", tree):
            yield tree


def trials(runs: Iterable[Path]) -> list[Path]:
    """The folders of the trials in the folders of studies and single runs.

    Args:
        runs: folders.

    Returns:
        Absolute paths, each once.

    Raises:
        InputError: if one of them holds no run.
    """
    found: list[Path] = []
    for run in runs:
        root = run.expanduser().absolute()
        below = [root / FILE, root / "experiment.json", *sorted(root.glob("*/experiment.json"))]
        inside = [file.parent for file in below if file.exists()]
        if not inside:
            raise InputError(
                f"{run} holds no run: expected the folder that a sweep or run has written"
            )
        found += inside
    return list(dict.fromkeys(found))
