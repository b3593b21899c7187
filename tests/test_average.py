import pytest
import torch
from torch import nn

from raydist.learning.average import ema, swa


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
