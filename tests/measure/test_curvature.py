"""Curvature against dense Hessians, closed forms of linear models and finite differences."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from raydist.adversary.attack import pgd
from raydist.adversary.threat import ThreatModel
from raydist.measure import curvature, spectrum
from raydist.measure.curvature import (
    attacked,
    gradient,
    hessian_pairs,
    hessian_top,
    hessian_trace,
    projected_gradients,
    spectral_density,
    subspace,
    trace_samples,
)
from raydist.measure.derivatives import hessian
from raydist.measure.spectrum import density, lanczos, rademacher, top_pairs, unit_direction
from raydist.vector import at, flat, trainable

LINF = partial(pgd, threat=ThreatModel("linf", 0.1), steps=5, alpha=0.05)


def cnn(dtype=torch.float64):
    """A convolution, BatchNorm with statistics of its own, a max-pooling and two linear layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8, 5),
            nn.Tanh(),
            nn.Linear(5, 3),
        )
        norm = model[1]
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.add_(0.3 * torch.rand(2))
    return model.to(dtype)


def images(dtype=torch.float64, n=25):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (n,), generator=generator)


def unequal(x, y):
    return list(zip(x.split([10, 12, 3]), y.split([10, 12, 3]), strict=True))


def dense(model, loss_fn, x, y):
    """The Hessian of the mean loss over all samples at once, in eval mode, by autograd."""
    model = copy.deepcopy(model).double().eval()
    w = {name: p.detach() for name, p in trainable(model).items()}

    def loss(flat):
        parts = flat.split([p.numel() for p in w.values()])
        own = {name: part.view_as(w[name]) for name, part in zip(w, parts, strict=True)}
        return loss_fn(functional_call(model, own, (x.double(),)), y)

    flat = torch.cat([p.reshape(-1) for p in w.values()])
    return torch.autograd.functional.hessian(loss, flat).numpy()


