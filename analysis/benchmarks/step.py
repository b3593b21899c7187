"""The adversarial training step: counted, against the published loops, and inside the engine.

CPU seconds of one thread, which other load on the machine disturbs least. What is compared
alternates in one run, ABBA, and ratios are those of medians. The step is PGD-10 or TRADES-10 of
PreAct ResNet-18 on batches of CIFAR-10, as an agent makes it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from targets import Row, row, tell
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raydist.adversary.fosc import first_order_gap
from raydist.config.experiment import validate
from raydist.engine.agent.agent import Agent
from raydist.engine.agent.risk import one_thread
from raydist.engine.agent.step import LocalStep
from raydist.engine.driver import train
from raydist.engine.plan import Plan, make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.learning.optim import build

STEPS, EPS, ALPHA, BETA = 10, 8 / 255, 2 / 255, 6.0
AGENTS = 2  # of the round that is compared with its bare computation
Step = Callable[[], object]


# --- the parts of a comparison ------------------------------------------------------------------


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiplications and additions of every product and convolution."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, out_val=out)
        return out


def flops(step: Step) -> int:
    """Multiplications and additions of a step."""
    counter = Counter()  # type: ignore[no-untyped-call]
    with counter:
        step()
    return counter.total


def seconds(step: Step) -> float:
    """CPU seconds of a step."""
    start = time.process_time()
    step()
    return time.process_time() - start


def alternate(
    steps: Mapping[str, Step], repeats: int, seconds: Callable[[Step], float] = seconds
) -> dict[str, float]:
    """Median seconds of each, in the order A B ... B A, after one of each to warm up."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for turn in range(repeats):
        for name in list(steps)[:: 1 if turn % 2 == 0 else -1]:
            spent[name].append(seconds(steps[name]))
    return {name: median(values) for name, values in spent.items()}


def plan_of(width: float, batch: int, agents: int = 1, **tables: Any) -> Plan:
    """A run that is never finished: it measures and evaluates as little as possible."""
    tree = {
        "topology": {"kind": "complete", "agents": agents},
        "rounds": 10**6,
        "data": {"set": "cifar10", "batch": batch},
        "model": {"name": "preact-resnet-18", "width": width},
        "threat": {"eps": EPS},
        "attack": {"steps": STEPS, "alpha": ALPHA},
        "loss": {"name": "pgd_at"},
        "optim": {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
        "evaluate": {"validation_images": agents, "test_images": agents, "autoattack": 0},
    }
    return make_plan(validate(tree | tables))


def agent_step(plan: Plan) -> tuple[LocalStep, Step]:
    """An agent's own step of round 1, without exchange, on a batch that is drawn once."""
    pool = LocalPool(plan)
    local = pool.agents[0].local
    batch = local.task.batch(1)
    object.__setattr__(local.task, "batch", lambda n: batch)

    def step() -> None:
        local.gradient(local.attack(1, noisy=False))
        local.step(1)

    return local, step


# --- what is published --------------------------------------------------------------------------


def published_pgd(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """A training step as in the code of arXiv:2002.11569 (robust overfitting), one restart.

    The attack is taken in train mode and by `backward`; the last points are passed once more, to
    choose among restarts, and so is the clean batch after the step, for its accuracy.
    """
    delta = torch.zeros_like(x).uniform_(-EPS, EPS)
    delta = torch.max(torch.min(delta, 1 - x), 0 - x)
    delta.requires_grad = True
    for _ in range(STEPS):
        torch.autograd.backward(F.cross_entropy(model(x + delta), y))
        assert delta.grad is not None
        grad = delta.grad.detach()
        moved = torch.clamp(delta + ALPHA * torch.sign(grad), min=-EPS, max=EPS)
        delta.data = torch.max(torch.min(moved, 1 - x), 0 - x).detach()
        delta.grad.zero_()
    F.cross_entropy(model(x + delta), y, reduction="none")
    loss = F.cross_entropy(model(torch.clamp(x + delta.detach(), 0, 1)), y)
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()
    F.cross_entropy(model(x), y)


def published_trades(
    model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> None:
    """A training step as in the code of arXiv:1901.08573: clean logits anew in every step."""
    divergence = nn.KLDivLoss(reduction="sum")
    model.eval()
    x_adv = x.detach() + 0.001 * torch.randn(x.shape, device=x.device)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        loss = divergence(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1))
        (grad,) = torch.autograd.grad(loss, [x_adv])
        x_adv = x_adv.detach() + ALPHA * torch.sign(grad)
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - EPS), x + EPS), 0.0, 1.0)
    model.train()
    optimiser.zero_grad()
    natural = F.cross_entropy(model(x), y)
    robust = divergence(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1)) / len(x)
    torch.autograd.backward(natural + BETA * robust)
    optimiser.step()


