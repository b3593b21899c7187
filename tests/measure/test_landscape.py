from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raydist.adversary.attack import pgd
from raydist.adversary.threat import ThreatModel
from raydist.learning.small import Point
from raydist.measure.landscape import (
    filter_normalised,
    plane,
    risk,
    scan,
    unit_rise,
)
from raydist.vector import FlatModel, flat, split, write

ATTACK = partial(pgd, threat=ThreatModel("linf", 0.1), steps=2, alpha=0.05)
HESSIAN = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)


def network(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5)),
            *(nn.Flatten(), nn.Linear(64, 3)),
        )
        model(torch.rand(20, 1, 6, 6))  # running statistics that are not 0 and 1
    return model.to(dtype)


def images(*sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(sum(sizes), 1, 6, 6, generator=generator, dtype=dtype)
    y = torch.randint(3, (len(x),), generator=generator)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def point(w):
    return Point(torch.tensor(w, dtype=torch.float64))


def quadratic(residuals, y):
    return (residuals**2 @ HESSIAN / 2).mean()


def centres(*sizes):
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [(part, torch.zeros(len(part))) for part in x.split(sizes)]


def everything(model):
    values = {key: value.tolist() for key, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    modes = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return values, grads, modes, torch.get_rng_state().tolist()


def random_direction(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_the_scan_at_zero_is_the_risk(attack):
    model, data = network(), images(5, 3)
    directions = torch.stack([filter_normalised(model, 0, index) for index in range(2)])
    here = risk(model, data, F.cross_entropy, attack, 7)
    risks = scan(model, directions, [[0, 0], [0.5, 0], [0, 0]], data, F.cross_entropy, attack, 7)
    assert risks[0] == here == risks[2] != risks[1]
    assert risks.dtype == np.float64


def test_the_risk_is_the_mean_over_samples_in_eval_mode_whatever_the_batches():
    model, data = network(torch.float64), images(5, 2, 1, dtype=torch.float64)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    expected = F.cross_entropy(network(torch.float64).eval()(x), y).item()
    assert risk(model, data) == pytest.approx(expected, rel=1e-14)
    assert risk(model, data, attack=ATTACK) > risk(model, data)


def test_scans_of_a_quadratic_are_parabolas_and_paraboloids():
    model, data = point([0.3, -1.0, 2.0]), centres(4, 3, 1)
    x = torch.cat([part for part, _ in data])
    directions = torch.stack([random_direction(3, seed) for seed in range(2)])
    t = [(a, b) for a in (-1.0, 0.0, 0.7) for b in (-0.2, 0.0, 3.0)]

    residual = model.w.detach() - x.mean(0)
    spread = ((x - x.mean(0)) ** 2 @ HESSIAN / 2).mean()
    gradient, curvature = directions @ (HESSIAN * residual), (directions * HESSIAN) @ directions.T

    def exact(c):
        c = torch.tensor(c, dtype=torch.float64)
        value = spread + residual**2 @ HESSIAN / 2 + c @ gradient + c @ curvature @ c / 2
        return value.item()

    found = scan(model, directions, t, data, quadratic)
    np.testing.assert_allclose(found, [exact(c) for c in t], rtol=1e-13)
    line = scan(model, directions[:1], [[a] for a, b in t if b == 0], data, quadratic)
    np.testing.assert_allclose(line, [exact(c) for c in t if c[1] == 0], rtol=1e-13)


@pytest.mark.parametrize("eps", [0.0, 0.6, 1.2])
def test_the_adversarial_risk_of_one_weight_has_its_kink(eps):
    # log(1 + exp(θ + ε|θ|)): the attack at each θ moves x = 1 by ε sign(θ)
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    data = [(torch.ones(3, 1, dtype=torch.float64), torch.zeros(3))]
    threat = ThreatModel("linf", eps, (-np.inf, np.inf))

    def each(outputs, y):
        return F.softplus(outputs).squeeze(1)

    attack = partial(pgd, threat=threat, steps=4, alpha=0.5, start="zero", loss=each)
    theta = np.linspace(-1, 1, 41)
    start = model.weight.item()
    found = scan(
        model,
        torch.ones(1, 1),
        (theta - start)[:, None],
        data,
        lambda outputs, y: each(outputs, y).mean(),
        attack,
    )
    exact = np.log1p(np.exp(theta + eps * np.abs(theta)))
    np.testing.assert_allclose(found, exact, rtol=1e-14)
    slopes = np.diff(found)[19:21] / 0.05  # left and right of 0
    assert slopes[1] - slopes[0] == pytest.approx(eps, abs=0.06)
    assert (found.argmin() == 20) == (eps == 1.2)  # θ = 0 is the minimum where eps > |x| only


@pytest.mark.parametrize("small", ["normalise", "zero"])
def test_every_filter_has_the_norm_of_its_weights(small):
    model = network(torch.float64)
    parameters = list(model.parameters())
    d = filter_normalised(model, 3, 1, small)
    for w, part in zip(parameters, split(d, parameters), strict=True):
        if w.ndim > 1:
            torch.testing.assert_close(part.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1))
            assert F.cosine_similarity(part.flatten(), w.flatten(), dim=0).abs() < 0.6
        elif small == "zero":
            assert not part.any()
        else:
            assert torch.equal(part.abs(), w.abs())
    if small == "normalise":
        assert d.norm().item() == pytest.approx(flat(parameters).norm().item(), rel=1e-12)


def test_directions_are_functions_of_seed_and_index():
    model = network()
    before = torch.get_rng_state()
    drawn = {(s, i): filter_normalised(model, s, i, "zero") for s in range(2) for i in range(3)}
    again = {(s, i): filter_normalised(model, s, i, "zero") for s, i in reversed(drawn)}
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(drawn[key], again[key]) for key in drawn)
    cosines = torch.corrcoef(torch.stack(list(drawn.values()))) - torch.eye(6)
    assert cosines.abs().max() < 0.5 and drawn[0, 0].dtype == torch.float32


def test_frozen_parameters_do_not_count():
    model = network()
    model[0].weight.requires_grad_(False)
    d = filter_normalised(model, 0)
    assert len(d) == sum(p.numel() for p in model.parameters()) - 36
    scan(model, d[None], [[1.0]], images(2))
    with pytest.raises(ValueError, match="no trainable parameter"):
        filter_normalised(model.requires_grad_(False), 0)


def test_a_plane_has_orthogonal_axes_of_the_given_lengths():
    first, second = random_direction(50), 3 * random_direction(50, 1) + random_direction(50)
    axes = plane(first, second)
    assert torch.equal(axes[0], first)
    assert (axes[0] @ axes[1]).abs() < 1e-12 * first.norm() * second.norm()
    assert axes[1].norm().item() == pytest.approx(second.norm().item(), rel=1e-14)
    span = torch.linalg.lstsq(axes.T, second[:, None]).solution
    torch.testing.assert_close(axes.T @ span, second[:, None])
    for other in (-2 * first, 0 * first):
        with pytest.raises(ValueError, match="parallel or 0"):
            plane(first, other)


@pytest.mark.parametrize("array", [torch.Tensor.clone, torch.Tensor.numpy])
def test_on_eigenvectors_a_quadratic_rises_by_the_square_of_the_coordinates(array):
    origin = [(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1))]
    axes = unit_rise(HESSIAN[:2].numpy(), array(torch.eye(3, dtype=torch.float64)[:2]))
    t = [[0.0, 0.0], [1.0, 0.0], [0.0, -2.0], [3.0, 1.0]]
    risks = scan(point([0.0, 0.0, 0.0]), axes, t, origin, quadratic)
    np.testing.assert_allclose(risks, [0.0, 1.0, 4.0, 10.0], atol=1e-12)
    with pytest.raises(ValueError, match="above 0"):
        unit_rise([1.0, 0.0], torch.eye(2))


