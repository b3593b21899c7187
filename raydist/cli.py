"""What all commands share: wrong input is one line on stderr and exit code 2."""

import errno
import functools
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from raydist import lock, signals
from raydist.config.experiment import REMEDIES, Experiment, InputError, MachineError
from raydist.results.terminal import say
from raydist.storage import Store

FAILED, WRONG_INPUT = 1, 2  # exit codes; of what is ended from outside `ending.code()`

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


def check_importable(experiment: Experiment, keys: Sequence[str]) -> None:
    """Other processes can import what an experiment names.

    Args:
        experiment: the experiment.
        keys: whose functions they call.

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

    @functools.wraps(main)
    def ended(*args: Any, **settings: Any) -> int:
        try:
            return int(main(*args, **settings) or 0)
        except KeyboardInterrupt as error:  # of which typer would say nothing
            return told(error, "")

    app.command()(ended)
    with signals.heard():
        raise SystemExit(_code(app))


def _code(app: typer.Typer) -> int:
    """The exit code of a command; what ended it before its end is told in one line."""
    try:
        return int(app(standalone_mode=False) or 0)
    except InputError as error:
        say(f"raydist: {error}")
        return WRONG_INPUT
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # of what is not printed by our console
            return 128 + signal.SIGPIPE
        machine = machine_error(error)
        if machine is not None:
            say(f"raydist: {machine}")
            return FAILED
        if not hasattr(error, "exit_code"):  # not a usage error of the command line
            raise
        line = error.format_message() if hasattr(error, "format_message") else str(error)
        say(f"raydist: {line}")
        return WRONG_INPUT


def told(error: BaseException, resume: str) -> int:
    """Tell in one line what ended a command early, and how to go on.

    Args:
        error: what ended it.
        resume: the command that goes on; "" if there is none.

    Returns:
        The exit code.

    Raises:
        BaseException: that error, unless the user or the machine has ended the command.
    """
    machine = machine_error(error)
    if machine is None and not isinstance(error, KeyboardInterrupt):
        raise error
    line = signals.words() if machine is None else str(machine)
    say(f"raydist: {line}" + (f"; continue with {resume}" if resume else ""))
    return signals.code() if machine is None else FAILED


def machine_error(error: BaseException) -> MachineError | None:
    """What the machine refused, where that is the cause of an error, in whatever it is wrapped.

    Args:
        error: any; Ray and Tune wrap those of others.

    Returns:
        The error in one line; None if the machine has nothing to do with it.
    """
    chain: list[BaseException] = []
    each: BaseException | None = None if isinstance(error, InputError) else error
    while each is not None and each not in chain:
        chain.append(each)
        each = getattr(each, "cause", None) or each.__cause__ or each.__context__
    for each in chain:
        if isinstance(each, MachineError):
            return each
    for each in chain:
        if isinstance(each, OSError) and each.errno in REMEDIES:
            name = each.filename or "a file"
            return MachineError.of(f"{name} cannot be written or read", each)
    return None
