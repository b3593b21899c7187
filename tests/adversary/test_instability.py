import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raydist.adversary.instability import Chronicle, Episode, add_gaussian, remedy_rounds

CALM = [0.1, 0.12, 0.09, 0.11]


def judged(fosc, clean=(), adv=(), **rule):
    """The signs of each measurement."""
    run = Chronicle(**rule)
    more = zip(clean, adv, strict=True) if clean else [()] * len(fosc)
    return [
        run.judge(n, value, *both) for (n, value), both in zip(enumerate(fosc), more, strict=True)
    ]


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
    ],
)
def test_signs_of_fosc(fosc, options, expected):
    assert judged(fosc, **options)[-1] == expected


@pytest.mark.parametrize(
    ("clean", "adv", "warmup", "expected"),
    [
        ([0.5, 0.6], [0.3, 0.7], 0, True),
        ([0.5, 0.6], [0.7, 0.3], 0, False),  # healed
        ([0.5, 0.6], [0.3, 0.6], 0, False),  # above means above
        ([0.5, 0.6], [0.3, 0.7], 1, True),
        ([0.5, 0.6], [0.3, 0.7], 2, False),
        ([0.5, math.nan], [0.3, math.nan], 0, False),
    ],
)
def test_the_sign_of_the_accuracies(clean, adv, warmup, expected):
    found = judged(CALM[:2], clean, adv, threshold=0.5, warmup=warmup)[-1]
    assert found == ({"adv_above_clean"} if expected else set())


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([], {"threshold": 0.5}, False),
        (CALM, {"threshold": 0.5}, False),
        ([*CALM, 0.6], {"threshold": 0.5}, True),
        ([*CALM, 0.5], {"threshold": 0.5}, False),  # exceeds means above
        ([*CALM, 0.6, 0.1], {"threshold": 0.5}, False),  # healed
        ([*CALM, 0.6], {"threshold": 0.5, "patience": 2}, False),
        ([*CALM, 0.6, 0.7], {"threshold": 0.5, "patience": 2}, True),
        ([*CALM, 0.6, 0.1, 0.7], {"threshold": 0.5, "patience": 2}, False),
        ([0.6], {"threshold": 0.5, "warmup": 1}, False),
        ([0.6, 0.7], {"threshold": 0.5, "warmup": 1}, True),
        ([0.6, 0.7], {"threshold": 0.5, "warmup": 1, "patience": 2}, False),
        ([*CALM, 0.41], {"relative": 4.0}, False),  # the median is 0.105
        ([*CALM, 0.43], {"relative": 4.0}, True),
        ([5.0], {"relative": 4.0}, False),  # nothing to compare with
        ([0.1, 1.0, 1.0], {"relative": 4.0, "warmup": 2}, False),  # the warm-up is in the median
        ([*CALM, 0.43], {"relative": 4.0, "threshold": 9.0}, True),  # either one
        ([*CALM, 0.43], {"relative": 9.0, "threshold": 0.4}, True),
        ([*CALM, math.nan], {"threshold": 0.5}, True),
        ([*CALM, math.inf], {"relative": 4.0}, True),
        ([math.nan, 0.1, 0.5], {"relative": 4.0}, True),  # the median is of finite values
        ([math.nan], {"relative": 4.0, "warmup": 1}, False),
    ],
)
def test_the_detector(values, options, expected):
    options = dict(options)
    patience, run = options.pop("patience", 1), Chronicle(**options)
    for n, value in enumerate(values):
        run.judge(n, value)
    assert (run.in_a_row >= patience) is expected


@pytest.mark.parametrize(
    ("before", "warmup"),
    [
        ([0.1], 0),  # one calm measurement is a reference
        ([0.1, 0.1], 2),  # onset right after the warm-up,
        ([0.1, 0.1, 0.1, 0.6], 4),  # in its last measurement,
        ([0.1, 0.1, 0.1], 2),  # one later
        ([0.3, 0.1, 0.1, 0.6, 0.1], 4),
    ],
)
@pytest.mark.parametrize("length", [1, 3, 100])
@pytest.mark.parametrize("ends", [True, False])
def test_an_instability_lasts_as_long_as_fosc_is_high(before, warmup, length, ends):
    """However long it lasts, six times as much is no new normal."""
    run, first = Chronicle(relative=4.0, warmup=warmup), len(before)
    values = [*before, *[0.6] * length, *[0.1] * (3 if ends else 0)]
    flags = [bool(run.judge(n, value)) for n, value in enumerate(values)]
    assert flags == [False] * first + [True] * length + [False] * (len(values) - first - length)
    over = (first + length, "alone") if ends else (None, "")
    assert (run.count, run.first, run.last) == (1, Episode(first, *over), run.first)
    assert run.in_a_row == (0 if ends else length)


def test_a_fosc_that_grows_slowly_is_calm():
    assert not any(judged([0.1 * 1.02**n for n in range(100)], relative=4.0))


@given(
    values=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 2.0, math.nan]), max_size=25),
    warmup=st.integers(0, 3),
    cut=st.integers(0, 25),
)
def test_the_reference_is_the_median_of_what_was_calm(values, warmup, cut):
    """Against all that was before, looked through anew each time; also from what was dumped."""
    calm, expected = [], []
    for n, value in enumerate(values):
        finite = not math.isnan(value)
        high = finite and (value > 0.8 or (bool(calm) and value > 3 * np.median(calm)))
        expected.append(n >= warmup and (high or not finite))
        if finite and not expected[-1]:
            calm.append(value)
    runs = [Chronicle(threshold=0.8, relative=3.0, warmup=warmup)]
    found = []
    for n, value in enumerate(values):
        if n == cut:
            runs.append(Chronicle(threshold=0.8, relative=3.0, warmup=warmup))
            runs[1].load(json.loads(json.dumps(runs[0].dump())))
        found.append(bool(runs[-1].judge(n, value)))
    assert found == expected


def chronicle(rounds, flags, remedied=()):
    """All episodes, each as it was known when the next one began."""
    run, found = Chronicle(threshold=0.5), {}
    for n in range(1, max(rounds, default=0) + 1):
        if n in remedied:
            run.remedied()
        if n in rounds:
            run.judge(n, float(flags[rounds.index(n)]))
            found |= {run.last.onset_round: run.last} if run.last else {}
    episodes = [*found.values()]
    assert (run.count, run.first) == (len(found), episodes[0] if found else None)
    return episodes


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
    found = chronicle(rounds, [flag == "x" for flag in flags], remedied)
    assert found == [Episode(*one) for one in expected]


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=5)))
def test_episodes_cover_exactly_the_flagged_measurements(flags):
    rounds = [3, 4, 8, 20, 21]
    found = chronicle(rounds, flags)
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
        (lambda: Chronicle(threshold=-1.0), "threshold is -1.0"),
        (lambda: Chronicle(threshold=math.nan), "threshold is nan"),
        (lambda: Chronicle(relative=0.0), "relative is 0.0"),
        (lambda: Chronicle(warmup=-1), "warmup is -1"),
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
