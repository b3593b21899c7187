import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raydist.adversary.attack import fgsm, kl_pgd
from raydist.adversary.loss import mart, pgd_at, quadratic, standard, trades, wasserstein
from raydist.adversary.objective import cross_entropies, kl_divergences, quadratics
from raydist.adversary.threat import ThreatModel

HESSIAN = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
LOSSES = {
    "standard": standard,
    "pgd_at": pgd_at,
    "trades": partial(trades, beta=6.0),
    "mart": partial(mart, beta=5.0),
    "wasserstein": partial(wasserstein, beta=1.5),
    "quadratic": partial(quadratic, hessian=HESSIAN),
}


def network(dtype=torch.float64):
    """A small network with BatchNorm, in train mode: (N, 1, 6, 6) to 3 logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        return nn.Sequential(*layers).to(dtype)


def batch(dtype=torch.float64, n=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 6, 6, generator=generator, dtype=dtype)
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=generator, dtype=dtype)).clamp(0, 1)
    return x, x_adv, torch.randint(3, (n,), generator=generator)


class Point(nn.Module):
    """The parameter is the point w; the output is the residual w − x."""

    def __init__(self, w):
        super().__init__()
        self.w = w

    def forward(self, x):
        return self.w - x


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_scalars_that_leave_no_gradient_and_no_mode_behind(name):
    model = network()
    x, x_adv, y = batch()
    before = [p.detach().clone() for p in model.parameters()]
    loss = LOSSES[name](model, x, x_adv, y)
    assert loss.shape == () and loss.requires_grad
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_means_of_single_samples(name):
    model = network().eval()
    x, x_adv, y = batch()
    single = [LOSSES[name](model, x[[i]], x_adv[[i]], y[[i]]) for i in range(len(x))]
    torch.testing.assert_close(LOSSES[name](model, x, x_adv, y), torch.stack(single).mean())


def test_standard_sees_clean_points_and_pgd_at_adversarial_ones():
    model = network().eval()
    x, x_adv, y = batch()
    clean, adversarial = (-model(z).log_softmax(1)[range(8), y].mean() for z in (x, x_adv))
    torch.testing.assert_close(standard(model, x, x_adv, y), clean)
    torch.testing.assert_close(pgd_at(model, x, x_adv, y), adversarial)
    assert abs(clean - adversarial) > 1e-3


def published_trades(model, x, y, noise, *, eps, alpha, steps, beta):
    """The released loss, step by step: clean logits anew each time, .backward()-style criterion."""
    criterion = nn.KLDivLoss(reduction="sum")
    model.eval()
    x_adv = x + noise
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        value = criterion(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1))
        (grad,) = torch.autograd.grad(value, x_adv)
        x_adv = x_adv.detach() + alpha * torch.sign(grad)
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    model.train()
    natural = F.cross_entropy(model(x), y)
    robust = criterion(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1)) / len(x)
    return x_adv.detach(), natural + beta * robust


def test_trades_with_its_attack_equals_the_published_code():
    x, _, y = batch()
    noise = 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    slow, fast = network(), network()
    expected_x, expected = published_trades(
        slow, x, y, noise, eps=8 / 255, alpha=2 / 255, steps=10, beta=6.0
    )
    threat, generator = ThreatModel("linf", 8 / 255), torch.Generator().manual_seed(3)
    x_adv = kl_pgd(fast, x, y, threat, steps=10, alpha=2 / 255, generator=generator)
    torch.testing.assert_close(x_adv, expected_x, rtol=0, atol=1e-12)
    loss = trades(fast, x, x_adv, y, 6.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(fast, loss), gradients(slow, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_trades_in_float32_has_the_gradients_of_the_published_criterion():
    model = network(torch.float32)
    x, x_adv, y = batch(torch.float32)
    kl = F.kl_div(model(x_adv).log_softmax(1), model(x).softmax(1), reduction="batchmean")
    expected = gradients(model, F.cross_entropy(model(x), y) + 6.0 * kl)
    ours = gradients(model, trades(model, x, x_adv, y, 6.0))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_trades_passes_the_gradient_through_both_arguments():
    model = network()
    x, x_adv, y = batch()
    constant = model(x).detach()
    detached = F.cross_entropy(model(x), y) + kl_divergences(constant, model(x_adv)).mean()
    full, half = gradients(model, trades(model, x, x_adv, y, 1.0)), gradients(model, detached)
    assert max((a - b).abs().max() for a, b in zip(full, half, strict=True)) > 1e-3


def test_trades_shows_batch_norm_the_clean_batch_first_and_each_batch_once():
    ours, expected = network(), network()
    x, x_adv, y = batch()
    trades(ours, x, x_adv, y, 1.0)
    expected(x), expected(x_adv)
    assert ours[1].num_batches_tracked == 2
    torch.testing.assert_close(ours[1].running_mean, expected[1].running_mean, rtol=1e-12, atol=0)


def test_trades_without_weight_or_perturbation_is_the_clean_loss():
    model = network()
    x, x_adv, y = batch()
    clean = standard(model, x, x, y)
    torch.testing.assert_close(trades(model, x, x_adv, y, 0.0), clean, rtol=1e-14, atol=0)
    torch.testing.assert_close(trades(model, x, x, y, 6.0), clean, rtol=1e-14, atol=0)


def test_kl_by_hand_and_with_a_class_of_probability_zero():
    clean, outputs = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(kl_divergences(clean, outputs), torch.tensor([expected]))
    certain = torch.tensor([[0.0, -1e4]], requires_grad=True)
    value = kl_divergences(certain, torch.zeros(1, 2)).sum()
    torch.testing.assert_close(value.detach(), torch.tensor(math.log(2)))
    assert torch.autograd.grad(value, certain)[0].isfinite().all()


class Table(nn.Module):
    """Looks its logits up: the point x is the number of a row."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x):
        return self.logits[x[:, 0].long()]


