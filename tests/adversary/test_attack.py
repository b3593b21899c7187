import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from raydist.adversary.attack import ascend, fgsm, input_gradient, kl_pgd, pgd
from raydist.adversary.objective import cross_entropies, quadratics
from raydist.adversary.threat import ThreatModel, rows
from raydist.vector import frozen

UNBOUNDED = (-math.inf, math.inf)
EPS = {"linf": 0.1, "l2": 0.5, "l1": 1.0}
STEP = {"steps": 4, "alpha": 0.05}


def negative_logit(outputs, y):
    return -outputs.gather(1, y.unsqueeze(1)).squeeze(1)


ATTACKS = {
    "fgsm": fgsm,
    "fgsm, uniform start": partial(fgsm, start="uniform", alpha=0.12),
    "pgd": partial(pgd, **STEP),
    "pgd, zero start": partial(pgd, **STEP, start="zero"),
    "pgd, restarts": partial(pgd, **STEP, restarts=3),
    "pgd, kl": partial(pgd, **STEP, loss="kl"),
    "pgd, callable": partial(pgd, **STEP, loss=negative_logit),
    "kl_pgd": partial(kl_pgd, **STEP),
}


def network(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(64, 3),
        ).to(dtype)
        model(torch.rand(16, 1, 6, 6, dtype=dtype))  # running statistics that are not the initial
    return model


def batch(dtype=torch.float64, n=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 6, 6, generator=generator, dtype=dtype).mul(1.2).sub(0.1).clamp(0, 1)
    return x, torch.randint(3, (n,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_in_ball_and_box_and_raises_its_loss(name, norm, dtype):
    model, (x, y), threat = network(dtype), batch(dtype), ThreatModel(norm, EPS[norm])
    x_adv = ATTACKS[name](model, x, y, threat, generator=torch.Generator().manual_seed(0))
    assert x_adv.dtype == dtype and x_adv.shape == x.shape and not x_adv.requires_grad
    assert (threat.norm_of(x_adv - x) <= EPS[norm] + 1e-6).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    model.eval()
    with torch.no_grad():
        clean, adversarial = (model(z).log_softmax(1) for z in (x, x_adv))
    if "kl" in name:
        least = 1e-5 if norm == "l1" else 1e-4  # a step moves one pixel there
        assert (clean.exp() * (clean - adversarial)).sum(dim=1).min() > least
    else:
        assert (negative_logit(adversarial, y) > negative_logit(clean, y)).all()


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_leaves_everything_as_it_was(name, norm):
    model, (x, y) = network(), batch()
    model[1].eval()  # modes and flags that differ between the parts of the model
    model[0].weight.requires_grad_(False)
    model[5].bias.grad = torch.full((3,), 7.0, dtype=torch.float64)

    def state():
        flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
        grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
        values = {key: value.tolist() for key, value in model.state_dict().items()}
        draws = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
        return flags, grads, values, draws, x.tolist(), x.requires_grad, x.grad

    before = state()
    ATTACKS[name](model, x, y, ThreatModel(norm, EPS[norm]))
    assert state() == before


@pytest.mark.parametrize("name", ATTACKS)
def test_no_budget_is_no_attack(name):
    x, y = batch()
    assert ATTACKS[name](network(), x, y, ThreatModel("linf", 0.0)) is x


@pytest.mark.parametrize("attack", [pgd, kl_pgd])
def test_no_steps_is_no_attack(attack):
    x, y = batch()
    assert attack(network(), x, y, ThreatModel("l2", 0.5), steps=0, alpha=0.1) is x
    assert ascend(network(), x, y, ThreatModel("l2", 0.5), steps=0, alpha=0.1).grad is None


@pytest.mark.parametrize("name", ATTACKS)
def test_same_generator_same_points_also_without_gradients(name):
    model, (x, y), threat = network(), batch(), ThreatModel("linf", 0.1)
    first = ATTACKS[name](model, x, y, threat, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        again = ATTACKS[name](model, x, y, threat, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again)


@pytest.mark.parametrize("norm", EPS)
def test_a_sample_is_attacked_alike_alone_and_in_a_batch(norm):
    model, (x, y) = network(), batch()
    attack = partial(pgd, model, threat=ThreatModel(norm, EPS[norm]), **STEP, start="zero")
    alone = torch.cat([attack(x=x[[i]], y=y[[i]]) for i in range(len(x))])
    torch.testing.assert_close(attack(x=x, y=y), alone, rtol=0, atol=1e-12)


def test_the_global_draw_does_not_matter_and_the_generator_does():
    model, (x, y), threat = network(), batch(), ThreatModel("linf", 0.1)
    attack = partial(pgd, model, x, y, threat, steps=1, alpha=0.01)
    with torch.random.fork_rng(devices=[]):
        default = attack()
        torch.manual_seed(123)
        assert torch.equal(attack(), default)
    assert not torch.equal(attack(generator=torch.Generator().manual_seed(1)), default)


def test_restarts_keep_the_best_run_of_each_sample():
    model, (x, y), threat = network(), batch(n=40), ThreatModel("linf", 0.3)
    attack = partial(pgd, model, x, y, threat, steps=2, alpha=0.1)
    generator = torch.Generator().manual_seed(9)
    runs = [attack(generator=generator) for _ in range(4)]
    best = attack(restarts=4, generator=torch.Generator().manual_seed(9))
    model.eval()
    with torch.no_grad():
        values = torch.stack([cross_entropies(model(run), y) for run in runs])
    winner = values.argmax(dim=0)
    assert len(set(winner.tolist())) > 1
    expected = torch.stack([runs[run][i] for i, run in enumerate(winner)])
    assert torch.equal(best, expected)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("norm", EPS)
def test_the_last_gradient_belongs_to_the_iterate_before_the_last(norm, restarts):
    model, (x, y), threat = network(), batch(), ThreatModel(norm, EPS[norm])
    x_adv, x_last, grad = ascend(model, x, y, threat, **STEP, restarts=restarts)
    torch.testing.assert_close(grad, input_gradient(model, x_last, y), rtol=1e-10, atol=1e-12)
    step = threat.project(x_last + 0.05 * threat.steepest(grad, x_last), x)
    torch.testing.assert_close(x_adv, step, rtol=0, atol=1e-12)
    one_less = pgd(model, x, y, threat, steps=3, alpha=0.05)
    if restarts == 1:
        assert torch.equal(x_last, one_less)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_linear_model_the_optimum_and_the_robust_logistic_loss(norm, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, *shape, generator=generator, dtype=torch.float64)
    w = torch.randn(rows(x).shape[1], generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2, bias=False, dtype=torch.float64))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros_like(w), w]))
    threat, sign = ThreatModel(norm, 0.3, UNBOUNDED), (2.0 * y - 1).double().unsqueeze(1)
    largest = w.abs().max()
    unit = {"linf": w.sign(), "l2": w / w.norm(), "l1": w.sign() * (w.abs() == largest)}[norm]
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": largest}[norm]
    robust = torch.log1p(torch.exp(-sign[:, 0] * (rows(x) @ w) + 0.3 * dual))
    zero = partial(pgd, start="zero", steps=4, alpha=0.1)  # 4 * 0.1 >= 0.3
    uniform = partial(pgd, start="uniform", steps=400, alpha=0.1)
    for attack, tolerance in [(fgsm, 1e-12), (zero, 1e-12), (uniform, 1e-5)]:
        x_adv = attack(model, x, y, threat)
        torch.testing.assert_close(rows(x_adv - x), -0.3 * sign * unit, rtol=0, atol=tolerance)
        torch.testing.assert_close(
            cross_entropies(model(x_adv), y), robust, rtol=0, atol=10 * tolerance
        )


