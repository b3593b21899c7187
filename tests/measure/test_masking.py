"""The checks by numbers, and on models that mask their gradients in known ways."""

import math

import numpy as np
import pytest
import torch
from controls import THREAT, exact_robust_accuracy, plain, points, rugged, saturated
from sklearn.datasets import load_digits
from torch import nn

from raydist.adversary.attack import fgsm, input_gradient, pgd
from raydist.adversary.fosc import relative_gap
from raydist.adversary.threat import ThreatModel
from raydist.measure.accuracy import correct, pgd_correct
from raydist.measure.autoattack import autoattack
from raydist.measure.masking import CHECKS, exceeds, together, verdict, zero_gradients

HONEST = {
    "clean_acc": 0.83,
    "fgsm_acc": 0.58,
    "pgd10_acc": 0.54,
    "pgd100_acc": 0.53,
    "apgd_ce_acc": 0.52,
    "apgd_t_acc": 0.475,
    "square5000_acc": 0.56,
    "autoattack_acc": 0.475,
    "pgd10_2eps_acc": 0.25,
    "pgd10_large_eps_acc": 0.0,
    "zero_gradient_share": 0.001,
    "fosc_relative": 0.03,
}
CHANGED = {  # the sign that each change of the honest numbers makes, and only that one
    "overestimation": {"autoattack_acc": 0.4},
    "square-stronger": {"square5000_acc": 0.5},
    "more-steps-weaker": {"pgd100_acc": 0.56, "apgd_t_acc": 0.45},
    "one-step-stronger": {"fgsm_acc": 0.5},
    "larger-eps-weaker": {"pgd10_2eps_acc": 0.6},
    "large-eps-survived": {"pgd10_large_eps_acc": 0.2},
    "zero-gradient": {"zero_gradient_share": 0.1},
    "fosc": {"fosc_relative": 0.5},
    "ce-saturated": {"apgd_ce_acc": 0.62},
}


# --- by numbers


def test_fosc_says_nothing_where_pgd_breaks_every_image():
    rugged = {"fosc_relative": 0.9, "autoattack_acc": 0.0}
    assert verdict(rugged | {"pgd10_acc": 0.05}, images=100).signs == ("fosc",)
    assert verdict(rugged | {"pgd10_acc": 0.0}, images=100).word == "trusted"


def test_numbers_of_an_honest_model_are_trusted():
    judgement = verdict(HONEST, images=1000)
    assert judgement.word == "trusted"
    assert judgement.clear == tuple(CHECKS) and judgement.signs == judgement.missing == ()


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_sees_its_own_sign_and_no_other(name):
    judgement = verdict(HONEST | CHANGED[name], images=1000)
    assert judgement.signs == (name,) and judgement.word == name
    assert len(judgement.clear) == len(CHECKS) - 1


@pytest.mark.parametrize("name", sorted(set(CHECKS) - {"fosc"}))
def test_a_handful_of_images_is_no_sign(name):
    assert verdict(HONEST | CHANGED[name], images=4).signs == ()


def test_checks_without_their_numbers_are_named_as_missing():
    empty = verdict({"clean_acc": 0.9, "pgd10_acc": math.nan}, images=100)
    assert empty.missing == tuple(CHECKS) and empty.word == "unchecked"
    one = verdict({"fosc_relative": 0.01}, images=100)
    assert one.clear == ("fosc",) and set(one.missing) == set(CHECKS) - {"fosc"}
    assert one.word == "unchecked"  # FOSC alone trusts nobody
    # nor do attacks that all ascend the cross-entropy
    blind = {key: HONEST[key] for key in ("pgd10_acc", "pgd100_acc", "apgd_ce_acc", "fgsm_acc")}
    assert "overestimation" in verdict(blind, images=100).missing
    assert verdict(blind, images=100).word == "unchecked"
    assert verdict({"fosc_relative": 0.9}, images=100).word == "fosc"


@pytest.mark.parametrize("order", [1, -1])
def test_nan_among_the_attacks_hides_nothing(order):
    numbers = {"autoattack_acc": math.nan, "pgd10_acc": 0.9, "square5000_acc": 0.5}
    numbers |= {"apgd_t_acc": math.nan, "pgd100_acc": math.nan}
    judgement = verdict(dict(list(numbers.items())[::order]), images=100)
    assert judgement.signs == ("overestimation", "square-stronger")
    assert "more-steps-weaker" in judgement.missing


