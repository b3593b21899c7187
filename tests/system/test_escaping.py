"""Excess risk of networks: measured by the run, and predicted where the answer is known."""

import copy
import math
from dataclasses import replace
from functools import partial

import experiments
import numpy as np
import pandas as pd
import pytest
import torch
from scripts import script
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from raydist import run_experiment
from raydist.adversary.attack import pgd
from raydist.adversary.objective import quadratics
from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import validate
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.errors import InputError
from raydist.learning.small import Point
from raydist.measure import escaping
from raydist.measure.curvature import subspace
from raydist.network import theory, weights
from raydist.network.strategy import STRATEGIES
from raydist.network.topology import build
from raydist.seeding import Purpose, torch_generator

RING = weights.metropolis(build("ring", 16))
COSINES = np.cos(2 * np.pi * np.arange(16) / 16)
NORMAL = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
ROUNDS = [0, 1, 2, 10, math.inf]


def digits(**tables):
    few = {"every": 2, "validation_images": 16, "test_images": 16, "excess_risk": 50}
    evaluate = few | tables.pop("evaluate", {})
    return experiments.digits(**{"rounds": 4, "evaluate": evaluate} | tables)


def values(result, metric, agent="mean"):
    frame = result.rounds
    chosen = frame[(frame["metric"] == metric) & (frame["agent"] == agent)]
    return dict(zip(chosen["round"], chosen["value"], strict=True))


# The local model and its prediction


def points(agents, seed=0):
    """Clouds around random centers, in float64, in batches of unequal size."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(agents, 11, 3, generator=draw, dtype=torch.float64)
    x += 2 * torch.randn(agents, 1, 3, generator=draw, dtype=torch.float64)
    y = torch.zeros(11, dtype=torch.int64)
    return x, [[(each[:4], y[:4]), (each[4:], y[4:])] for each in x]


def half_squares(h, outputs, y):
    return quadratics(outputs, y, h).mean()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_a_point_model_the_prediction_is_that_of_the_theory(strategy):
    x, shares = points(4)
    h = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    star = x.mean(dim=(0, 1))
    A = weights.metropolis(build("path", 4))
    local = escaping.local_model(Point(star), shares, partial(half_squares, h), None, 3, 0)
    H = torch.diag(h).numpy()
    spread = np.stack([np.cov(each.numpy().T, ddof=0) for each in x])
    exact = theory.excess_risk(
        strategy,
        A,
        np.stack([H] * 4),
        ((star - x.mean(dim=1)) * h).numpy(),
        H @ spread @ H,
        0.1,
        5,
        ROUNDS,
    )
    found = escaping.predict(local, strategy, A, 0.1, 5, ROUNDS)
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-15)


def regressions(agents=3):
    """Agents with unequal Hessians: linear regression, whose risk is exactly quadratic."""
    draw = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Linear(3, 2).double()
    shares = []
    for _ in range(agents):
        x = torch.randn(7, 3, generator=draw, dtype=torch.float64) + torch.arange(3.0)
        y = torch.randn(7, 2, generator=draw, dtype=torch.float64)
        shares.append([(x[:3], y[:3]), (x[3:], y[3:])])
    return model, shares


def risk_at(w, model, share):
    parameters = dict(
        zip(
            dict(model.named_parameters()),
            [part.view_as(p) for part, p in zip(w.split([6, 2]), model.parameters(), strict=True)],
            strict=True,
        )
    )
    x, y = (torch.cat(part) for part in zip(*share, strict=True))
    return mse_loss(torch.func.functional_call(model, parameters, (x,)), y)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_far_from_a_minimum_the_linear_term_counts(strategy):
    """Exact gradients from random weights, agent by agent, against the whole space's prediction."""
    model, shares = regressions()
    A, lr = np.array([[0.5, 0.2, 0.0], [0.5, 0.6, 0.4], [0.0, 0.2, 0.6]]), 0.05
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    local = escaping.local_model(model, shares, mse_loss, None, 8, 0)
    assert np.linalg.norm(local.gradients.mean(axis=0)) > 0.1
    W, measured = start.repeat(3, 1), []
    mixing = torch.tensor(A).T

    def excess(W):
        risks = [
            risk_at(w, model, share) - risk_at(start, model, share) for w in W for share in shares
        ]
        return float(torch.stack(risks).mean())

    for _ in range(6):
        measured.append(excess(W))
        steps = [lr * torch.func.grad(risk_at)(w, model, s) for w, s in zip(W, shares, strict=True)]
        G = torch.stack(steps)
        W = {
            "centralized": W - G.mean(dim=0),
            "consensus": mixing @ W - G,
            "diffusion": mixing @ (W - G),
            "local": W - G,
        }[strategy]
    silent = replace(local, noise=0 * local.noise)
    found = escaping.predict(silent, strategy, A, lr, 1, range(6))
    np.testing.assert_allclose(found, measured, rtol=1e-10, atol=1e-12)
    assert measured[5] < 0


