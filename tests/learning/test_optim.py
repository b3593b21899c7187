import math

import numpy as np
import pytest
import torch

from raydist.learning.optim import DEAT, build


def parameter(values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def deat_recursion(theta, gradients, lrs, k1, k2, weight_decay, normalise):
    """The paper's equations with the whole history h_{−1}, h_0, h_1, ... kept."""
    h = [np.zeros_like(theta), np.zeros_like(theta)]
    for g, lr in zip(gradients, lrs, strict=True):
        h.append(k2 * h[-2] + (1 - k2) * g)
        scaled = lr / math.sqrt((1 + k1) ** 2 + k1**2) if normalise else lr
        theta = (1 - lr * weight_decay) * theta - scaled * ((1 + k1) * h[-1] - k1 * h[-2])
    return theta


@pytest.mark.parametrize(
    ("k1", "k2", "weight_decay", "normalise"),
    [(1.0, 0.81, 0.0, True), (1.0, 0.81, 0.3, True), (0.4, 0.5, 0.1, False), (0.0, 0.0, 0.0, True)],
)
def test_deat_follows_the_recursion(k1, k2, weight_decay, normalise):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), rng.normal(size=(7, 5))
    lrs = [0.1, 0.1, 0.1, 0.02, 0.02, 0.02, 0.02]  # a schedule sets the learning rate
    theta = parameter(start)
    optimiser = DEAT([theta], 0.1, k1, k2, weight_decay, normalise)
    for g, lr in zip(gradients, lrs, strict=True):
        optimiser.param_groups[0]["lr"] = lr
        theta.grad = torch.tensor(g)
        optimiser.step()
    expected = deat_recursion(start, gradients, lrs, k1, k2, weight_decay, normalise)
    assert theta.detach().numpy() == pytest.approx(expected, rel=1e-14, abs=1e-15)


def one_step(state, noise, h, lr, normalise):
    """One DEAT step on the risk h θ²/2 from the state (θ, h_{t−1}, h_{t−2}), one draw of noise."""
    theta = parameter([state[0]])
    optimiser = DEAT([theta], lr, normalise=normalise)
    optimiser.state[theta] = {
        "h1": torch.tensor([state[1]], dtype=torch.float64),
        "h2": torch.tensor([state[2]], dtype=torch.float64),
    }
    theta.grad = torch.tensor([h * state[0] + noise], dtype=torch.float64)
    optimiser.step()
    after = optimiser.state[theta]
    return np.array([theta.item(), after["h1"].item(), after["h2"].item()])


def stationary_covariance(h, lr, normalise):
    """P = F P F' + G G' of the linear map that a step is, by doubling its sum of powers."""
    f = np.array([one_step(unit, 0.0, h, lr, normalise) for unit in np.eye(3)]).T
    g = one_step(np.zeros(3), 1.0, h, lr, normalise)
    p = np.outer(g, g)
    for _ in range(40):
        p, f = p + f @ p @ f.T, f @ f
    return p


@pytest.mark.parametrize(
    ("h", "lr", "normalise", "variance"),
    [
        (1.0, 0.1, True, 0.021477),
        (1.0, 0.01, True, 0.002226),
        (0.1, 0.1, True, 0.222641),
        (1.0, 0.1, False, 0.046105),
        (1.0, 0.01, False, 0.004952),
        (0.1, 0.1, False, 0.495229),
    ],
)
def test_deat_has_its_exact_stationary_variance(h, lr, normalise, variance):
    assert stationary_covariance(h, lr, normalise)[0, 0] == pytest.approx(variance, abs=6e-7)


def test_deat_step_noise_is_five_times_that_of_the_average():
    # Theorem 2: Var((1 + k1) h_t − k1 h_{t−1}) = ((1 + k1)² + k1²) (1 − k2)/(1 + k2), at k1 = 1
    covariance = stationary_covariance(1e-9, 1e-9, False)  # a flat risk: gradients are noise
    step = np.array([2.0, -1.0])
    assert step @ covariance[1:, 1:] @ step == pytest.approx(5 * 0.19 / 1.81, rel=1e-6)


OPTIMISERS = {
    "sgd": {},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "adam": {},
    "deat": {},
    "deat, plain": {"name": "deat", "k1": 0.4, "k2": 0.5, "normalise": False},
}
START = np.random.default_rng(2).normal(size=7)
GRADIENTS = np.random.default_rng(3).normal(size=(6, 7))


def built(label, params, lr=0.1, **options):
    return build(**{"name": label, "params": params, "lr": lr, **OPTIMISERS[label], **options})


def walk(optimiser, gradients):
    """One step per row, spread over the parameters in their order; all numbers after each."""
    (group,) = optimiser.param_groups
    path = []
    for row in torch.tensor(gradients):
        parts = row.split([theta.numel() for theta in group["params"]])
        for theta, g in zip(group["params"], parts, strict=True):
            theta.grad = g.reshape(theta.shape).clone()
        optimiser.step()
        path.append(torch.cat([theta.detach().flatten().clone() for theta in group["params"]]))
    return torch.stack(path)


