"""Signals that end a command: Ctrl-C, SIGTERM, SIGHUP, an output that nobody reads any more.

All of them end it like Ctrl-C, so that what is unfinished is put in order and can be continued.
"""

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE = 10.0  # seconds in which further signals are not heard: what was begun is put in order
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP",
    signal.SIGPIPE: "ended, because nobody reads its output any more",
}
_by: list[signal.Signals] = []  # what ended this process, the first one first
_heard = [-PATIENCE]  # when
_gently = [False]  # whether SIGUSR1 is to be asked first


def code() -> int:
    """The exit code of a command that was ended, as shells have it: 128 + the signal's number."""
    return 128 + (_by[0] if _by else signal.SIGINT)


def words() -> str:
    """The cause of a command's end, in words."""
    return WORDS[_by[0] if _by else signal.SIGINT]


def end(by: int, frame: FrameType | None = None) -> None:
    """End the command like Ctrl-C: what Ctrl-C does now (Ray Tune has ways of its own) is done.

    Args:
        by: the signal that says why.
        frame: the interrupted frame, from `signal.signal`.
    """
    _by.append(signal.Signals(by))
    handler: Any = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else _interrupt)(signal.SIGINT, frame)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once; the impatient are heard again when it takes too long."""
    if time.monotonic() - _heard[0] < PATIENCE:
        return
    _heard[0] = time.monotonic()
    gentle: Any = signal.getsignal(signal.SIGUSR1)
    if _gently[0] and callable(gentle) and not _by[1:]:
        _by.append(signal.Signals(signum))
        gentle(signum, frame)
        return
    _by.append(signal.Signals(signum))
    raise KeyboardInterrupt


@contextmanager
def gently() -> Generator[None]:
    """Inside, Ray Tune ends between two steps, as its handler of SIGUSR1 does.

    Yields:
        Nothing.
    """
    ours = _main_thread() and signal.getsignal(signal.SIGINT) is _interrupt
    if ours:
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    _gently[0] = ours
    try:
        yield
    finally:
        _gently[0] = False


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def heard() -> Generator[None]:
    """Signals end the command inside; one that was ended hears no more of them as it leaves.

    Yields:
        Nothing.
    """
    _by.clear()
    _heard[0] = -PATIENCE
    before = {each: signal.getsignal(each) for each in CAUGHT if _main_thread()}
    for each, how in before.items():
        if each == signal.SIGINT or how is not signal.SIG_IGN:  # as under nohup
            signal.signal(each, _interrupt if each == signal.SIGINT else end)
    try:
        yield
    finally:
        for each, how in before.items():
            signal.signal(each, signal.SIG_IGN if _by else how)


@contextmanager
def undisturbed() -> Generator[None]:
    """Ignore the signals that end a command while the context is open.

    Yields:
        Nothing.
    """
    before = {each: signal.getsignal(each) for each in CAUGHT if _main_thread()}
    for each in before:
        signal.signal(each, signal.SIG_IGN)
    try:
        yield
    finally:
        for each, how in before.items():
            signal.signal(each, how)


@contextmanager
def kept() -> Generator[None]:
    """Signals are handled afterwards as before, whatever a library (Ray) makes of them inside.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: if the library has let the process exit.
    """
    before = {each: signal.getsignal(each) for each in CAUGHT if _main_thread()}
    try:
        yield
    except SystemExit as error:  # Ray's own handler of SIGTERM
        _by.append(signal.SIGTERM)
        raise KeyboardInterrupt from error
    finally:
        for each, how in before.items():
            signal.signal(each, how)
