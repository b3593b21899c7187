"""One run on a pool, from its first record to its result."""

import time
from collections.abc import Callable

from raydist.engine.agent.agent import Message
from raydist.engine.driver import train
from raydist.engine.plan import Plan
from raydist.engine.pool.pool import Pool, parameters_of
from raydist.engine.recovery import Keeper
from raydist.results.folder import Folder, final_numbers
from raydist.results.record import Record, Result
from raydist.results.rounds import Rounds

FLUSH_SECONDS = 2.0


def complete(
    plan: Plan, pool: Pool, folder: Folder | None, tell: Callable[[Record], None] = lambda _: None
) -> Result:
    """Run a plan on a pool and give the pool back.

    Args:
        plan: the run.
        pool: its agents at round 0.
        folder: where the run is left; None: nothing is written.
        tell: called with each record.

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
        keeper = Keeper(plan, folder)
        rounds = Rounds(None, keeper.seconds) if folder is None else folder.rounds
        flushed = time.monotonic()
        for record in train(pool, plan, keeper, ending):
            rounds.add(record)
            tell(record)
            if folder is not None and time.monotonic() - flushed > FLUSH_SECONDS:
                folder.flush()
                flushed = time.monotonic()
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
