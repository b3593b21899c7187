"""The snapshots of one run, side by side: which are begun, which count, which are removed."""

import json
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


@dataclass(frozen=True)
class Found:
    """A snapshot with a manifest.

    Attributes:
        round: n.
        checksums: of the agents' parts, in their order.
        body: what else the manifest holds.
        history: `rounds.parquet`, everything that was measured up to round n.
    """

    round: int
    checksums: list[str]
    body: Mapping[str, Any]
    history: bytes


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

    def complete(self, history: Callable[[int], bytes], keep: int, told: int) -> None:
        """Write the manifests of the snapshots that are all there, and remove what is old.

        Args:
            history: (n) -> what was measured up to round n.
            keep: how many snapshots stay.
            told: the last round that the history has.
        """
        for n in sorted(m for m in self._begun if m <= told):
            try:
                files = self._receipts(n)
                if files is not None:
                    self._count(n, files, history(n))
                    self.prune(keep)
            except (OSError, ValueError, KeyError) as error:  # a full disk must not end the run
                self._begun.pop(n, None)
                self._tell(n, str(error))

    def forget(self) -> None:
        """Give up the snapshots that were not completed."""
        for n in self._begun:
            self._store.remove(folder_of(n))
        self._begun.clear()

    def prune(self, keep: int) -> None:
        """Remove all but the last `keep` snapshots that count and those that are being written."""
        self._good = self._good[-keep:]
        stay = {folder_of(n) for n in (*self._good, *self._begun)}
        for folder in self._store.names():
            if folder not in stay:
                self._store.remove(folder)

    def newest_first(self) -> Iterator[Found]:
        """The snapshots that may be used; who takes one calls `take`."""
        for n in reversed(self._rounds()):
            folder = folder_of(n)
            try:
                body = read_manifest(self._store, folder, self._config)
                files = body["files"]
                history = read_checked(self._store, folder, HISTORY, files[HISTORY])
                yield Found(n, [files[name] for name in self._files], body, history)
            except SnapshotError as error:
                self._tell(n, str(error))

    def take(self, n: int) -> None:
        """The run goes on from snapshot n: later ones do not count."""
        self._good = [m for m in self._rounds() if m <= n and self._has_manifest(m)]

    def _count(self, n: int, files: dict[str, str], history: bytes) -> None:
        folder, body = folder_of(n), self._begun[n]
        self._store.write(f"{folder}/{HISTORY}", history)
        files[HISTORY] = checksum(history)
        write_manifest(self._store, folder, {**body, "config": self._config, "files": files})
        del self._begun[n]
        self._good.append(n)

    def _receipts(self, n: int) -> dict[str, str] | None:
        """The checksums of all agents' parts; None if some are not there yet."""
        folder = folder_of(n)
        there = self._store.names(folder)
        if not {receipt_of(name) for name in self._files} <= {*there}:
            return None
        receipts = {
            name: json.loads(self._store.read(f"{folder}/{receipt_of(name)}"))
            for name in self._files
        }
        wrong = [f"{k}: {r['error']}" for k, r in receipts.items() if "error" in r]
        if wrong:
            raise SnapshotError(f"it was not written, {'; '.join(wrong)}")
        return {name: receipt["sha256"] for name, receipt in receipts.items()}

    def _rounds(self) -> list[int]:
        parts = (name.partition("-") for name in self._store.names())
        return sorted(int(n) for word, _, n in parts if word == "round" and n.isdigit())

    def _has_manifest(self, n: int) -> bool:
        return MANIFEST in self._store.names(folder_of(n))
