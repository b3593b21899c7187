"""raydist itself: its driver over a pool of Ray actors, no learning.

python ours.py EXCHANGE AGENTS_PER_ACTOR

A round is everything that the product does in one but learning (`mute`): message, exchange along
the edges of the graph, combination, and the driver's record of it. The first rounds, which give the
agents their values, and the closed last one, whose state is measured, are not timed.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from mute import mute
from serve import AGENTS, DEGREE, serve

from raydist.config.experiment import validate
from raydist.engine.cluster.layout import layout
from raydist.engine.cluster.session import cluster_resources, ray_session
from raydist.engine.driver import train
from raydist.engine.plan import Plan, make_plan
from raydist.engine.pool.group import Group
from raydist.engine.pool.pool import Pool
from raydist.engine.pool.ray_pool import RayPool

WARM, SMALL = 3, 100  # rounds that are not timed; parameters while others are measured


def plan_of(parameters: int, rounds: int, exchange: str, per_actor: int) -> Plan:
    """The experiment."""
    lattice = {"kind": "watts-strogatz", "agents": AGENTS, "neighbours": DEGREE, "p": 0.0}
    config = {
        "topology": lattice,
        "strategy": "diffusion",
        "rounds": rounds,
        "data": {"set": "trivial:pixels", "batch": 1},
        "model": {"name": "trivial:weights", "params": {"parameters": parameters}},
        "loss": {"name": "trivial:once"},
        "threat": {"eps": 0.0},
        "attack": {"steps": 0},
        "optim": {"lr": 1.0, "momentum": 0.0},
        "evaluate": {
            "every": rounds,
            "validation_images": AGENTS,
            "test_images": AGENTS,
            "pgd": [],
            "autoattack": 0,
        },
        "snapshot": {"every": 0},
        "exchange": exchange,
        "agent": {"per_actor": per_actor},
    }
    return make_plan(validate(config))


def timed(pool: Pool, plan: Plan, rest: Callable[[], int]) -> dict[str, Any]:
    """Run a plan; seconds of a round, and how far the weights are from (A')^N v.

    Args:
        pool: its agents.
        plan: the run.
        rest: called when the agents have got their values: they learn no more from then on, and
            have done all that they were told; returns which round that is.

    Returns:
        As `serve.serve` wants it.

    Raises:
        RuntimeError: if the agents are as far from each other as they were.
    """
    moments: list[float] = []
    began, first = 0.0, 0
    values: list[float] = []
    states: list[Any] = []

    def ending(pool: Pool, n: int) -> None:
        states[:] = pool.states()

    for record in train(pool, plan, ending=ending):
        moments.append(time.perf_counter())
        if record.round == 1:
            values = [info["loss"] for info in record.agents]
            rest()
        if record.round == WARM:
            first, began = rest(), time.perf_counter()
    last = plan.rounds - 1
    expected = np.linalg.matrix_power(plan.A.T, plan.rounds) @ np.array(values)
    error = max(np.abs(w - e).max() for w, e in zip(states, expected, strict=True))
    spread = np.ptp(values)
    if not np.ptp(expected) < 0.9 * spread:
        raise RuntimeError("nothing was averaged")
    return {
        "seconds": (moments[last] - began) / (last - first),
        "error": float(error / spread),
    }


def reached(group: Group) -> int:
    """The last round that a group has begun."""
    return group.agents[0].round


def main(exchange: str, per_actor: int) -> None:
    """Answer until the input ends."""
    small = plan_of(SMALL, 1, exchange, per_actor)
    with ray_session("local"):
        pool = RayPool(small, layout(small.config, cluster_resources()))

        def rest() -> int:
            ray.get([actor.__ray_call__.remote(mute) for actor in pool._actors])
            return int(ray.get(pool._actors[0].__ray_call__.remote(reached)))

        def run(parameters: int, rounds: int) -> dict[str, Any]:
            plan = plan_of(parameters, WARM + rounds + 1, exchange, per_actor)
            pool.reset(plan)
            try:
                return timed(pool, plan, rest)
            finally:
                pool.reset(small)

        serve(run)
        pool.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
