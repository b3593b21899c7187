import math
from functools import partial

import pytest
import torch
from torch import nn

from raydist.adversary import loss as losses
from raydist.adversary.awp import perturbation, perturbed, weights
from raydist.vector import FlatModel

LOSSES = {
    "standard": losses.standard,
    "pgd_at": losses.pgd_at,
    "trades": partial(losses.trades, beta=6.0),
    "mart": partial(losses.mart, beta=5.0),
}
GAMMA = 0.01


def network(dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(64, 3),
        ).double()


def batch(n=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)).clamp(0, 1)
    return x, x_adv, torch.randint(3, (n,), generator=generator)


def linear(w):
    model = nn.Linear(len(w[0]), len(w), bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(w))
    return model


def everything(model):
    values = {key: value.tolist() for key, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    modes = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return values, grads, modes, torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", LOSSES)
def test_each_weight_moves_along_its_gradient_by_gamma_times_its_norm(name):
    model, data = network(), batch()
    v = perturbation(model, LOSSES[name], *data, GAMMA)
    moved = [model[0].weight, model[5].weight]
    gradients = torch.autograd.grad(LOSSES[name](model, *data), moved)
    assert [v_l.shape for v_l in v] == [w.shape for w in moved]
    for v_l, w, g in zip(v, moved, gradients, strict=True):
        assert v_l.norm().item() == pytest.approx(GAMMA * w.norm().item(), rel=1e-12)
        cosine = torch.nn.functional.cosine_similarity(v_l.flatten(), g.flatten(), dim=0)
        assert cosine.item() == pytest.approx(1.0, rel=1e-12)


def test_biases_and_batch_norm_do_not_move():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with perturbed(model, perturbation(model, losses.pgd_at, *batch(), GAMMA)):
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "5.weight"}
    assert [w.shape for w in weights(model)] == [(4, 1, 3, 3), (3, 64)]
    model[0].weight.requires_grad_(False)
    assert [w.shape for w in weights(model)] == [(3, 64)]


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_rises_by_the_first_order_amount(name):
    model, data, loss = network(), batch(), LOSSES[name]
    value = loss(model, *data)
    gradients = torch.autograd.grad(value, weights(model))
    slope = sum(
        (w.norm() * g.norm()).item() for w, g in zip(weights(model), gradients, strict=True)
    )
    tiny = 1e-7
    with perturbed(model, perturbation(model, loss, *data, tiny)) as moved:
        rise = (loss(moved, *data) - value).item()
    assert rise / tiny == pytest.approx(slope, rel=1e-4)


def test_linear_regression_closed_form():
    # J(W) = 1/2 mean |W x|^2, dJ/dW = W S with S = mean x x'; v = gamma |W| W S / |W S|
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model, loss = linear([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]]), losses.quadratic
    loss = partial(loss, hessian=torch.ones(2, dtype=torch.float64))
    w = model.weight.detach().clone()
    g = w @ (x.T @ x / len(x))
    (v,) = perturbation(model, loss, x, x, x[:, 0], 0.1)
    torch.testing.assert_close(v, 0.1 * w.norm() * g / g.norm(), rtol=1e-12, atol=0)


def test_in_one_dimension_the_weight_grows_by_the_factor_and_the_gradient_with_it():
    # J = w^2/2 at x = 1: v = gamma w, so J(w + v) = (1 + gamma)^2 J(w) and its gradient (1+gamma) w
    model, x = linear([[-3.0]]), torch.ones(1, 1, dtype=torch.float64)
    loss = partial(losses.quadratic, hessian=torch.ones(1, dtype=torch.float64))
    with perturbed(model, perturbation(model, loss, x, x, x, 0.5)):
        value = loss(model, x, x, x)
        value.backward()
    assert value.item() == pytest.approx(1.5**2 * 4.5)
    assert model.weight.grad.item() == pytest.approx(1.5 * -3.0)
    assert torch.equal(model.weight, torch.tensor([[-3.0]], dtype=torch.float64))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
