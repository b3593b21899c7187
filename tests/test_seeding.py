import numpy as np
import pytest

from raydist.seeding import Purpose, numpy_rng, seed_for, torch_generator

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
