import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raydist.adversary.attack import pgd
from raydist.adversary.threat import ThreatModel
from raydist.measure.similarity import (
    distance,
    gradient_norm,
    perturbation_similarity,
    perturbations,
)

ATTACK = partial(pgd, threat=ThreatModel("linf", 0.1), steps=2, alpha=0.05)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5)),
            *(nn.Flatten(), nn.Linear(64, 3)),
        )
        model(torch.rand(20, 1, 6, 6))
    return model.double()


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(sum(sizes), 1, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (len(x),), generator=generator)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def everything(model):
    values = {key: value.tolist() for key, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    modes = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return values, grads, modes, torch.get_rng_state().tolist()


def deltas(n=6, shape=(1, 4, 4)):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_a_perturbation_is_like_itself_and_unlike_its_opposite(scale):
    delta = scale * deltas()
    assert perturbation_similarity(delta, 3 * delta) == pytest.approx((1, 1), abs=1e-12)
    assert perturbation_similarity(delta, -delta) == pytest.approx((-1, -1), abs=1e-12)


def test_orthogonal_perturbations_are_not_alike():
    first = torch.tensor([[1.0, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
    second = torch.tensor([[0.0, 0.0, 5.0, 1.0], [-1.0, 2.0, 0.0, 0.0]])
    assert perturbation_similarity(first, second) == pytest.approx((0, 0), abs=1e-15)


def test_similarity_is_the_mean_over_samples_and_of_signs_apart():
    first = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    second = torch.tensor([[4.0, 3.0], [-2.0, 0.0], [0.0, 0.0]])  # the last is not perturbed
    expected = ((24 / 25 - 1 + 0) / 3, (1 - 1 + 0) / 3)
    assert perturbation_similarity(first, second) == pytest.approx(expected, abs=1e-15)
    partly = torch.tensor([[0.1, 0.1, -0.1, 0.0]]), torch.tensor([[0.2, -0.1, -0.3, 0.1]])
    assert perturbation_similarity(*partly)[1] == pytest.approx((1 - 1 + 1) / math.sqrt(12))


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((0, 3), (0, 3))])
def test_perturbations_of_other_samples_are_refused(shapes):
    with pytest.raises(ValueError, match="perturbations have shapes"):
        perturbation_similarity(*(torch.ones(shape) for shape in shapes))


def test_perturbations_of_a_linear_model_are_the_signs_of_its_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    threat = ThreatModel("linf", 0.1, (-math.inf, math.inf))
    attack = partial(pgd, threat=threat, steps=3, alpha=0.1, start="zero")
    data = [(x, y % 2) for x, y in images(3, 2)]
    y = torch.cat([part for _, part in data])
    found = perturbations(model, data, attack)
    towards = (model[1].weight[1] - model[1].weight[0]).sign().detach()
    torch.testing.assert_close(found, 0.1 * torch.where(y == 0, 1.0, -1.0)[:, None] * towards)


def test_perturbations_are_functions_of_the_seed():
    model, data = network(), images(3, 2)
    first = perturbations(model, data, ATTACK, seed=0)
    assert first.shape == (5, 36) and first.abs().max() <= 0.1 + 1e-12
    assert torch.equal(first, perturbations(model, data, ATTACK, seed=0))
    assert not torch.equal(first, perturbations(model, data, ATTACK, seed=1))


def test_the_distance_is_that_of_parameters_alone():
    first, second = network(), network()
    with torch.no_grad():
        second[0].weight[0, 0, 0, 0] += 3
        second[5].bias[1] -= 4
    second[1].running_mean.add_(100)
    assert distance(first, second) == pytest.approx(5, rel=1e-14)
    assert distance(first, first) == 0
    with pytest.raises(ValueError, match="different shapes"):
        distance(first, nn.Linear(2, 2))


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_the_gradient_norm_is_that_of_the_mean_over_all_samples(attack):
    model, data = network(), images(4, 1)
    found = gradient_norm(model, data, attack=attack, seed=3)
    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    if attack is not None:
        x = x + perturbations(model, data, attack, seed=3).view_as(x)
    reference = network().eval()
    gradients = torch.autograd.grad(F.cross_entropy(reference(x), y), list(reference.parameters()))
    exact = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert found == pytest.approx(exact, rel=1e-12)


def test_no_samples_have_no_gradient():
    with pytest.raises(ValueError):
        gradient_norm(network(), [])


@pytest.mark.parametrize("train", [True, False])
def test_the_model_is_left_as_found(train):
    model, data = network().train(train), images(3, 2)
    model[0].bias.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = everything(model)
    perturbations(model, data, ATTACK)
    gradient_norm(model, data, attack=ATTACK)
    distance(model, network(1))
    assert everything(model) == before