def test_wasserstein_by_hand():
    # three batches of two points: clean 0 and 1, distributional 2 and 3, pointwise 4 and 5
    p = torch.tensor([[1, 1], [1, 3], [1, 7], [1, 1], [3, 1], [1, 15]], dtype=torch.float64)
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    both = torch.tensor([[2.0], [3.0], [4.0], [5.0]])
    clean, distributional = math.log(2) + math.log(4 / 3), math.log(8) + math.log(2)
    pointwise = math.log(4 / 3) + math.log(16 / 15)
    loss = wasserstein(Table(p.log()), x, both, y, beta=1.5, gamma=0.25)
    expected = (clean + 1.5 * distributional + 0.25 * pointwise) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss = wasserstein(Table(p.log()), x, both[:2], y, beta=1.5)
    assert loss.item() == pytest.approx((clean + 1.5 * distributional) / 2, rel=1e-12)
    with pytest.raises(ValueError):  # no weight for a third attack
        wasserstein(Table(p.log()), x, torch.cat([both, both[2:]]), y, beta=1.5, gamma=0.25)


@pytest.mark.parametrize("copies", [1, 2])
def test_wasserstein_without_weights_is_the_clean_loss(copies):
    model = network().eval()
    x, x_adv, y = batch()
    loss = wasserstein(model, x, torch.cat([x_adv] * copies), y, beta=0.0, gamma=0.0)
    torch.testing.assert_close(loss, standard(model, x, x, y), rtol=1e-14, atol=0)


def test_wasserstein_weighs_the_gradients_of_its_terms():
    model = network().eval()
    x, x_adv, y = batch()
    beyond = 1 - x
    whole = gradients(model, wasserstein(model, x, torch.cat([x_adv, beyond]), y, 1.5, 0.25))
    terms = [gradients(model, standard(model, z, z, y)) for z in (x, x_adv, beyond)]
    for ours, clean, distributional, pointwise in zip(whole, *terms, strict=True):
        expected = clean + 1.5 * distributional + 0.25 * pointwise
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


def test_quadratic_by_hand():
    w = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    model, hessian = Point(w), torch.tensor([2.0, 0.5], dtype=torch.float64)
    x_adv = torch.tensor([[0.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    loss = quadratic(model, torch.zeros_like(x_adv), x_adv, torch.zeros(2), hessian)
    torch.testing.assert_close(loss, torch.tensor((2.0 + 4.0) / 2).double())
    # mean of H (w - x): H ((1, -2) + (-2, 0)) / 2
    torch.testing.assert_close(torch.autograd.grad(loss, w)[0], torch.tensor([-1.0, -0.5]).double())


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5])
def test_adversarial_quadratic_risk_and_gradient_match_their_closed_form(eps):
    # w - x ~ N(m, s^2): J = (m^2 + s^2)/2 + eps E|w - x| + eps^2/2, J' = m + eps (2 Phi(m/s) - 1)
    m, s, n = 0.7, 1.0, 200_001
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = (-m + s * math.sqrt(2) * torch.erfinv(2 * quantiles - 1)).unsqueeze(1)
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    model, hessian = Point(w), torch.ones(1, dtype=torch.float64)
    threat = ThreatModel("linf", eps, (-math.inf, math.inf))
    x_adv = fgsm(model, x, x[:, 0], threat, loss=partial(quadratics, hessian=hessian))
    loss = quadratic(model, x, x_adv, x[:, 0], hessian)
    cdf = 0.5 * (1 + math.erf(m / s / math.sqrt(2)))
    absolute = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / 2 / s**2) + m * (2 * cdf - 1)
    assert loss.item() == pytest.approx((m**2 + s**2) / 2 + eps * absolute + eps**2 / 2, abs=1e-4)
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.item() == pytest.approx(m + eps * (2 * cdf - 1), abs=1e-4)


@pytest.mark.parametrize("eps", [0.1, 0.6])
def test_the_gradient_of_the_robust_loss_jumps_by_eps_at_zero(eps):
    # log(1 + exp(theta + eps |theta|)): slopes (1 + eps)/2 and (1 - eps)/2 at 0+ and 0-
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([1])
    threat = ThreatModel("linf", eps, (-math.inf, math.inf))

    def slope(theta):
        model = nn.Linear(1, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[theta], [0.0]]))
        x_adv = fgsm(model, x, y, threat)
        return torch.autograd.grad(pgd_at(model, x, x_adv, y), model.weight)[0][0, 0].item()

    assert slope(1e-9) == pytest.approx((1 + eps) / 2, abs=1e-8)
    assert slope(-1e-9) == pytest.approx((1 - eps) / 2, abs=1e-8)


def test_cross_entropies_are_per_sample():
    outputs = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    expected = torch.tensor([math.log(2), math.log(4)])
    torch.testing.assert_close(cross_entropies(outputs, torch.tensor([1, 0])), expected)