def test_noise_is_the_covariance_of_single_samples():
    model, shares = regressions()
    local = escaping.local_model(model, shares, mse_loss, None, 4, 0)
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    for k, share in enumerate(shares):
        x, y = (torch.cat(part) for part in zip(*share, strict=True))
        rows = [
            torch.func.grad(risk_at)(w, model, [(x[i : i + 1], y[i : i + 1])]) for i in range(7)
        ]
        each = torch.stack(rows).numpy() @ local.basis.T
        np.testing.assert_allclose(local.gradients[k], each.mean(axis=0), atol=1e-12)
        centred = each - each.mean(axis=0)
        np.testing.assert_allclose(local.noise[k], centred.T @ centred / 7, atol=1e-12)


@pytest.mark.parametrize(
    ("eps", "Hbar", "diffusion", "consensus"),
    [
        (0.05, 1.03156, 0.0202085, 0.0217803),
        (0.2, 1.12623, 0.0256674, 0.0276180),
        (1.0, 1.63114, 0.0667881, 0.0713140),
    ],
)
def test_the_attack_sharpens_the_risk_and_that_is_seen(eps, Hbar, diffusion, consensus):
    """Normal samples by their quantiles, the exact attack; points that are held would say 1."""
    y, one = torch.zeros(2000, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    shares = [[((c + NORMAL)[:, None], y)] for c in COSINES.tolist()]
    attack = partial(
        pgd,
        threat=ThreatModel("linf", eps, (-torch.inf, torch.inf)),
        steps=1,
        alpha=eps,
        start="zero",
        loss=partial(quadratics, hessian=one),
    )
    model, loss = Point(torch.zeros(1, dtype=torch.float64)), partial(half_squares, one)
    local = escaping.local_model(model, shares, loss, attack, 1, 0, step=0.1)
    assert local.hessians.mean() == pytest.approx(Hbar, rel=2e-3)
    assert subspace(model, loss, shares[0], np.ones((1, 1))) == pytest.approx(1)
    for strategy, expected in {"diffusion": diffusion, "consensus": consensus}.items():
        found = escaping.predict(local, strategy, RING, 0.02, 32, [150])
        assert found == pytest.approx(expected, rel=5e-3)


def test_the_model_is_left_as_it_was_and_the_result_is_a_function_of_the_seed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(2, 20, 3)
    shares = [[(each, torch.arange(20) % 2)] for each in x]
    attack = partial(pgd, threat=ThreatModel("linf", 0.1), steps=2, alpha=0.05)
    state = torch.get_rng_state()
    first, again, other = (
        escaping.local_model(model, shares, cross_entropy, attack, 2, seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state) and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    np.testing.assert_array_equal(first.hessians, again.hessians)
    assert not np.array_equal(first.gradients, other.gradients)  # other random starts


# What a run measures


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_nothing_moves_the_excess_risk_is_zero_in_every_round(strategy):
    result = run_experiment(digits(strategy=strategy, optim={"lr": 0.0}))
    for k in range(4):
        assert values(result, "excess_risk", str(k)) == {0: 0, 2: 0, 4: 0}
    assert list(values(result, "centroid_excess_risk", "centroid").values()) == pytest.approx(
        [0] * 3, abs=1e-6
    )


@pytest.mark.parametrize("loss", ["standard", "pgd_at", "trades"])
def test_the_excess_risk_is_the_difference_of_mean_losses_over_images_of_all_shares(loss):
    tree = digits(
        attack={"start": "zero"} if loss == "pgd_at" else {},
        loss={"name": loss},
        evaluate={"batch": 5},
        dtype="float64",
        data={"transforms": [{}, {"brightness": 0.5}, {}, {}]},
    )
    result, plan = run_experiment(tree), make_plan(validate(tree))
    pool = LocalPool(plan)
    x, y = plan.held()["risk"]
    assert len(y) == 48 and len(np.unique(x.reshape(48, -1), axis=0)) > 40
    task, model = pool.agents[0].local.task, pool.agents[0].flat.module

    def J(w):
        pool.agents[0].flat.state_vector.copy_(torch.tensor(w))
        total = 0.0
        for i in range(48):  # one by one, but with the start that the image has in its batch
            k, place = divmod(i, 12)
            image = torch.tensor(x[i], dtype=torch.float64) * plan.data.scale
            image = (image * (0.5 if k == 1 else 1.0))[None]
            number, row = divmod(place, 5)
            rows = min(5, 12 - 5 * number)
            padded = image.repeat(rows, 1, 1, 1)
            labels = torch.tensor([y[i]] * rows)
            draw = torch_generator(Purpose.EVALUATE, 0, k, number)
            x_adv = task.attack(model, padded, labels, task.threat, draw).x_adv[row : row + 1]
            total += float(task.loss(model.eval(), image, x_adv, labels[:1]).detach())
        return total / 48

    start = pool.agents[0].state()
    reference = J(start)
    expected = [J(w) - reference for w in result.weights]
    for k in range(4):
        assert values(result, "excess_risk", str(k))[4] == pytest.approx(expected[k], rel=1e-9)
    assert result.final["excess_risk"] == pytest.approx(np.mean(expected), rel=1e-9)
    centroid = J(result.centroid) - reference
    found = values(result, "centroid_excess_risk", "centroid")
    assert found[4] == pytest.approx(centroid, rel=1e-9)
    assert result.final["centroid_excess_risk"] == pytest.approx(centroid, rel=1e-9)
    pool.shutdown()


def test_all_strategies_see_the_same_samples_and_the_same_draws():
    seen = {}
    for strategy in STRATEGIES:
        pool, stream = LocalPool(make_plan(validate(digits(strategy=strategy)))), []
        for agent in pool.agents:
            task = agent.local.task

            def attack(model, x, y, threat, draw, gradient, task=task, stream=stream):
                stream.append((x.clone(), y.clone(), draw.initial_seed()))
                return task.attack(model, x, y, threat, draw, gradient)

            agent.local.task = copy.copy(task)
            agent.local.task.attack = attack
        for n in range(1, 4):
            pool.step(n)
        seen[strategy] = stream
        pool.shutdown()
    reference = seen.pop("centralized")
    assert len(reference) == 12 and len({seed for _, _, seed in reference}) == 12
    for stream in seen.values():
        for (x, y, seed), (x_0, y_0, seed_0) in zip(stream, reference, strict=True):
            assert torch.equal(x, x_0) and torch.equal(y, y_0) and seed == seed_0


def test_nothing_is_measured_unless_asked_for():
    result = run_experiment(digits(evaluate={"excess_risk": 0}))
    assert not result.rounds["metric"].str.contains("risk").any()
    assert not any("risk" in name for name in result.final)


def test_the_prediction_is_recorded_beside_the_measurement():
    tree = digits(evaluate={"subspace": 3})
    result, plan = run_experiment(tree), make_plan(validate(tree))
    recorded = values(result, "excess_risk_theory", "mean")
    assert list(recorded) == list(values(result, "excess_risk")) == [0, 2, 4]
    x, y = plan.held()["risk"]
    images, labels = torch.tensor(x) * np.float32(plan.data.scale), torch.tensor(y)
    shares = [[(images[12 * k : 12 * k + 12], labels[12 * k : 12 * k + 12])] for k in range(4)]
    attack = partial(pgd, threat=ThreatModel("linf", 0.1), steps=2, alpha=0.025)
    pool = LocalPool(plan)
    local = escaping.local_model(
        pool.agents[0].flat.module, shares, cross_entropy, attack, 3, seed=0
    )
    expected = escaping.predict(local, "diffusion", plan.A, 0.05, 8, [0, 2, 4, math.inf])
    found = [*recorded.values(), result.final["excess_risk_limit"]]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert found[0] == 0 and abs(found[2]) > 1e-3
    assert result.final["excess_risk_theory"] == recorded[4]
    pool.shutdown()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"evaluate": {"excess_risk": 3}}, "evaluate.excess_risk is 3, expected 0, or 4 to 1292"),
        ({"evaluate": {"excess_risk": 9999}}, "expected 0, or 4 to 1292 images for"),
        ({"loss": {"name": "wasserstein"}}, "not for loss.name = .wasserstein"),
        ({"evaluate": {"excess_risk": 0, "subspace": 2}}, "write evaluate.excess_risk = 512"),
        ({"loss": {"name": "trades"}, "evaluate": {"subspace": 2}}, "predicts plain SGD"),
        ({"optim": {"momentum": 0.9}, "evaluate": {"subspace": 2}}, "predicts plain SGD"),
        ({"evaluate": {"subspace": 651}}, "evaluate.subspace is 651, expected at most 650"),
    ],
)
def test_what_cannot_be_measured_or_predicted_is_said_before_the_start(tables, message):
    with pytest.raises(InputError, match=message):
        make_plan(validate(digits(**tables)))


