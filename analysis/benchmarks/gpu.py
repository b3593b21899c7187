"""Agents that share a GPU: against one process, against the published loop, and their exchange.

Wall seconds of whole steps, the device waited for at their end; ABBA in one run, ratios of medians.
PreAct ResNet-18 on CIFAR-10, PGD-10, bf16 and channels_last. The agents are those of the local
pool: one process holds all of them, on one device. Without a GPU the rows hold nothing.
"""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from step import Step, agent_step, alternate, bare_step, plan_of, published_step
from targets import Row, row, tell

from raydist.engine.driver import train
from raydist.engine.pool import LocalPool

FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True, "cuda_graphs": True}
PACKED = "6.7 images per second: 16 packed agents against one process"
PUBLISHED = "6.7 PGD-10 against the published loop"
EXCHANGE = "6.7 exchange and engine in a round of 16 agents"
WAITS = "6.7 operations of attack, gradient and optimiser that wait for the device"


def synchronised(step: Step) -> float:
    """Wall seconds of a step, to its end on the device."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def packed(width: float, batch: int, agents: int, repeats: int) -> Iterator[Row]:
    """A round of all agents, the same steps bare, and one process with the same total batch."""
    plan = plan_of(width, batch, agents, topology={"kind": "ring", "agents": agents}, **FAST)
    records = train(LocalPool(plan), plan)
    for _ in range(2):  # round 0, and the round that runs ahead
        next(records)
    bare = [bare_step(agent) for agent in LocalPool(plan).agents]
    _, one = agent_step(plan_of(width, agents * batch, **FAST))
    steps: dict[str, Step] = {
        "round": lambda: next(records),
        "bare": lambda: [step() for step in bare],
        "one": one,
    }
    spent = alternate(steps, repeats, synchronised)
    note, images = f"{name()}, width {width:g}, batch {batch} each", agents * batch
    rates = images / spent["round"], images / spent["one"]
    yield row(PACKED, rates[0], "images/s", limit=0.9, at_least=True, reference=rates[1], note=note)
    yield row(
        EXCHANGE,
        spent["round"] - spent["bare"],
        "s",
        limit=0.05,
        reference=spent["round"],
        note=f"the round less its bare steps; {note}",
    )


def against_published(width: float, batch: int, repeats: int) -> Iterator[Row]:
    """The published loop in torch's defaults for the device."""
    plan, fast = plan_of(width, batch), plan_of(width, batch, **FAST)
    steps = {"published": published_step(plan), "ours": agent_step(fast)[1]}
    spent = alternate(steps, repeats, synchronised)
    note = f"{name()}, width {width:g}, batch {batch}: {batch / spent['ours']:.0f} images/s"
    ratio = spent["published"] / spent["ours"]
    yield row(PUBLISHED, ratio, "times as fast", limit=5, at_least=True, note=note)


def waits(width: float, batch: int) -> Iterator[Row]:
    """How often torch warns that an operation waits for the device."""
    _, step = agent_step(plan_of(width, batch, **FAST))
    step()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    yield row(WAITS, float(len(seen)), "operations", limit=0, note=name())


def name() -> str:
    """The device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def targets(quick: bool) -> Iterator[Row]:
    """The rows as they are known; without a GPU, that there is none."""
    if not torch.cuda.is_available():
        for target in (WAITS, PUBLISHED, PACKED, EXCHANGE):
            yield row(target, None, "", limit=None, note="no CUDA device")
        return
    repeats = 2 if quick else 6
    yield from waits(1.0, 128)
    yield from against_published(1.0, 128, repeats)
    yield from packed(1.0, 128, 16, repeats)


def measure(quick: bool) -> list[Row]:
    """All targets of a GPU; quick: few repetitions."""
    return list(targets(quick))


if __name__ == "__main__":
    tell(targets)