class Bowl(nn.Module):
    """Outputs w − x, so that `bowl` has the Hessian diag(h) whatever x is."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return self.w - x


def bowl(h):
    h = torch.tensor(h, dtype=torch.float64)
    return lambda outputs, y: 0.5 * (h * outputs**2).sum(1).mean()


def operator(matrix):
    return spectrum.LinearOperator(matrix.shape, matvec=lambda v: matrix @ v, dtype=np.float64)


def rotated(values, seed=0):
    """A dense symmetric matrix with these eigenvalues."""
    normal = np.random.default_rng(seed).standard_normal((len(values), len(values)))
    q = np.linalg.qr(normal)[0]
    return (q * values) @ q.T


@pytest.fixture(scope="module")
def exact():
    return dense(cnn(), cross_entropy, *images())


DTYPES = [(torch.float64, 1e-10), (torch.float32, 2e-6)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_products_and_gradient_are_those_of_all_samples_at_once(exact, dtype, tolerance):
    model, (x, y) = cnn(dtype), images(dtype)
    v = np.random.default_rng(0).standard_normal(len(exact))
    with hessian(model, cross_entropy, unequal(x, y)) as H:
        np.testing.assert_allclose(H.matvec(v), exact @ v, atol=10 * tolerance)
    model.eval()
    expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    expected = torch.cat([g.reshape(-1) for g in expected]).double().numpy()
    found = gradient(model, cross_entropy, unequal(x, y))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("k", [1, 6])
def test_top_eigenvalues_are_those_of_the_dense_hessian(exact, dtype, tolerance, k):
    batches = unequal(*images(dtype))
    all_values = np.linalg.eigvalsh(exact)[::-1]
    assert all_values[-1] < -0.1 * all_values[0]  # indefinite
    values, vectors = hessian_pairs(cnn(dtype), cross_entropy, batches, k)
    np.testing.assert_allclose(values, all_values[:k], atol=tolerance)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-10)
    np.testing.assert_allclose(exact @ vectors.T, vectors.T * values, atol=20 * tolerance)
    assert (vectors[np.arange(k), np.abs(vectors).argmax(1)] > 0).all()
    np.testing.assert_array_equal(hessian_top(cnn(dtype), cross_entropy, batches, k), values)


def test_top_depends_on_order_and_seed_by_rounding_only():
    batches = unequal(*images())
    values, vectors = hessian_pairs(cnn(), cross_entropy, batches, 3)
    for others, seed in ((batches[::-1], 0), (batches, 1), ([images()], 2)):
        other_values, other_vectors = hessian_pairs(cnn(), cross_entropy, others, 3, seed)
        np.testing.assert_allclose(other_values, values, atol=1e-10)
        np.testing.assert_allclose(other_vectors, vectors, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_trace_samples_are_quadratic_forms_of_the_dense_hessian(exact, dtype, tolerance):
    probes = np.stack([rademacher(len(exact), 3, i) for i in range(20)])
    assert set(np.unique(probes)) == {-1.0, 1.0}
    expected = np.einsum("ip,pq,iq->i", probes, exact, probes)
    arguments = (cnn(dtype), cross_entropy, unequal(*images(dtype)))
    samples = trace_samples(*arguments, probes=20, seed=3)
    np.testing.assert_allclose(samples, expected, atol=100 * tolerance)

    mean, error = hessian_trace(*arguments, probes=20, seed=3)
    assert mean == samples.mean()
    assert error == pytest.approx(np.sqrt(((samples - mean) ** 2).sum() / (19 * 20)))
    assert abs(mean - np.trace(exact)) < 3 * error
    np.testing.assert_array_equal(trace_samples(*arguments, probes=7, seed=3), samples[:7])
    assert not np.array_equal(trace_samples(*arguments, probes=7, seed=4), samples[:7])


def test_trace_samples_of_shares_average_to_those_of_all_images():
    batches = unequal(*images())
    samples = [trace_samples(cnn(), cross_entropy, [b], probes=4, seed=0) for b in batches]
    mean = np.average(samples, axis=0, weights=[len(y) for _, y in batches])
    of_all = trace_samples(cnn(), cross_entropy, [images()], probes=4, seed=0)
    np.testing.assert_allclose(mean, of_all, atol=1e-12)


def test_trace_of_a_diagonal_hessian_is_exact_with_one_probe():
    h = [4.0, -1.0, 0.5, 0.25]
    batches = [(torch.ones(3, 4, dtype=torch.float64), torch.zeros(3))]
    mean, error = hessian_trace(Bowl([1.0, 2.0, 3.0, 4.0]), bowl(h), batches, probes=1, seed=0)
    assert mean == pytest.approx(3.75, abs=1e-14)
    assert math.isnan(error)


def test_logistic_regression_has_its_closed_form():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x[:, 0] > 0).double()
    model = nn.Linear(4, 1, bias=False).double()
    p = torch.sigmoid(model(x)).detach().squeeze(1)
    closed = (x.T @ ((p * (1 - p)).unsqueeze(1) * x) / 30).numpy()

    def loss(outputs, y):
        return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), y)

    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    np.testing.assert_allclose(subspace(model, loss, batches, np.eye(4)), closed, atol=1e-14)
    eigenvalues = np.linalg.eigvalsh(closed)[::-1]
    for k in (1, 3, 4):  # P <= k + 1
        np.testing.assert_allclose(hessian_top(model, loss, batches, k), eigenvalues[:k])
    samples = trace_samples(model, loss, batches, probes=200, seed=0)
    signs = {tuple(rademacher(4, 0, i)) for i in range(200)}
    assert len(signs) == 16  # every probe there is
    assert samples.mean() == pytest.approx(np.trace(closed), rel=0.05)
    residual = ((p - y).unsqueeze(1) * x).numpy()
    np.testing.assert_allclose(gradient(model, loss, batches), residual.mean(0))
    found = projected_gradients(model, loss, x, y, np.eye(4)[:2], batch=8)
    np.testing.assert_allclose(found, residual[:, :2], atol=1e-14)


SPECTRA = {
    "zero": np.zeros(60),
    "identity": np.full(60, 3.0),
    "rank 3": np.r_[5.0, 4.0, 3.0, np.zeros(57)],
    "repeated": np.r_[3.0, 3.0, 3.0, np.ones(57)],
    "negative": -np.arange(1.0, 61.0),
    "large negative": np.r_[-100.0, np.linspace(0.0, 1.0, 59)],
    "many scales": np.logspace(-8, 2, 60),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("single", [False, True])
def test_top_pairs_of_hard_spectra(name, single):
    matrix = rotated(SPECTRA[name])
    dtype = np.float32 if single else np.float64
    rough = matrix.astype(dtype)
    noisy = spectrum.LinearOperator(
        matrix.shape, matvec=lambda v: (rough @ v.astype(dtype)).astype(float), dtype=np.float64
    )
    eps = float(np.finfo(dtype).eps)
    for k in (1, 5, 12):
        values, vectors = top_pairs(noisy, k, seed=0, tolerance=eps**0.75)
        scale = np.abs(SPECTRA[name]).max()
        expected = np.sort(SPECTRA[name])[::-1][:k]
        np.testing.assert_allclose(values, expected, atol=100 * eps * scale)
        np.testing.assert_allclose(
            matrix @ vectors.T, vectors.T * values, atol=5 * eps**0.75 * scale
        )


def test_top_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(spectrum, "RESTARTS", 1)
    with pytest.raises(RuntimeError, match=r"of 5 eigenvalues converged in 1 restarts"):
        top_pairs(operator(np.diag(np.linspace(0, 1, 500))), 5, seed=0, tolerance=1e-12)


def test_lanczos_quadrature_is_exact_for_polynomials():
    matrix = rotated(np.linspace(-2, 3, 30))
    v = np.random.default_rng(1).standard_normal(30)
    nodes, weights = lanczos(operator(matrix), v, steps=4)
    for power in range(8):  # degree < 2 * steps
        expected = v @ np.linalg.matrix_power(matrix, power) @ v / (v @ v)
        assert weights @ nodes**power == pytest.approx(expected, rel=1e-10)
    assert abs(weights @ nodes**8 - v @ np.linalg.matrix_power(matrix, 8) @ v / (v @ v)) > 1e-3


def test_density_of_a_diagonal_matrix_is_its_blurred_spectrum():
    values = np.repeat([-1.0, 0.5, 2.0], [3, 5, 2])  # a probe's weights are the multiplicities
    grid, p = density(operator(np.diag(values)), probes=1, steps=8, points=2000, seed=0)
    sigma = spectrum.BLUR * 3
    assert grid[[0, -1]] == pytest.approx([-1 - 5 * sigma, 2 + 5 * sigma])
    bumps = np.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2) / (sigma * math.sqrt(2 * np.pi))
    np.testing.assert_allclose(p, bumps.mean(1), atol=1e-4 * p.max())
    assert np.trapezoid(p, grid) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("c", [0.0, 3.0, -2.0])
def test_density_of_a_multiple_of_the_identity_is_one_bump(c):
    grid, p = density(operator(c * np.eye(40)), probes=2, steps=10, points=1000, seed=0)
    assert np.trapezoid(p, grid) == pytest.approx(1, abs=1e-12)
    assert np.trapezoid(p * grid, grid) == pytest.approx(c, abs=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_spectral_density_is_that_of_the_dense_hessian(exact, dtype, tolerance):
    arguments = (cnn(dtype), cross_entropy, [images(dtype)])
    grid, p = spectral_density(*arguments, probes=8, steps=25, seed=5)
    assert np.trapezoid(p, grid) == pytest.approx(1, abs=1e-12)
    values = np.linalg.eigvalsh(exact)
    sigma = spectrum.BLUR * (values[-1] - values[0])
    bumps = np.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2) / (sigma * math.sqrt(2 * np.pi))
    assert np.trapezoid(np.abs(p - bumps.mean(1)), grid) < 0.15
    trace, _ = hessian_trace(*arguments, probes=8, seed=5)
    assert np.trapezoid(p * grid, grid) * len(values) == pytest.approx(trace, rel=1e-3)


def test_subspace_and_projected_gradients_agree_with_the_dense_ones(exact):
    x, y = images()
    model = cnn()
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((len(exact), 4)))[0].T
    small = subspace(model, cross_entropy, unequal(x, y), basis)
    np.testing.assert_allclose(small, basis @ exact @ basis.T, atol=1e-13)
    np.testing.assert_array_equal(small, small.T)

    alone = [gradient(model, cross_entropy, [(x[i : i + 1], y[i : i + 1])]) for i in range(25)]
    for batch in (1, 7, 100):
        found = projected_gradients(model, cross_entropy, x, y, basis, batch)
        np.testing.assert_allclose(found, np.stack(alone) @ basis.T, atol=1e-13)


def test_parameters_that_are_not_trained_are_held(exact):
    model = cnn()
    for p in model[0].parameters():
        p.requires_grad_(False)
    held = sum(p.numel() for p in model[0].parameters())
    batches, rest = unequal(*images()), exact[held:, held:]
    values = hessian_top(model, cross_entropy, batches, 2)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(rest)[::-1][:2], atol=1e-10)
    whole = gradient(cnn(), cross_entropy, batches)
    np.testing.assert_allclose(gradient(model, cross_entropy, batches), whole[held:], atol=1e-14)
    assert not any(p.requires_grad for p in model[0].parameters())
    with at(model, flat(trainable(model).values()) + 1):
        assert torch.equal(model[0].weight, cnn()[0].weight)
        assert not torch.equal(model[5].weight, cnn()[5].weight)


def margins(outputs, y):
    """Mean logistic loss of a linear score; labels 0 and 1."""
    return nn.functional.softplus(-(2 * y - 1) * outputs.squeeze(1)).mean()


def per_sample_margins(outputs, y):
    return nn.functional.softplus(-(2 * y - 1) * outputs.squeeze(1))


def linear_task(n=20):
    generator = torch.Generator().manual_seed(2)
    x = 0.3 + 0.4 * torch.rand(n, 5, generator=generator, dtype=torch.float64)
    model = nn.Linear(5, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -0.5, 0.8, -1.2, 0.3]]))
        model.bias.fill_(-0.1)
    return model, [(x[:12], (x[:12, 0] > 0.5).long()), (x[12:], (x[12:, 0] > 0.5).long())]


def test_frozen_hessian_of_a_linear_model_under_linf_is_the_whole_one():
    model, batches = linear_task()
    attack = partial(LINF, loss=per_sample_margins)
    points = attacked(model, batches, attack, seed=0)
    sign = model.weight.detach().sign()
    for (x, y), (x_adv, y_adv) in zip(batches, points, strict=True):
        assert torch.equal(y, y_adv)
        torch.testing.assert_close(x_adv, x - 0.1 * (2 * y - 1).unsqueeze(1) * sign)

    h, w = 1e-5, flat(model.parameters())
    columns = []
    for v in np.eye(6):
        ends = []
        for step in (h * v, -h * v):
            with at(model, w + torch.from_numpy(step)):
                ends.append(gradient(model, margins, attacked(model, batches, attack, seed=0)))
        columns.append((ends[0] - ends[1]) / (2 * h))
    np.testing.assert_allclose(
        subspace(model, margins, points, np.eye(6)), np.stack(columns), atol=1e-9
    )


def test_frozen_hessian_under_l2_lacks_a_positive_semi_definite_term():
    eps, generator = 0.2, torch.Generator().manual_seed(4)
    x = torch.randn(15, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(15, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()

    def loss(outputs, y):
        return 0.5 * mse_loss(outputs.squeeze(1), y)

    def attack(model, x, y, generator):
        w = model.weight
        residual = y - model(x).squeeze(1)
        return x - eps * residual.sign().unsqueeze(1) * w / w.norm()

    w = model.weight.detach().squeeze(0)
    bracket = (y - x @ w).abs() + eps * w.norm()

    def closed(w):  # 0.5 (|y - w.x| + eps ||w||)^2
        return 0.5 * (((y - x @ w).abs() + eps * w.norm()) ** 2).mean()

    whole = torch.autograd.functional.hessian(closed, w).numpy()
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    points = attacked(model, batches, attack, seed=0)
    frozen = subspace(model, loss, points, np.eye(4))
    projector = torch.eye(4, dtype=torch.float64) - torch.outer(w, w) / w.norm() ** 2
    missing = (bracket.mean() * eps * projector / w.norm()).numpy()
    np.testing.assert_allclose(frozen + missing, whole, atol=1e-12)
    assert np.linalg.eigvalsh(whole - frozen).min() > -1e-12


def test_attacked_points_are_a_function_of_the_seed():
    model, (x, y) = cnn(torch.float32), images(torch.float32)
    attack = partial(pgd, threat=ThreatModel("linf", 0.1), steps=1, alpha=0.01)
    batches = [(x[:10], y[:10]), (x[:10], y[:10])]
    first, again, other = (attacked(model, batches, attack, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert not torch.equal(first[0][0], first[1][0])  # every batch has draws of its own


def explodes(outputs, y):
    raise ArithmeticError


CALLS = {
    "trace": lambda *a: hessian_trace(*a, probes=2, seed=0),
    "pairs": lambda *a: hessian_pairs(*a, 2),
    "density": lambda *a: spectral_density(*a, probes=1, steps=3, seed=0),
    "subspace": lambda *a: subspace(*a, [unit_direction(80, 0)]),
    "gradient": gradient,
    "projected": lambda m, f, b: projected_gradients(m, f, *b[0], [unit_direction(80, 0)], 4),
    "attacked": lambda m, f, b: gradient(m, f, attacked(m, b, LINF, seed=0)),
}


@pytest.mark.parametrize("loss_fn", [cross_entropy, explodes])
@pytest.mark.parametrize("name", CALLS)
def test_model_and_random_state_are_left_as_found(name, loss_fn):
    model = cnn().train()
    model[5].eval()
    model[5].bias.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    model[7].weight.grad = torch.ones_like(model[7].weight)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 80
    kept = copy.deepcopy(model)
    at = [t.data_ptr() for t in model.parameters()]
    torch.manual_seed(0)
    states = torch.get_rng_state(), str(np.random.get_state())
    if loss_fn is explodes:
        with pytest.raises(ArithmeticError):
            CALLS[name](model, loss_fn, unequal(*images()))
    else:
        CALLS[name](model, loss_fn, unequal(*images()))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]
    assert at == [t.data_ptr() for t in model.parameters()]
    for ours, theirs in zip(model.parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad == theirs.requires_grad
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["7.weight"]
    assert torch.equal(grads["7.weight"], torch.ones_like(model[7].weight))
    for ours, theirs in zip(model.buffers(), kept.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    modes = [module.training for module in model.modules()]
    assert modes == [module.training for module in kept.modules()]


def test_derivatives_that_are_not_finite_are_an_error():
    model, batches = cnn(), unequal(*images())
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = math.nan
    for name in CALLS.keys() - {"projected", "subspace"}:
        with pytest.raises(FloatingPointError, match="not finite"):
            CALLS[name](model, cross_entropy, batches)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *a: hessian_top(*a, 0), "k is 0, expected 1 to 4"),
        (lambda *a: hessian_top(*a, 5), "k is 5, expected 1 to 4"),
        (lambda *a: hessian_trace(*a, probes=0, seed=0), "probes is 0"),
        (lambda *a: spectral_density(*a, probes=0, seed=0), "probes is 0"),
        (lambda *a: spectral_density(*a, steps=0, seed=0), "steps is 0"),
        (lambda *a: spectral_density(*a, points=1, seed=0), "points is 1"),
        (lambda *a: subspace(*a, np.eye(3)), r"\(3, 3\), expected \(m, 4\)"),
        (lambda *a: subspace(*a, np.ones(4)), r"\(4,\), expected \(m, 4\)"),
        (lambda m, f, b: projected_gradients(m, f, *b[0], np.eye(4), 0), "batch is 0"),
        (lambda m, f, b: gradient(m, f, []), r"sizes \[\]"),
        (lambda m, f, b: hessian_top(m, f, [b[0], (b[0][0][:0], b[0][1][:0])], 1), r"\[3, 0\]"),
        (lambda m, f, b: gradient(m.requires_grad_(False), f, b), "no trainable parameter"),
    ],
)
def test_bad_arguments_are_named(call, message):
    batches = [(torch.ones(3, 4, dtype=torch.float64), torch.zeros(3))]
    with pytest.raises(ValueError, match=message):
        call(Bowl([0.0, 0.0, 0.0, 0.0]), bowl([1.0, 2.0, 3.0, 4.0]), batches)


def test_note_names_what_frozen_points_miss():
    assert "l2" in curvature.FROZEN_NOTE and "held" in curvature.FROZEN_NOTE
