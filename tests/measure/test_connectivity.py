from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raydist.adversary.attack import pgd
from raydist.adversary.threat import ThreatModel
from raydist.learning.small import Point
from raydist.measure.connectivity import (
    barrier,
    bezier,
    connect,
    curve_risk,
    interpolate,
    path_risk,
    recalibrate,
)
from raydist.measure.landscape import risk
from raydist.seeding import Purpose, numpy_rng
from raydist.vector import FlatModel, at, flat, state

ATTACK = partial(pgd, threat=ThreatModel("linf", 0.1), steps=2, alpha=0.05)
T = np.linspace(0, 1, 21)


def network(seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(64, 3)),
        )
        model(torch.rand(20, 1, 6, 6))
    return model.to(dtype)


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(sum(sizes), 1, 6, 6, generator=generator)
    y = torch.randint(3, (len(x),), generator=generator)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def point(*w):
    return Point(torch.tensor(w, dtype=torch.float64))


def vector(*w):
    return torch.tensor(w, dtype=torch.float64)


ORIGIN = [(torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1))]


def ring(outputs, y):
    """(‖w‖² − 1)²: every point of the unit circle is a minimum, with a hill of height 1 inside."""
    return ((outputs.square().sum(1) - 1) ** 2).mean()


def everything(model):
    values = {key: value.tolist() for key, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    modes = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    momenta = [getattr(m, "momentum", None) for m in model.modules()]
    return values, grads, modes, momenta, torch.get_rng_state().tolist()


def test_a_state_is_that_of_the_engine_and_is_held_only_inside():
    model, other = network(), network(1)
    expected = FlatModel(network(1)).state()
    assert torch.equal(state(other), expected)
    before, kept = everything(model), state(model)
    with at(model, expected):
        assert everything(model)[0] | {"1.num_batches_tracked": 1} == everything(other)[0]
    assert everything(model) == before
    with pytest.raises(ValueError, match="a vector has shape"), at(model, expected[1:]):
        pass
    assert torch.equal(state(model), kept)


def test_interpolation_is_linear_and_exact_at_its_ends():
    first, second = state(network()), state(network(1))
    assert torch.equal(interpolate(first, second, 0.0), first)
    assert torch.equal(interpolate(first, second, 1.0), second)
    torch.testing.assert_close(interpolate(first, second, 0.25), 0.75 * first + 0.25 * second)
    for t in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="t is"):
            interpolate(first, second, t)


def test_the_ends_of_a_path_have_the_risks_of_the_models():
    first, second, data = network(), network(1), images(4, 3)
    ends = [risk(model, data, attack=ATTACK, seed=2) for model in (first, second)]
    found = path_risk(
        network(2), state(first), state(second), [0, 0.5, 1], data, attack=ATTACK, seed=2
    )
    assert [found[0], found[2]] == ends
    alone = path_risk(network(2), state(first), state(second), [0.5], data, attack=ATTACK, seed=2)
    assert found[1] == alone[0]


def test_a_convex_risk_has_no_barrier():
    x = vector(1.0, 2.0, -4.0)[:, None]
    data = [(x[:2], torch.zeros(2)), (x[2:], torch.zeros(1))]
    ends = vector(-1.0), vector(3.0)
    found = path_risk(point(0.0), *ends, T, data, lambda outputs, y: outputs.square().mean())
    w = -1 + 4 * T[:, None]
    np.testing.assert_allclose(found, ((w - x.numpy().T) ** 2).mean(1), rtol=1e-14)
    assert barrier(found, T) == 0
    assert barrier(-found, T) == pytest.approx(4)  # 16 t (1 - t) at the middle


def test_the_barrier_between_two_wells_is_the_hill_above_the_line():
    ends = vector(-0.98, 0.2), vector(0.98, 0.2)
    found = path_risk(point(0.0, 0.0), *ends, T, ORIGIN, ring)
    line = interpolate(*ends, 0.3)
    assert found[6] == pytest.approx((line.square().sum().item() - 1) ** 2)
    ends_risk = (0.98**2 + 0.2**2 - 1) ** 2
    assert barrier(found, T) == pytest.approx((0.2**2 - 1) ** 2 - ends_risk, rel=1e-12)
    assert barrier([2.0, 5.0, 0.0, 1.0], [0, 0.25, 0.5, 1]) == 5 - 1.75


