"""Agents that give their own message no weight, a_kk = 0: the stacked equations in NumPy."""

import numpy as np
import pytest
import reference
from experiments import digits, quadratic

from raydist import run_experiment
from raydist.config.experiment import validate
from raydist.engine.cluster.layout import layout
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool

# columns sum to 1; agents 0 and 2 do not hear themselves, agent 1 does
A = np.array([[0.0, 0.3, 0.5, 0.2], [0.6, 0.4, 0.5, 0.3], [0.1, 0.2, 0.0, 0.5], [0.3, 0.1, 0, 0]])
ROUNDS, LR = 7, 0.05


def tree(strategy, **tables):
    kind = {"kind": "complete", "agents": 4, "weights": A.tolist()}
    noiseless = {"noise": 0.0} | tables.pop("data", {})
    return quadratic(strategy, "complete", 4, ROUNDS, topology=kind, data=noiseless, **tables)


@pytest.mark.parametrize("strategy", ["diffusion", "consensus", "centralized", "local"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rounds_without_own_weight(strategy, momentum):
    study = tree(strategy, optim={"lr": LR, "momentum": momentum})
    centers, h = np.array(study["data"]["centers"]), np.array(study["data"]["hessian"])
    W, v = np.tile([0.3, -0.2], (4, 1)), np.zeros((4, 2))
    for _ in range(ROUNDS):
        gradients = h * (W - centers)
        gradients = gradients.mean(axis=0) if strategy == "centralized" else gradients
        v = momentum * v + gradients
        W = reference.round_of(strategy, A, W, v, LR)
    np.testing.assert_allclose(run_experiment(study).weights, W, atol=1e-12)


@pytest.mark.parametrize("strategy", ["diffusion", "consensus"])
def test_what_travels_with_the_weights_does_so_too(strategy):
    """Statistics of BatchNorm and momentum: the same as with an own weight of next to nothing."""
    B = np.where(A == 0, 1e-12, A)
    found = [
        run_experiment(
            digits(
                strategy=strategy,
                topology={"kind": "complete", "agents": 4, "weights": (M / M.sum(axis=0)).tolist()},
                model={"name": "preact-resnet-18", "width": 0.0625},
                combine_buffers=True,
                dtype="float64",
                optim={"momentum": 0.9, "combine": True},
            )
        ).weights
        for M in (A, B)
    ]
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("strategy", "exchange", "per_actor"),
    [
        ("diffusion", "board", 2),
        ("consensus", "objects", 1),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in [("diffusion", "objects", 1), ("diffusion", "board", 1)]
            + [("consensus", "board", per_actor) for per_actor in (1, 2)]
        ),
    ],
)
def test_actors_without_own_weight_are_the_local_agents(strategy, exchange, per_actor, ray_cluster):
    from raydist.engine.pool.ray_pool import RayPool

    def states(pool, plan):
        try:
            for _ in train(pool, plan):
                pass
            return pool.states()
        finally:
            pool.shutdown()

    plan = make_plan(validate(tree(strategy)))
    alone = states(LocalPool(plan), plan)
    agent = {"cpus": 0.25, "per_actor": per_actor}
    plan = make_plan(validate(tree(strategy, exchange=exchange, agent=agent)))
    there = states(RayPool(plan, layout(plan.config, ray_cluster)), plan)
    np.testing.assert_array_equal(alone, there)
