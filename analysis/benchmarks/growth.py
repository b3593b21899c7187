"""How the cost of a round grows with agents, edges and parameters, and what an agent's memory is.

Agents in one process that do not learn (`mute`): what is measured is the engine's own work, the
message and the sum of the neighbours'. Beside it the driver's work for each agent of a whole run,
and whole runs of many agents that do learn, through Ray.
"""

import multiprocessing
import os
import time
from itertools import count
from statistics import median
from typing import Any

import torch
from mute import mute, tree
from targets import Row, row, tell

from raydist.config.experiment import validate
from raydist.engine.cluster.layout import layout
from raydist.engine.cluster.session import cluster_resources, ray_session
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.engine.pool.ray_pool import RayPool

PARAMETERS = [10_000, 100_000, 1_000_000, 10_000_000, 45_000_000]
AGENTS = [4, 16, 64, 256, 700]
WARM = 2  # rounds before the clock runs
MEMORY = 8e9  # bytes that the agents of one measurement may take


def pool_of(agents: int, size: int) -> LocalPool:
    """Agents of one process that do not learn."""
    pool = LocalPool(make_plan(validate(tree(agents, size))))
    mute(pool)
    return pool


def seconds_a_round(agents: int, size: int) -> float:
    """CPU time of a round, the median of at least five and of half a second of them."""
    pool, found = pool_of(agents, size), []
    for n in count(1):
        began = time.process_time()
        pool.step(n)
        if n > WARM:
            found.append(time.process_time() - began)
        if len(found) >= 5 and sum(found) > 0.5:
            break
    pool.shutdown()
    return median(found)


def quadratic(agents: int, rounds: int) -> dict[str, Any]:
    """The quadratic task for so many agents, measured in its last round only."""
    return {
        "topology": {"kind": "ring", "agents": agents},
        "rounds": rounds,
        "dtype": "float64",
        "data": {"set": "quadratic", "centers": [[k % 7, 1.0] for k in range(agents)]}
        | {"hessian": [1.0, 0.5]},
        "model": {"name": "point", "start": [0.0, 0.0]},
        "loss": {"name": "quadratic"},
        "threat": {"eps": 0.0},
        "evaluate": {"every": rounds},
    }


def run_seconds(agents: int, rounds: int) -> float:
    """CPU time of a whole run on the quadratic task, for each agent and round."""
    plan = make_plan(validate(quadratic(agents, rounds)))
    pool = LocalPool(plan)
    began = time.process_time()
    last = [record.round for record in train(pool, plan)][-1]
    taken = time.process_time() - began
    pool.shutdown()
    assert last == rounds
    return taken / (agents * rounds)


def small_network(agents: int, rounds: int) -> dict[str, Any]:
    """Adversarial training of small networks on digits, measured in its last round only."""
    return tree(agents, 0, model={"name": "small-cnn"}, rounds=rounds) | {
        "data": {"set": "digits", "batch": 4, "validation": 0.25},
        "threat": {"eps": 0.1},
        "attack": {"steps": 2},
        "evaluate": {
            "every": rounds,
            "validation_images": agents,
            "test_images": "all",
            "autoattack": 0,
        }
        | {"pgd": [2]},
    }


def through_ray(tree: dict[str, Any], per_actor: int) -> tuple[float, int]:
    """A whole run by actors: wall seconds of a round, and of how many parameters."""
    share = {"per_actor": per_actor, "cpus": 1 / tree["topology"]["agents"]}
    plan = make_plan(validate(tree | {"agent": share}))
    pool = RayPool(plan, layout(plan.config, cluster_resources()))
    records = train(pool, plan)
    assert next(records).round == 0  # all are there
    began = time.perf_counter()
    last = [record.round for record in records][-1]
    taken = time.perf_counter() - began
    size = len(pool.states()[0])
    pool.shutdown()
    assert last == plan.rounds
    return taken / last, size