@pytest.mark.parametrize(
    ("risks", "t", "message"),
    [
        ([1.0, 2.0], [0.0, 0.5, 1.0], "expected \\(T,\\) twice"),
        ([1.0], [0.0], "expected \\(T,\\) twice"),
        ([1.0, 2.0], [0.0, 0.9], "from 0 to 1"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], "from 0 to 1"),
    ],
)
def test_a_barrier_needs_the_whole_path(risks, t, message):
    with pytest.raises(ValueError, match=message):
        barrier(risks, t)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_bezier_curve_is_that_of_de_casteljau(count):
    points = torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(bezier(points, 0.0), points[0])
    assert torch.equal(bezier(points, 1.0), points[-1])
    for t in (0.1, 0.5, 0.83):
        level = list(points)
        while len(level) > 1:
            level = [(1 - t) * a + t * b for a, b in pairwise(level)]
        torch.testing.assert_close(bezier(points, t), level[0])


def test_a_trained_curve_goes_round_the_hill():
    model, ends = point(5.0, 5.0), (vector(-0.98, 0.2), vector(0.98, 0.2))
    run = partial(connect, model, *ends, ORIGIN, ring, steps=300, lr=0.05)
    points = run(seed=0)
    assert points.shape == (5, 2) and not points.requires_grad
    assert torch.equal(points[0], ends[0]) and torch.equal(points[-1], ends[1])
    line = curve_risk(model, torch.stack(ends), T, ORIGIN, ring)
    curve = curve_risk(model, points, T, ORIGIN, ring)
    assert barrier(line, T) > 0.9
    assert barrier(curve, T) < 0.02
    assert torch.equal(run(seed=0), points)
    assert not torch.equal(run(seed=1), points)
    assert model.w.tolist() == [5.0, 5.0]


def test_one_step_of_the_curve_is_sgd_on_the_bend():
    first, second, target = vector(0.0, 1.0), vector(2.0, 3.0), vector(-1.0, 0.5)
    data = [(target[None], torch.zeros(1))]

    def half(outputs, y):
        return outputs.square().sum(1).mean() / 2

    model = point(0.0, 0.0)
    found = connect(model, first, second, data, half, bends=1, steps=1, lr=0.1, weight_decay=0.2)
    t = numpy_rng(Purpose.BATCH, 0).random()
    bend = (first + second) / 2
    w = (1 - t) ** 2 * first + 2 * t * (1 - t) * bend + t**2 * second
    gradient = 2 * t * (1 - t) * (w - target) + 0.2 * bend
    torch.testing.assert_close(found[1], bend - 0.1 * gradient)


def test_the_curve_is_attacked_where_it_is_and_trained_with_the_statistics_of_the_batch():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(nn.BatchNorm1d(3)).double()
    ends, seen, draws, outputs = (vector(1, 1, 1, 0, 0, 0), vector(1, 1, 1, 6, 6, 6)), [], [], []

    def attack(model, x, y, *, generator):
        seen.append((flat(model.parameters()), model[0].running_mean.clone(), model.training))
        draws.append(torch.rand(1, generator=generator).item())
        return x + 100

    def loss(z, y):
        outputs.append(z.detach())
        return 0 * z.sum()

    data = [(part, torch.zeros(3)) for part in x.split(3)]
    run = partial(connect, model, *ends, data, loss, attack, steps=3, weight_decay=0.0)
    run(seed=0)
    times = numpy_rng(Purpose.BATCH, 0).random(3)
    for step, t in enumerate(times):
        w, mean, training = seen[step]
        torch.testing.assert_close(w, interpolate(*ends, t))
        torch.testing.assert_close(mean, data[step % 2][0].mean(0))
        assert not training
        torch.testing.assert_close(outputs[step].mean(0), w[3:])  # not 100 away
    run(seed=1)
    assert len(set(draws)) == 6


def test_an_untrained_curve_is_the_straight_line():
    first, second = network(), network(1)
    points = connect(first, state(first), state(second), images(4), bends=3, steps=0)
    line = torch.stack([flat(first.parameters()), flat(second.parameters())])
    torch.testing.assert_close(bezier(points, 0.4), bezier(line, 0.4))