def test_square_must_beat_the_strongest_pgd():
    numbers = {"pgd10_acc": 0.6, "pgd100_acc": 0.5, "square5000_acc": 0.55}
    assert verdict(numbers, images=1000).word == "trusted"


@pytest.mark.parametrize("name", ["apgd_t", "apgd_t_alone", "fab_t_alone", "pgd50x5_margin"])
def test_any_attack_on_another_loss_shows_overestimation(name):
    numbers = {"pgd10_acc": 0.9, "apgd_ce_acc": 0.9, f"{name}_acc": 0.5}
    judgement = verdict(numbers, images=100)
    assert "overestimation" in judgement.signs
    assert ("ce-saturated" in judgement.signs) == name.startswith("apgd_t")


def test_several_signs_are_all_named():
    both = verdict(HONEST | {"autoattack_acc": 0.1, "fosc_relative": 1.0}, images=1000)
    assert both.word == "overestimation, fosc"


def test_overestimation_is_the_gap_to_the_strongest_attack_of_either_kind():
    """PGD with more steps counts as well, once something else than cross-entropy was ascended."""
    numbers = {"pgd10_acc": 0.9, "pgd100_acc": 0.5, "apgd_t_acc": 0.88}
    assert "overestimation" in verdict(numbers, images=100).signs
    assert "overestimation" in verdict(numbers | {"pgd100_acc": 0.9}, images=100).clear


def test_a_measured_overestimation_goes_before_the_difference():
    numbers = {"pgd10_acc": 0.9, "autoattack_acc": 0.5}
    assert verdict(numbers, images=100).signs == ("overestimation",)
    assert verdict(numbers | {"overestimation": 0.05}, images=100).word == "trusted"


@pytest.mark.parametrize(("name", "least"), [("overestimation", 81), ("square-stronger", 21)])
def test_a_check_without_the_power_to_see_a_gap_of_20_points_is_missing(name, least):
    for images in (16, least - 1):
        judgement = verdict(HONEST, images)
        assert name in judgement.missing and name not in judgement.clear
    assert verdict(HONEST, 16).word == "unchecked"
    assert name in verdict(HONEST, least).clear
    # by counting: the smallest count of images that is a sign, as a share of them
    gaps = [k / least for k in range(least + 1)]
    check = CHECKS[name][0]
    args = (lambda g: (g, least)) if name == "overestimation" else (lambda g: (0.0, g, least))
    assert min(g for g in gaps if check(*args(g))) <= 0.2 + 1 / least


def test_a_sign_needs_no_power_but_itself():
    assert "overestimation" in verdict(HONEST | {"autoattack_acc": 0.0}, images=16).signs


def test_what_one_set_of_images_shows_the_others_do_not_hide():
    masked = verdict(HONEST | {"autoattack_acc": 0.1}, images=64)
    calm = verdict(HONEST, images=1000)
    for judgements in ([masked, calm], [calm, masked]):
        whole = together(judgements)
        assert whole.word == "overestimation" and whole.missing == ()
    assert together([calm]).word == "trusted"
    assert together([verdict({}, images=10)]).missing == tuple(CHECKS)


@pytest.mark.parametrize("flag", ["randomised", "probabilities", "dynamic"])
def test_a_warning_of_the_attacks_is_a_sign(flag):
    assert together([verdict(HONEST, 1000)], [flag]).word == flag


def test_a_warning_whose_check_was_made_is_no_sign():
    calm = verdict(HONEST, 1000)  # allows for an odd image, as the warnings do not
    assert together([calm], ["zero-gradient", "square-stronger", "few-classes"]).word == "trusted"
    blind = {key: HONEST[key] for key in ("pgd10_acc", "autoattack_acc")}
    found = together([verdict(blind, 1000)], ["zero-gradient", "square-stronger", "partial"])
    assert found.word == "square-stronger, zero-gradient"


@pytest.mark.parametrize("images", [5, 100, 10_000])
def test_a_gap_must_be_of_more_than_four_images(images):
    assert not any(exceeds(count / images, 0.0, images) for count in range(5))
    assert all(exceeds(count / images, 0.0, images) for count in range(5, images + 1))


