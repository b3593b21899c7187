"""Identity of an experiment: the same settings, the same contents, versions that agree.

`experiment.json` holds all three. A try goes on under the hash with which it began, so a release
that adds keys (they have their defaults) or hashes otherwise continues what an earlier one began.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raydist.config.experiment import Experiment, validate
from raydist.config.training import Network
from raydist.config.values import shown
from raydist.errors import InputError

PACKAGES = ("raydist", "torch", "ray")
ANY_VERSION = "RAYDIST_ANY_VERSION"  # set to 1: go on with whatever version there is
NAMED = {"model.checkpoint": "that file", "data": "those images"}  # what a content is of
RACY = 2_000_000_000  # ns; a file this young may be written again within one tick of its clock
log = logging.getLogger("raydist")


def versions() -> dict[str, str]:
    """The installed version of each package that a run depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # raydist from a folder on PYTHONPATH
            continue
    return found


def description(config: Experiment, contents: Mapping[str, str], digest: str) -> dict[str, Any]:
    """The content of `experiment.json`.

    Args:
        config: the experiment.
        contents: digests of the things that it names, such as `Plan.contents`.
        digest: the hash under which it began.

    Returns:
        Values as JSON has them.
    """
    return {
        "hash": digest,
        "config": config.model_dump(mode="json"),
        "contents": dict(contents),
        "versions": versions(),
    }


def check_same(
    where: str, known: Mapping[str, Any], config: Experiment, contents: Mapping[str, str]
) -> None:
    """A folder holds this very experiment.

    Args:
        where: the folder.
        known: the values of its `experiment.json`; what an earlier release did not record is not
            compared.
        config: the experiment.
        contents: digests of the things that it names.

    Raises:
        InputError: if it is another one: the settings that differ, or what has another content.
    """
    try:
        there = _flat(validate(known["config"]).changed())
    except InputError as error:
        raise InputError(
            f"{where}/experiment.json is of another release ({error}): continue it with that one"
        ) from error
    here, recorded = _flat(config.changed()), known.get("contents", {})
    same_content = [key for key in recorded if recorded[key] == contents.get(key)]
    differs = [
        f"{key} is {_value(there, key)} there, {_value(here, key)} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key) and key not in same_content
    ]
    if differs:
        more = f" and {len(differs) - 1} more" if differs[1:] else ""
        raise InputError(
            f"{where} holds another experiment ({differs[0]}{more}): write --out with a new folder"
        )
    for key, thing in NAMED.items():
        if key in contents and recorded.get(key, contents[key]) != contents[key]:
            name = config.data.set if key == "data" else checkpoint_of(config)
            raise InputError(
                f"{where} was begun with another content of {key} ({name}): bring {thing} back to "
                "continue, or write --out with a new folder to begin with the new content"
            )


def check_versions(where: str, recorded: Mapping[str, str]) -> None:
    """Check that the installed versions can continue a run; tell of newer ones.

    Args:
        where: the folder of the run.
        recorded: the versions with which it was begun; what was not recorded is not compared.

    Raises:
        InputError: if one is older than recorded (a patch release aside), or has another first
            number, unless `RAYDIST_ANY_VERSION` is set.
    """
    for name, here in versions().items():
        there = recorded.get(name, here)
        then, now = _numbers(there), _numbers(here)
        if then == now:
            continue
        line = f"{where} was begun with {name} {there}, this is {here}"
        if (now[:1] != then[:1] or now[:2] < then[:2]) and not os.environ.get(ANY_VERSION):
            raise InputError(
                f"{line}: install {name}=={there.partition('+')[0]}, or set {ANY_VERSION}=1 to "
                "continue anyway"
            )
        log.warning("%s: later rounds may differ in their last digits", line)


def checkpoint_of(config: Experiment) -> str | None:
    """The file from which the weights of an experiment start, if there is one."""
    return config.model.checkpoint if isinstance(config.model, Network) else None


def named_files(config: Experiment) -> dict[str, str]:
    """A digest of the content of each file that an experiment names and that is there, by key."""
    start = checkpoint_of(config)
    if start is None:
        return {}
    path = Path(start).expanduser().absolute()
    try:
        about = path.stat()
        young = time.time_ns() - about.st_mtime_ns < RACY
        read = _digest.__wrapped__ if young else _digest
        return {"model.checkpoint": read(path, about.st_ino, about.st_mtime_ns, about.st_size)}
    except OSError:
        return {}


@lru_cache(maxsize=64)
def _digest(path: Path, node: int, modified: int, size: int) -> str:
    """The hash of a file, read once as long as the file stays what it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.partition("+")[0])[:3]))


def _value(tree: Mapping[str, Any], key: str) -> str:
    return shown(tree[key]) if key in tree else "the default"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = value if isinstance(value, dict) and value else None
        flat |= _flat(inner, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
