import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raydist.adversary.attack import input_gradient, pgd
from raydist.adversary.loss import pgd_at, standard, trades
from raydist.adversary.telemetry import (
    accuracies,
    cosine,
    cosines,
    stepwise_cosine,
    trades_gradients,
    weight_gradient,
)
from raydist.adversary.threat import ThreatModel
from raydist.vector import FlatModel, frozen

THREAT = ThreatModel("linf", 0.1)
UNBOUNDED = (-math.inf, math.inf)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(64, 3),
        ).double()


def batch(n=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)).clamp(0, 1)
    return x, x_adv, torch.randint(3, (n,), generator=generator)


def classifier(classes, size=6):
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(size, classes, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.rand(9, size, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(classes, (9,), generator=generator)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


CALLS = {
    "weight_gradient": lambda m, x, a, y: weight_gradient(m, lambda: pgd_at(m, x, a, y)),
    "trades_gradients": lambda m, x, a, y: trades_gradients(m, x, a, y, 6.0)["total"],
    "stepwise_cosine": lambda m, x, a, y: stepwise_cosine(
        m, x, y, THREAT, 2, 0.05, generator=draw()
    ),
    "accuracies": lambda m, x, a, y: torch.stack(accuracies(m, x, a, y)),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_function_leaves_a_trace(name):
    model, (x, x_adv, y) = network(), batch()
    model[1].eval()  # modes and flags that differ between the parts of the model
    model[0].bias.requires_grad_(False)
    model[5].bias.grad = torch.full((3,), 7.0, dtype=torch.float64)

    def state():
        flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
        values = {key: value.tolist() for key, value in model.state_dict().items()}
        return flags, grads, values, torch.get_rng_state().tolist()

    for part in (model[1].train(), model[1].eval()):
        before, mode = state(), part.training
        with torch.no_grad():
            result = CALLS[name](model, x, x_adv, y)
        assert state() == before and part.training == mode
        assert not result.requires_grad and result.isfinite().all()


def test_softmax_regression_closed_form():
    # grad W = (P - Y)' X / N, grad b = mean(P - Y)
    model, x, y = classifier(3)
    residual = model(x).softmax(1).detach() - F.one_hot(y, 3)
    expected = torch.cat([(residual.T @ x / len(x)).flatten(), residual.mean(0)])
    g = weight_gradient(model, lambda: standard(model, x, x, y))
    torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-14)


def test_the_vector_is_the_flat_gradient_of_training():
    flat, (x, x_adv, y) = FlatModel(network()), batch()
    flat.module[3].eval()  # no dropout: the same pass twice
    g = weight_gradient(flat.module, lambda: pgd_at(flat.module, x, x_adv, y))
    assert not flat.grad.any()
    torch.autograd.backward(pgd_at(flat.module, x, x_adv, y))
    torch.testing.assert_close(g, flat.grad, rtol=1e-12, atol=1e-15)


def test_parameters_without_influence_have_gradient_zero():
    model = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(1, 1)])
    g = weight_gradient(model, lambda: model[0](torch.tensor([[3.0, 4.0]])).sum())
    assert g.tolist() == [3.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_the_gradient_of_trades_is_that_of_its_terms(beta):
    model, (x, x_adv, y) = network(), batch()
    with torch.random.fork_rng(devices=[]):  # dropout alike in all three
        torch.manual_seed(2)
        parts = trades_gradients(model, x, x_adv, y, beta)
        total = weight_gradient(model, lambda: trades(model, x, x_adv, y, beta))
        clean = weight_gradient(model, lambda: standard(model, x, x, y))
    torch.testing.assert_close(parts["total"], total, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(parts["ce"], clean, rtol=1e-9, atol=1e-13)
    ce, kl = parts["ce"].norm() ** 2, parts["kl"].norm() ** 2
    square = ce + beta**2 * kl + 2 * beta * parts["ce"] @ parts["kl"]
    torch.testing.assert_close(parts["total"].norm() ** 2, square)


def test_the_kl_part_of_a_linear_model_closed_form():
    # d KL/d(clean logits) = p (log p/q - KL), d KL/d(adversarial logits) = q - p
    model, x, y = classifier(3)
    x_adv = x + 0.3
    p, q = model(x).softmax(1).detach(), model(x_adv).softmax(1).detach()
    kl = (p * (p / q).log()).sum(1, keepdim=True)
    clean, adversarial = p * ((p / q).log() - kl), q - p
    weight = (clean.T @ x + adversarial.T @ x_adv) / len(x)
    expected = torch.cat([weight.flatten(), (clean + adversarial).mean(0)])
    found = trades_gradients(model, x, x_adv, y, 6.0)["kl"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
    at_clean = trades_gradients(model, x, x, y, 6.0)["kl"]
    torch.testing.assert_close(at_clean, torch.zeros_like(at_clean), rtol=0, atol=1e-15)


def test_cosines_by_hand_at_any_scale():
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    b = torch.tensor([[4.0, 3.0], [0.0, 2.0], [-2.0, -4.0], [1.0, 0.0]])
    expected = torch.tensor([0.96, 0.0, -1.0, 0.0])
    for scale in (1.0, 1e-30, 1e30):
        torch.testing.assert_close(cosines(scale * a, b), expected)
        torch.testing.assert_close(cosine(scale * a[0], scale * b[0]), expected[0])


def test_the_cosine_of_the_gradient_before_and_after_a_step_on_a_quadratic():
    # J = (w_1^2 + 9 w_2^2)/2, w = (1, 1): g = (1, 9); after mu = 1/5: w = (4/5, -4/5)
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    hessian = torch.tensor([1.0, 9.0], dtype=torch.float64)

    def objective():
        return (hessian * model.weight**2).sum() / 2

    with torch.no_grad():
        model.weight.fill_(1.0)
        before = weight_gradient(model, objective)
        model.weight.sub_(0.2 * before.view(1, 2))
    value = cosine(before, weight_gradient(model, objective))
    assert value.item() == pytest.approx((1 - 81) / 82)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_way_of_an_attack_on_a_two_class_linear_model_is_straight(norm):
    model, x, y = classifier(2)
    value = stepwise_cosine(model, x, y, ThreatModel(norm, 0.3), 5, 0.1, generator=draw())
    assert value.item() == pytest.approx(1.0, abs=1e-12)


def test_an_attack_that_jumps_over_a_ridge_has_cosine_minus_one():
    # ascent of -u^2 around u = 0 with steps longer than the ball: the side changes at each step
    x = torch.zeros(50, 1, dtype=torch.float64)
    threat = ThreatModel("linf", 0.1, UNBOUNDED)
    loss = partial(lambda outputs, y: -outputs.square().sum(1))
    args = nn.Identity(), x, x[:, 0], threat
    assert stepwise_cosine(*args, 4, 0.15, loss, generator=draw()).item() == pytest.approx(-1.0)
    # steps that do not reach the other side: never
    assert stepwise_cosine(*args, 4, 0.0, loss, generator=draw()).item() == pytest.approx(1.0)


def test_stepwise_cosine_equals_the_slow_version():
    model, (x, _, y) = network(), batch()
    steps, alpha, threat = 4, 0.2, ThreatModel("linf", 0.6)
    points = [threat.random_start(x, draw(7))]
    points += [
        pgd(model, x, y, threat, steps=t, alpha=alpha, generator=draw(7))
        for t in range(1, steps + 1)
    ]
    grads = [input_gradient(model, point, y) for point in points]
    values = [
        (grads[t][i] * grads[t + 1][i]).sum() / (grads[t][i].norm() * grads[t + 1][i].norm())
        for t in range(steps)
        for i in range(len(x))
    ]
    found = stepwise_cosine(model, x, y, threat, steps, alpha, generator=draw(7))
    torch.testing.assert_close(found, torch.stack(values).mean(), rtol=1e-10, atol=0)
    assert 0.1 < found < 0.999
    other = stepwise_cosine(model, x, y, threat, steps, alpha, generator=draw(8))
    assert not torch.equal(found, other)


def test_no_steps_have_no_cosine():
    model, x, y = classifier(2)
    with pytest.raises(ValueError, match="steps is 0"):
        stepwise_cosine(model, x, y, THREAT, 0, 0.1, generator=draw())


def test_adversarial_accuracy_counts_on_its_own_and_in_eval_mode():
    x = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6], [0.4, 0.6]])
    x_adv = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.4, 0.6], [0.4, 0.6]])
    y = torch.tensor([0, 1, 1, 0])
    assert [v.item() for v in accuracies(nn.Identity(), x, x_adv, y)] == [0.5, 0.75]
    model, (x, x_adv, y) = network(), batch()
    with frozen(model), torch.no_grad():
        expected = [(model(points).argmax(1) == y).double().mean() for points in (x, x_adv)]
    assert [v.item() for v in accuracies(model, x, x_adv, y)] == [v.item() for v in expected]