def test_a_gap_must_be_above_the_threshold_by_twice_its_standard_error():
    draws = np.random.default_rng(0).binomial(400, 0.1, size=20_000) / 400
    alarms = np.mean([exceeds(gap, 0.1, 400) for gap in draws])
    assert 0.005 < alarms < 0.025  # the upper tail of two standard errors of a gap just at it
    assert exceeds(0.18, 0.1, 400) and not exceeds(0.18, 0.1, 100)


@pytest.mark.parametrize("gap", [-1.0, -0.3, 0.0, 0.05])
def test_a_gap_up_to_the_threshold_is_none(gap):
    assert not exceeds(gap, 0.05, 10**9)
    assert exceeds(0.0502, 0.05, 10**9)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: exceeds(0.1, 0.0, 0), "images is 0, expected .* write 1000"),
        (lambda: exceeds(27.0, 0.1, 100), r"gap is 27.0, expected a number in \[-1, 1\]"),
        (
            lambda: zero_gradients(nn.Flatten(), torch.rand(2, 3), torch.ones(2).long(), 0),
            "batch is 0",
        ),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- on models


class Between(nn.Module):
    """A net with a function before it and one behind it."""

    def __init__(self, net, before=None, after=None):
        super().__init__()
        self.net, self.before, self.after = net, before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def quantised(x):
    """Pixels in steps of 1/6, which the budget can cross: no gradient passes."""
    return (6 * x).round() / 6


class Shaken(nn.Module):
    """A rugged score whose ripple has another phase for each image at each call."""

    def __init__(self, model):
        super().__init__()
        self.model, self.generator = model, torch.Generator().manual_seed(0)

    def forward(self, x):
        u = self.model(x)[:, 1] * 2
        phase = 2 * math.pi * torch.rand(u.shape, generator=self.generator)
        s = u + 0.05 * torch.sin(400 * u + phase)
        return torch.stack([-s / 2, s / 2], dim=1)


def measured(model, x, y, threat, classes):
    """All that the checks read of a model."""
    eps, batch = threat.eps, len(x)

    def share(points):
        return correct(model, points, y, batch).mean().item()

    def under_pgd(steps, eps):
        ball = ThreatModel("linf", eps)
        return pgd_correct(model, x, y, ball, steps=steps, batch=batch, seed=0).mean().item()

    def alone(name):
        one = autoattack(model, x, y, threat, classes=classes, batch=batch, attacks=(name,))
        return one.accuracies[name]

    x_adv = pgd(model, x, y, threat, steps=10, alpha=eps / 4)
    gap = relative_gap(x, x_adv, input_gradient(model, x_adv, y), threat)
    return {
        "clean_acc": share(x),
        "fgsm_acc": share(fgsm(model, x, y, threat)),
        "pgd10_acc": under_pgd(10, eps),
        "pgd100_acc": under_pgd(100, eps),
        "pgd10_2eps_acc": under_pgd(10, 2 * eps),
        "pgd10_large_eps_acc": under_pgd(10, 0.5),
        "square5000_acc": alone("square"),
        "apgd_ce_acc": alone("apgd-ce"),
        "zero_gradient_share": zero_gradients(model, x, y, 128).mean(),
        "fosc_relative": gap.mean().item(),
    } | ({"apgd_t_acc": alone("apgd-t")} if classes > 3 else {"fab_acc": alone("fab")})


@pytest.fixture(scope="module")
def controls():
    w, x, y = points()
    x, y = x[:400], y[:400]
    models = {"plain": plain(w), "saturated": saturated(w), "rugged": rugged(w)}
    numbers = {name: measured(model, x, y, THREAT, 2) for name, model in models.items()}
    exact = {name: exact_robust_accuracy(model, x, y) for name, model in models.items()}
    return {name: (numbers[name], exact[name], verdict(numbers[name], 400)) for name in models}


def test_plain_control_is_trusted_with_every_check(controls):
    numbers, exact, judgement = controls["plain"]
    assert numbers["pgd10_acc"] == pytest.approx(exact, abs=1 / 400)
    assert judgement.word == "trusted" and judgement.missing == ("ce-saturated",)


def test_saturated_control_is_found_without_fosc(controls):
    numbers, exact, judgement = controls["saturated"]
    assert numbers["pgd10_acc"] - exact > 0.2
    assert {"overestimation", "zero-gradient", "square-stronger"} <= set(judgement.signs)
    assert "fosc" in judgement.clear


