"""Every choice of a training recipe, composed with the others, against what it must do."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest
import torch
from experiments import digits, quadratic
from reference import robust_accuracy
from running import values, weights_after

from raydist import run_experiment
from raydist.adversary.attack import ascend
from raydist.adversary.schedule import eps_at
from raydist.config.experiment import validate
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.errors import InputError
from raydist.learning.optim import DEAT

L2 = {"norm": "l2", "eps": 0.1}


@pytest.mark.parametrize("per", ["round", "epoch"])
def test_the_budget_follows_its_schedule_and_the_step_follows_the_budget(per):
    schedule = {"name": "cosine", "eps_max": 0.2, "per": per}
    tree = digits(
        rounds=8,
        threat={"eps": 0.1, "schedule": schedule},
        data={"batch": 161},  # two batches in an epoch
        attack={"steps": 1, "alpha": 0.05, "start": "zero"},
    )
    found = values(run_experiment(tree), "eps")
    steps = [n - 1 if per == "round" else (n - 1) // 2 * 2 for n in range(1, 9)]
    expected = [eps_at("cosine", s / 8, 0.1, eps_max=0.2) for s in steps]
    assert [found[n] for n in range(1, 9)] == pytest.approx(expected)
    assert found[1] == 0  # and clipped from half of the run on:
    assert [found[5], found[8]] == pytest.approx([0.1, 0.1], rel=1e-12)
    pool = LocalPool(make_plan(validate(tree)))
    agent = pool.agents[0]
    x, y = agent.local.task.batch(1)
    half = agent.local.task.attack(
        agent.flat.module, x, y, agent.local.task.threat.__class__("linf", 0.05), torch.Generator()
    )
    assert (half.x_adv - x).abs().amax().item() == pytest.approx(0.025, rel=1e-4)
    pool.shutdown()


def one_step(w, x, y, norm, eps, alpha):
    """x + alpha d, d the steepest ascent of the cross-entropy of a linear model, in NumPy."""
    W, b = w[:-10].reshape(10, -1), w[-10:]
    flat = x.reshape(len(x), -1)
    p = np.exp((flat - 0.3053) / 0.3760 @ W.T + b)
    g = (p / p.sum(axis=1, keepdims=True) - np.eye(10)[y]) @ W
    d = alpha * (np.sign(g) if norm == "linf" else g / np.linalg.norm(g, axis=1, keepdims=True))
    length = np.abs(d).max(axis=1) if norm == "linf" else np.linalg.norm(d, axis=1)
    d *= np.minimum(1, eps / np.maximum(length, 1e-30))[:, None]
    return np.clip(flat + d, 0, 1).reshape(x.shape)


@pytest.mark.parametrize("common", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, 0.03])
def test_agents_may_train_against_different_threats(common, alpha):
    """Each takes a quarter of its own budget, or the part of it that alpha is of the common one."""
    own = [{"eps": 0.0}, {}, {"norm": "l2", "eps": 0.5}, {"eps": 0.2}]
    attack = {"steps": 1, "start": "zero"} | ({} if alpha is None else {"alpha": alpha})
    tree = digits(threat={"eps": common, "agents": own}, attack=attack, dtype="float64")
    pool = LocalPool(make_plan(validate(tree)))
    threats = [("linf", 0.0), ("linf", common), ("l2", 0.5), ("linf", 0.2)]
    for agent, (norm, eps) in zip(pool.agents, threats, strict=True):
        step = eps / 4 if alpha is None else alpha * (eps / common if common else 1)
        batch = agent.local.attack(1, noisy=False)
        expected = one_step(pool.states()[0], batch.x.numpy(), batch.y, norm, eps, step)
        np.testing.assert_allclose(batch.points.x_adv, expected, atol=1e-8)
    pool.shutdown()


def test_own_budgets_follow_the_common_schedule_also_where_the_common_one_is_zero():
    own = [{"eps": 0.2}, {}, {"norm": "l2", "eps": 0.5}, {"eps": 0.1}]
    for common, schedule in ((0.0, {}), (0.1, {"eps_max": 0.2})):
        table = {"eps": common, "agents": own, "schedule": {"name": "linear", **schedule}}
        result = run_experiment(digits(threat=table, rounds=4, attack={"steps": 0}))
        for k, eps in enumerate([0.2, common, 0.5, 0.1]):
            part = [min(1, p * (2 if schedule else 1)) for p in (0, 0.25, 0.5, 0.75)]
            found = values(result, "eps", str(k))
            assert [found[n] for n in range(1, 5)] == pytest.approx([eps * p for p in part])
    with pytest.raises(InputError, match=r"eps_max is 0\.2, which counts in units of threat\.eps"):
        validate(digits(threat={"eps": 0, "agents": own, "schedule": table["schedule"]}))


def test_tables_of_agents_are_checked():
    with pytest.raises(InputError, match=r"threat.agents has 2 tables for topology.agents = 4"):
        validate(digits(threat={"agents": [{}, {}]}))
    with pytest.raises(InputError, match=r"threat.agents\[1\].eps is 8.0"):
        validate(digits(threat={"agents": [{}, {"eps": 8}, {}, {}]}))
    mixed = {"eps": 0.1, "agents": [{}, {"norm": "l2"}, {}, {}]}
    with pytest.raises(InputError, match=r"norms l2 and linf, but the sensitivity .* one for all"):
        validate(digits(threat=mixed, loss={"name": "wasserstein"}))
    validate(digits(threat=mixed, loss={"name": "wasserstein", "order": "inf"}))
    with pytest.raises(InputError, match=r'threat.norm is "l2", expected "linf" for data.set'):
        make_plan(validate(quadratic(threat=mixed)))


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_quadratic_task_measures_against_the_threat_of_each_agent(noise):
    """J by its definition, at the quantiles of the samples; w* by golden search."""
    eps, h = np.array([0.0, 0.3, 0.6, 0.1]), np.array([1.0, 0.5])
    tree = quadratic(
        rounds=5,
        data={"noise": noise},
        threat={"eps": 0.3, "agents": [{"eps": e} for e in eps]},
    )
    centers = np.array(tree["data"]["centers"])
    grid = (np.arange(20_000) + 0.5) / 20_000
    x = noise * np.array([NormalDist().inv_cdf(q) for q in grid]) if noise else np.zeros(1)

    def J(w):  # (M,) -> (M,): a sum over coordinates, and so is its minimum
        residual = np.abs(w - centers[:, None] - x[:, None]) + eps[:, None, None]
        return (h / 2 * residual**2).mean(axis=(0, 1))

    low, high = centers.min(axis=0), centers.max(axis=0)
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        worse = J(left) > J(right)
        low, high = np.where(worse, left, low), np.where(worse, high, right)
    result = run_experiment(tree)
    expected = np.mean([J(w) - J(low) for w in result.weights], axis=0).sum()
    assert values(result, "excess_risk")[5] == pytest.approx(expected, rel=1e-5 if noise else 1e-9)


@pytest.mark.parametrize("name", ["adam", "deat", "sgd"])
def test_one_agent_steps_like_the_optimiser_itself(name):
    table = {"name": name, "lr": 0.01, "weight_decay": 0.01}
    table |= {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    tree = digits(
        topology={"kind": "complete", "agents": 1},
        optim=table,
        threat={"eps": 0.0},
        dtype="float64",
    )
    pool = LocalPool(make_plan(validate(tree)))
    agent = pool.agents[0]
    w = torch.nn.Parameter(agent.flat.w.detach().clone())
    kinds = {"adam": torch.optim.Adam, "deat": DEAT, "sgd": torch.optim.SGD}
    extra = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    optimiser = kinds[name]([w], lr=0.01, weight_decay=0.01, **extra)
    for n in range(1, 4):
        x, y = agent.local.task.batch(n)
        loss = torch.nn.functional.cross_entropy(agent.flat.module(x), y)
        gradients = torch.autograd.grad(loss, list(agent.flat.module.parameters()))
        w.grad = torch.cat([g.reshape(-1) for g in gradients])
        optimiser.step()
        pool.step(n)
        pool.close(n)
        np.testing.assert_allclose(pool.states()[0], w.detach().numpy(), atol=1e-13)
    pool.shutdown()


@pytest.mark.parametrize("name", ["sgd", "adam", "deat"])
def test_combined_optimiser_state_makes_full_averaging_one_optimiser(name):
    """With A = 11'/K, momentum that is averaged too is the same at all agents."""
    table = {"name": name, "lr": 0.01} | ({"momentum": 0.9} if name == "sgd" else {})

    def states(combine):
        tree = digits(
            topology={"kind": "complete", "agents": 3}, optim=table | {"combine": combine}
        )
        pool = LocalPool(make_plan(validate(tree)))
        for n in (1, 2):
            pool.step(n)
        pool.close(2)
        key = {"sgd": "momentum_buffer", "adam": "exp_avg", "deat": "h1"}[name]
        found = [a.local.optimiser.state[a.flat.w][key].numpy().copy() for a in pool.agents]
        sent = pool.agents[0].adapt(3)[0].numel()
        pool.shutdown()
        return np.stack(found), sent

    (kept, small), (combined, large) = states(False), states(True)
    assert np.abs(kept - kept[0]).max() > 1e-4
    np.testing.assert_allclose(combined, combined[:1].repeat(3, axis=0), atol=1e-7)
    assert large == small * {"sgd": 2, "adam": 3, "deat": 3}[name]