@pytest.mark.parametrize("label", OPTIMISERS)
def test_zero_gradients_move_nothing_from_the_first_step(label):
    path = walk(built(label, [parameter(START)]), np.zeros((4, 7)))
    assert torch.equal(path, torch.tensor(START).expand(4, 7))


@pytest.mark.parametrize("label", OPTIMISERS)
def test_a_rate_of_zero_moves_nothing(label):
    path = walk(built(label, [parameter(START)], lr=0.0, weight_decay=0.1), GRADIENTS)
    assert torch.equal(path, torch.tensor(START).expand(6, 7))


@pytest.mark.parametrize("label", OPTIMISERS)
def test_steps_depend_on_the_gradients_alone(label):
    first, second = (built(label, [parameter(START)], weight_decay=0.1) for _ in range(2))
    path = walk(first, GRADIENTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        assert torch.equal(walk(second, GRADIENTS), path)
    assert (path.diff(dim=0) != 0).all()
    other = built(label, [parameter(START)], weight_decay=0.1)
    assert not torch.isclose(walk(other, GRADIENTS[::-1].copy())[-1], path[-1]).all()


@pytest.mark.parametrize("label", OPTIMISERS)
@pytest.mark.parametrize("done", [1, 2, 3])
def test_optimisers_resume_from_their_state_dict(label, done, tmp_path):
    whole = walk(built(label, [parameter(START)], weight_decay=0.1), GRADIENTS)
    broken_off = built(label, [parameter(START)], weight_decay=0.1)
    reached = walk(broken_off, GRADIENTS[:done])[-1]
    torch.save(broken_off.state_dict(), tmp_path / "state")
    resumed = built(label, [torch.nn.Parameter(reached)], lr=0.7)  # the options come back too
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    assert torch.equal(walk(resumed, GRADIENTS[done:]), whole[done:])


@pytest.mark.parametrize("label", OPTIMISERS)
def test_one_flat_vector_steps_as_its_parts_do(label):
    flat = walk(built(label, [parameter(START)], weight_decay=0.1), GRADIENTS)
    parts = [parameter(START[:1]), parameter(START[1:5].reshape(2, 2)), parameter(START[5:])]
    split = walk(built(label, parts, weight_decay=0.1), GRADIENTS)
    torch.testing.assert_close(split, flat, rtol=1e-14, atol=1e-15)


def test_deat_keeps_parameters_without_gradient_and_returns_the_closures_loss():
    used, unused = parameter([1.0]), parameter([2.0])
    optimiser = DEAT([used, unused], 0.1)

    def closure():
        optimiser.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss.item()

    assert optimiser.step(closure) == pytest.approx(1.0)
    assert used.item() < 1.0
    assert torch.equal(unused, parameter([2.0]))
    assert optimiser.step() is None


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"name": "sgd"}, [0.9, 0.8]),
        ({"name": "sgd", "weight_decay": 0.5}, [0.85, 0.7075]),
        ({"name": "sgd", "momentum": 0.5}, [0.9, 0.75]),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, [0.85, 0.675]),
        ({"name": "adam"}, [0.9, 0.8]),  # a constant gradient: steps of the learning rate
        ({"name": "deat", "k1": 0.0, "k2": 0.0}, [0.9, 0.8]),  # plain SGD
        ({"name": "deat", "k1": 0.0, "k2": 0.0, "weight_decay": 0.5}, [0.85, 0.7075]),
        ({"name": "deat", "k1": 1.0, "k2": 0.0, "normalise": False}, [0.8, 0.7]),
    ],
)
def test_built_optimisers_take_the_steps_known_by_hand(options, steps):
    theta = parameter([1.0])
    optimiser = build(options.pop("name"), [theta], 0.1, **options)
    taken = []
    for _ in steps:
        theta.grad = torch.ones_like(theta)
        optimiser.step()
        taken.append(theta.item())
    assert taken == pytest.approx(steps, abs=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sdg", {}, 'optim.name is "sdg"'),
        ("adam", {"momentum": 0.9}, "takes no momentum: its parameters are lr, betas"),
        ("deat", {"nesterov": True}, "takes no nesterov: its parameters are lr, k1, k2"),
        ("deat", {"k2": 1.0}, "k2 1.0"),
        ("deat", {"k1": -1.0}, "k1 -1.0"),
        ("deat", {"weight_decay": -1.0}, "weight_decay -1.0"),
        ("sgd", {"nesterov": True}, "momentum"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, [parameter([1.0])], 0.1, **options)


def test_deat_refuses_a_negative_learning_rate():
    with pytest.raises(ValueError, match=r"lr -0\.1"):
        DEAT([parameter([1.0])], -0.1)
