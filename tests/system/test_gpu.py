"""On a GPU: replayed passes give the bits of launched ones, and agents that share it agree."""

from itertools import starmap

import numpy as np
import pytest
import torch
from experiments import digits

from raydist.config.experiment import validate
from raydist.engine.agent.passes import CudaGraph
from raydist.engine.cluster.layout import layout
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BATCHNORM = {"name": "preact-resnet-18", "width": 0.25}
RECIPES = {
    "pgd": {},
    "float64": {"dtype": "float64"},
    "bf16": {"precision": "bf16", "channels_last": True},
    "TF32": {"precision": "tf32"},
    "standard": {"loss": {"name": "standard"}},
    "TRADES": {"loss": {"name": "trades"}},
    "MART": {"loss": {"name": "mart"}},
    "Wasserstein": {"loss": {"name": "wasserstein", "gamma": 0.5}},
    "AWP": {"loss": {"name": "trades"}, "awp": {"gamma": 0.005}},
    "l2": {"threat": {"norm": "l2", "eps": 0.5}},
    "restarts": {"attack": {"steps": 2, "restarts": 2}},
    "growing eps": {"threat": {"eps": 0.1, "schedule": {"name": "linear"}}},
    "draws, on both devices": {"model": {"name": "helpers_foreign:drawing_net"}},
    "weights and gradients put elsewhere": {
        "model": {"name": "helpers_foreign:clamp_new"},
        "loss": {"name": "helpers_foreign:clears"},
    },
    "noise, telemetry": {
        "telemetry": {"every": 1},
        "stop": {"fosc": {"threshold": 1e-9}, "on_instability": "heal"},
    },
}


def few(**tables):
    tree = digits(
        rounds=6, model=BATCHNORM, topology={"kind": "ring", "agents": 4}, attack={"steps": 2}
    )
    little = {"every": 3, "validation_images": 8, "test_images": 8, "pgd": [1], "autoattack": 0}
    return tree | {"evaluate": little, "data": {"set": "digits", "batch": 8}} | tables


def learned(pool, plan):
    """What the agents are in the end, and the losses of every round."""
    records = list(train(pool, plan))
    states = pool.states()
    pool.shutdown()
    return np.stack(states), np.array([[a["loss"] for a in r.agents] for r in records[1:]])


def locally(**tables):
    plan = make_plan(validate(few(**tables)))
    return learned(LocalPool(plan), plan)


@pytest.fixture
def exact():
    """Libraries may else add up in an order of their own each time."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_replayed_rounds_are_the_launched_ones_bit_for_bit(recipe, exact):
    launched = locally(**RECIPES[recipe])
    replayed = locally(cuda_graphs=True, **RECIPES[recipe])
    assert not np.array_equal(*launched[1][[0, -1]])
    for one, other in zip(launched, replayed, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.gpu
@needs_gpu
def test_recording_changes_no_statistics():
    x, norm = torch.rand(8, 3, device="cuda"), torch.nn.BatchNorm1d(3).cuda()
    replay = CudaGraph(norm, norm.buffers)
    found, own = replay(x), torch.nn.BatchNorm1d(3).cuda()
    assert torch.equal(found, own(x))
    assert all(starmap(torch.equal, zip(norm.buffers(), own.buffers(), strict=True)))
    assert torch.equal(replay(2 * x), own(2 * x)) and norm.num_batches_tracked == 2
    assert len(replay(x[:4])) == 4


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_starts_as_the_cpu_does():
    start = {"attack": {"steps": 2, "start": "zero"}}  # each device draws numbers of its own
    here, there = locally(**start), locally(agent={"gpus": 0}, **start)
    np.testing.assert_allclose(here[1][0], there[1][0], rtol=1e-4)
    np.testing.assert_allclose(here[1], there[1], rtol=0.2)


@pytest.mark.gpu
@needs_gpu
def test_compiled_passes_learn_the_same():
    start = {"attack": {"steps": 2, "start": "zero"}, "cuda_graphs": True}
    plain, fused = locally(**start), locally(compile=True, **start)
    np.testing.assert_allclose(fused[1][0], plain[1][0], rtol=1e-4)
    np.testing.assert_allclose(fused[1], plain[1], rtol=0.2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.ray
@pytest.mark.parametrize(
    ("exchange", "per_actor"), [("objects", 1), ("objects", 2), ("objects", 4), ("board", 1)]
)
def test_actors_that_share_a_gpu_are_the_local_agents(exchange, per_actor, ray_cluster, exact):
    from raydist.engine.pool.ray_pool import RayPool

    agent = {"gpus": 0.25, "cpus": 0.25, "per_actor": per_actor}
    plan = make_plan(validate(few(exchange=exchange, agent=agent, cuda_graphs=True)))
    pool = RayPool(plan, layout(plan.config, ray_cluster))
    states, losses = learned(pool, plan)
    alone = locally()
    np.testing.assert_allclose(losses[0], alone[1][0], rtol=1e-5)
    np.testing.assert_allclose(losses, alone[1], rtol=0.05)
    np.testing.assert_allclose(states, alone[0], atol=0.05)


def test_without_a_gpu_nothing_is_recorded():
    small = {"agent": {"gpus": 0}, "model": {"name": "linear"}}
    plain, graphs = (locally(cuda_graphs=how, **small) for how in (False, True))
    np.testing.assert_array_equal(plain[0], graphs[0])
