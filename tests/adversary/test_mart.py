import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raydist.adversary.loss import mart


class Pair(nn.Module):
    """Gives the logits w of the clean points for input 0, and v of the adversarial ones for 1."""

    def __init__(self, clean, adversarial):
        super().__init__()
        self.logits = nn.ParameterList([clean, adversarial])

    def forward(self, x):
        return self.logits[int(x[0, 0])]


def loss_and_gradients(clean, adversarial, y, beta):
    model = Pair(clean.clone(), adversarial.clone())
    x = torch.zeros(len(y), 1)
    loss = mart(model, x, x + 1, y, beta)
    return loss, torch.autograd.grad(loss, list(model.logits), allow_unused=True)


def random_logits(n=12, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    clean, adversarial = 2 * torch.randn(2, n, classes, generator=generator, dtype=dtype)
    return clean, adversarial, torch.randint(classes, (n,), generator=generator)


def literal(clean, adversarial, y, beta):
    """Sample by sample, class by class, in probabilities."""
    total = 0.0
    for c, a, label in zip(clean, adversarial, y.tolist(), strict=True):
        p, q = c.exp() / c.exp().sum(), a.exp() / a.exp().sum()
        rival = max(q[k] for k in range(len(q)) if k != label)
        kl = sum(p[k] * torch.log(p[k] / q[k]) for k in range(len(p)))
        total = total - torch.log(q[label]) - torch.log(1 - rival) + beta * kl * (1 - p[label])
    return total / len(y)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("beta", [0.0, 1.0, 5.0])
def test_mart_and_its_gradients_equal_the_literal_version(beta, classes):
    clean, adversarial, y = random_logits(classes=classes)
    ours, gradients = loss_and_gradients(clean, adversarial, y, beta)
    clean.requires_grad_(), adversarial.requires_grad_()
    expected = literal(clean, adversarial, y, beta)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    slow = torch.autograd.grad(expected, [clean, adversarial])
    for a, b in zip(gradients, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_mart_is_near_the_released_code_which_differs_by_small_constants():
    clean, adversarial, y = random_logits(dtype=torch.float32)
    p, q = clean.softmax(1), adversarial.softmax(1)
    order = q.argsort(dim=1)[:, -2:]
    rival = torch.where(order[:, 1] == y, order[:, 0], order[:, 1])
    boosted = F.cross_entropy(adversarial, y) + F.nll_loss((1.0001 - q).log(), rival)
    kl = F.kl_div((q + 1e-12).log(), p, reduction="none").sum(dim=1)
    released = boosted + 5.0 * (kl * (1.0000001 - p[range(len(y)), y])).mean()
    ours, _ = loss_and_gradients(clean, adversarial, y, 5.0)
    torch.testing.assert_close(ours.detach(), released, rtol=1e-3, atol=0)


def test_mart_by_hand():
    # q = (1/2, 1/4, 1/4), y = 1: -log(1/4) - log(1 - 1/2); p = (1/4, 1/2, 1/4), so 1 - p_y = 1/2
    # KL = 1/4 log(1/2) + 1/2 log 2 = log(2)/4
    adversarial = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    clean = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    loss, _ = loss_and_gradients(clean, adversarial, torch.tensor([1]), 4.0)
    assert loss.item() == pytest.approx(3 * math.log(2) + 4.0 * math.log(2) / 4 / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clean", [[0.0, 0.0, 0.0], [1e4, 0.0, 0.0], [0.0, 1e4, 0.0]])
@pytest.mark.parametrize(
    ("adversarial", "expected"),
    [
        ([1e4, 0.0, 0.0], 2e4 - math.log(2)),  # CE 1e4; 1 - q_0 = 2 exp(-1e4)
        ([0.0, 1e4, 0.0], 0.0),
        ([-1e4, -1e4, 0.0], 2e4 - math.log(2)),
    ],
)
def test_saturated_logits_give_the_exact_margin_and_finite_gradients(
    clean, adversarial, expected, dtype
):
    logits = [torch.tensor([row], dtype=dtype) for row in (clean, adversarial)]
    loss, _ = loss_and_gradients(*logits, torch.tensor([1]), 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    whole, gradients = loss_and_gradients(*logits, torch.tensor([1]), 5.0)
    assert whole.isfinite() and all(g.isfinite().all() for g in gradients)
    if expected > 0:
        # -log q_1 and -log(1 - q_rival) both push the rival down with force 1
        _, (_, push) = loss_and_gradients(*logits, torch.tensor([1]), 0.0)
        assert push.max().item() == pytest.approx(2.0, rel=1e-3)
        assert push[0, 1].item() == pytest.approx(-1.5, rel=1e-3)


def test_a_clean_point_that_is_surely_right_has_no_kl_term_and_a_wrong_one_all_of_it():
    _, adversarial, _ = random_logits(n=1, classes=3)
    y = torch.tensor([0])
    boosted = loss_and_gradients(torch.zeros(1, 3).double(), adversarial, y, 0.0)[0].item()
    right, wrong = torch.tensor([[[60.0, 0, 0]], [[0, 60.0, 0]]], dtype=torch.float64)
    assert loss_and_gradients(right, adversarial, y, 5.0)[0].item() == pytest.approx(boosted)
    kl = -adversarial.log_softmax(1)[0, 1].item()  # from a one-hot p
    expected = boosted + 5.0 * kl
    assert loss_and_gradients(wrong, adversarial, y, 5.0)[0].item() == pytest.approx(expected)


def test_mart_shows_batch_norm_the_clean_batch_first_and_is_a_mean_of_samples():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, expected = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
        x, x_adv = torch.rand(2, 8, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    mart(ours, x, x_adv, y, 5.0)
    expected(x), expected(x_adv)
    assert ours.num_batches_tracked == 2
    torch.testing.assert_close(ours.running_mean, expected.running_mean, rtol=1e-12, atol=0)
    ours.eval()
    single = [mart(ours, x[[i]], x_adv[[i]], y[[i]], 5.0) for i in range(8)]
    torch.testing.assert_close(mart(ours, x, x_adv, y, 5.0), torch.stack(single).mean())
