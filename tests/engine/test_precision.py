"""bf16, TF32 and channels_last: other rounding, the same training."""

import numpy as np
import pytest
import torch
from experiments import digits, quadratic

from raydist.config.experiment import validate
from raydist.engine.agent.passes import Passes, tf32
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.errors import InputError
from raydist.learning.model import build

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def colours():
    """Noise with a tint for each of four classes: one channel alone has no other format."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    tint = (y[:, None] >> np.arange(3)) & 1
    x = (0.5 * rng.random((200, 3, 8, 8)) + 0.5 * tint[..., None, None]).astype(np.float32)
    return {"train": (x[:100], y[:100]), "test": (x[100:], y[100:])}


def small(**tables):
    tree = digits(rounds=5, model={"name": "small-cnn"}, attack={"steps": 1}, **tables)
    two = {"topology": {"kind": "complete", "agents": 2}}
    little = {
        "evaluate": {
            "every": 5,
            "validation_images": 2,
            "test_images": 2,
            "pgd": [1],
            "autoattack": 0,
        }
    }
    return tree | two | little | {"data": {"set": "test_precision:colours", "batch": 8}}


def trained(**tables):
    """What two agents learn in five rounds: (weights (2, P), losses per round (5, 2))."""
    plan = make_plan(validate(small(**tables)))
    pool = LocalPool(plan)
    records = list(train(pool, plan))
    states = pool.states()
    pool.shutdown()
    return np.stack(states), np.array([[a["loss"] for a in r.agents] for r in records[1:]])


@pytest.fixture(scope="module")
def plain():
    return trained()


@pytest.mark.parametrize(
    ("how", "near"), [({"precision": "bf16"}, 0.3), ({"channels_last": True}, 0.03)]
)
def test_training_is_close_to_float32(how, near, plain):
    pool = LocalPool(make_plan(validate(small())))
    pool.shutdown()
    way = np.linalg.norm(plain[0] - pool.agents[0].start.numpy())
    weights, losses = trained(**how)
    # not equal: where the sign of a gradient flips, the attack's step does
    assert 0 < np.linalg.norm(weights - plain[0]) < near * way
    np.testing.assert_allclose(losses, plain[1], rtol=0.02)
    assert losses[-1].mean() < losses[0].mean()
    assert weights.dtype == np.float32


def test_bf16_is_a_function_of_the_seed():
    first, second = (trained(precision="bf16")[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_only_the_network_is_rounded():
    pool = LocalPool(make_plan(validate(digits(model={"name": "small-cnn"}, precision="bf16"))))
    agent = pool.agents[0]
    message = torch.as_tensor(agent.adapt(1)[0])
    pool.shutdown()
    assert isinstance(agent.local.model, Passes)
    assert message.dtype == agent.flat.grad.dtype == torch.float32
    for vector in (message, agent.flat.w.detach()):
        assert (vector != vector.bfloat16().float()).float().mean() > 0.9


def test_bf16_computes_logits_within_its_rounding():
    network = build("preact-resnet-18", (3, 8, 8), 10, width=0.125).eval()
    exact, found = network(IMAGES), Passes(network, True, False)(IMAGES)
    assert found.dtype == torch.float32
    error = (found - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.05


def test_channels_last_reaches_every_convolution():
    network = build("preact-resnet-18", (3, 8, 8), 10, width=0.125).eval()
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _, inputs, out: seen.append(
                    out.is_contiguous(memory_format=torch.channels_last)
                )
            )
    found = Passes(network, False, True)(IMAGES)
    assert len(seen) == 20 and all(seen)
    seen.clear()
    torch.testing.assert_close(found, network(IMAGES))
    assert not all(seen)


def test_nothing_is_wrapped_unless_asked_for():
    pool = LocalPool(make_plan(validate(digits())))
    pool.shutdown()
    assert pool.agents[0].local.model is pool.agents[0].flat.module


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_holds_meanwhile_alone(allowed):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with pytest.raises(KeyError), tf32(allowed):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        raise KeyError
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


@pytest.mark.parametrize("name", ["attack", "loss"])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_attack_and_loss_of_a_round_run_in_the_asked_mode(name, precision, monkeypatch):
    pool = LocalPool(make_plan(validate(digits(precision=precision))))
    agent, seen = pool.agents[0], []
    inner = getattr(agent.local.task, name)

    def watched(*arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return inner(*arguments)

    setattr(agent.local.task, name, watched)
    agent.adapt(1)
    pool.shutdown()
    assert seen == [precision == "tf32"]


@pytest.mark.parametrize(("width", "safe"), [(0.0625, False), (0.125, False), (0.25, True)])
def test_channels_last_is_refused_where_its_gradients_are_not_safe(width, safe):
    model = {"name": "preact-resnet-18", "width": width}
    config = validate(digits(model=model, channels_last=True))
    if safe:
        assert make_plan(config).parameters > 0
    else:
        with pytest.raises(InputError, match=r"^channels_last is not safe for model"):
            make_plan(config)
    assert make_plan(validate(digits(model=model))).parameters > 0


@pytest.mark.parametrize(
    "how",
    [{"precision": "bf16"}, {"channels_last": True}, {"compile": True}, {"cuda_graphs": True}],
)
def test_points_have_none_of_it(how):
    (key,) = how
    tree = quadratic(dtype="float32", **how)
    with pytest.raises(InputError, match=rf'^{key} is for images, not for data.set = "quadratic"'):
        make_plan(validate(tree))


@pytest.mark.long
def test_compiled_passes_learn_the_same():
    launched, fused = (trained(compile=how) for how in (False, True))
    np.testing.assert_allclose(fused[1][0], launched[1][0], rtol=1e-5)
    np.testing.assert_allclose(fused[1], launched[1], rtol=0.02)
    assert not np.array_equal(fused[0], launched[0])
