import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raydist.adversary.schedule import eps_at, local_progress, lr_at

LR = {"constant": {}, "piecewise": {"milestones": [0.5, 0.75]}, "cosine": {"final": 0.01}}
EPS = {"constant": {}, "linear": {"eps_max": 16.0}, "cosine": {"eps_max": 16.0, "eps_min": 0.5}}
FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True)
RESTARTS = st.lists(FRACTIONS, unique=True, max_size=4).map(sorted)


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


@given(p=st.floats(0, 1), restarts=RESTARTS)
def test_local_progress_is_a_fraction_that_is_zero_at_each_restart(p, restarts):
    assert 0 <= local_progress(p, restarts) <= 1
    assert all(local_progress(begin, restarts) == 0 for begin in [0.0, *restarts])
    assert local_progress(1.0, restarts) == 1


@given(p=st.floats(0, 1), q=st.floats(0, 1), restarts=RESTARTS)
def test_local_progress_increases_within_a_period(p, q, restarts):
    p, q = sorted([p, q])
    assume(not any(p < begin <= q for begin in restarts))
    low, high = local_progress(p, restarts), local_progress(q, restarts)
    assert low <= high
    assert low < high or q - p < 1e-11


@given(p=st.floats(0, 1), restarts=RESTARTS)
def test_local_progress_and_the_bounds_of_its_period_give_progress_back(p, restarts):
    bounds = [0.0, *restarts, 1.0]
    i = sum(begin <= p for begin in restarts)
    begin, end = bounds[i], bounds[i + 1]
    assert begin + (end - begin) * local_progress(p, restarts) == pytest.approx(p, abs=1e-11)


@given(p=st.floats(0, 1))
def test_without_restarts_local_progress_is_progress(p):
    assert local_progress(p, []) == pytest.approx(p, rel=0, abs=1e-12)


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
