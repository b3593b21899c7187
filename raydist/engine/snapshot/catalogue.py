"""The snapshots of one run: begin them, publish them, find the newest, remove old ones."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from raydist.engine.snapshot.manifest import (
    HISTORY,
    MANIFEST,
    SnapshotError,
    checksum,
    folder_of,
    read_checked,
    read_manifest,
    receipt_of,
    write_manifest,
)
from raydist.storage import Storage, agent_file

Tell = Callable[[int, str], None]  # round of a snapshot that cannot be used, and why
LOOKING = 0.05  # share of the time, at most, that goes into looking for the agents' parts,
LEAST = 0.02  # and seconds between two looks, at least
log = logging.getLogger("raydist")


@dataclass(frozen=True)
class Found:
    """A snapshot with a manifest.

    Attributes:
        round: the round n.
        checksums: checksums of the agents' parts, in the agents' order.
        body: the rest of the manifest.
        history: the arguments with which `Rounds.restore` goes back to round n.
    """

    round: int
    checksums: list[str]
    body: Mapping[str, Any]
    history: tuple[list[int], bytes]


class Catalogue:
    """The snapshots of one run at one place.

    One snapshot at a time is written: the driver begins it, the agents write their parts, the
    driver publishes it with the measurements up to its round. A thread waits for the parts and
    writes the manifest as soon as the last part is there, so that neither a long round nor the
    driver's slow disk delays it.
    """

    def __init__(self, url: str, config: str, agents: int, keep: int, tell: Tell) -> None:
        """Remember the place of the snapshots.

        Args:
            url: the store of the snapshots.
            config: the hash of the experiment.
            agents: number of agents K.
            keep: number of snapshots to keep.
            tell: a function called for each snapshot that cannot be used.
        """
        self.url, self._store, self._config, self._tell = url, Storage(url), config, tell
        self._files = [agent_file(k) for k in range(agents)]
        self._keep, self._good = keep, list[int]()
        self._begun: tuple[int, Mapping[str, Any]] | None = None
        self._publisher: Thread | None = None
        self._all_written = Event()  # set once no part is in progress
        self._trouble = ""

    def begin(self, n: int, body: Mapping[str, Any]) -> None:
        """Make room for snapshot n, before agents write it. No other may be in progress.

        Args:
            n: the round.
            body: the content of its manifest.
        """
        self._good = [m for m in self._good if m != n]
        self._store.remove(folder_of(n))
        self._begun, self._publisher, self._trouble = (n, body), None, ""

    @property
    def begun(self) -> int | None:
        """The round of the snapshot in progress; None if there is none."""
        return None if self._begun is None else self._begun[0]

    @property
    def published(self) -> bool:
        """Tell if the begun snapshot lacks nothing but its parts."""
        return self._publisher is not None

    @property
    def good(self) -> list[int]:
        """The rounds of the snapshots that count, as far as this process knows."""
        return [*self._good]

    def publish(self, history: tuple[list[int], bytes]) -> None:
        """Let the begun snapshot count as soon as its last part is there.

        Args:
            history: the measurements up to its round, as returned by `Rounds.until`.
        """
        assert self._begun is not None
        self._all_written.clear()
        self._publisher = Thread(target=self._publish, args=(*self._begun, history), daemon=True)
        self._publisher.start()

    def settle(self) -> tuple[int, str] | None:
        """Settle the begun snapshot once no part is in progress: it counts now, or never will.

        Returns:
            The round of a snapshot that never will count, and why ("" if a part is missing); None
            if there is none.
        """
        self._all_written.set()
        if self._publisher is not None:
            self._publisher.join()
        if self._begun is None:
            return None
        (n, _), self._begun = self._begun, None
        self._remove(folder_of(n))
        return n, self._trouble

    def prune(self, keep: int) -> None:
        """Remove all but the last `keep` of the snapshots that count."""
        old, self._good = self._good[:-keep], self._good[-keep:]
        for n in old:
            self._remove(folder_of(n))

    def tidy(self) -> None:
        """Remove all snapshots that do not count; none may be in progress."""
        stay = {folder_of(n) for n in self._good}
        try:
            for folder in {*self._store.names()} - stay:
                self._remove(folder)
        except Exception as error:
            log.warning("%s cannot be read: %s", self.url, error)

    def _remove(self, folder: str) -> None:
        try:
            self._store.remove(folder)
        except Exception as error:  # leftovers do no harm
            log.warning("%s/%s cannot be removed: %s", self.url, folder, error)

    def newest_first(self) -> Iterator[Found]:
        """Yield the usable snapshots, newest first; call `take` with the one used."""
        for n in reversed(self._rounds()):
            folder = folder_of(n)
            try:
                body = read_manifest(self._store, folder, self._config)
                files = body["files"]
                history = read_checked(self._store, folder, HISTORY, files[HISTORY])
                sums = [files[name] for name in self._files]
                yield Found(n, sums, body, (body.get("parts", []), history))
            except SnapshotError as error:
                self._tell(n, str(error))

    def take(self, n: int) -> None:
        """Go on from snapshot n, so that later ones do not count."""
        self._good = [m for m in self._rounds() if m <= n and self._has_manifest(m)]

    def _publish(self, n: int, body: Mapping[str, Any], history: tuple[list[int], bytes]) -> None:
        """Write the driver's part, wait for the agents' parts, make the snapshot count."""
        folder, (parts, rows) = folder_of(n), history
        try:
            self._store.write(f"{folder}/{HISTORY}", rows)
            files = self._wait_for_parts(n)
            if files is not None:
                files[HISTORY] = checksum(rows)
                whole = {**body, "config": self._config, "files": files, "parts": parts}
                write_manifest(self._store, folder, whole)
                self._good.append(n)
                self.prune(self._keep)
                self._begun = None
        except Exception as error:  # each kind of storage has its own; it ends no run
            self._trouble = str(error) or type(error).__name__

    def _wait_for_parts(self, n: int) -> dict[str, str] | None:
        """Wait until all parts exist or none is in progress; return `_receipts`."""
        over = False
        while True:
            began = time.monotonic()
            files = self._receipts(n)
            if files is not None or over:
                return files
            over = self._all_written.wait(max((time.monotonic() - began) / LOOKING, LEAST))

    def _receipts(self, n: int) -> dict[str, str] | None:
        """The checksums of all agents' parts; None if some are missing."""
        folder = folder_of(n)
        there = self._store.names(folder)
        if not {receipt_of(name) for name in self._files} <= {*there}:
            return None
        return {
            name: json.loads(self._store.read(f"{folder}/{receipt_of(name)}"))["sha256"]
            for name in self._files
        }

    def _rounds(self) -> list[int]:
        parts = (name.partition("-") for name in self._store.names())
        return sorted(int(n) for word, _, n in parts if word == "round" and n.isdigit())

    def _has_manifest(self, n: int) -> bool:
        return MANIFEST in self._store.names(folder_of(n))