def test_one_step_is_exact_for_a_quadratic():
    # max of (w - x - d)' H (w - x - d) / 2 over |d_i| <= eps: every |r_i| grows by eps
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hessian = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    model = nn.Linear(3, 3, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(-torch.eye(3))
        model.bias.copy_(torch.tensor([0.3, 0.0, -0.4]))
    loss = partial(quadratics, hessian=hessian)
    x_adv = fgsm(model, x, torch.zeros(50), ThreatModel("linf", 0.2, UNBOUNDED), loss=loss)
    expected = (hessian * (model(x).abs() + 0.2) ** 2).sum(dim=1) / 2
    torch.testing.assert_close(quadratics(model(x_adv), x, hessian), expected)


class Counted(nn.Module):
    """A linear model that counts forwards, input gradients and parameter gradients."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3, 4))
        self.counts = {"forward": 0, "input": 0, "parameter": 0}

    def forward(self, x):
        counts = self.counts
        counts["forward"] += 1

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, weight):
                ctx.save_for_backward(x, weight)
                return x @ weight.T

            @staticmethod
            def backward(ctx, grad):
                x, weight = ctx.saved_tensors
                for wanted, what in zip(ctx.needs_input_grad, ("input", "parameter"), strict=True):
                    counts[what] += wanted
                return grad @ weight, grad.T @ x

        return Product.apply(x, self.weight)


@pytest.mark.parametrize(
    ("attack", "forwards", "gradients"),
    [
        (partial(pgd, steps=10, alpha=0.02), 10, 10),
        (partial(kl_pgd, steps=10, alpha=0.02), 11, 10),
        (partial(pgd, steps=10, alpha=0.02, restarts=3), 33, 30),
        (fgsm, 1, 1),
    ],
)
def test_no_forward_too_many_and_no_parameter_gradient(attack, forwards, gradients):
    model, x = Counted(), torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    attack(model, x, torch.zeros(5, dtype=torch.int64), ThreatModel("linf", 0.1))
    assert model.counts == {"forward": forwards, "input": gradients, "parameter": 0}
    cross_entropies(model(x), torch.zeros(5, dtype=torch.int64)).sum().backward()
    assert model.counts["parameter"] == 1  # the counter sees one when there is one


def test_kl_from_the_clean_point_itself_has_no_gradient_and_its_own_start_has():
    model, (x, y), threat = network(), batch(), ThreatModel("linf", 0.1)
    stuck = ascend(model, x, y, threat, steps=1, alpha=0.1, start="zero", loss="kl")
    assert stuck.grad.abs().max() < 1e-12
    moved = ascend(model, x, y, threat, steps=1, alpha=0.1, start="normal", loss="kl")
    assert moved.grad.abs().max() > 1e-6
    assert 0.0005 < (moved.x_last - x).std() < 0.0015


def test_frozen_restores_after_an_exception():
    model = network()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        raise RuntimeError("inside")
    assert flags == (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"start": "random"}, "start is 'random'"),
        ({"loss": "mse"}, "loss is 'mse'"),
    ],
)
def test_bad_options_are_refused_with_the_value(options, message):
    x, y = batch()
    with pytest.raises(ValueError, match=message):
        pgd(network(), x, y, ThreatModel("linf", 0.1), **{**STEP, **options})
