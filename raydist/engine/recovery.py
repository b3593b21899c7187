"""Recovery: decides when to snapshot, and resumes from the newest valid snapshot after a death.

A run that lost an agent, or that another process began, goes on from its last good snapshot, or
from round 0 if there is none. Deaths, resumptions and unusable snapshots are recorded as events.
"""

import logging
import time

from raydist.engine.plan import Plan
from raydist.engine.pool.pool import Pool
from raydist.engine.snapshot.catalogue import Catalogue, Found
from raydist.engine.watch import Watch
from raydist.errors import AgentDied, AgentError
from raydist.results.folder import Folder, Stopwatch
from raydist.results.record import Event, Record
from raydist.results.rounds import Rounds

FLUSH_SECONDS = 2.0  # longest time until a record is on its disk
PATIENCE = 2  # cadences for which a snapshot is written before the run waits for its disk
log = logging.getLogger("raydist")


class Recovery:
    """Keeper of one run's records, snapshots and events.

    Attributes:
        events: the events so far.
        rounds: the store of the records; None: no record is kept.
    """

    def __init__(self, plan: Plan, folder: Folder | None = None) -> None:
        """Remember the run and its folder.

        Args:
            plan: the run.
            folder: the run's folder, begun; None: keep nothing, so a death costs all rounds.
        """
        self.events: list[Event] = [] if folder is None else folder.events
        self.rounds: Rounds | None = None if folder is None else folder.rounds
        self._plan, self._folder, self._table = plan, folder, plan.config.snapshot
        self._clock = Stopwatch() if folder is None else folder.clock
        self._began = time.monotonic()
        self._taken = {0: self._began}  # when each state that may be needed was copied, by round
        self._last = self._flushed = self._began
        self._failed: int | None = None  # the last snapshot that could not be written
        self._deaths = 0
        self._open: list[tuple[AgentDied, int]] = []  # deaths, at which round: not yet made good
        self._shelf: Catalogue | None = None
        if folder is not None:
            url = f"{folder.url}/snapshots"
            if self._table.path is not None:
                url = f"{self._table.path.rstrip('/')}/{folder.name}-{folder.hash}"
            self._shelf = Catalogue(url, folder.hash, plan.agents, self._table.keep, self._unusable)

    def seconds(self) -> float:
        """Seconds that the run has taken, with those of earlier tries."""
        return self._clock.seconds()

    def add(self, record: Record) -> None:
        """Keep a record."""
        if self.rounds is not None:
            self.rounds.add(record)

    def flush(self) -> None:
        """Write the records now and then."""
        if self._folder is not None and time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._folder.flush()
            self._flushed = time.monotonic()

    def newest(self) -> Record | None:
        """The record of the last kept round; None if there is none."""
        return None if self.rounds is None else self.rounds.newest()

    def due(self, n: int) -> bool:
        """Tell if the state after round n is to be kept; never true of the last round."""
        if self._shelf is None or self._table.every == 0 or n == self._plan.rounds:
            return False
        if self._table.every is not None:
            return n % self._table.every == 0
        # a snapshot that takes longer to write than the cadence stretches it: the run does not wait
        cadences = 1 if self._shelf.begun is None else PATIENCE
        since = time.monotonic() - self._last
        return since >= cadences * self._table.seconds

    def next(self, n: int) -> int:
        """The first round from n on that is sure to be kept, or else the last round."""
        every = 0 if self._shelf is None else self._table.every or 0
        return min(self._plan.rounds, -(-n // every) * every) if every else self._plan.rounds

    def take(self, pool: Pool, n: int, watch: Watch) -> None:
        """Begin a snapshot; complete an earlier one, or else give it up.

        Args:
            pool: the agents; round n is closed.
            n: the round.
            watch: the observations up to round n.
        """
        assert self._shelf is not None
        self._settle(pool)
        self._last = now = time.monotonic()
        try:
            self._shelf.begin(n, {"seconds": self.seconds(), "watch": watch.dump()})
        except Exception as error:  # each kind of storage has its own
            self._not_kept(n, str(error))
            return
        pool.snapshot(n, self._shelf.url)
        self._taken = {m: self._taken[m] for m in (0, *self._shelf.good) if m in self._taken}
        self._taken[n] = now

    def look(self) -> None:
        """Publish the begun snapshot, once its round is recorded."""
        if self._shelf is None or self._folder is None or self._shelf.published:
            return
        n, rounds = self._shelf.begun, self._folder.rounds
        if n is not None and n <= rounds.last:
            self._shelf.publish(rounds.until(n))

    def close(self) -> None:
        """Stop writing, because the run is over, whatever the reason."""
        if self._shelf is not None:
            self._shelf.settle()

    def finish(self, pool: Pool, record: Record) -> None:
        """Write all records at the end of the run, and keep only its last snapshot.

        Args:
            pool: the agents; the record's round is closed.
            record: the last record, before anything is judged.
        """
        self.add(record)
        if self._folder is not None:
            self._folder.flush()
        if self._shelf is not None and self._table.every != 0:
            self._settle(pool)
            self._shelf.prune(1)
            self._shelf.tidy()

    def survive(self, death: AgentDied, at: int) -> None:
        """Take note of a death.

        Args:
            death: the death, as raised by the pool.
            at: the last recorded round.

        Raises:
            AgentError: if the run has had one death more than it may survive.
        """
        self._deaths += 1
        self._open.append((death, at))
        most = self._table.recoveries
        if self._deaths > most:
            raise AgentError(f"{death} (death {self._deaths}, snapshot.recoveries is {most})")

    def resume(self, pool: Pool, told: int) -> tuple[int, Watch]:
        """Bring all agents to the round from which the run goes on.

        Args:
            pool: new agents; or some dead agents, and the others at any round.
            told: the last recorded round; -1 if there is none.

        Returns:
            The round, and the observations up to it.
        """
        began, watch = time.monotonic(), Watch(self._plan)
        earlier = self._folder is not None and self._folder.earlier is not None
        if not self._open and not earlier and told < 0:
            return 0, watch
        if self._open:
            pool.revive()
        if self._shelf is not None:  # living agents may have written all missing parts
            pool.settle()
            self.look()
            self._shelf.settle()
        found = self._restore(pool)
        if found is None:
            pool.reset(self._plan)
        else:
            watch.load(found.body["watch"])
        n = found.round if found else 0
        if earlier:
            self._go_on(found, began)
        if self._open:
            self._made_good(n)
        self._last = time.monotonic()
        return n, watch

    def _restore(self, pool: Pool) -> Found | None:
        """Restore the newest snapshot that all agents can use; return it, or None."""
        if self._shelf is None:
            return None
        for found in self._shelf.newest_first():
            answers = pool.restore(found.round, self._shelf.url, found.checksums)
            wrong = [f"agent {k}: {answer}" for k, answer in enumerate(answers) if answer]
            if not wrong:
                self._shelf.take(found.round)
                self._shelf.tidy()
                return found
            self._unusable(found.round, "; ".join(wrong))
        return None

    def _made_good(self, n: int) -> None:
        """Record an event for each death; the last event carries the lost time."""
        now = time.monotonic()
        since = self._taken.setdefault(n, self._began)
        for i, (death, at) in enumerate(self._open):
            lost = now - since if i == len(self._open) - 1 else 0.0
            self._tell(Event("agent died", str(death), at, death.agents, n, lost))
        self._taken = {m: when for m, when in self._taken.items() if m <= n} | {n: now}
        self._open = []

    def _go_on(self, found: Found | None, began: float) -> None:
        """Take over a run that another process began: its rows and seconds; record the event."""
        assert self._folder is not None and self._folder.earlier is not None
        earlier, self._folder.earlier = self._folder.earlier, None
        n, kept = (found.round, float(found.body["seconds"])) if found else (0, 0.0)
        self._folder.rounds.restore(*(found.history if found else ([], None)))
        self._folder.rounds.clear()
        # the run counted both itself, because clocks of disks or other machines may differ
        wasted = max(0.0, earlier.seconds - kept)
        now = time.monotonic()
        self._clock.start(kept + wasted + now - self._began)
        self._taken[n] = now
        lost = wasted + now - began
        self._tell(Event("run resumed", earlier.reason, earlier.round, (), n, lost))

    def _settle(self, pool: Pool) -> None:
        """Wait until the agents have written the begun snapshot; it counts now, or never will."""
        assert self._shelf is not None
        wrong = [why for why in pool.settle() if why]
        self.look()
        failed = self._shelf.settle()
        if failed is not None:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            n, why = failed
            why = f"{wrong[0]}{more}" if wrong else why or "a part is missing"
            self._not_kept(n, f"it was not written: {why}")

    def _not_kept(self, n: int, why: str) -> None:
        """Report that a snapshot could not be written, once until one can be again."""
        assert self._shelf is not None
        if self._failed is None or any(m > self._failed for m in self._shelf.good):
            self._unusable(n, f"{why} (told once until a snapshot is whole again)")
        self._failed = n

    def _unusable(self, n: int, why: str) -> None:
        self._tell(Event("snapshot unusable", why, n))

    def _tell(self, event: Event) -> None:
        log.warning("%s: round %d: %s", event.what, event.round, event.detail)
        if self._folder is None:
            self.events.append(event)
        else:
            self._folder.tell(event)
