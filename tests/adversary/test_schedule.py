import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raydist.adversary.schedule import Timetable, eps_at, lr_at

LR = {"constant": {}, "piecewise": {"milestones": [0.5, 0.75]}, "cosine": {"final": 0.01}}
EPS = {"constant": {}, "linear": {"eps_max": 16.0}, "cosine": {"eps_max": 16.0, "eps_min": 0.5}}


@pytest.mark.parametrize("name", EPS)
@given(p=st.floats(0, 1), q=st.floats(0, 1))
def test_budgets_grow_to_the_target_and_never_pass_it(name, p, q):
    low, high = (eps_at(name, progress, 8.0, **EPS[name]) for progress in sorted([p, q]))
    assert 0 <= low <= high <= 8
    assert eps_at(name, 1.0, 8.0, **EPS[name]) == 8


@pytest.mark.parametrize("name", LR)
@given(p=st.floats(0, 1), q=st.floats(0, 1))
def test_rates_fall_from_the_initial_one(name, p, q):
    high, low = (lr_at(name, progress, 0.1, **LR[name]) for progress in sorted([p, q]))
    assert 0 < low <= high <= 0.1
    assert lr_at(name, 0.0, 0.1, **LR[name]) == pytest.approx(0.1, rel=1e-15)


# the target is reached where (1 - cos pi p) / 2, or p, is target / eps_max
@pytest.mark.parametrize(
    ("name", "eps", "eps_max", "clip"),
    [
        ("linear", 8 / 255, 16 / 255, 0.5),
        ("cosine", 8 / 255, 16 / 255, 0.5),
        ("linear", 0.4, 0.8, 0.5),
        ("cosine", 0.4, 0.6, math.acos(-1 / 3) / math.pi),
    ],
)
def test_clipped_budgets_reach_the_target_at_the_published_point(name, eps, eps_max, clip):
    assert eps_at(name, 0.0, eps, eps_max=eps_max) == 0
    assert eps_at(name, clip - 1e-3, eps, eps_max=eps_max) < eps
    assert eps_at(name, clip, eps, eps_max=eps_max) == pytest.approx(eps, rel=1e-12)
    assert eps_at(name, clip + 1e-3, eps, eps_max=eps_max) == eps


def test_the_clip_point_of_the_cosine_with_two_thirds_is_sixty_one_percent():
    assert math.acos(-1 / 3) / math.pi == pytest.approx(0.608, abs=5e-4)


def test_budgets_by_hand():
    assert eps_at("linear", 0.25, 8.0, eps_max=16.0, eps_min=4.0) == 7
    assert eps_at("linear", 0.25, 8.0) == 2
    assert eps_at("cosine", 1 / 3, 8.0, eps_max=16.0) == pytest.approx(4)
    assert eps_at("constant", 0.0, 8.0) == 8
    assert eps_at("linear", 0.5, 0.0) == 0


def test_rates_by_hand():
    stages = {0.0: 1.0, 0.4999: 1.0, 0.5: 0.1, 0.7499: 0.1, 0.75: 0.01, 1.0: 0.01}
    for progress, rate in stages.items():
        assert lr_at("piecewise", progress, 1.0, milestones=[0.5, 0.75]) == pytest.approx(rate)
    assert lr_at("cosine", 0.5, 1.0, final=0.2) == pytest.approx(0.6)
    assert lr_at("cosine", 1 / 3, 1.0) == pytest.approx(0.75)
    assert lr_at("cosine", 1.0, 1.0, final=0.2) == pytest.approx(0.2)
    assert lr_at("constant", 1.0, 0.25) == pytest.approx(0.25, rel=0)


@given(
    rounds=st.integers(1, 60),
    epoch=st.integers(1, 20),
    cuts=st.sets(st.integers(1, 99), max_size=4).map(sorted),
)
def test_every_round_counts_from_the_first_one_of_its_period(rounds, epoch, cuts):
    """Round n is in the period that has begun when n - 1 of N rounds are done, in fractions."""
    begun = [sum(Fraction(c, 100) <= Fraction(n, rounds) for c in cuts) for n in range(rounds)]
    assume(set(begun) == set(range(len(cuts) + 1)))
    times = Timetable(rounds, epoch, [c / 100 for c in cuts])
    for n, period in enumerate(begun, 1):
        before, length = begun[: n - 1].count(period), begun.count(period)
        assert times.progress(n) == pytest.approx(before / length)
        assert times.progress(n, "epoch") == pytest.approx(before // epoch * epoch / length)
        assert times.ended(n) == sum(period not in begun[n:] for period in set(begun))
    assert times.ends == [rounds - begun[::-1].index(period) for period in sorted(set(begun))]


def test_periods_end_after_the_rounds_of_which_each_begins_before_the_fraction():
    assert Timetable(5, periods=[0.5]).ends == [3, 5]
    times = Timetable(600, 41, [0.5])
    assert [times.progress(n, "epoch") for n in (300, 301, 341, 342)] == [
        287 / 300,
        0,
        0,
        41 / 300,
    ]
    assert Timetable(100, periods=[0.07, 0.29]).ends == [7, 29, 100]  # 0.07 * 100 is above 7


def test_before_the_run_there_is_no_progress_and_past_it_no_more():
    with pytest.raises(ValueError, match="round is 0, expected 1 or more"):
        Timetable(5).progress(0)
    assert Timetable(5, 2, [0.5]).progress(6) == Timetable(5, 2, [0.5]).progress(9, "epoch") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr_at("step", 0.5, 0.1), "constant, piecewise, cosine"),
        (lambda: eps_at("piecewise", 0.5, 0.1), "constant, linear, cosine"),
        (lambda: lr_at("cosine", 0.5, 0.1, end=0.0), "parameters: final"),
        (lambda: lr_at("constant", 0.5, 0.1, final=0.0), "parameters: none"),
        (lambda: lr_at("piecewise", 0.5, 0.1), "parameters: milestones, factor"),
        (lambda: lr_at("piecewise", 0.5, 0.1, milestones=[0.7, 0.5]), "increasing fractions"),
        (lambda: lr_at("piecewise", 0.5, 0.1, milestones=[50, 75]), "increasing fractions"),
        (lambda: lr_at("constant", 1.5, 0.1), "progress is 1.5"),
        (lambda: eps_at("linear", 0.5, 8.0, eps_max=4.0), "eps_max 4.0"),
        (lambda: eps_at("linear", 0.5, 8.0, eps_min=-1.0), "eps_min is -1.0"),
    ],
)
def test_bad_schedules_are_refused_and_the_known_listed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
