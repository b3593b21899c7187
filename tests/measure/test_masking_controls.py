"""What PGD and FOSC say of three models whose robust accuracy is known exactly."""

import pytest
from controls import (
    POINTS,
    THREAT,
    exact_robust_accuracy,
    plain,
    points,
    rugged,
    saturated,
)

from raydist.adversary.attack import pgd
from raydist.adversary.fosc import fosc


@pytest.fixture(scope="module")
def task():
    return points()


def measured(model, x, y):
    """Clean accuracy, PGD-10 accuracy, exact robust accuracy, mean FOSC."""
    x_adv = pgd(model, x, y, THREAT, steps=10, alpha=2 / 255)
    clean, robust = ((model(z).argmax(1) == y).double().mean().item() for z in (x, x_adv))
    return (
        clean,
        robust,
        exact_robust_accuracy(model, x, y),
        fosc(model, x, x_adv, y, THREAT).mean(),
    )


def test_plain_model_has_no_gap_and_no_fosc(task):
    w, x, y = task
    clean, robust, exact, mean_fosc = measured(plain(w), x, y)
    assert clean == 1
    assert robust == pytest.approx(exact, abs=1 / POINTS)  # float32 at the edge of one point
    assert 0.5 < exact < 0.9
    assert mean_fosc < 1e-6


def test_saturated_model_has_a_large_gap_that_fosc_does_not_see(task):
    w, x, y = task
    clean, robust, exact, mean_fosc = measured(saturated(w), x, y)
    assert clean == 1
    assert exact == exact_robust_accuracy(plain(w), x, y)
    assert robust - exact > 0.2
    assert mean_fosc < 1e-3  # where a slope of 1e5 would give 1e5 eps ||w||_1
    silent = fosc(saturated(w), x, x, y, THREAT) == 0
    assert silent.double().mean() > 0.95  # without a gradient nothing is left to gain


def test_rugged_model_has_a_large_gap_and_a_large_fosc(task):
    w, x, y = task
    clean, robust, exact, mean_fosc = measured(rugged(w), x, y)
    assert exact < robust < clean < 1
    assert robust - exact > 0.2
    assert mean_fosc > 1