@pytest.mark.parametrize("key", ["excess_risk", "subspace"])
def test_the_quadratic_task_reports_it_anyway(key):
    tree = {
        "topology": {"kind": "ring", "agents": 3},
        "rounds": 2,
        "data": {"set": "quadratic", "centers": [[0], [3], [6]], "hessian": [1.0]},
        "model": {"name": "point"},
        "loss": {"name": "quadratic"},
        "threat": {"eps": 0.0},
    }
    with pytest.raises(InputError, match=f"evaluate.{key} is for images"):
        make_plan(validate(tree | {"evaluate": {key: 3}}))


# The analysis


def test_the_analysis_draws_several_folders_and_compares_the_strategies(tmp_path, capsys):
    for strategy in ("centralized", "diffusion"):
        run_experiment(digits(strategy=strategy, evaluate={"subspace": 2}), out=tmp_path / strategy)
    analysis = script("escaping_efficiency")
    analysis.main([tmp_path / "centralized", tmp_path / "diffusion"], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    assert "excess_risk_limit" in capsys.readouterr().out
    frame, rounds = analysis.read([tmp_path / "centralized", tmp_path / "diffusion"])
    assert frame["trial"].nunique() == rounds["trial"].nunique() == 2


def test_the_table_has_means_over_seeds_and_ratios_to_the_centralized():
    trials = pd.DataFrame(
        {
            "status": ["completed"] * 5 + ["failed"],
            "threat.eps": [0.1] * 4 + [0.2, 0.2],
            "strategy": ["centralized"] * 2 + ["diffusion"] * 3 + ["consensus"],
            "excess_risk": [1.0, 3.0, 5.0, 7.0, 9.0, 1e9],
        }
    )
    table = script("escaping_efficiency").table(trials)
    assert table.loc[(0.1, "diffusion"), "excess_risk"] == 6
    assert table.loc[(0.1, "diffusion"), "ratio"] == 3
    assert table.loc[(0.1, "centralized"), "s.d."] == pytest.approx(math.sqrt(2))
    assert math.isnan(table.loc[(0.2, "diffusion"), "ratio"])
    assert (0.2, "consensus") not in table.index


@pytest.mark.ray
def test_ray_agents_measure_the_same_excess_risk(ray_cluster):
    tree = digits(
        topology={"kind": "path", "agents": 2},
        agent={"cpus": 0.5},
        rounds=2,
        evaluate={"subspace": 2},
    )
    found, expected = (run_experiment(tree, pool) for pool in ("ray", "local"))
    of = {"0": "excess_risk", "1": "excess_risk", "centroid": "centroid_excess_risk"}
    for who, risk in of.items():
        assert values(found, risk, who) == values(expected, risk, who)
    theory = [values(run, "excess_risk_theory", "mean") for run in (found, expected)]
    assert theory[0] == theory[1] and len(theory[0]) == 2
