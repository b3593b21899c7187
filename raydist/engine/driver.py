"""The driver: rounds as a generator of records, run to the end. It never touches a weight."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from raydist.engine.agent import validation
from raydist.engine.agent.agent import BEFORE, Info, Message
from raydist.engine.ending import last_record
from raydist.engine.plan import Plan
from raydist.engine.pool.pool import Pending, Pool, parameters_of
from raydist.engine.recovery import Recovery
from raydist.engine.watch import Watch
from raydist.errors import AgentDied
from raydist.results.folder import Folder, final_numbers
from raydist.results.record import Outcome, Record, Result
from raydist.results.rounds import Rounds


class _TooFar(Exception):
    """Raised if the run ended with a round that the agents have already passed."""

    def __init__(self, last: int) -> None:
        """Remember `last`, the round with which the run ended."""
        self.last = last


def train(
    pool: Pool,
    plan: Plan,
    keeper: Recovery | None = None,
    ending: Callable[[Pool, int], None] | None = None,
    early: Callable[[], str] | None = None,
) -> Iterator[Record]:
    """Run a plan on a pool, and survive the deaths of agents.

    After an agent's death the run goes on from its last snapshot with a new agent in its place.
    Every draw is a function of (seed, agent, round), so replayed rounds are identical, and only new
    rounds are yielded. If a run diverges, agents that are already further are brought back to that
    round in the same way, because the run's weights are those of its last round.

    Args:
        pool: the agents, at round 0.
        plan: the run.
        keeper: the recovery of the run; default: keep nothing, so a death costs all rounds.
        ending: a function called with the pool and the run's last round, once that is done and
            before anything is judged.
        early: a function called after each measured round was yielded; a reason, in words, ends
            the run there, and the record of that round is yielded again with all final numbers
            but those of test images.

    Yields:
        A record for each round from 0 on, or from the round after the snapshot that another
        process has left (with `early` from the snapshot's own round on, because the run may end
        with it); the last record holds the outcome.
    """
    keeper, told, last = keeper or Recovery(plan), -1, plan.rounds
    latest: Record | None = None

    def leaves(n: int) -> str:
        """Return why the run ends after round n; only once told, not in a replay of the round."""
        return early() if early is not None and n == told and plan.measured(n) else ""

    def close(record: Record) -> None:
        """Save the trained models and the measurements, before anything is judged."""
        keeper.finish(pool, record)
        if ending is not None:
            ending(pool, record.round)

    try:
        while True:
            try:
                start, watch = keeper.resume(pool, told)
                if early is not None and told < 0 < start:
                    told, latest = start, keeper.newest()
                    if latest is not None:
                        yield latest
                told = max(told, start or -1)
                begun = latest if latest is not None and latest.round == start else None
                for record in _rounds(pool, plan, watch, keeper, start, last, leaves, close, begun):
                    if record.round > told or record.outcome is not None:
                        told, latest = record.round, record
                        keeper.add(record)
                        yield record
                        keeper.flush()
                return
            except _TooFar as end:
                last = end.last
            except AgentDied as death:
                keeper.survive(death, max(told, 0))
    finally:
        keeper.close()


class _Flight:
    """Rounds that are submitted and not yet read.

    The driver submits batches of `pool.batch` rounds, one batch ahead of the batch that it reads,
    so that agents need not wait for it.

    Attributes:
        submitted: the last round that was submitted.
    """

    def __init__(self, pool: Pool, watch: Watch, start: int) -> None:
        """Begin with nothing submitted after round `start`."""
        self._pool, self._watch, self.submitted = pool, watch, start
        self._pending: deque[Pending] = deque()
        self._read: deque[list[Info]] = deque()
        self._ahead = pool.exchange != "memory"  # else rounds are done when they are submitted

    def land(self, n: int, limit: int) -> list[Info]:
        """Read the agents' numbers of round n, the next one; submit rounds up to `limit`."""
        most = (1 if self._read else 2) if self._ahead else 0
        while self.submitted < limit and (self.submitted < n or len(self._pending) < most):
            upto = min(limit, self.submitted + self._pool.batch)
            noisy = [self._watch.noisy(m) for m in range(self.submitted + 1, upto + 1)]
            self._pending.append(self._pool.step(self.submitted + 1, noisy))
            self.submitted = upto
        if not self._read:
            self._read.extend(self._pool.collect(self._pending.popleft()))
        return self._read.popleft()

    def end(self, n: int) -> None:
        """End the run with round n: wait for the rounds submitted after it.

        Raises:
            _TooFar: if the agents are beyond round n.
        """
        for pending in self._pending:
            self._pool.collect(pending)
        if self.submitted > n:
            raise _TooFar(n)


