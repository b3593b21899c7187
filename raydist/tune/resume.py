"""Checks before --resume: the same study, the same experiments, and versions that agree."""

import json
from typing import TYPE_CHECKING, Any

from raydist.config.study import Study
from raydist.errors import InputError
from raydist.results.identity import check_versions
from raydist.storage import Storage

if TYPE_CHECKING:
    from raydist.config.experiment import Experiment

STUDY_FILE = "study.json"


def study_in(path: str) -> Study:
    """The study that a folder holds.

    Args:
        path: the folder or its URL.

    Returns:
        The study.

    Raises:
        InputError: if there is none, or a damaged one.
    """
    folder = Storage(path)
    try:
        return Study.from_json(folder.read(STUDY_FILE).decode())
    except InputError as error:
        raise InputError(f"{folder.url}/{STUDY_FILE}: {error}") from error
    except (OSError, ValueError, TypeError) as error:
        line = f"{path} holds no study to resume: {folder.url}/{STUDY_FILE} cannot be read"
        raise InputError(line) from error


def check_resumed(folder: Storage, study: Study) -> None:
    """A folder holds nothing, or this study, and every trial in it is what it was.

    Args:
        folder: the study's folder.
        study: the study that is to be continued there.

    Raises:
        InputError: if it holds another one, or a trial of another experiment or content, or one
            that these versions cannot continue.
    """
    names = folder.names()
    if STUDY_FILE in names:
        differs = _difference(study_in(folder.url), study)
        if differs:
            raise InputError(
                f"{folder.url} holds another study ({differs}): write --out with a new folder, or "
                f"continue that one with python -m raydist.sweep --resume {folder.url}"
            )
    recorded: dict[str, dict[str, str]] = {}
    images: dict[str, dict[str, str]] = {}
    for name in names:
        recorded |= _versions(folder.under(name), study, images)
    for versions in recorded.values():
        check_versions(folder.url, versions)


def _versions(
    trial: Storage, study: Study, images: dict[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """Check a trial; the versions with which it was begun if it is unfinished.

    Args:
        trial: a folder that may be a trial's.
        study: its study.
        images: digests of the images that trials before it have; added to.

    Returns:
        The versions, under a name that is the same for the same ones.
    """
    point = _point(trial, study)
    if point is None:
        return {}
    from raydist.engine.source import images_of, load_data  # take a second to import
    from raydist.results.folder import Folder

    config: Experiment = study.experiment(point)
    key = images_of(config)
    if key not in images:
        images[key] = {"data": load_data(config).digest} if key else {}
    versions = Folder(trial.url).check(config, images[key])
    return {json.dumps(versions, sort_keys=True): versions} if versions else {}


def _point(trial: Storage, study: Study) -> dict[str, Any] | None:
    """The point of a trial on the axes, from what Tune wrote of it; None if it is no trial."""
    try:
        known = json.loads(trial.read("params.json"))
        return {key: known[key] for key in study.axes}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _difference(there: Study, here: Study) -> str:
    """The difference between two studies, in words; "" if one only draws more often."""
    one, other = (json.loads(study.to_json()) for study in (there, here))
    if here.search.samples > there.search.samples:  # the draws that are there stay
        one["search"]["samples"] = other["search"].get("samples")
    for table in ("axes", "search"):
        pair = [
            {k: v for k, v in tree[table].items() if k != "max_concurrent"} for tree in (one, other)
        ]
        differs = [key for key in {**pair[0], **pair[1]} if pair[0].get(key) != pair[1].get(key)]
        if differs or [*pair[0]] != [*pair[1]]:
            return f"its {table} differ" + (f" in {', '.join(differs[:3])}" if differs else "")
    for point in here.corners():
        if there.experiment(point).changed() != here.experiment(point).changed():
            return "its base differs"
    return ""
