"""What a training step costs, counted in forwards of its batch: arithmetic, no clock.

A forward is 1, a backward to the inputs 1, a backward to inputs and weights 2. The counter sees the
operations themselves, so that work for gradients that nobody asked for shows.
"""

import pytest
import torch
from experiments import digits
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raydist.config.experiment import validate
from raydist.engine.agent import step as local_step
from raydist.engine.agent import tasks
from raydist.engine.agent.task import build_model
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.seeding import torch_generator
from raydist.vector import FlatModel

STEPS = 10


NARROW = {"name": "preact-resnet-18", "width": 0.0625}


def agent(loss, model=NARROW, **tables):
    tree = digits(model=model, loss={"name": loss}, attack={"steps": STEPS}, **tables)
    pool = LocalPool(make_plan(validate(tree)))
    pool.shutdown()
    return pool.agents[0]


class Counter(TorchDispatchMode):
    """Adds up the multiplications and additions of every product and convolution."""

    total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in flop_registry:
            self.total += flop_registry[operation.overloadpacket](*args, out_val=out)
        return out


def flops(function):
    with Counter() as counter:
        function()
    return counter.total


def units(local, function):
    """Forwards of the batch that as many operations would make."""
    x, _ = local.task.batch(1)
    spent = flops(function)
    return spent / flops(lambda: local.model.eval()(x))


def step(local):
    local.gradient(local.attack(1, False))


@pytest.mark.parametrize(
    ("loss", "least", "most"),
    [
        ("standard", 2, 3),
        ("pgd_at", 2 * STEPS + 2, 2 * STEPS + 3),  # PGD-10: 23
        ("trades", 2 * STEPS + 5, 2 * STEPS + 7),  # TRADES-10: 27
        ("mart", 2 * STEPS + 4, 2 * STEPS + 6),
    ],
)
def test_a_step_costs_its_arithmetic(loss, least, most):
    local = agent(loss).local
    assert least < units(local, lambda: step(local)) <= most


def test_options_cost_no_pass():
    small = {"name": "small-cnn"}
    local = agent("trades", small, precision="bf16", channels_last=True).local
    assert units(local, lambda: step(local)) <= 2 * STEPS + 7


def test_fosc_and_all_else_that_an_agent_does_cost_no_pass():
    whole, infos = agent("pgd_at"), []
    spent = units(whole.local, lambda: infos.append(whole.adapt(1)[1]()))
    assert "fosc" in infos[0] and spent <= 2 * STEPS + 3


def test_the_counter_sees_what_the_usual_loop_wastes():
    local = agent("pgd_at").local
    x, y = local.task.batch(1)

    def usual():
        delta = torch.zeros_like(x, requires_grad=True)
        for _ in range(STEPS):
            F.cross_entropy(local.model(x + delta), y).backward()
            delta.data += 0.01 * delta.grad.sign()
        F.cross_entropy(local.model(x + delta.detach()), y).backward()

    assert 3 * STEPS + 2 < units(local, usual) <= 3 * STEPS + 3


@pytest.mark.parametrize(
    ("loss", "norm"), [("pgd_at", "linf"), ("trades", "l2"), ("mart", "linf"), ("standard", "linf")]
)
def test_a_step_asks_the_device_for_no_number(loss, norm, monkeypatch):
    """Tensors on "meta" have shapes but no values: asking for one raises, on a GPU it waits."""
    for module in (local_step, tasks):
        monkeypatch.setattr(module, "torch_generator", lambda *which: torch_generator(*which[:4]))
    tree = digits(loss={"name": loss}, threat={"norm": norm}, optim={"momentum": 0.9})
    config, meta = validate(tree | {"channels_last": True}), torch.device("meta")
    plan = make_plan(config)
    spec = plan.specs(threads=1, cuda=False)[0]
    flat = FlatModel(build_model(config, spec.shape, spec.classes).to(meta))
    parts = tasks.ImageTask(config, 0, plan.share(0), spec.scale, meta)
    local = local_step.LocalStep(config, 0, plan.times, parts, flat)
    found = local.gradient(local.attack(1, False))
    local.step(1)
    names = {"loss", "grad_norm"} | ({"fosc"} if loss != "standard" else set())
    assert found.keys() == names and all(value.is_meta for value in found.values())