def test_awp_takes_the_gradient_at_the_perturbed_weights():
    """By hand: v = gamma |w| g/|g| of the matrix, gradient at w + v, step from w."""
    one = {"topology": {"kind": "complete", "agents": 1}, "rounds": 1, "dtype": "float64"}
    tree = digits(**one, threat={"eps": 0.0}, optim={"lr": 0.1}, loss={"name": "standard"})
    agent = LocalPool(make_plan(validate(tree))).agents[0]
    model = agent.flat.module
    x, y = agent.local.task.batch(1)
    w = [p.detach().clone() for p in model.parameters()]

    def gradients(parameters):
        names = [name for name, _ in model.named_parameters()]
        leaves = [p.clone().requires_grad_() for p in parameters]
        out = torch.func.functional_call(model, dict(zip(names, leaves, strict=True)), (x,))
        return torch.autograd.grad(torch.nn.functional.cross_entropy(out, y), leaves)

    g = gradients(w)
    moved = [
        a + 0.5 * a.norm() * b / b.norm() if a.ndim > 1 else a for a, b in zip(w, g, strict=True)
    ]
    stepped = [a - 0.1 * b for a, b in zip(w, gradients(moved), strict=True)]
    found = weights_after(tree | {"loss": {"name": "standard"}, "awp": {"gamma": 0.5}}, 1)[0]
    np.testing.assert_allclose(found, torch.cat([p.reshape(-1) for p in stepped]), atol=1e-13)


