"""Randomness as a function of (seed, agent, round, purpose), never of global state.

Two consequences that the rest of the code relies on: a run can be replayed from any round with the
same numbers, in any process; and adding an agent does not reshuffle the draws of the others.
"""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a draw is for: streams of different purposes are independent."""

    MODEL = 0
    PARTITION = 1
    BATCH = 2
    AUGMENT = 3
    ATTACK = 4
    EVALUATE = 5
    GRAPH = 6
    SPLIT = 7
    NOISE = 8


def seed_for(purpose: Purpose, seed: int, agent: int = 0, round: int = 0) -> int:
    """A 63-bit seed for one draw.

    Args:
        purpose: what the draw is for.
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
