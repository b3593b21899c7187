import itertools
import math

import pytest
import torch

from raydist.adversary.fosc import unstable
from raydist.adversary.instability import (
    Episode,
    add_gaussian,
    episodes,
    persistent,
    remedy_rounds,
    signs,
)

CALM = [0.1, 0.12, 0.09, 0.11]


@pytest.mark.parametrize(
    ("fosc", "options", "expected"),
    [
        (CALM, {"threshold": 0.5, "relative": 4.0}, set()),
        ([*CALM, 0.6], {"threshold": 0.5, "relative": 4.0}, {"fosc_absolute", "fosc_relative"}),
        ([*CALM, 0.6], {"threshold": 0.5, "relative": 9.0}, {"fosc_absolute"}),
        ([*CALM, 0.45], {"threshold": 0.5, "relative": 4.0}, {"fosc_relative"}),
        ([*CALM, 0.6], {}, set()),
        ([*CALM, math.nan], {"threshold": 0.5}, {"fosc_absolute"}),
        ([*CALM, 0.6], {"threshold": 0.5, "warmup": 4}, {"fosc_absolute"}),
        ([*CALM, 0.6], {"threshold": 0.5, "warmup": 5}, set()),
        ([*CALM, 0.6, 0.1], {"threshold": 0.5}, set()),
        ([], {"threshold": 0.5, "relative": 4.0}, set()),
    ],
)
def test_signs_of_fosc(fosc, options, expected):
    assert signs(fosc, **options) == expected


@pytest.mark.parametrize(
    ("clean", "adv", "warmup", "expected"),
    [
        ([0.5, 0.6], [0.3, 0.7], 0, True),
        ([0.5, 0.6], [0.7, 0.3], 0, False),  # healed
        ([0.5, 0.6], [0.3, 0.6], 0, False),  # above means above
        ([0.5, 0.6], [0.3, 0.7], 1, True),
        ([0.5, 0.6], [0.3, 0.7], 2, False),
        ([], [], 0, False),
    ],
)
def test_the_sign_of_the_accuracies(clean, adv, warmup, expected):
    found = signs(CALM, clean, adv, threshold=0.5, warmup=warmup)
    assert found == ({"adv_above_clean"} if expected else set())


def test_flags_that_persist_are_the_rule_of_unstable():
    values = [0.1, 0.9, 0.8, 0.1, 0.9, 0.9, 0.9, 0.2]
    flags = [bool(signs(values[: n + 1], threshold=0.5, warmup=1)) for n in range(len(values))]
    for end, patience in itertools.product(range(len(values) + 1), (1, 2, 3)):
        rule = unstable(values[:end], threshold=0.5, patience=patience, warmup=1)
        assert persistent(flags[:end], patience) == rule
    assert sum(persistent(flags[:end], 3) for end in range(9)) == 1


@pytest.mark.parametrize(
    ("flags", "remedied", "expected"),
    [
        ("....", [], []),
        ("..x.", [], [(30, 40, "alone")]),
        ("..x.", [31], [(30, 40, "remedy")]),
        ("..x.", [40], [(30, 40, "remedy")]),
        ("..x.", [30, 41], [(30, 40, "alone")]),  # before the onset, after the recovery
        ("..xx", [31], [(30, None, "")]),
        ("x...", [], [(10, 20, "alone")]),
        ("x.xx.x", [35], [(10, 20, "alone"), (30, 50, "remedy"), (60, None, "")]),
        ("", [], []),
    ],
)
def test_episodes(flags, remedied, expected):
    rounds = [10 * (n + 1) for n in range(len(flags))]
    found = episodes(rounds, [flag == "x" for flag in flags], remedied)
    assert found == [Episode(*one) for one in expected]


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=5)))
def test_episodes_cover_exactly_the_flagged_measurements(flags):
    rounds = [3, 4, 8, 20, 21]
    found = episodes(rounds, flags)
    inside = [
        any(e.onset_round <= n < (e.recovery_round or math.inf) for e in found) for n in rounds
    ]
    assert inside == list(flags)
    assert all((e.recovery_round is None) == (e.by == "") for e in found)


@pytest.mark.parametrize("epoch_rounds", [1, 7, 10, 25])
@pytest.mark.parametrize("batches", [1, 10])
def test_remedy_rounds_are_the_first_of_the_next_epoch(epoch_rounds, batches):
    epoch = {n: (n - 1) // epoch_rounds for n in range(1, 200)}
    for after in range(100):
        started = [e for n, e in epoch.items() if n > after and (n - 1) % epoch_rounds == 0]
        expected = [n for n, e in epoch.items() if e == started[0]][:batches]
        assert list(remedy_rounds(epoch_rounds, after, batches)) == expected


def test_the_remedy_is_ten_batches_long_and_begins_at_once_after_an_epoch():
    assert remedy_rounds(390, 780) == range(781, 791)
    assert remedy_rounds(390, 0) == range(1, 11)


@pytest.mark.parametrize(("how", "sigma"), [("std", 0.1), ("variance", math.sqrt(0.1))])
def test_noise_has_its_deviation_and_mean_zero(how, sigma):
    x, generator = torch.full((50_000, 4), 0.5).double(), torch.Generator().manual_seed(0)
    bounds = (-math.inf, math.inf)
    noise = add_gaussian(x, 0.1, how, generator=generator, bounds=bounds) - x
    assert noise.std().item() == pytest.approx(sigma, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.005 * sigma * 4)
    beyond = (noise.abs() > 2 * sigma).double().mean().item()
    assert beyond == pytest.approx(math.erfc(math.sqrt(2)), rel=0.05)  # of a normal law
    default = add_gaussian(x, generator=torch.Generator().manual_seed(0), bounds=bounds) - x
    torch.testing.assert_close(default, noise * 0.1 / sigma, rtol=1e-9, atol=1e-12)


def test_noise_is_clipped_to_the_box_and_comes_from_the_generator_alone():
    x = torch.tensor([[0.0, 1.0, 0.5]]).repeat(500, 1)
    state, kept = torch.get_rng_state(), x.clone()
    first, again = (
        add_gaussian(x, 0.1, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first, again) and torch.equal(x, kept) and first.dtype == x.dtype
    assert torch.equal(torch.get_rng_state(), state)
    assert first.min() == 0 and first.max() == 1
    assert 0.4 < (first[:, 0] == 0).double().mean() < 0.6  # half of the noise points outwards
    assert torch.equal(add_gaussian(x, 0.0, generator=torch.Generator()), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: signs(CALM, [0.5], [], threshold=0.5), "train_clean has 1 measurements"),
        (lambda: signs(CALM, threshold=-1.0), "threshold is -1.0"),
        (lambda: persistent([True], 0), "patience is 0"),
        (lambda: episodes([1, 2], [True]), "with 1 flags"),
        (lambda: episodes([2, 2], [True, False]), "expected increasing rounds"),
        (lambda: remedy_rounds(0, 5), "epoch_rounds is 0"),
        (lambda: remedy_rounds(5, -1), "after_round -1"),
        (lambda: remedy_rounds(5, 5, 0), "batches 0"),
        (lambda: add_gaussian(torch.ones(1), -0.1, generator=torch.Generator()), "amount is -0.1"),
        (lambda: add_gaussian(torch.ones(1), 0.1, "sd", generator=torch.Generator()), "how is"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