def test_measured_statistics_are_the_means_over_samples():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = x.split([4, 3])
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3)).double()
    model[0].running_mean.fill_(torch.nan)  # what was there before does not matter
    recalibrate(model, [(part, torch.zeros(len(part))) for part in parts])
    variance = (4 * parts[0].var(0) + 3 * parts[1].var(0)) / 7
    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    torch.testing.assert_close(model[0].running_var, variance)
    torch.testing.assert_close(model[2].running_mean, torch.zeros(3, dtype=torch.float64))
    assert model.training and [m.momentum for m in (model[0], model[2])] == [0.1, 0.1]


def test_with_an_attack_the_statistics_are_those_of_the_attacked_points():
    x, seen = images(4, 3), []
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 3))
    mean = torch.cat([part for part, _ in x]).mean()

    def attack(model, x, y, *, generator):
        seen.append(model[0].running_mean.item())
        return x + 1

    recalibrate(model, x, attack)
    assert seen == pytest.approx([mean.item()] * 2, rel=1e-5)  # the clean ones, while attacking
    assert model[0].running_mean.item() == pytest.approx(mean.item() + 1, rel=1e-5)


def test_risks_on_a_curve_do_not_depend_on_the_other_points():
    model, data = network(2), images(4, 3)
    ends = torch.stack([flat(network(seed).parameters()) for seed in range(2)])
    points = torch.cat([ends[:1], torch.full_like(ends[:1], torch.inf), ends[1:]])
    found = curve_risk(model, ends, [0, 0.5, 1], data, attack=ATTACK, seed=1)
    alone = [curve_risk(model, ends, [t], data, attack=ATTACK, seed=1)[0] for t in (0, 0.5, 1)]
    assert found.tolist() == alone
    assert np.isnan(curve_risk(model, points, [0.5], data)).all()
    after = curve_risk(model, ends, [0.5], data, training=images(7), attack=ATTACK, seed=1)
    assert after[0] != found[1]  # statistics of other batches


def test_measured_statistics_are_used_on_the_curve():
    data = images(6)
    model = network()
    line = torch.stack([flat(model.parameters())] * 2)
    found = curve_risk(model, line, [0.5], data)[0]
    (x, y), reference = data[0], network()
    recalibrate(reference, data)
    assert found == pytest.approx(F.cross_entropy(reference.eval()(x), y).item(), rel=1e-6)
    assert found != pytest.approx(risk(model, data), rel=1e-6)


def test_without_batch_norm_a_curve_of_two_points_is_the_path():
    data = images(4, 2)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double() for _ in range(2)]
    data = [(x.double(), y) for x, y in data]
    ends = [state(model) for model in models]
    path = path_risk(models[0], *ends, T, data, attack=ATTACK)
    curve = curve_risk(models[0], torch.stack(ends), T, data, attack=ATTACK)
    np.testing.assert_allclose(curve, path, rtol=1e-12)


def broken(model, x, y, *, generator):
    if len(x) == 3:
        raise RuntimeError("the attack failed")
    return x


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("attack", [ATTACK, broken])
@pytest.mark.parametrize("name", ["path_risk", "connect", "curve_risk"])
def test_the_model_is_left_as_found_even_after_an_exception(name, attack, train):
    models = [network(seed).train(train) for seed in range(3)]
    for model in models:
        model[0].bias.requires_grad_(False)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
    *ends, _ = map(state, models)
    data, line = images(4, 3), torch.stack(ends)[:, : -2 * 4]  # without running statistics
    calls = {
        "path_risk": lambda: path_risk(model, *ends, [0.5], data, attack=attack),
        "connect": lambda: connect(model, *ends, data, attack=attack, steps=3),
        "curve_risk": lambda: curve_risk(model, line, [0.5], data, attack=attack),
    }
    before = everything(model)
    if attack is broken:
        with pytest.raises(RuntimeError, match="the attack failed"):
            calls[name]()
    else:
        calls[name]()
    assert everything(model) == before


@pytest.mark.parametrize("bad", [{"bends": 0}, {"steps": -1}, {"batches": []}])
def test_bad_arguments_of_a_curve_are_refused(bad):
    given = {"batches": ORIGIN, "loss_fn": ring, "steps": 1} | bad
    with pytest.raises(ValueError, match="expected bends >= 1"):
        connect(point(0.0, 0.0), vector(0, 1), vector(1, 0), **given)
