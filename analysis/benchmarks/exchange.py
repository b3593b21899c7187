"""A round of 16 agents without learning: objects, packed 2 x 8 and the board against the machine.

The reference is written here: two plain processes that copy each vector into a shared map, wait for
each other, and sum up five vectors for each agent, with the very sum that the agents use. All ways
take turns, and the best turn of each counts. Included in ours: all that `mute` leaves.
"""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mute import mute, tree
from targets import Row, row, tell
from torch import Tensor

AGENTS, TURNS = 16, 5
SIZES = {"10 k": 10_000, "0.5 M": 500_000, "11 M": 11_000_000}
HERE = Path(__file__).resolve().parent


def shared(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros in memory that forked processes share."""
    zeros: Tensor = torch.zeros(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
    return zeros


def limit(size: int, rounds: int) -> float:
    """Seconds of a round of two plain processes with a shared map and a barrier."""
    from raydist.network.strategy import combine

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


def ray_pool(size: int, exchange: str, per_actor: int) -> Any:
    """A pool of agents that do not learn."""
    import ray

    from raydist.config import validate
    from raydist.engine.layout import layout
    from raydist.engine.plan import make_plan
    from raydist.engine.ray_pool import RayPool
    from raydist.engine.ray_session import cluster_resources

    agent = {"per_actor": per_actor, "cpus": 0.02}
    plan = make_plan(validate(tree(AGENTS, size, exchange=exchange, agent=agent)))
    pool = RayPool(plan, layout(plan.config, cluster_resources()))
    ray.get([actor.__ray_call__.remote(mute) for actor in pool._actors])
    return pool


def best(size: int, rounds: int, turns: int) -> dict[str, float]:
    """Milliseconds of a round, of each way: the best of some turns that alternate."""
    pools = {
        "objects": ray_pool(size, "objects", 1),
        "packed 2 x 8": ray_pool(size, "objects", 8),
        "board": ray_pool(size, "board", 1),
    }
    ways: dict[str, Callable[[int], float]] = {"limit": lambda first: limit(size, rounds)}
    ways |= {name: partial(seconds_a_round, p, rounds=rounds) for name, p in pools.items()}
    found = {name: [way(1)] for name, way in ways.items()}
    for turn in range(1, turns + 1):  # the first turn is for warming up
        for name, way in ways.items():
            found[name].append(way(1 + turn * rounds))
    for pool in pools.values():
        pool.shutdown()
    return {name: 1e3 * min(seconds[1:]) for name, seconds in found.items()}


def measure(quick: bool) -> list[Row]:
    """The targets of the exchange.

    Args:
        quick: few rounds, and not the largest vectors.

    Returns:
        The rows.
    """
    import ray

    os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    rows = []
    for name, size in SIZES.items():
        if quick and size > 10**6:
            continue
        rounds = max(8, min(300, 10**8 // size // (5 if quick else 1)))
        found = best(size, rounds, 2 if quick else TURNS)
        note = ", ".join(f"{way} {ms:.1f}" for way, ms in found.items()) + " ms"
        told = partial(row, unit="ms per round", note=note)
        board = f"3 board, K = 16, {name} parameters"
        if size < 10**5:
            rows.append(told(board, found["board"], limit=3.0))
            rows.append(told(f"3 packed 2 x 8, {name}", found["packed 2 x 8"], limit=None))
        else:
            rows.append(told(board, found["board"], reference=found["limit"], limit=1.3))
            most = 22.0 if size < 10**6 else None
            rows.append(told(f"3 packed 2 x 8, {name}", found["packed 2 x 8"], limit=most))
        rows.append(told(f"3 objects, {name}", found["objects"], limit=None))
    ray.shutdown()
    return rows


if __name__ == "__main__":
    tell(measure)
