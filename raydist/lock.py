"""A folder belongs to one process at a time: a lock that dies with its process.

On a file system it is `flock` on the file `lock`, which the kernel gives back however the process
ends. Object stores (and file systems without `flock`) have no such thing. There it is a lease: an
object that its owner writes anew every `RENEW` seconds, and that counts as long as others see it
change. No clocks are compared. An owner whose lease was taken over notices it at its next renewal.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from raydist.errors import InputError, MachineError
from raydist.storage import Storage

NAME = "lock"
RENEW, EXPIRE = 5.0, 30.0  # seconds
LOOK = 1.0  # seconds between two looks whether the folder is still there
TRIES = 100
WITHOUT_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
log = logging.getLogger("raydist")


class _Lock(Protocol):
    def held(self) -> bool:
        """Tell whether the folder is still there, and ours."""

    def release(self) -> None:
        """Give it back."""


class Held:
    """A folder that is ours for now."""

    def __init__(self, url: str = "", lock: _Lock | None = None) -> None:
        """Take note of the lock, which was taken; of nothing if there is none."""
        self._url, self._lock, self._looked = url, lock, time.monotonic()

    def check(self, now: bool = False) -> None:
        """The folder is still there, and still ours; in fact looks only now and then.

        Args:
            now: whether to look in any case.

        Raises:
            MachineError: if it was moved, removed, or taken over.
        """
        if self._lock is None or (not now and time.monotonic() - self._looked < LOOK):
            return
        self._looked = time.monotonic()
        if not self._lock.held():
            raise MachineError(
                f"{self._url} was moved, removed or taken over by another process while it "
                "was written: look where it is, and continue there with --resume"
            )


@contextmanager
def hold(folder: Storage | None) -> Generator[Held]:
    """Have a folder to oneself; it is made if it is not there, and taken away if it stays empty.

    What a killed process has left half-written in it is removed.

    Args:
        folder: the folder of a study or a run; None: there is nothing to have.

    Yields:
        What tells whether it is still ours.

    Raises:
        InputError: if another process has it, or if this one may not write there.
        MachineError: if nothing can be written there, or if it was moved meanwhile.
    """
    if folder is None:
        yield Held()
        return
    try:
        lock = _take(folder)
    except InputError:
        raise
    except Exception as error:  # each kind of storage has its own
        told = MachineError.of(f"{folder.url} cannot be written", error)
        raise InputError(str(told)) if isinstance(error, PermissionError) else told from error
    held = Held(folder.url, lock)
    try:
        yield held
    except MachineError:
        held.check(now=True)  # a folder that was moved takes no file: that is the cause
        raise
    finally:
        lock.release()


def _take(folder: Storage) -> _Lock:
    if folder.local:
        try:
            return _Flock(Path(folder.root), folder.url)
        except OSError as error:
            if error.errno not in WITHOUT_FLOCK:
                raise
    return _Lease(folder)


def _owner() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname()}


def _refuse(url: str, text: bytes, until: str) -> NoReturn:
    try:
        owner = json.loads(text)
        who = f"process {owner['process']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    raise InputError(f"{url} is in use by {who}: {until}")


class _Flock:
    """A file that is locked; the lock belongs to this open file alone, also within a process."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            tries = (self._locked(url, last=i == TRIES - 1) for i in range(TRIES))
            if not any(tries):
                raise OSError(errno.EBUSY, "it is made and removed all the time")
        except BaseException:
            self._undo()
            raise
        with suppress(OSError):  # a disk that is full: the lock holds without a name in it
            os.ftruncate(self._file, 0)
            os.write(self._file, json.dumps(_owner()).encode())
        for part in folder.rglob("*.part"):
            part.unlink(missing_ok=True)

    def _locked(self, url: str, last: bool) -> bool:
        """One try; False if the one who had it has just taken the file, or the folder, away."""
        gone = () if last else (FileNotFoundError,)  # /proc has no room for folders at any try
        with ExitStack() as closing, suppress(*gone):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._place = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            closing.callback(os.close, self._place)
            self._file = os.open(NAME, os.O_RDWR | os.O_CREAT, 0o644, dir_fd=self._place)
            closing.callback(os.close, self._file)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _refuse(url, os.read(self._file, 1000), "wait until it has ended")
            except OSError:
                if not os.fstat(self._file).st_size:  # else it is the lease of another
                    os.unlink(NAME, dir_fd=self._place)
                raise
            if self.held():
                closing.pop_all()
                return True
        return False

    def held(self) -> bool:
        try:
            there = os.path.samestat(os.stat(self._folder), os.fstat(self._place))
            return there and os.path.samestat(os.stat(self._folder / NAME), os.fstat(self._file))
        except OSError:
            return False

    def release(self) -> None:
        with suppress(OSError):  # it may have been removed with all that was in it
            os.unlink(NAME, dir_fd=self._place)
        os.close(self._file)
        os.close(self._place)
        self._undo()

    def _undo(self) -> None:
        """Take away the folders that were made, as far as nothing lies in them."""
        with suppress(OSError):
            for path in self._made:
                path.rmdir()


class _Lease:
    """An object that is written anew again and again."""

    def __init__(self, folder: Storage) -> None:
        self._folder, self._token = folder, uuid.uuid4().hex
        self._ended, self._lost, self._count = threading.Event(), False, 0
        while not self._create():
            self._outlive()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _text(self) -> bytes:
        self._count += 1
        return json.dumps({**_owner(), "token": self._token, "renewed": self._count}).encode()

    def _create(self) -> bool:
        """Write it, unless it is there; False if it is."""
        try:
            self._folder.create(NAME, self._text())
        except FileExistsError:
            return False
        return True

    def _outlive(self) -> None:
        """Remove the lease of another who is dead.

        Raises:
            InputError: if it is alive.
        """
        seen = self._folder.find(NAME)
        ends = time.monotonic() + EXPIRE
        if seen is not None:
            log.warning("%s: up to %g s to see who has it", self._folder.url, EXPIRE)
        while seen is not None and time.monotonic() < ends:
            time.sleep(RENEW / 5)
            now = self._folder.find(NAME)
            if now is not None and now != seen:
                until = f"wait until it has ended; if it was killed, {EXPIRE:g} s are enough"
                _refuse(self._folder.url, now, until)
            seen = now
        self._folder.remove(NAME)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW):
            with suppress(Exception):  # a storage that does not answer: the next time
                if not self._ours():
                    self._lost = True
                    return
                self._folder.write(NAME, self._text(), durable=False)

    def _ours(self) -> bool:
        text = self._folder.find(NAME)
        return text is not None and f'"{self._token}"'.encode() in text

    def held(self) -> bool:
        return not self._lost

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(Exception):  # what stays expires
            if self._ours():
                self._folder.remove(NAME)
