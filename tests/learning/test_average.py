import numpy as np
import pytest
import torch
from torch import nn

from raydist.learning.average import Ensemble, RunningAverage, ema, swa


def models(n=7, size=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n + 1, size, generator=generator, dtype=dtype)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.995, 1.0])
def test_ema_is_the_weighted_sum_of_all_models(decay):
    first, *rest = w = models()
    average, n = first, len(rest)
    for one in rest:
        average = ema(average, one, decay)
    expected = decay**n * first + sum(
        (1 - decay) * decay ** (n - i) * w[i] for i in range(1, n + 1)
    )
    torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-15)


def test_ema_approaches_a_model_that_stays_at_the_rate_of_its_decay():
    w, average = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for _ in range(40):
        average = ema(average, w, 0.9)
    torch.testing.assert_close(1 - average, torch.full_like(w, 0.9**40))


def test_swa_is_the_mean_of_all_models_whatever_it_started_from():
    w = models()
    average = torch.full((5,), 7.0, dtype=torch.float64)
    for count, one in enumerate(w):
        average = swa(average, one, count)
        torch.testing.assert_close(average, w[: count + 1].mean(0), rtol=1e-12, atol=1e-15)
    assert torch.equal(swa(average, w[0], 0), w[0])


@pytest.mark.parametrize("average", [lambda a, w: ema(a, w, 0.5), lambda a, w: swa(a, w, 3)])
def test_averages_are_new_tensors_without_history(average):
    a, w = models(n=1, dtype=torch.float32)
    kept = a.clone(), w.clone()
    result = average(nn.Parameter(a), nn.Parameter(w))
    assert not result.requires_grad and result.dtype == torch.float32
    result.zero_()
    assert torch.equal(a, kept[0]) and torch.equal(w, kept[1])


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_bad_decay_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        ema(torch.ones(1), torch.ones(1), decay)


def test_a_bad_count_is_refused():
    with pytest.raises(ValueError, match="count is -1"):
        swa(torch.ones(1), torch.ones(1), -1)


@pytest.mark.parametrize("decay", [None, 0.0, 0.3, 0.995, 1.0])
def test_the_running_average_is_the_mean_or_the_recursion_from_the_first_model_added(decay):
    first, *rest = models()
    average = RunningAverage(first, decay)
    assert torch.equal(average.value, first)
    expected = None
    for n, one in enumerate(torch.stack(rest).numpy()):
        average.add(torch.tensor(one))
        if decay is None:
            expected = np.mean(torch.stack(rest[: n + 1]).numpy(), axis=0)
        else:
            expected = one if expected is None else decay * expected + (1 - decay) * one
        assert average.value.numpy() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_mean_of_agents_averages_is_the_average_of_the_centroid(decay):
    w = models(n=11).reshape(3, 4, 5)  # agents, models, parameters
    averages = [RunningAverage(torch.zeros(5), decay) for _ in range(4)]
    for k, average in enumerate(averages):
        for one in w[k] if k < 3 else w.mean(0):
            average.add(one)
    *agents, centroid = (average.value for average in averages)
    torch.testing.assert_close(torch.stack(agents).mean(0), centroid, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_the_running_average_keeps_no_view_of_what_it_was_given(decay):
    live = torch.ones(2)
    average = RunningAverage(live, decay)
    average.add(live)
    live.fill_(3.0)
    assert average.value.tolist() == [1, 1]
    average.add(live)
    assert average.value.tolist() == [2, 2]


def members(count):
    """Deep networks with dropout and BatchNorm: (N, 1, 6, 6) to 4 logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            nn.Sequential(
                *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(128, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU()),
                *(nn.Dropout(0.5), nn.Linear(16, 4)),
            ).double()
            for _ in range(count)
        ]


def images(n=20):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64)


def test_the_softmax_of_an_ensemble_is_the_mean_of_its_members():
    nets, x = members(3), images()
    ensemble = Ensemble(nets).eval()
    probabilities = torch.stack([net(x).softmax(1) for net in nets])
    output = ensemble(x)
    torch.testing.assert_close(output.softmax(1), probabilities.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(output.exp(), probabilities.mean(0), rtol=1e-12, atol=0)
    assert probabilities.std(0).max() > 0.01  # the members differ


def test_eval_of_an_ensemble_silences_its_members_dropout():
    ensemble, x = Ensemble(members(2)), images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.equal(ensemble(x), ensemble(x))
        ensemble.eval()
        assert torch.equal(ensemble(x), ensemble(x))


@pytest.mark.parametrize("copies", [1, 3])
def test_an_ensemble_of_one_network_predicts_as_it_does(copies):
    (net,) = members(1)
    ensemble, x = Ensemble([net] * copies).eval(), images()
    torch.testing.assert_close(ensemble(x), net(x).log_softmax(1), rtol=1e-12, atol=1e-14)
    assert torch.equal(ensemble(x).argmax(1), net(x).argmax(1))


def test_an_ensemble_of_sure_members_stays_finite_and_differentiable():
    # softmax (1, 0) and (0, 1) up to e^-2000: the mean is (1/2, 1/2)
    sure = [nn.Linear(1, 2, bias=False) for _ in range(2)]
    with torch.no_grad():
        for net, sign in zip(sure, (1.0, -1.0), strict=True):
            net.weight.copy_(torch.tensor([[1000.0], [-1000.0]]) * sign)
    x = torch.ones(1, 1, requires_grad=True)
    output = Ensemble(sure)(x)
    torch.testing.assert_close(output.exp(), torch.full((1, 2), 0.5))
    assert torch.autograd.grad(output[0, 0], x)[0].isfinite().all()
