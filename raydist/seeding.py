"""Randomness as a function of (seed, agent, round, purpose), never of global state.

Two consequences that the rest of the code relies on: a run can be replayed from any round with the
same numbers, in any process; and adding an agent does not reshuffle the draws of the others.

Code that is not ours (dropout, a noise layer, a loss) draws from global states: within `drawing`
these are a function of the same arguments.
"""

import random
from collections.abc import Generator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import numpy as np
import torch


class Purpose(IntEnum):
    """The purpose of a draw: streams of different purposes are independent."""

    MODEL = 0
    PARTITION = 1
    BATCH = 2
    AUGMENT = 3
    ATTACK = 4
    EVALUATE = 5
    GRAPH = 6
    SPLIT = 7
    NOISE = 8
    IN_ATTACK = 9  # what a model or a loss draws in its passes
    IN_STEP = 10
    IN_TELEMETRY = 11
    IN_MEASUREMENT = 12
    IN_CODE = 13  # and any other function that a file names


def seed_for(purpose: Purpose, seed: int, agent: int = 0, round: int = 0) -> int:
    """A 63-bit seed for one draw.

    Args:
        purpose: the draw's purpose.
        seed: the run's seed, ≥ 0.
        agent: the agent k ≥ 0 (0 where the draw is common to all agents).
        round: the round n ≥ 0 (0 where the draw happens once).

    Returns:
        An integer in [0, 2^63), the same on every machine.

    Example:
        >>> seed_for(Purpose.BATCH, 0, agent=1) == seed_for(Purpose.BATCH, 0, agent=1)
        True
        >>> seed_for(Purpose.BATCH, 0, agent=1) == seed_for(Purpose.BATCH, 0, agent=2)
        False
    """
    sequence = np.random.SeedSequence([int(purpose), seed, agent, round])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_rng(purpose: Purpose, seed: int, agent: int = 0, round: int = 0) -> np.random.Generator:
    """A NumPy generator for one draw; arguments as in `seed_for`."""
    return np.random.default_rng(seed_for(purpose, seed, agent, round))


def torch_generator(
    purpose: Purpose,
    seed: int,
    agent: int = 0,
    round: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """A torch generator for one draw on `device`; other arguments as in `seed_for`."""
    return torch.Generator(device=device).manual_seed(seed_for(purpose, seed, agent, round))


@contextmanager
def drawing(
    purpose: Purpose,
    seed: int,
    agent: int = 0,
    round: int = 0,
    device: torch.device | str = "cpu",
) -> Generator[None]:
    """Meanwhile global randomness is one stream of draws; afterwards it is as it was.

    That is torch's on the CPU and on `device`, NumPy's and Python's; arguments as in `seed_for`.

    Example:
        >>> with drawing(Purpose.IN_STEP, 0, agent=1):
        ...     first = torch.rand(1), np.random.rand(), random.random()
        >>> with drawing(Purpose.IN_STEP, 0, agent=1):
        ...     first == (torch.rand(1), np.random.rand(), random.random())
        True
    """
    here, kept = seed_for(purpose, seed, agent, round), global_state(device)
    for generator in _generators(device):
        generator.manual_seed(here)
    np.random.seed(here % 2**32)
    random.seed(here)
    try:
        yield
    finally:
        restore(kept, device)


def global_state(device: torch.device | str) -> tuple[Any, ...]:
    """The state of the global randomness that `drawing` sets."""
    drawn = [generator.get_state() for generator in _generators(device)]
    return drawn, np.random.get_state(), random.getstate()


def restore(state: tuple[Any, ...], device: torch.device | str) -> None:
    """Give the global randomness a state that `global_state` took."""
    drawn, numpys, pythons = state
    for generator, value in zip(_generators(device), drawn, strict=True):
        generator.set_state(value)
    np.random.set_state(numpys)
    random.setstate(pythons)


def same_state(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Tell whether nothing was drawn between two states of the global randomness."""
    return (
        all(map(torch.equal, one[0], other[0]))
        and all(map(np.array_equal, one[1], other[1]))
        and one[2] == other[2]
    )


def _generators(device: torch.device | str) -> list[torch.Generator]:
    """Torch's own of the CPU and of a device; the seed of other devices is no affair of ours."""
    device, found = torch.device(device), [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    return found
