"""Agents that share a GPU: against one process, against the published loop, and their exchange.

Wall seconds of whole steps, the device waited for at their end; ABBA in one run, ratios of medians.
PreAct ResNet-18 on CIFAR-10, PGD-10, with the options of `FAST`. The agents are those of the local
pool: one process holds all of them, on one device. Without a GPU the rows hold nothing.
"""

import time
import warnings
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from step import Step, agent_step, alternate, plan_of, published_step
from targets import Row, row, tell

from raydist.engine.pool.pool import LocalPool

AGENTS, BATCH = 16, 128
FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True, "cuda_graphs": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "the same with graphs": FAST,
    "the same with graphs, compiled": FAST | {"compile": True},
}
PACKED = "GPU: images per second: 16 packed agents of batch {} against one process"
PUBLISHED = "GPU: PGD-10 against the published loop, {}"
EXCHANGE = "GPU: exchange of 16 x 11 M weights in a round of batch {}"
WAITS = "GPU: operations of attack, gradient and optimiser that wait for the device"


def synchronised(step: Step) -> float:
    """Wall seconds of a step, to its end on the device."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Round:
    """Rounds of packed agents, and what of them was the exchange."""

    def __init__(self, pool: LocalPool) -> None:
        """None is done."""
        self._group, self._n = pool, 0
        self.combining: list[float] = []

    def __call__(self) -> None:
        """The next round."""
        self._n += 1
        self._group.adapt(self._n, noisy=False)  # its end has waited for the device
        self.combining.append(synchronised(lambda: self._group.combine(self._n, {})))


def packed(batch: int, repeats: int) -> Iterator[Row]:
    """Rounds of all agents against one process with the same total batch, and their exchange."""
    plan = plan_of(1.0, batch, AGENTS, topology={"kind": "ring", "agents": AGENTS}, **FAST)
    rounds = Round(LocalPool(plan))
    rounds()  # records the graphs
    _, one = agent_step(plan_of(1.0, AGENTS * batch, **FAST))
    spent = alternate({"round": rounds, "one": one}, repeats, synchronised)
    images = AGENTS * batch
    rates = images / spent["round"], images / spent["one"]
    target, about = PACKED.format(batch), name()
    yield row(
        target, rates[0], "images/s", limit=0.9, at_least=True, reference=rates[1], note=about
    )
    exchange = median(rounds.combining[-repeats:])
    reference = spent["round"]
    yield row(EXCHANGE.format(batch), exchange, "s", limit=0.05, reference=reference, note=about)


def against_published(batch: int, repeats: int) -> Iterator[Row]:
    """The published loop in torch's defaults for the device."""
    steps = {"published": published_step(plan_of(1.0, batch))}
    steps |= {how: agent_step(plan_of(1.0, batch, **tables))[1] for how, tables in OPTIONS.items()}
    spent = alternate(steps, repeats, synchronised)
    for how in OPTIONS:
        limit = 5.0 if how == list(OPTIONS)[-1] else None
        note = f"{name()}, batch {batch}: {1e3 * spent[how]:.1f} ms a step"
        note += f", published {1e3 * spent['published']:.1f} ms"
        ratio = spent["published"] / spent[how]
        target = PUBLISHED.format(how)
        yield row(target, ratio, "times as fast", limit=limit, at_least=True, note=note)


def waits(batch: int) -> Iterator[Row]:
    """How often torch warns that an operation waits for the device."""
    _, step = agent_step(plan_of(1.0, batch, **FAST))
    step()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    found = [each for each in seen if "called a synchronizing" in str(each.message)]
    yield row(WAITS, float(len(found)), "operations", limit=0, note=name())


def name() -> str:
    """The device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def targets(quick: bool) -> Iterator[Row]:
    """The rows as they are known; without a GPU, that there is none."""
    if not torch.cuda.is_available():
        named = (PUBLISHED.format("compiled"), PACKED.format(BATCH), EXCHANGE.format(BATCH))
        for target in (WAITS, *named):
            yield row(target, None, "", limit=None, note="no CUDA device")
        return
    repeats = 2 if quick else 6
    yield from waits(BATCH)
    yield from packed(BATCH, repeats)
    yield from packed(4 * BATCH, max(2, repeats // 2))
    yield from against_published(BATCH, repeats)


def measure(quick: bool) -> list[Row]:
    """All targets of a GPU; quick: few repetitions."""
    return list(targets(quick))


if __name__ == "__main__":
    tell(targets)