PUBLISHED = {"pgd_at": published_pgd, "trades": published_trades}


def published_step(plan: Plan) -> Step:
    """The published step of a plan's loss on the plan's own model and a batch of its own."""
    agent = LocalPool(plan).agents[0]
    x, y = agent.local.task.batch(1)
    model = agent.flat.module.train()
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    return partial(PUBLISHED[plan.config.loss.name], model, optimiser, x, y)


# --- the targets --------------------------------------------------------------------------------


def units(width: float, batch: int) -> list[Row]:
    """Forwards of the batch that a step costs."""
    rows = []
    for loss, name, limit in (("pgd_at", "PGD", 23), ("trades", "TRADES", 27)):
        local, step = agent_step(plan_of(width, batch, loss={"name": loss}))
        x, _ = local.task.batch(1)
        forward = flops(partial(local.model.eval(), x))
        published = flops(published_step(plan_of(width, batch, loss={"name": loss})))
        rows.append(
            row(
                f"{name}-10 forward units",
                round(flops(step) / forward, 2),
                "forwards of the batch",
                limit=limit,
                note=f"multiplications counted; the published loop: {published / forward:.2f}",
            )
        )
    return rows


def against_published(width: float, batch: int, repeats: int) -> list[Row]:
    """The published loops on the same model, in float32, channels_last, and with bf16."""
    options: dict[str, tuple[dict[str, Any], float]] = {
        "float32": ({}, 1.4),
        "float32, channels_last": ({"channels_last": True}, 1.4),
        "bf16, channels_last": ({"channels_last": True, "precision": "bf16"}, 2.5),
    }
    rows = []
    for loss, title in (("pgd_at", "PGD-10"), ("trades", "TRADES-10")):
        wanted: dict[str, Any] = {"loss": {"name": loss}}
        steps = {"published": published_step(plan_of(width, batch, **wanted))}
        for name, (tables, _) in options.items():
            if "bf16" not in name or has_bf16():
                steps[name] = agent_step(plan_of(width, batch, **wanted, **tables))[1]
        found = alternate(steps, repeats)
        for name, (_, limit) in options.items():
            target = f"{title} against the published loop, {name}"
            if name not in found:
                note = f"this CPU has no bf16 instructions; limit where it has: {limit}"
                rows.append(row(target, None, "times as fast", limit=None, note=note))
                continue
            rows.append(
                row(
                    target,
                    found["published"] / found[name],
                    "times as fast",
                    limit=limit,
                    at_least=True,
                    note=f"{found[name]:.2f} CPU s a step; width {width:g}, batch {batch}",
                )
            )
    return rows


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def convolutions(local: LocalStep) -> Step:
    """The convolutions of a PGD-10 step alone, each with its own shape and memory format."""
    model, calls = local.model, []

    def note(module: nn.Conv2d, inputs: tuple[Tensor], out: Tensor) -> None:
        calls.append((module, inputs[0].detach().clone(), torch.randn_like(out)))

    x, _ = local.task.batch(1)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()

    def backward(module: nn.Conv2d, x: Tensor, grad: Tensor, of: tuple[bool, bool, bool]) -> None:
        geometry = module.stride, module.padding, module.dilation, False, (0, 0), module.groups
        torch.ops.aten.convolution_backward(grad, x, module.weight, None, *geometry, of)

    @torch.no_grad()
    def step() -> None:
        for number, (module, x, grad) in enumerate(calls):
            for _ in range(STEPS + 1):
                module(x)
            for _ in range(STEPS + (number > 0)):  # no gradient of the images in training
                backward(module, x, grad, (True, False, False))
            backward(module, x, grad, (False, True, False))

    return step