@pytest.mark.parametrize("average", [{"name": "swa", "start": 0.5}, {"name": "ema", "decay": 0.5}])
def test_the_average_of_the_centroid_is_judged_beside_it(average):
    tree = digits(rounds=4, average=average, dtype="float64", evaluate={"test_images": "all"})
    pool = LocalPool(make_plan(validate(tree)))
    centroids = []
    for n in range(1, 5):
        pool.step(n)
        pool.close(n)
        centroids.append(np.mean(pool.states(), axis=0))
    if average["name"] == "swa":
        expected = np.mean(centroids[1:], axis=0)  # from round 2 of 4 on
    else:
        expected = centroids[0]
        for w in centroids[1:]:
            expected = 0.5 * expected + 0.5 * w
    np.testing.assert_allclose(pool.centroid("average"), expected, atol=1e-13)
    pool.shutdown()
    final = run_experiment(tree).final
    assert final[f"{average['name']}_clean_acc"] == robust_accuracy(expected, 0)
    assert final["clean_acc"] == robust_accuracy(centroids[-1], 0) != robust_accuracy(expected, 0)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "quantity"])
def test_partitions_deal_out_all_images_once(partition):
    plan = make_plan(validate(digits(data={"partition": partition, "batch": 2})))
    dealt = np.concatenate(plan.shares)
    assert sorted(dealt) == list(range(len(plan.data.train[1])))
    labels = [len(set(plan.data.train[1][share])) for share in plan.shares]
    sizes = [len(share) for share in plan.shares]
    if partition == "shards":
        assert max(labels) <= 6  # two shards each, which may straddle labels
    if partition in ("dirichlet", "quantity"):
        assert max(sizes) > 1.2 * min(sizes)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "quantity"])
