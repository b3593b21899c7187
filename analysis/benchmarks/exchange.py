"""A round of 16 agents without learning: objects, the board, and packed, against the machine.

The reference is written here: two plain processes that copy each vector into a shared map, wait for
each other, and sum up five vectors for each agent, with the very sum that the agents use. Each way
takes turns with it, and the best turn of either counts. Included in ours: all that `mute` leaves.
"""

import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mute import mute, tree
from targets import Row, row, tell
from torch import Tensor

AGENTS, TURNS = 16, 5
WAYS = {  # exchange, agents of an actor
    "objects": ("objects", 1),
    "packed 2 x 8 over objects": ("objects", 8),
    "packed 2 x 8 over a board": ("board", 8),
    "board": ("board", 1),
}
SIZES = {"10 k": 10_000, "0.5 M": 500_000, "11 M": 11_000_000}
LIMITS = {  # a ratio to the reference, or milliseconds
    ("board", "10 k"): 3.0,
    ("board", "0.5 M"): 1.3,
    ("board", "11 M"): 1.3,
    ("packed 2 x 8 over a board", "0.5 M"): 22.0,
}
HERE = Path(__file__).resolve().parent


def shared(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros in memory that forked processes share."""
    zeros: Tensor = torch.zeros(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return zeros


def limit(size: int, rounds: int) -> float:
    """Seconds of a round of two plain processes with a shared map and a barrier."""
    from raydist.network.combination import combine

    slots, seconds = shared(2, AGENTS, size), shared(2)
    counters = shared(2, 8, dtype=torch.int64)

    def process(which: int) -> None:
        torch.set_num_threads(1)
        mine = range(8 * which, 8 * which + 8)
        w: dict[int, Tensor] = {k: torch.zeros(size) for k in mine}
        counts = counters.numpy()
        began = time.perf_counter()
        for n in range(1, rounds + 1):
            for k in mine:
                slots[n % 2, k].copy_(w[k])
            counts[which, 0] = n
            while counts[1 - which, 0] < n:
                os.sched_yield()
            for k in mine:
                near = sorted((k + d) % AGENTS for d in (-2, -1, 0, 1, 2))
                combine([0.2] * 5, [slots[n % 2, l] for l in near], out=w[k])
            if n == 2:  # pages are there
                began = time.perf_counter()
        seconds[which] = (time.perf_counter() - began) / (rounds - 2)

    fork = multiprocessing.get_context("fork").Process
    children = [fork(target=process, args=(which,)) for which in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return float(seconds.max())


def seconds_a_round(pool: Any, first: int, rounds: int) -> float:
    """Of a pool, told as the driver tells it: one batch more than is being read is in flight."""
    batch = rounds // 2 if pool.exchange == "board" else 1
    began, pending = time.perf_counter(), []
    for n in range(first, first + rounds, batch):
        pending.append(pool.step(n, [False] * min(batch, first + rounds - n)))
        if len(pending) == 2:
            pool.collect(pending.pop(0))
    for each in pending:
        pool.collect(each)
    return (time.perf_counter() - began) / rounds


def plan_of(size: int, exchange: str, per_actor: int, gpus: float = 0) -> Any:
    """A run of agents that will not learn; each has so much of a GPU."""
    from raydist.config.experiment import validate
    from raydist.engine.plan import make_plan

    agent = {"per_actor": per_actor, "cpus": 0.02, "gpus": gpus}
    return make_plan(validate(tree(AGENTS, size, exchange=exchange, agent=agent)))


def started(plan: Any) -> Any:
    """The pool of a plan."""
    from raydist.engine.cluster.layout import layout
    from raydist.engine.cluster.session import cluster_resources
    from raydist.engine.pool.ray_pool import RayPool

    return RayPool(plan, layout(plan.config, cluster_resources()))


def alternate(pool: Any, size: int, rounds: int, turns: int) -> tuple[float, float]:
    """Milliseconds of a round of a pool and of the reference, the best of some turns of each."""
    found = []
    for turn in range(turns + 1):  # the first turn is for warming up
        ours = seconds_a_round(pool, 1 + turn * rounds, rounds)
        found.append((ours, limit(size, rounds)))
    ours, reference = (1e3 * min(each) for each in zip(*found[1:], strict=True))
    return ours, reference


def measured(quick: bool) -> dict[tuple[str, str], tuple[float, float]]:
    """One pool after the other: at 11 M parameters a small machine has no room for all of them.

    Args:
        quick: few rounds, and not the largest vectors.

    Returns:
        Milliseconds of a round and of the reference, by way and size.
    """
    import ray

    found = {}
    for way, (exchange, per_actor) in WAYS.items():
        pool: Any = None
        for name, size in SIZES.items():
            if quick and size > 10**6:
                continue
            plan = plan_of(size, exchange, per_actor)
            if pool is None:
                pool = started(plan)
            else:
                pool.reset(plan)  # the processes stay
            ray.get([actor.__ray_call__.remote(mute) for actor in pool._actors])
            rounds = max(8, min(100, 2 * 10**7 // size // (5 if quick else 1)))
            found[way, name] = alternate(pool, size, rounds, 2 if quick else TURNS)
        pool.shutdown()
    return found


def measure(quick: bool) -> list[Row]:
    """The targets of the exchange.

    Args:
        quick: few rounds, and not the largest vectors.

    Returns:
        The rows.
    """
    from raydist.engine.cluster.session import ray_session

    os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with ray_session("local"):
        found = measured(quick)
    rows = []
    for (way, size), (ours, reference) in found.items():
        limit = LIMITS.get((way, size))
        target = f"{way}, K = 16, {size} parameters"
        told = partial(row, target, ours, "ms per round", limit=limit)
        if limit is not None and limit < 2:
            rows.append(told(reference=reference))
        else:
            beside = f"two plain processes {reference:.1f} ms"
            rows.append(told(note=f"{beside}, {ours / reference:.2f} times as long"))
    return rows


if __name__ == "__main__":
    tell(measure)