def share_of_convolutions(width: float, batch: int, repeats: int) -> list[Row]:
    """How close a step comes to the FLOP/s of its convolutions alone."""
    rows = []
    for name, tables in (("float32", {}), ("float32, channels_last", {"channels_last": True})):
        local, step = agent_step(plan_of(width, batch, **tables))
        alone = convolutions(local)
        work = flops(step)
        found = alternate({"step": step, "alone": alone}, repeats)
        rows.append(
            row(
                f"FLOP/s of a PGD-10 step against its convolutions alone, {name}",
                work / found["step"] / 1e9,
                "GFLOP/s",
                limit=0.75,
                at_least=True,
                reference=flops(alone) / found["alone"] / 1e9,
                note=f"width {width:g}, batch {batch}",
            )
        )
    return rows


def fosc(width: float, batch: int, repeats: int) -> list[Row]:
    """FOSC takes the attack's last gradient: what is added is its sum over the pixels."""
    local, step = agent_step(plan_of(width, batch))
    found = local.attack(1, noisy=False)
    points, threat = found.points, found.threat
    assert points.grad is not None
    gap = partial(first_order_gap, found.x, points.x_last, points.grad, threat)
    spent = alternate({"step": step, "gap": gap}, repeats)
    return [
        row(
            "FOSC on top of a PGD-10 step",
            spent["gap"],
            "CPU s",
            limit=0.05,
            reference=spent["step"],
            note=f"width {width:g}, batch {batch}",
        )
    ]


def engine(width: float, batch: int, repeats: int) -> list[Row]:
    """A round of driver and local pool against attack, gradient and optimiser alone."""
    plan = plan_of(width, batch, agents=AGENTS)
    records = train(LocalPool(plan), plan)
    for _ in range(2):  # round 0, and the round that runs ahead
        next(records)
    bare = [bare_step(agent) for agent in LocalPool(plan).agents]
    spent = alternate(
        {"round": lambda: next(records), "bare": lambda: [step() for step in bare]}, repeats
    )
    return [
        row(
            "the engine's own work in a round of PreAct ResNet-18",
            spent["round"] / AGENTS,
            "CPU s a step",
            limit=1.03,
            reference=spent["bare"] / AGENTS,
            note=f"width {width:g}, batch {batch}, {AGENTS} agents",
        )
    ]


def bare_step(agent: Agent) -> Step:
    """Attack, gradient and optimiser on the agent's own model and a batch that lies ready."""
    model, task = agent.local.model, agent.local.task
    (x, y), draw = task.batch(1), torch.Generator(agent.device)
    optimiser = build("sgd", [agent.flat.w], 0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        points = task.attack(model, x, y, task.threat, draw)
        optimiser.zero_grad(set_to_none=False)
        torch.autograd.backward(F.cross_entropy(model.train()(points.x_adv), y))
        optimiser.step()

    return step


def targets(quick: bool) -> Iterator[Row]:
    """The rows as they are known, with one thread."""
    narrow, wide = 0.25, 0.25 if quick else 1.0
    batch, repeats = (16, 2) if quick else (64, 4)
    with one_thread():
        yield from units(0.0625, 4)
        yield from against_published(narrow, batch, repeats)
        yield from share_of_convolutions(wide, 16, repeats)
        yield from fosc(narrow, batch, repeats)
        yield from engine(wide, 16, repeats)


def measure(quick: bool) -> list[Row]:
    """All targets of the step; quick: a narrow network and few repetitions."""
    return list(targets(quick))


if __name__ == "__main__":
    tell(targets)
