import random

import numpy as np
import pytest
import torch

from raydist.seeding import (
    Purpose,
    drawing,
    global_state,
    numpy_rng,
    restore,
    same_state,
    seed_for,
    torch_generator,
)

# the number of each in the seeds of all runs so far: a new purpose joins at the end
PURPOSES = (
    "MODEL PARTITION BATCH AUGMENT ATTACK EVALUATE GRAPH SPLIT NOISE "
    "IN_ATTACK IN_STEP IN_TELEMETRY IN_MEASUREMENT IN_CODE"
).split()


def word(*numbers):
    """NumPy's 64 bits for these numbers, without the last one."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) // 2


def test_purposes_keep_their_numbers():
    found = [(purpose.name, purpose.value) for purpose in Purpose]
    assert found[: len(PURPOSES)] == [(name, n) for n, name in enumerate(PURPOSES)]


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_seed_is_numpys_word_of_purpose_seed_agent_and_round(purpose):
    number, purpose = PURPOSES.index(purpose), Purpose[purpose]
    assert seed_for(purpose, 7, 3, 11) == word(number, 7, 3, 11)
    assert seed_for(purpose, 7) == word(number, 7, 0, 0)
    assert seed_for(purpose, 7, agent=1) == word(number, 7, 1, 0)


def test_generators_draw_from_that_seed_and_from_nothing_else():
    seed = word(PURPOSES.index("BATCH"), 7, 3, 11)
    expected = np.random.Generator(np.random.PCG64(seed)).random(5)
    np.testing.assert_array_equal(numpy_rng(Purpose.BATCH, 7, 3, 11).random(5), expected)
    generator = torch_generator(Purpose.BATCH, 7, 3, 11)
    assert (generator.initial_seed(), generator.device.type) == (seed, "cpu")


def test_agent_and_round_are_0_unless_given():
    seed = word(PURPOSES.index("SPLIT"), 7, 0, 0)
    assert numpy_rng(Purpose.SPLIT, 7).random() == np.random.default_rng(seed).random()
    assert torch_generator(Purpose.SPLIT, 7).initial_seed() == seed


def test_global_draws_are_a_stream_of_their_own_and_the_state_returns():
    seed = word(PURPOSES.index("IN_STEP"), 7, 3, 11)
    kept = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with drawing(Purpose.IN_STEP, 7, 3, 11):
        drawn = torch.rand(1).item(), np.random.rand(), random.random()
    assert drawn == (
        torch.rand(1, generator=torch.Generator().manual_seed(seed)).item(),
        np.random.RandomState(seed % 2**32).rand(),
        random.Random(seed).random(),
    )
    now = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert all(map(np.array_equal, kept[:2], now[:2])) and kept[2] == now[2]
    with drawing(Purpose.IN_STEP, 7):
        first = torch.rand(1).item()
    with drawing(Purpose.IN_STEP, 7, 0, 0):
        assert torch.rand(1).item() == first


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), np.random.rand, random.random])
def test_one_draw_from_any_global_generator_is_noticed_and_taken_back(draw):
    before = global_state("cpu")
    draw()
    after = global_state("cpu")
    assert not same_state(before, after) and not same_state(after, before)
    restore(before, "cpu")
    assert same_state(before, global_state("cpu"))