def by_ray(counts: dict[int, int]) -> list[Row]:
    """Whole runs by actors of so many agents, by K."""
    rows = []
    with ray_session("local"):
        for agents, per_actor in counts.items():
            for what, run in (
                ("quadratic", quadratic(agents, 40)),
                ("small-cnn", small_network(agents, 10)),
            ):
                taken, size = through_ray(run, per_actor)
                name = f"{agents} agents through Ray, {what}"
                note = f"{agents // per_actor} actors, {size:,} parameters, start and end measured"
                rows.append(row(name, 1e3 * taken, "ms per round", limit=None, note=note))
    return rows


def held(agents: int, size: int, momentum: float) -> int:
    """Bytes that agents after a few rounds add to this process."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    optim = {"lr": 0.1, "momentum": momentum}
    plan = make_plan(validate(tree(agents, size, optim=optim)))
    before = resident()
    pool = LocalPool(plan)
    pool.step(1, [False] * 3)
    return resident() - before


def vectors_held(size: int, momentum: float) -> float:
    """Memory that one more agent of a process takes, in vectors of P numbers."""
    found = []  # each in a process of its own, or what others have freed is used again
    for agents in (4, 8):
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            found.append(alone.apply(held, (agents, size, momentum)))
    return (found[1] - found[0]) / (4 * 4 * size)


def by_parameters(sizes: list[int]) -> list[Row]:
    """Of 16 agents with so many parameters: CPU time of a round."""
    each = {size: seconds_a_round(16, size) / (16 * 5 * size) * 1e9 for size in sizes}
    unit, base = "ns per edge and parameter", 1_000_000
    rows = [row(f"K = 16, {size:,} parameters", each[size], unit, limit=None) for size in sizes]
    for size in sizes:
        if size > base:
            name = f"linear in parameters: {size:,} against {base:,}"
            rows.append(row(name, each[size], unit, reference=each[base], limit=1.5))
    return rows


def by_edges(size: int, counts: list[int], most: int) -> list[Row]:
    """Of so many agents with so many parameters: CPU time of a round.

    Args:
        size: P.
        counts: K; those for which there is no memory are left out.
        most: the K that is compared with 16, and with which the largest is compared: what 16 small
            agents have may lie in a core's cache.

    Returns:
        The rows.
    """
    each, unit = {}, "us per edge"
    for agents in counts:
        if agents * size * 16 <= MEMORY:
            degree = min(4, agents - 1)
            each[agents] = seconds_a_round(agents, size) / (agents * (degree + 1)) * 1e6
    names = {agents: f"{agents} agents, {size:,} parameters" for agents in each}
    rows = [row(names[agents], each[agents], unit, limit=None) for agents in each]
    for few, many in ((16, most), (most, AGENTS[-1])):
        if many in each:
            name = f"linear in edges: {many} agents against {few}, {size:,} parameters"
            rows.append(row(name, each[many], unit, reference=each[few], limit=1.5))
    return rows


def by_memory(size: int) -> list[Row]:
    """Of an agent in a process with others: what it takes."""
    rows = []
    for momentum, limit in ((0.0, 5.0), (0.9, 6.0)):
        vectors = vectors_held(size, momentum)
        note = "weights, gradient, message, what is under way" + (", momentum" if momentum else "")
        name = f"memory of an agent, momentum {momentum:g}"
        rows.append(row(name, vectors, "vectors of its parameters", limit=limit, note=note))
    return rows


def measure(quick: bool) -> list[Row]:
    """The targets of growth.

    Args:
        quick: fewer agents, smaller vectors.

    Returns:
        The rows.
    """
    torch.set_num_threads(1)
    sizes, counts = (PARAMETERS[:3], AGENTS[:3]) if quick else (PARAMETERS, AGENTS)
    most = 64 if quick else 256
    rows = by_parameters(sizes)
    for size in (10_000, 1_000_000):
        rows += by_edges(size, counts, most)
    few, many = run_seconds(16, 60) * 1e6, run_seconds(most, 60) * 1e6
    name = f"whole run, driver included: {most} agents against 16"
    unit = "us of CPU per agent and round"
    rows.append(row(name, many, unit, reference=few, limit=1.5, note="the quadratic task"))
    rows += by_memory(10_000_000)  # so large that the allocator keeps no vector that is freed
    return rows + by_ray({16: 4} if quick else {16: 1, 64: 4, 256: 32})


if __name__ == "__main__":
    tell(measure)
