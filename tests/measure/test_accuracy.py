"""Accuracies against closed forms of a linear model, counts by hand and enumeration."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raydist.adversary.threat import ThreatModel
from raydist.measure.accuracy import correct, pgd_correct, w2_accuracy
from raydist.seeding import Purpose, torch_generator

W = torch.tensor([2.0, -1.0, 0.5])


class Score(nn.Module):
    """Two classes with the score s(x) = w'(x - 1/2): logits (0, s)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False, eps=0.0)  # the identity in eval mode
        self.weight = nn.Parameter(W.clone())

    def forward(self, x):
        score = (self.norm(x) - 0.5) @ self.weight
        return torch.stack([torch.zeros_like(score), score], dim=1)


def points(n=60, seed=0):
    """Points so far inside the box that no ball of radius 0.2 leaves it, with noisy labels."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.2 + 0.6 * torch.rand(n, 3, generator=generator)
    y = ((x - 0.5) @ W > 0).long()
    y[::7] = 1 - y[::7]
    return x, y


def signed_score(x, y):
    return (2 * y - 1) * ((x - 0.5) @ W)


def test_clean_mask_is_the_sign_of_the_score_whatever_the_batch():
    x, y = points()
    expected = (signed_score(x, y) > 0).numpy()
    for batch in (1, 7, 60, 100):
        mask = correct(Score(), x, y, batch)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, expected)
    assert expected.mean() == pytest.approx(51 / 60)  # every seventh label is flipped


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.15])
def test_pgd_mask_is_that_of_the_closed_form(norm, dual, eps):
    x, y = points()
    margin = signed_score(x, y) - eps * torch.linalg.vector_norm(W, ord=dual)
    assert margin.abs().min() > 1e-4  # no point is a matter of rounding
    # ten steps of eps / 4 reach the worst point of a linear model from any start for linf
    steps = 10 if norm == "linf" else 200
    mask = pgd_correct(Score(), x, y, ThreatModel(norm, eps), steps=steps, batch=16, seed=0)
    np.testing.assert_array_equal(mask, (margin > 0).numpy())


def test_pgd_mask_depends_on_seed_and_images_only():
    x, y = points(2000)
    threat = ThreatModel("linf", 0.15)

    def one_step(seed, images=slice(None)):
        options = {"steps": 1, "alpha": 0.01, "batch": 500, "seed": seed}
        return pgd_correct(Score(), x[images], y[images], threat, **options)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = one_step(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    np.testing.assert_array_equal(one_step(1), first)
    assert (one_step(2) != first).any()
    np.testing.assert_array_equal(one_step(1, slice(0, 500)), first[:500])


def test_each_batch_has_its_own_random_start():
    x, y = points(1000)
    twice = torch.cat([x, x]), torch.cat([y, y])
    threat = ThreatModel("linf", 0.15)
    halves = pgd_correct(Score(), *twice, threat, steps=1, alpha=0.01, batch=1000, seed=0)
    assert (halves[:1000] != halves[1000:]).any()


def test_default_step_is_a_quarter_of_the_budget():
    x, y = points(2000)
    threat = ThreatModel("linf", 0.16)
    usual, same, other = (
        pgd_correct(Score(), x, y, threat, steps=1, alpha=alpha, batch=2000, seed=0)
        for alpha in (None, 0.04, 0.16)
    )
    np.testing.assert_array_equal(usual, same)
    assert (usual != other).any()


def test_pgd_does_not_forgive_an_image_that_is_wrong_without_attack():
    x, y = points()
    clean = correct(Score(), x, y, 60)
    threat = ThreatModel("linf", 0.15)
    start = threat.random_start(x, torch_generator(Purpose.EVALUATE, 0))
    assert (correct(Score(), start, y, 60) & ~clean).any()  # chance alone makes some right
    mask = pgd_correct(Score(), x, y, threat, steps=1, alpha=0.0, batch=60, seed=0)
    np.testing.assert_array_equal(mask, clean & correct(Score(), start, y, 60))


@pytest.mark.parametrize("attacked", [False, True])
def test_logits_that_are_not_finite_are_wrong(attacked):
    class Diverged(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), float("nan")) + 0 * x.sum()

    x, y = points()
    if attacked:
        threat = ThreatModel("linf", 0.1)
        mask = pgd_correct(Diverged(), x, 0 * y, threat, steps=2, batch=16, seed=0)
    else:
        mask = correct(Diverged(), x, 0 * y, 16)
    assert not mask.any()


def test_model_is_left_as_found():
    x, y = points()
    model = Score().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    correct(model, x, y, 16)
    pgd_correct(model, x, y, ThreatModel("l2", 0.1), steps=2, batch=16, seed=0)
    assert model.training and model.norm.training
    assert model.weight.grad is None and model.weight.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_images_give_an_empty_mask_and_a_batch_of_zero_is_refused():
    x, y = points()
    assert correct(Score(), x[:0], y[:0], 16).shape == (0,)
    with pytest.raises(ValueError, match="batch is 0"):
        correct(Score(), x, y, 0)


# --- shared budget


def most_broken(margins, delta):
    """The largest number of images that some set of moves within the budget breaks."""
    right = [r for r in margins if r > 0]
    affordable = (
        size
        for size in range(len(right) + 1)
        for chosen in combinations(right, size)
        if sum(r**2 for r in chosen) / len(margins) <= delta**2
    )
    return max(affordable)


@settings(max_examples=60)
@given(
    # quarters are exact in binary, so that a budget that is met exactly is no matter of rounding
    st.lists(st.integers(-4, 12).map(lambda q: q / 4), min_size=1, max_size=10),
    st.integers(0, 12).map(lambda q: q / 4),
)
def test_w2_accuracy_equals_exhaustive_enumeration(margins, delta):
    right = sum(r > 0 for r in margins)
    expected = (right - most_broken(margins, delta)) / len(margins)
    assert w2_accuracy(margins, delta) == pytest.approx(expected, abs=1e-12)


def test_w2_accuracy_at_the_ends():
    margins = [0.3, 0.0, -2.0, 0.1, float("inf")]
    assert w2_accuracy(margins, 0.0) == pytest.approx(3 / 5)  # the clean accuracy
    assert w2_accuracy(margins, 100.0) == pytest.approx(1 / 5)
    # N images at one distance r: a share of (delta / r)^2 is affordable
    assert w2_accuracy(np.full(400, 0.5), 0.25) == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("margins", "delta", "message"),
    [
        ([], 0.1, "expected"),
        ([[0.1]], 0.1, "expected"),
        ([float("nan")], 0.1, "no nan"),
        ([0.1], -0.1, "delta is -0.1"),
        ([0.1], float("nan"), "delta is nan"),
    ],
)
def test_w2_accuracy_refuses_bad_arguments(margins, delta, message):
    with pytest.raises(ValueError, match=message):
        w2_accuracy(margins, delta)
