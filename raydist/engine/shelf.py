"""The snapshots of one run, side by side: which are begun, which count, which are removed."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raydist.engine.snapshot import (
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
from raydist.engine.spec import agent_file
from raydist.engine.store import Store

Tell = Callable[[int, str], None]  # round of a snapshot that cannot be used, and why
History = Callable[[int], tuple[list[int], bytes]]  # as `Rounds.until`
log = logging.getLogger("raydist")


@dataclass(frozen=True)
class Found:
    """A snapshot with a manifest.

    Attributes:
        round: n.
        checksums: of the agents' parts, in their order.
        body: what else the manifest holds.
        history: what `Rounds.restore` needs to go back to round n.
    """

    round: int
    checksums: list[str]
    body: Mapping[str, Any]
    history: tuple[list[int], bytes]


class Shelf:
    """The snapshots of one run at one place."""

    def __init__(self, url: str, config: str, agents: int, tell: Tell) -> None:
        """Nothing is read or written yet.

        Args:
            url: where they lie.
            config: the hash of the experiment.
            agents: K.
            tell: is told of each snapshot that cannot be used.
        """
        self.url, self._store, self._config, self._tell = url, Store(url), config, tell
        self._files = [agent_file(k) for k in range(agents)]
        self._begun: dict[int, Mapping[str, Any]] = {}
        self._good: list[int] = []

    def begin(self, n: int, body: Mapping[str, Any]) -> None:
        """The agents are about to write snapshot n: make room for it.

        Args:
            n: the round.
            body: what its manifest will hold.
        """
        self._good = [m for m in self._good if m != n]
        self._store.remove(folder_of(n))
        self._begun[n] = body

    @property
    def waiting(self) -> bool:
        """Whether snapshots are being written."""
        return bool(self._begun)

    @property
    def begun(self) -> list[int]:
        """The rounds of the snapshots that are being written."""
        return [*self._begun]

    @property
    def good(self) -> list[int]:
        """The rounds of the snapshots that count, of those that this process knows."""
        return [*self._good]

    def complete(self, history: History, keep: int, told: int) -> dict[int, str]:
        """Write the manifests of the snapshots that are all there, and remove what is old.

        Args:
            history: (n) -> what was measured up to round n.
            keep: how many snapshots stay.
            told: the last round that the history has.

        Returns:
            The rounds of the snapshots that could not be completed, and why.
        """
        failed: dict[int, str] = {}
        for n in sorted(m for m in self._begun if m <= told):
            try:
                files = self._receipts(n)
                if files is not None:
                    self._count(n, files, history(n))
            except Exception as error:  # each kind of storage has its own; it ends no run
                self._begun.pop(n, None)
                failed[n] = str(error) or type(error).__name__
        self.prune(keep)
        return failed

    def forget(self) -> list[int]:
        """Give up the snapshots that were not completed.

        Returns:
            Their rounds.
        """
        given_up = sorted(self._begun)
        self._begun.clear()
        for n in given_up:
            self._remove(folder_of(n))
        return given_up

    def prune(self, keep: int) -> None:
        """Remove all but the last `keep` snapshots that count and those that are being written."""
        old, self._good = self._good[:-keep], self._good[-keep:]
        for n in old:
            self._remove(folder_of(n))

    def tidy(self) -> None:
        """Remove whatever does not count and is not being written."""
        stay = {folder_of(n) for n in (*self._good, *self._begun)}
        try:
            for folder in {*self._store.names()} - stay:
                self._remove(folder)
        except Exception as error:
            log.warning("%s cannot be read: %s", self.url, error)

    def _remove(self, folder: str) -> None:
        try:
            self._store.remove(folder)
        except Exception as error:  # what stays lies in nobody's way
            log.warning("%s/%s cannot be removed: %s", self.url, folder, error)

    def newest_first(self) -> Iterator[Found]:
        """The snapshots that may be used; who takes one calls `take`."""
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
        """The run goes on from snapshot n: later ones do not count."""
        self._good = [m for m in self._rounds() if m <= n and self._has_manifest(m)]

    def _count(self, n: int, files: dict[str, str], history: tuple[list[int], bytes]) -> None:
        folder, (parts, rows) = folder_of(n), history
        self._store.write(f"{folder}/{HISTORY}", rows)
        files[HISTORY] = checksum(rows)
        body = {**self._begun[n], "config": self._config, "files": files, "parts": parts}
        write_manifest(self._store, folder, body)
        del self._begun[n]
        self._good.append(n)

    def _receipts(self, n: int) -> dict[str, str] | None:
        """The checksums of all agents' parts; None if some are not there yet."""
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