def test_the_ascent_leaves_everything_as_it_was(training, dropout):
    model, data = network(dropout), batch()
    model.train(training)
    model[5].bias.grad = torch.full((3,), 7.0, dtype=torch.float64)
    before = everything(model)
    with torch.no_grad():
        perturbation(model, losses.pgd_at, *data, GAMMA)
    assert everything(model) == before


def test_the_ascent_normalises_by_the_batch_in_train_mode():
    model, data = network(), batch()
    train = perturbation(model, losses.pgd_at, *data, GAMMA)
    evaluated = perturbation(model.eval(), losses.pgd_at, *data, GAMMA)
    assert (train[0] - evaluated[0]).norm() > 1e-3 * train[0].norm()


def test_dropout_drops_the_same_units_in_the_ascent_and_in_the_step_after_it():
    model, (x, x_adv, y) = network(0.5), batch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        (v, _) = perturbation(model, losses.pgd_at, x, x_adv, y, 1.0)
        (g,) = torch.autograd.grad(losses.pgd_at(model, x, x_adv, y), model[0].weight)
    torch.testing.assert_close(v / v.norm(), g / g.norm())


def test_the_weights_come_back_bit_for_bit_also_after_an_error():
    model = network().float()  # in float32, w + v - v is not w
    v = [torch.full_like(w, 1 / 3) for w in weights(model)]
    before = [p.detach().clone() for p in model.parameters()]
    assert any(not torch.equal(w + d - d, w) for w, d in zip(weights(model), v, strict=True))
    with pytest.raises(RuntimeError, match="inside"), perturbed(model, v):
        assert torch.equal(model[0].weight, before[0] + 1 / 3)
        raise RuntimeError("inside")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_views_of_one_flat_vector_stay_views():
    flat, data = FlatModel(network()), batch()
    w, size = flat.w.detach().clone(), 4 * 9
    v = perturbation(flat.module, losses.pgd_at, *data, GAMMA)
    assert not flat.grad.any()
    with perturbed(flat.module, v) as model:
        assert torch.equal(flat.w[:size], w[:size] + v[0].flatten())
        torch.autograd.backward(losses.pgd_at(model, *data))
    assert torch.equal(flat.w, w)
    assert flat.grad.norm() > 0
    with torch.no_grad():
        flat.w.add_(1.0)
    torch.testing.assert_close(flat.module[0].weight.flatten(), w[:size] + 1.0)
    at_w_plus_v = flat.grad.clone()
    other = network()
    with torch.no_grad():
        for p, d in zip(weights(other), v, strict=True):
            p.add_(d)
    losses.pgd_at(other, *data).backward()
    expected = torch.cat([p.grad.flatten() for p in other.parameters()])
    torch.testing.assert_close(at_w_plus_v, expected, rtol=1e-12, atol=1e-15)


def test_gamma_zero_is_plain_training():
    plain, ours, data = network(), network(), batch()
    losses.pgd_at(plain, *data).backward()
    with perturbed(ours, perturbation(ours, losses.pgd_at, *data, 0.0)) as model:
        losses.pgd_at(model, *data).backward()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(plain.buffers(), ours.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_weight_without_influence_does_not_move():
    model = nn.ModuleDict({"used": linear([[1.0, 2.0]]), "unused": linear([[3.0]])})
    x = torch.ones(1, 2, dtype=torch.float64)
    used, unused = perturbation(model, lambda m, x, x_adv, y: m["used"](x).sum(), x, x, x, GAMMA)
    assert used.norm() > 0 and torch.equal(unused, torch.zeros(1, 1, dtype=torch.float64))


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_a_bad_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match=f"gamma is {gamma}"):
        perturbation(network(), losses.pgd_at, *batch(), gamma)


def test_a_model_without_a_weight_to_move_is_refused():
    with pytest.raises(ValueError, match="no trainable weight"):
        perturbation(nn.BatchNorm2d(1).double(), losses.pgd_at, *batch(), GAMMA)


def test_a_perturbation_of_another_model_is_refused():
    with (
        pytest.raises(ValueError, match=r"expected \[\(4, 1, 3, 3\), \(3, 64\)\]"),
        perturbed(network(), [torch.zeros(4, 1, 3, 3)]),
    ):
        pass
