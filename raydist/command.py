"""What all commands share: wrong input is one line on stderr and exit code 2."""

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from raydist.config import Experiment, InputError, MachineError
from raydist.engine import lock
from raydist.engine.store import Store
from raydist.show import errors

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130  # exit codes

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value]...", help="Settings that win over the file."),
]
Address = Annotated[
    str | None, typer.Option(help="Join the Ray cluster at this address; default: RAY_ADDRESS.")
]
PoolName = Annotated[str, typer.Option(help="ray: each agent an actor; local: in one process.")]
Out = Annotated[
    str | None, typer.Option(help="Results, a folder or an fsspec URL; default: runs/<name>.")
]
Resume = Annotated[str | None, typer.Option(help="Continue in this folder.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no table.")]


def check_new_folder(folder: Store) -> None:
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
        url: of the folder.
        instead: how another one is named.

    Raises:
        InputError: if each of them would have a folder of its own.
    """
    if url.startswith("memory:"):
        raise InputError(f"{url} lives in one process: write {instead}")


def check_snapshots(experiment: Experiment) -> None:
    """As `check_shared`, of `snapshot.path`."""
    instead = 'snapshot.path = "/shared/snapshots" or "s3://bucket/snapshots"'
    check_shared(experiment.snapshot.path or "", instead)


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    """A warning as the commands print it: one line, without the place in the code."""
    who = "raydist" if category is UserWarning else category.__name__
    return f"{who}: {' '.join(str(message).split())}\n"


def run(main: Callable[..., Any]) -> None:
    """Run a command's function on the command line.

    Args:
        main: the function, with typer's annotations; it returns the exit code or None.

    Raises:
        SystemExit: with the exit code.
    """
    warnings.formatwarning = _one_line
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        errors.print(f"raydist: {error}", markup=False)
        code = WRONG_INPUT
    except MachineError as error:
        errors.print(f"raydist: {error}", markup=False)
        code = FAILED
    except KeyboardInterrupt:
        errors.print("raydist: interrupted")
        code = INTERRUPTED
    except typer.Exit as error:
        code = error.exit_code
    except Exception as error:
        if not hasattr(error, "exit_code"):  # not a usage error of the command line
            raise
        line = error.format_message() if hasattr(error, "format_message") else str(error)
        errors.print(f"raydist: {line}", markup=False)
        code = WRONG_INPUT
    raise SystemExit(code or 0)