def _rounds(
    pool: Pool,
    plan: Plan,
    watch: Watch,
    keeper: Recovery,
    start: int,
    last: int,
    leaves: Callable[[int], str],
    close: Callable[[Record], None],
    begun: Record | None,
) -> Iterator[Record]:
    """Yield the records after the closed round `start`, whose record is `begun` if it was told.

    Every `plan.every` rounds the driver measures the state, and submits no round until that is
    done, because a rule that stops the run must see exactly the state that it judges. The run is
    expected to end with round `last`, so later rounds are submitted one by one. After a measured
    round, `leaves` returns why the run ends with it, or "". The record of a round that is neither
    measured nor kept in a snapshot waits for the next round, which finishes its combination.

    Yields:
        A record for each round after `start`; for round 0 as well if the run starts there.

    Raises:
        _TooFar: if the run ended with a round, and the agents had gone on.
    """
    theory, stop = plan.theory(), plan.config.stop
    each_round = bool(stop.fosc and stop.fosc.on == "train")  # is judged
    flight, held = _Flight(pool, watch, start), None

    def ended(record: Record, reason: str) -> Record:
        close(record)
        outcome = Outcome("stopped", reason, record.round)
        return last_record(pool, plan, record, outcome, watch.summary(), theory, test=False)

    if begun is not None and (reason := leaves(start)):
        yield ended(begun, reason)
        return
    if start == 0:
        first = _measured(pool, plan, 0, [], theory)
        if plan.sensed(0):
            pool.learn_sensitivity(0)
        yield first
    for n in range(start + 1, plan.rounds + 1):
        keeper.look()
        due, barrier = keeper.due(n), plan.next_barrier(n)
        alone = due or each_round or n > last
        infos = flight.land(n, n if alone else min(barrier, keeper.next(n), last))
        _learn_combining(held, infos)
        if held is not None:
            yield held
        kept = due and n == flight.submitted
        closed = kept or n == barrier
        if closed:
            pool.close(n)
        record = _measured(pool, plan, n, infos, theory) if plan.measured(n) else Record(n, infos)
        if plan.sensed(n):
            pool.learn_sensitivity(n)
        outcome = watch.observe(record)
        if outcome is not None:
            flight.end(n)
            if not closed:
                pool.close(n)
            if not plan.measured(n) and outcome.status != "diverged":
                record = _measured(pool, plan, n, infos, theory)
            close(record)
            yield last_record(pool, plan, record, outcome, watch.summary(), theory)
            return
        if kept:
            keeper.take(pool, n, watch)
        held = None if kept or plan.measured(n) else record
        if held is None:
            yield record
        reason = leaves(n)
        if reason:
            flight.end(n)
            yield ended(record, reason)
            return


def _learn_combining(held: Record | None, infos: list[Info]) -> None:
    """Add to a record the seconds of its combination, which agents tell one round later."""
    for k, info in enumerate(infos):
        seconds = info.pop(BEFORE, None)
        if held is not None and seconds is not None:
            held.agents[k]["seconds_combine"] = seconds


def _measured(
    pool: Pool, plan: Plan, n: int, infos: list[dict[str, float]], theory: dict[float, float]
) -> Record:
    """Measure the state after a closed round; return the round's record with the numbers."""
    found = pool.measure(n)
    agents = [info | own for info, (own, _) in zip(infos or [{}] * len(found), found, strict=True)]
    centroid: dict[str, float] = {}
    if plan.data is not None:
        centroid = validation.add([sums for _, sums in found])
    risks = [own.pop("centroid_excess_risk") for own in agents if "centroid_excess_risk" in own]
    if risks:
        centroid["centroid_excess_risk"] = float(np.mean(risks))
    predicted = {"excess_risk_theory": theory[n]} if n in theory else {}
    return Record(n, agents, centroid, predicted=predicted)


def complete(
    plan: Plan, pool: Pool, folder: Folder | None, tell: Callable[[Record], None] = lambda _: None
) -> Result:
    """Run a plan on a pool, then shut the pool down.

    Args:
        plan: the run.
        pool: the run's agents, at round 0.
        folder: the folder to write the run to; None: write nothing.
        tell: a function called with each record.

    Returns:
        The result.
    """
    states: list[Message] = []

    def ending(pool: Pool, n: int) -> None:
        if folder is not None:
            pool.save(f"{folder.url}/weights", n)
        states[:] = pool.states()

    try:
        if folder is not None:
            folder.begin(plan.config, plan.graph, plan.A, plan.mixing_rate, plan.contents)
        keeper = Recovery(plan, folder)
        rounds = keeper.rounds = keeper.rounds or Rounds(None, keeper.seconds)
        for record in train(pool, plan, keeper, ending):
            tell(record)
        last, seconds = record, keeper.seconds()
        rounds.flush()
        if folder is not None:
            folder.finish(last, seconds)
        parts = rounds.parts()
    finally:
        pool.shutdown()
    name = folder.name if folder is not None else "run"
    weights = parameters_of(states, plan.parameters)
    final = final_numbers(last, seconds, keeper.events)
    return Result(name, parts, final, weights, weights.mean(axis=0))