def test_an_epoch_is_a_pass_over_the_mean_share_for_every_seed_and_partition(partition):
    table = {"name": partition} | ({"alpha": 1.0} if partition in ("dirichlet", "quantity") else {})
    data = {"partition": table, "batch": 4}
    plans = [
        make_plan(validate(digits(rounds=None, epochs=2.5, data=data, seed=seed)))
        for seed in (0, 1)
    ]
    images = len(plans[0].data.train[1])
    assert {plan.epoch for plan in plans} == {images // (4 * 4)}
    assert {plan.rounds for plan in plans} == {round(2.5 * (images // 16))}
    result = run_experiment(digits(data=data))
    for k, share in enumerate(plans[0].shares):
        assert values(result, "passes", str(k)) == {0: 0, 3: pytest.approx(3 * 4 / len(share))}


def test_choices_compose_with_each_other_with_every_strategy_and_graph(tmp_path):
    """DEAT with TRADES and a cosine warm-up, by diffusion on a torus, over Dirichlet-split data."""
    for strategy, loss in itertools.product(("diffusion", "centralized"), ("trades", "mart")):
        tree = digits(
            strategy=strategy,
            topology={"kind": "torus", "agents": 9},
            data={"partition": {"name": "dirichlet", "alpha": 1.0}, "batch": 4},
            loss={"name": loss, "beta": 3.0},
            awp={"gamma": 0.01},
            optim={"name": "deat", "lr": 0.05, "combine": True},
            threat={"eps": 0.1, "schedule": {"name": "cosine", "eps_max": 0.2}},
            average={"name": "ema"},
            model={"name": "small-cnn"},
            rounds=4,
        )
        final = run_experiment(tree).final
        assert final["status"] == "completed" and 0 <= final["ema_pgd2_acc"] <= 1


SMOOTH = {"data": {"noise": 0.5}, "threat": {"eps": 0.2}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        (SMOOTH, ""),
        (SMOOTH | {"attack": {"alpha": 0.3}}, ""),
        (SMOOTH | {"attack": {"name": "pgd", "start": "zero"}}, ""),
        (SMOOTH | {"threat": {"eps": 0.0, "agents": [{"eps": e} for e in (0, 0.1, 0.2, 0.3)]}}, ""),
        ({"optim": {"momentum": 0.9}}, "optim is not plain SGD"),
        ({"optim": {"name": "deat"}}, "optim is not plain SGD"),
        ({"optim": {"schedule": {"name": "cosine"}}}, "a schedule changes"),
        ({"threat": {"eps": 0.2}}, "without data.noise the risk under attack has kinks"),
        ({"threat": {"agents": [{}, {"eps": 0.1}, {}, {}]}}, "without data.noise the risk"),
        (SMOOTH | {"attack": {"alpha": 0.0}}, "does not reach the worst perturbations"),
        (SMOOTH | {"attack": {"alpha": 0.1}}, "does not reach the worst perturbations"),
        (SMOOTH | {"attack": {"start": "uniform"}}, "does not reach the worst perturbations"),
        (SMOOTH | {"attack": {"name": "pgd"}}, "does not reach the worst perturbations"),
    ],
)
def test_theory_is_only_reported_where_it_holds(change, reason):
    result = run_experiment(quadratic(rounds=2, **change))
    known = {"excess_risk_theory", "excess_risk_limit"}
    if reason:
        assert reason in result.final["excess_risk_theory_missing"]
        assert not known & {*result.final, *result.rounds["metric"]}
    else:
        assert "excess_risk_theory_missing" not in result.final and known <= {*result.final}


def test_theory_knows_the_budget_of_each_agent():
    """(E1) after one step, its derivatives at w* taken from the quantiles of the samples."""
    eps, h, s = np.array([0.0, 0.4, 0.1, 0.8]), np.array([1.0, 0.5]), 0.5
    tree = quadratic(
        "local",
        rounds=1,
        data={"noise": s, "batch": 4},
        threat={"eps": 0.1, "agents": [{"eps": e} for e in eps]},
        model={"start": [0.0, 0.0]},
    )
    plan = make_plan(validate(tree))
    centers, star = np.array(tree["data"]["centers"]), np.zeros(2)
    x = s * np.array([NormalDist().inv_cdf((i + 0.5) / 40_000) for i in range(40_000)])

    def slopes(w):  # (M,) -> h (r + eps sign r) of every agent and quantile, (K, 40000, M)
        r = w - centers[:, None] - x[:, None]
        return h * (r + eps[:, None, None] * np.sign(r))

    for _ in range(60):
        star = star - 0.5 * slopes(star).mean(axis=(0, 1))
    at, step = slopes(star), 0.02
    H = np.stack([slopes(star + step), slopes(star - step)]).mean(axis=2)
    H = (H[0] - H[1]) / (2 * step)  # (K, M)
    # w* - w_1 = w* + lr d - lr H w*
    m = star + 0.05 * at.mean(axis=1) - 0.05 * H * star
    P = 0.05**2 / 4 * at.var(axis=1)
    expected = (H.mean(axis=0) * (m**2 + P)).sum(axis=1).mean() / 2
    assert plan.theory()[1] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("threat", "attack", "alpha"),
    [
        ({"norm": "linf", "eps": 0.1}, {"steps": 1, "name": "kl_pgd"}, 0.025),
        ({"norm": "l2", "eps": 0.1}, {"steps": 8, "name": "kl_pgd"}, 0.025),
        ({"norm": "l2", "eps": 0.1}, {"steps": 8, "name": "kl_pgd", "alpha": 0.01}, 0.01),
        ({"norm": "l2", "eps": 0.1}, {"steps": 8, "name": "pgd"}, 0.025),
        ({"norm": "l2", "eps": 0.1}, {"name": "fgsm"}, 0.1),
        ({"eps": 0.3, "agents": 4 * [L2]}, {"steps": 4, "name": "kl_pgd"}, 0.05),
        ({"eps": 0.0, "agents": 4 * [L2]}, {"name": "fgsm"}, 0.1),
    ],
)
def test_the_usual_step_is_that_of_the_published_codes(threat, attack, alpha):
    pool = LocalPool(make_plan(validate(digits(threat=threat, attack=attack))))
    local = pool.agents[0].local
    x, y = local.task.batch(1)
    threat = local.task.threat
    found = local.task.attack(local.flat.module, x, y, threat, torch.Generator().manual_seed(0))
    usual = {
        "kl_pgd": ("normal", "kl", 10),
        "pgd": ("uniform", "ce", 10),
        "fgsm": ("zero", "ce", 1),
    }
    start, loss, steps = usual[attack["name"]]
    expected = ascend(
        local.flat.module,
        x,
        y,
        threat,
        steps=attack.get("steps", steps),
        alpha=alpha,
        start=start,
        loss=loss,
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(found.x_adv, expected.x_adv, rtol=0, atol=1e-6)
    pool.shutdown()
