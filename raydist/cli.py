"""Flags and exit codes that the commands share: wrong input is one line and exit code 2."""

import functools
import signal
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from raydist import signals
from raydist.errors import InputError, machine_error
from raydist.results.terminal import say

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
        error: the error that ended the command.
        resume: the command that continues; "" if there is none.

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
