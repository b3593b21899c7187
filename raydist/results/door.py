"""Checks of where results go, and of what other processes can import, before a run starts."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from raydist import lock
from raydist.config.experiment import Experiment
from raydist.errors import InputError, MachineError
from raydist.storage import Storage


def check_new_folder(folder: Storage) -> None:
    """A folder for new results can be made, or holds nothing but what a dead process left.

    Args:
        folder: the folder.

    Raises:
        InputError: if it exists, or if it could not be written.
        MachineError: if its disk can only be read.
    """
    try:
        there = folder.names()
    except Exception as error:  # each kind of storage has its own
        raise InputError(
            f"{folder.url} cannot be reached: {' '.join(str(error).split())}"
        ) from error
    known = [name for name in there if name != lock.NAME and not name.endswith(".part")]
    if known or (folder.local and not there and Path(folder.url).exists()):
        files = {"study": "study.json", "run": "experiment.json"}
        found = [what for what, file in files.items() if file in there]
        resume = f", or continue this {found[0]} with --resume {folder.url}" if found else ""
        raise InputError(f"{folder.url} exists: write --out with another folder{resume}")
    if not folder.local:
        return
    above = next(parent for parent in Path(folder.url).parents if parent.exists())
    if above.is_dir() and os.statvfs(above).f_flag & os.ST_RDONLY:
        why = OSError(errno.EROFS, os.strerror(errno.EROFS))
        told = MachineError.of(f"{folder.url} cannot be written", why)
        raise told
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{folder.url} cannot be written: {above} is not a writable folder")


def check_shared(url: str, instead: str = "--out with a folder or a URL") -> None:
    """Many processes can leave there what they have.

    Args:
        url: the folder's path or URL.
        instead: words for the way to name another folder.

    Raises:
        InputError: if each of them would have a folder of its own.
    """
    if url.startswith("memory:"):
        raise InputError(f"{url} lives in one process: write {instead}")


def check_importable(experiment: Experiment, keys: Sequence[str]) -> None:
    """Other processes can import what an experiment names.

    Args:
        experiment: the experiment.
        keys: keys of the functions that they call.

    Raises:
        InputError: if one is of the script or notebook that runs.
    """
    for key in keys:
        table, name = key.split(".")
        value = str(getattr(getattr(experiment, table), name))
        module, colon, function = value.partition(":")
        if colon and module == "__main__":
            raise InputError(
                f'{key} is "{value}", which other processes cannot import: put {function} into a '
                f'file of its own, such as mine.py, and write "mine:{function}"'
            )


def check_snapshots(experiment: Experiment) -> None:
    """Check `snapshot.path` as `check_shared` does."""
    instead = 'snapshot.path = "/shared/snapshots" or "s3://bucket/snapshots"'
    check_shared(experiment.snapshot.path or "", instead)