def test_rugged_control_is_found_with_fosc(controls):
    numbers, exact, judgement = controls["rugged"]
    assert numbers["pgd10_acc"] - exact > 0.2
    assert {"overestimation", "fosc", "one-step-stronger"} <= set(judgement.signs)
    assert "zero-gradient" in judgement.clear


def test_a_randomised_rugged_model_is_found_by_fosc():
    w, x, y = points()
    model = Shaken(plain(w))
    x_adv = pgd(model, x, y, THREAT, steps=10, alpha=2 / 255)
    gap = relative_gap(x, x_adv, input_gradient(model, x_adv, y), THREAT).mean().item()
    assert gap == pytest.approx(1, abs=0.15)  # as if no step had been made
    assert verdict({"fosc_relative": gap}, len(x)).signs == ("fosc",)


DIGITS = ThreatModel("linf", 0.1)


@pytest.fixture(scope="module")
def net():
    """A small net, trained against PGD for about a second, and held-out digits."""
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optim = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        x_adv = pgd(model, x[:-200], y[:-200], DIGITS, steps=3, alpha=0.05)
        optim.zero_grad()
        nn.functional.cross_entropy(model(x_adv), y[:-200]).backward()
        optim.step()
    return model, x[-200:], y[-200:]


def judged(model, x, y):
    numbers = measured(model, x, y, DIGITS, 10)
    return numbers, verdict(numbers, len(x))


@pytest.fixture(scope="module")
def honest(net):
    return judged(*net)


def test_an_honest_adversarially_trained_net_is_trusted_with_every_check(honest):
    numbers, judgement = honest
    assert 0.5 < numbers["apgd_t_acc"] <= numbers["pgd10_acc"] < numbers["clean_acc"]
    assert judgement.word == "trusted" and judgement.missing == ()


def test_a_quantised_input_is_found_by_zero_gradients_and_square(net):
    model, x, y = net
    numbers, judgement = judged(Between(model, before=quantised), x, y)
    assert numbers["zero_gradient_share"] == 1
    assert {"overestimation", "square-stronger", "zero-gradient"} <= set(judgement.signs)
    assert "fosc" in judgement.clear


def test_a_softmax_behind_certain_logits_is_found_though_no_attack_succeeds(net, honest):
    model, x, y = net
    certain = Between(model, after=lambda z: torch.softmax(100 * z, dim=1))
    numbers, judgement = judged(certain, x, y)
    assert numbers["clean_acc"] == honest[0]["clean_acc"]  # the same labels: the same robustness
    assert numbers["apgd_t_acc"] > honest[0]["apgd_t_acc"] + 0.1
    assert {"large-eps-survived", "square-stronger", "zero-gradient"} <= set(judgement.signs)


def test_logits_scaled_up_are_found_by_the_loss_that_is_free_of_scale(net, honest):
    model, x, y = net
    numbers, judgement = judged(Between(model, after=lambda z: 1e4 * z), x, y)
    assert numbers["apgd_t_acc"] == pytest.approx(honest[0]["apgd_t_acc"], abs=0.01)
    assert {"overestimation", "zero-gradient", "ce-saturated"} <= set(judgement.signs)


# --- the share of zero gradients


def test_zero_gradients_are_found_in_any_batches():
    class Half(nn.Module):
        """The first pixel decides whether the rest is seen."""

        def forward(self, x):
            seen = (x[:, :1] > 0.5).float()
            return torch.cat([seen * x[:, 1:2], 1 - x[:, 1:2] * 0], dim=1)

    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(37, 3, generator=generator), torch.zeros(37, dtype=torch.int64)
    expected = (x[:, 0] <= 0.5).double().mean().item()
    assert 0.3 < expected < 0.7
    for batch in (1, 8, 37, 100):
        assert (zero_gradients(Half(), x, y, batch) == (x[:, 0] <= 0.5).numpy()).all()


def test_a_model_that_detaches_its_input_has_no_gradient():
    x, y = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    detached = Between(nn.Linear(3, 2), before=torch.Tensor.detach)
    assert zero_gradients(detached, x, y, 2).all()
    assert not zero_gradients(detached.net, x, y, 2).any()


def test_zero_gradients_leave_everything_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model[0].bias.requires_grad_(False)
    x, y = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        zero_gradients(model, x, y, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model) and not x.requires_grad
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
