"""The board: messages of agents on one node, in memory that their processes share.

A board is a file that every process maps. For each group of agents it has a counter, the last round
whose messages stand there, and for each agent two slots, for even and for odd rounds. A group may
write round n once all readers of its round n − 2 have written n − 1, because they combined n − 2
before.

A process locks its byte of the file for as long as it lives, so that the others see its death,
whatever the cause. As soon as all have mapped the file it loses its name, so that no file is left
behind, however they end. A file with a name and no living owner is removed when the next board is
made.
"""

import fcntl
import mmap
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

PREFIX = "raydist-board-"
LINE = 64  # bytes of a counter, a line of a processor's cache
PAGE = 4096
YIELDS = 20  # times that a waiting process lets others go first, before it sleeps
SLEEP, LONGEST_SLEEP = 5e-5, 1e-3  # seconds
LOOK = 0.02  # seconds of waiting after which it is looked whether who is waited for still lives
SILENCE = 3600.0  # seconds after which a process that lives and says nothing ends the run


class Size(NamedTuple):
    """Size of a board.

    Attributes:
        groups: number of groups of agents, one for each process.
        agents: number of agents K.
        numbers: length of a message.
        dtype: dtype of a message.
    """

    groups: int
    agents: int
    numbers: int
    dtype: torch.dtype

    def header(self) -> int:
        """Bytes of the abort word and the counters."""
        return -(-(1 + self.groups) * LINE // PAGE) * PAGE

    def row(self) -> int:
        """Numbers from one slot to the next; each slot begins a cache line."""
        return -(-self.numbers // LINE) * LINE

    def bytes(self) -> int:
        """Bytes of the file."""
        return self.header() + 2 * self.agents * self.row() * self.dtype.itemsize


class Aborted(RuntimeError):
    """Raised if another process has died or failed, so that the round can never complete."""


class Board:
    """The board as one group of agents sees it.

    Attributes:
        path: path of the board's file, while that has a name.
    """

    def __init__(self, file: BinaryIO, mine: int, size: Size) -> None:
        """Map an open file of the right length.

        Args:
            file: the board's file, in which this process holds its lock.
            mine: the number of this group.
            size: size of the board.
        """
        self.path, self._file, self._mine = file.name, file, mine
        shared = mmap.mmap(file.fileno(), size.bytes())
        self._words = memoryview(shared).cast("q")  # abort, then the counters
        row = size.row()
        count, offset = 2 * size.agents * row, size.header()
        numbers = torch.frombuffer(shared, dtype=size.dtype, count=count, offset=offset)
        slots = numbers.view(2, size.agents, row)[:, :, : size.numbers]
        self._slots: list[tuple[Tensor, ...]] = [half.unbind() for half in slots]
        self._fence = Lock()

    @classmethod
    def create(cls, size: Size) -> "Board":
        """Make an empty board for its first group; remove the boards of dead processes.

        Args:
            size: size of the board.

        Returns:
            The board.

        Raises:
            OSError: if the node has no room for it.
        """
        needed, room = size.bytes(), room_for(size)
        if room is None:
            raise OSError(
                f"no room for a board of {needed / 1e6:,.0f} MB in "
                f'{" or ".join(map(str, folders()))}: write exchange = "objects"'
            )
        path = room / f"{PREFIX}{uuid.uuid4().hex}"
        unlocked = path.with_name(f".{path.name}")  # no process takes it for a leftover
        unlocked.touch(mode=0o600)
        file = _locked(unlocked, 0)
        os.rename(unlocked, path)
        os.posix_fallocate(file.fileno(), 0, needed)
        board = cls(file, 0, size)
        board.path = str(path)
        return board

    @classmethod
    def join(cls, path: str, mine: int, size: Size) -> "Board":
        """Open the board at a path as group `mine`."""
        return cls(_locked(Path(path), mine), mine, size)

    def hide(self) -> None:
        """Unlink the file: processes that mapped it keep it, and no file is left behind."""
        Path(self.path).unlink(missing_ok=True)

    def leave(self) -> None:
        """Release the lock: from now on the others take this process for dead."""
        self.hide()
        self._file.close()

    def slot(self, agent: int, n: int) -> Tensor:
        """Slot of an agent's message in round n, (S,)."""
        return self._slots[n % 2][agent]

    def publish(self, n: int) -> None:
        """Announce that this group has written round n, and has read the rounds before."""
        self._order()
        self._words[self._word(self._mine)] = n

    def wait(self, groups: Iterable[int], n: int) -> None:
        """Wait until other groups have published round n.

        Args:
            groups: the numbers of those groups.
            n: the round.

        Raises:
            Aborted: if one of the groups, or a group that they wait for, has died or failed.
            TimeoutError: if a group stays silent for an hour.
        """
        if self._words[0]:
            raise Aborted("another agent has died or failed")
        for group in groups:
            if self._words[self._word(group)] < n:
                self._wait(group, n)
        self._order()

    def abort(self) -> None:
        """Make every process that waits, now or later, give up."""
        self._words[0] = 1

    def _wait(self, group: int, n: int) -> None:
        word, turns, sleep = self._word(group), 0, SLEEP
        began = look = time.monotonic()
        while self._words[word] < n:
            if self._words[0]:
                raise Aborted("another agent has died or failed")
            turns += 1
            if turns <= YIELDS:
                os.sched_yield()
                continue
            time.sleep(sleep)
            sleep = min(1.5 * sleep, LONGEST_SLEEP)
            now = time.monotonic()
            if now - look > LOOK:
                look = now
                if not self._lives(group) and self._words[word] < n:  # its last word counts
                    self.abort()
                    raise Aborted(f"the process of group {group} is gone")
                if now - began > SILENCE:
                    self.abort()
                    raise TimeoutError(f"group {group} has been silent for {SILENCE:g} s")

    def _lives(self, group: int) -> bool:
        """Tell if the process of another group still holds its lock."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, group)
        except BlockingIOError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, group)
        return False

    def _order(self) -> None:
        """Memory barrier: earlier writes become visible before later ones; the same for reads.

        x86 keeps the order by itself; ARM keeps it if a lock is taken after one was released.
        """
        for _ in range(2):
            with self._fence:
                pass

    @staticmethod
    def _word(group: int) -> int:
        return (1 + group) * LINE // 8


def folders() -> list[Path]:
    """Folders in which a board may lie: in memory, else that of temporary files."""
    return [f for f in (Path("/dev/shm"), Path(tempfile.gettempdir())) if os.access(f, os.W_OK)]


def room_for(size: Size) -> Path | None:
    """Remove the boards of dead processes, and find a folder with room for a board.

    Args:
        size: size of the board.

    Returns:
        The folder; None if there is no room.
    """
    for folder in folders():
        remove_leftovers(folder)
    return next((f for f in folders() if shutil.disk_usage(f).free > size.bytes()), None)


def remove_leftovers(folder: Path) -> None:
    """Remove the boards of a folder that no living process holds."""
    for path in folder.glob(f"{PREFIX}*"):
        try:
            with open(path, "r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except OSError:  # somebody holds it, or it is another user's, or gone
            continue


def _locked(path: Path, mine: int) -> BinaryIO:
    file = open(path, "r+b")  # stays open: with it ends the lock
    fcntl.lockf(file, fcntl.LOCK_EX, 1, mine)
    return file