def test_values_do_not_depend_on_the_other_points():
    model, data = network(), images(4, 3)
    directions = plane(*(filter_normalised(model, 0, index) for index in range(2)))
    t = [[a, b] for a in (-1, 0, 0.3) for b in (-0.5, 1)]
    together = scan(model, directions, t, data, attack=ATTACK, seed=5)
    apart = [scan(model, directions, [c], data, attack=ATTACK, seed=5)[0] for c in reversed(t)]
    assert together.tolist() == apart[::-1]
    assert together.tolist() != scan(model, directions, t, data, attack=ATTACK, seed=6).tolist()


def test_draws_depend_on_seed_and_batch_and_not_on_the_point():
    model, data, drawn = network(), images(2, 2), []

    def attack(model, x, y, generator):
        drawn.append(torch.rand(3, generator=generator).tolist())
        return x

    d = filter_normalised(model, 0)[None]
    scan(model, d, [[0.0], [1.0]], data, attack=attack, seed=0)
    risk(model, data, attack=attack, seed=1)
    assert drawn[:2] == drawn[2:4] and len({tuple(draw) for draw in drawn}) == 4


def test_the_attack_is_made_at_the_moved_weights_in_eval_mode():
    model, seen = network(), []

    def attack(model, x, y, generator):
        seen.append(flat(model.parameters()))
        assert torch.is_grad_enabled() and not any(m.training for m in model.modules())
        return x

    w, d = flat(model.parameters()), filter_normalised(model, 0)
    scan(model, d[None], [[0.5], [-1.0]], images(2), attack=attack)
    torch.testing.assert_close(torch.stack(seen), torch.stack([w + 0.5 * d, w - d]))


def measured(model, data, attack=ATTACK):
    d = filter_normalised(model, 0)[None]
    risk(model, data, attack=attack)
    scan(model, d, [[0.1], [1e30]], data, attack=attack)


def broken(model, x, y, *, generator):
    if len(x) == 3:
        raise RuntimeError("the attack failed")
    return x


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("attack", [ATTACK, broken])
def test_the_model_is_left_as_found_even_after_an_exception(train, attack):
    model = network().train(train)
    held = FlatModel(model)
    held.w.data[::7] = -0.0
    held.grad.fill_(2.0)
    before, bits = everything(model), held.w.detach().view(torch.int32).clone()
    if attack is broken:
        with pytest.raises(RuntimeError, match="the attack failed"):
            scan(model, filter_normalised(model, 0)[None], [[1.0]], images(4, 3), attack=attack)
    else:
        measured(model, images(4, 3))
    assert everything(model) == before
    assert torch.equal(held.w.detach().view(torch.int32), bits)  # still the views that they were


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: scan(m, d[None], [0.0, 1.0], images(1)), r"shape \(2,\)"),
        (lambda m, d: scan(m, d[None], [[0.0, 1.0]], images(1)), r"expected \(n, m\) and"),
        (lambda m, d: scan(m, d[None, 1:], [[0.0]], images(1)), r"expected \(n, m\) and"),
        (lambda m, d: filter_normalised(m, 0, small="biasbn"), "small is 'biasbn'"),
        (lambda m, d: risk(m, []), "hold no sample"),
        (lambda m, d: scan(m, d[None], [[0.0], [1.0]], iter(images(1))), "hold no sample"),
        (lambda m, d: write(m.parameters(), d[1:]), r"expected \(\d+,\)"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    model = network()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        call(model, filter_normalised(model, 0))
    assert everything(model) == before
