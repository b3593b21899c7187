"""Healing, watching, periods, distributional training, fine-tuning and telemetry in whole runs."""

import json
import math

import numpy as np
import pytest
import torch
from experiments import digits, quadratic
from running import values, weights_after

from raydist import run_experiment
from raydist.adversary.instability import add_gaussian
from raydist.adversary.wasserstein import sensitivity
from raydist.config.experiment import validate
from raydist.engine.agent.own import Own
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.engine.watch import Watch
from raydist.errors import InputError
from raydist.results.record import Record
from raydist.seeding import Purpose, torch_generator

# Two rounds in an epoch, the state measured after each epoch.
UNSTABLE = {
    "data": {"set": "digits", "batch": 161},
    "rounds": 8,
    "evaluate": {
        "every": 2,
        "validation_images": 32,
        "test_images": 32,
        "pgd": [2],
        "autoattack": 0,
    },
}


def rule(**more):
    return {"fosc": {"threshold": 1e-9, "patience": 9, "warmup": 1}, **more}


def test_the_remedy_puts_noise_on_the_first_batches_after_the_measurement():
    healing = rule(on_instability="heal", remedy={"batches": 1, "amount": 0.2})
    healing["fosc"]["warmup"] = 2  # rounds 2 and 4 are remembered, 6 is judged
    tree = digits(**UNSTABLE, stop=healing)
    healed = run_experiment(tree)
    watched = run_experiment(digits(**UNSTABLE, stop=healing | {"on_instability": "watch"}))
    plain = run_experiment(digits(**UNSTABLE))
    np.testing.assert_array_equal(watched.weights, plain.weights)
    same = [values(healed, "loss")[n] == values(plain, "loss")[n] for n in range(1, 9)]
    assert same == [True] * 6 + [False, False]  # noise in round 7 alone, its effect in 8
    assert values(healed, "unstable", "centroid") == {2: 0, 4: 0, 6: 1, 8: 1}
    assert healed.final["onset_round"] == 6 and healed.final["unstable_episodes"] == 1
    assert "recovery_round" not in healed.final


def test_the_noise_is_added_before_the_attack():
    plan = make_plan(validate(digits(stop=rule(on_instability="heal", remedy={"how": "variance"}))))
    pool = LocalPool(plan)
    local = pool.agents[1].local
    x, _ = local.task.batch(1)
    batch = local.attack(1, noisy=True)
    draw = torch_generator(Purpose.NOISE, 0, 1, 1)
    torch.testing.assert_close(batch.x, add_gaussian(x, 0.1, "variance", generator=draw))
    assert (batch.points.x_adv - batch.x).abs().max() <= 0.1 + 1e-6
    assert (batch.points.x_adv - x).abs().max() > 0.1 + 1e-3
    pool.shutdown()


def seen(stop, fosc, rounds=99):
    """A watch that has seen FOSC in rounds 1, 2, ... of a run with two rounds in an epoch.

    Returns:
        The watch, the flags of the rounds, the rounds that had the remedy's noise.
    """
    tree = digits(**UNSTABLE | {"rounds": rounds, "evaluate": {"every": 1}}, stop=stop)
    watch, flags, noisy = Watch(make_plan(validate(tree))), [], []
    for n, value in enumerate(fosc, 1):
        noisy += [n] if watch.noisy(n) else []
        record = Record(n, [{"loss": 1.0}], {"val_fosc": value})
        assert watch.observe(record) is None
        flags.append(record.centroid["unstable"])
    return watch, flags, noisy


def test_an_instability_that_ends_is_recorded_with_its_rounds():
    """A sixfold jump for 40 rounds, as long as ten times the calm before it, then recovery."""
    stop = {"fosc": {"relative": 4.0, "warmup": 2, "patience": 50}, "on_instability": "watch"}
    watch, flags, noisy = seen(stop, [0.1] * 4 + [0.6] * 40 + [0.1, 0.6, 0.6])
    assert flags == [0] * 4 + [1] * 40 + [0, 1, 1] and noisy == []
    assert watch.summary() == {
        "unstable_episodes": 2,
        "onset_round": 5,
        "recovery_round": 45,
        "recovered_by": "alone",
    }
    for length, columns in ((3, {"recovered_by": "", "onset_round": 5}), (0, {})):
        found = seen(stop, [0.1] * 4 + [0.6] * length)[0].summary()
        assert found == {"unstable_episodes": length > 0, **columns}


def test_what_a_resumed_rule_knows_does_not_grow_with_the_run():
    """Ten thousand measurements, every tenth unstable: as many bytes as after two thousand."""
    stop = {"fosc": {"relative": 4.0, "warmup": 2}, "on_instability": "watch"}
    values = [0.6 if n % 10 == 9 else 0.125 for n in range(10_000)]
    sizes = []
    for length in (2000, 10_000):
        watch = seen(stop, values[:length], rounds=20_000)[0]
        assert watch.summary()["unstable_episodes"] == length / 10
        sizes.append(len(json.dumps(watch.dump())))
    assert sizes[1] <= sizes[0] + 10  # digits of rounds


def test_the_remedy_follows_an_epoch_whose_last_measurement_is_unstable():
    """Epochs of rounds 1-2, 3-4, ...: unstable at first only, at last only, in both, in none."""
    stop = {"fosc": {"threshold": 0.5}, "on_instability": "heal", "remedy": {"batches": 1}}
    watch, _, noisy = seen(stop, [0.9, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1])
    assert noisy == [5, 7]
    assert watch._chronicle.count == 2
    first, second = watch._chronicle.first, watch._chronicle.last
    assert (first.onset_round, first.recovery_round, first.by) == (1, 2, "alone")
    assert (second.onset_round, second.recovery_round, second.by) == (4, 7, "remedy")


def test_a_relative_jump_that_lasts_stops_a_run_with_fewer_calm_measurements_than_patience():
    stop = {"fosc": {"relative": 4.0, "patience": 5}}
    watch, _, _ = seen(stop, [0.1, 0.6, 0.6, 0.6, 0.6])
    outcome = watch.observe(Record(6, [{"loss": 1.0}], {"val_fosc": 0.6}))
    assert (outcome.status, outcome.round) == ("stopped", 6)
    assert "fosc_relative, 5 measurements in a row" in outcome.reason


def test_watching_needs_a_rule():
    with pytest.raises(InputError, match=r'stop.on_instability is "heal", but nothing tells'):
        validate(digits(stop={"on_instability": "heal"}))


def test_schedules_begin_again_and_snapshots_vote_together():
    """Of 7 rounds, 4 and 6 are the last that begin before a half and three quarters are done."""
    tree = digits(
        rounds=7,
        periods=[0.5, 0.75],
        data={"batch": 161},  # two rounds in an epoch
        threat={"eps": 0.1, "schedule": {"name": "linear", "per": "epoch"}},
        optim={"lr": 0.5, "schedule": {"name": "cosine"}},
        evaluate={"every": 7, "test_images": "all"},
    )
    plan = make_plan(validate(tree))
    pool = LocalPool(plan)
    records = list(train(pool, plan))[1:]
    progress = [0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 2, 0]
    lr = [0.25 * (1 + math.cos(math.pi * p)) for p in progress]
    assert [record.mean["lr"] for record in records] == pytest.approx(lr)
    eps = [0.1 * p for p in (0, 0, 2 / 4, 2 / 4, 0, 0, 0)]
    assert [record.mean["eps"] for record in records] == pytest.approx(eps)
    x, y = plan.data.test
    x, votes = (plan.data.scale * x.reshape(len(y), -1) - 0.3053) / 0.3760, []
    for i, n in enumerate((4, 6, 7)):
        end = weights_after(tree, n).mean(axis=0)
        np.testing.assert_allclose(pool.centroid(f"snapshot-{i}"), end, atol=1e-6)
        logits = np.exp(x @ end[:-10].reshape(10, -1).T + end[-10:])
        votes.append(logits / logits.sum(axis=1, keepdims=True))
    right = np.mean(np.mean(votes, axis=0).argmax(axis=1) == y)
    assert records[-1].final["ensemble_clean_acc"] == pytest.approx(right)
    assert right != np.mean(votes[-1].argmax(axis=1) == y)
    pool.shutdown()


def test_the_sensitivity_is_that_of_the_network_and_is_renewed_each_epoch():
    wasserstein = {"name": "wasserstein", "beta": 1.0, "eta": 0.5}
    tree = digits(**UNSTABLE, loss=wasserstein, model={"name": "small-cnn"})
    result = run_experiment(tree)
    plan = make_plan(validate(tree))
    pool = LocalPool(plan)
    samples = [agent.local.task.sample(0.1, 0) for agent in pool.agents]
    x, y = (torch.cat(part) for part in zip(*samples, strict=True))
    model = pool.agents[0].flat.module  # the start is common to all agents
    expected = sensitivity(model, x, y, "linf", "redlr")
    seen = values(result, "sensitivity", "0")
    assert seen[1] == pytest.approx(expected, rel=1e-5)
    assert values(result, "sensitivity", "3") == seen  # the same for all agents
    assert seen[1] == seen[2] != seen[3] == seen[4] != seen[5]
    pool.shutdown()


@pytest.mark.parametrize("order", ["2", "inf"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_distributional_points_keep_the_budget_and_pointwise_ones_follow(norm, order):
    loss = {"name": "wasserstein", "gamma": 0.5, "order": order, "delta": 0.05}
    tree = digits(loss=loss, threat={"norm": norm, "eps": 0.1}, model={"name": "small-cnn"})
    pool = LocalPool(make_plan(validate(tree)))
    pool.learn_sensitivity(0)
    local = pool.agents[0].local
    batch = local.attack(1, noisy=False)
    part, pointwise = batch.points.x_adv.split(len(batch.x))
    size = local.task.threat.norm_of(part - batch.x)
    power = sensitivity(local.flat.module, batch.x, batch.y, norm, "redlr")
    budget = 0.05 if order == "inf" else 0.05 * power / local.distributional.upsilon
    spent = size.max() if order == "inf" else size.square().mean().sqrt()
    assert 0 < spent <= budget * (1 + 1e-4)
    assert local.task.threat.norm_of(pointwise - batch.x).max() <= 0.1 + 1e-5
    assert run_experiment(tree).final["status"] == "completed"
    pool.shutdown()


@pytest.mark.parametrize("order", ["2", "inf"])
def test_an_agent_without_a_budget_has_no_distributional_one(order):
    """Where a common delta stands beside eps = 0 and budgets of some agents; else it is of all."""
    loss = {"name": "wasserstein", "order": order, "delta": 0.04}
    for own, expected in ([{"eps": 0.2}, {}, {}, {}], [0.04, 0, 0, 0]), (None, 4 * [0.04]):
        result = run_experiment(digits(loss=loss, threat={"eps": 0.0, "agents": own}, rounds=2))
        deltas = [values(result, "delta", str(k)) for k in range(4)]
        assert deltas == [{1: d, 2: d} for d in expected]


def test_without_a_delta_each_agent_has_its_own_budget_though_the_common_one_is_zero():
    threat = {"eps": 0.0, "agents": [{"eps": 0.1}, {}, {"eps": 0.3}, {}]}
    config = validate(digits(loss="wasserstein", threat=threat))
    agents = [Own(config, k) for k in range(4)]
    assert config.loss.delta == 0.0
    assert [own.delta(own.threat) for own in agents] == [0.1, 0.0, 0.3, 0.0]


@pytest.mark.parametrize("delta", [None, 0.05])
def test_the_distributional_budget_follows_own_threats_and_the_schedule(delta):
    """With order "inf" the images of agent k move by what its columns say, in each round."""
    loss = {"name": "wasserstein", "order": "inf"} | ({"delta": delta} if delta else {})
    own = [{}, {"eps": 0.2}, {"eps": 0.0}, {"eps": 0.04}]
    threat = {"eps": 0.1, "agents": own, "schedule": {"name": "linear", "eps_max": 0.2}}
    tree = digits(loss=loss, threat=threat, rounds=4, attack={"steps": 1}, data={"batch": 64})
    pool = LocalPool(make_plan(validate(tree)))
    for agent, eps in zip(pool.agents, (0.1, 0.2, 0.0, 0.04), strict=True):
        for n, part in enumerate((0, 0.5, 1, 1), 1):
            batch = agent.local.attack(n, noisy=False)
            moved = (batch.points.x_adv - batch.x).abs().amax(dim=(1, 2, 3)).tolist()
            radius = part * eps * (delta / 0.1 if delta else 1)
            assert max(moved) == pytest.approx(radius, abs=1e-6)
            assert batch.threat.eps == pytest.approx(part * eps)
    result = run_experiment(tree)
    for k, eps in enumerate((0.1, 0.2, 0.0, 0.04)):
        radii = [p * eps * (delta / 0.1 if delta else 1) for p in (0, 0.5, 1, 1)]
        assert list(values(result, "delta", str(k)).values()) == pytest.approx(radii)
    pool.shutdown()


def test_wasserstein_needs_three_classes():
    with pytest.raises(InputError, match=r"loss.delta belongs to wasserstein"):
        validate(digits(loss={"name": "trades", "delta": 0.1}))


def test_fine_tuning_starts_from_what_was_trained(tmp_path):
    run_experiment(digits(), out=tmp_path / "first")
    file = str(tmp_path / "first" / "weights" / "centroid.safetensors")
    centroid = weights_after(digits(), 3).mean(axis=0)

    def start(**model):
        pool = LocalPool(make_plan(validate(digits(model={"name": "linear", **model}))))
        state = pool.states()[0]
        pool.shutdown()
        return state

    np.testing.assert_allclose(start(checkpoint=file), centroid, atol=1e-7)
    noisy = start(checkpoint=file, noise=0.01) - centroid
    assert noisy.std() == pytest.approx(0.01, rel=0.1)
    assert np.abs(start(checkpoint=file, reset_last=True) - centroid).max() > 0.01
    with pytest.raises(InputError, match=r"model.noise belongs to fine-tuning.*checkpoint"):
        validate(digits(model={"noise": 0.1}))
    with pytest.raises(InputError, match="nowhere"):
        make_plan(validate(digits(model={"name": "linear", "checkpoint": "nowhere.safetensors"})))


def test_telemetry_is_taken_where_it_is_asked_for_and_changes_nothing():
    tree = digits(loss={"name": "trades"}, rounds=4, model={"name": "linear"})
    plain, close = run_experiment(tree), run_experiment(tree | {"telemetry": {"every": 2}})
    np.testing.assert_array_equal(plain.weights, close.weights)
    for name in ("train_clean_acc", "train_adv_acc", "stepwise_cosine", "grad_norm_kl"):
        assert sorted(values(close, name)) == [2, 4] and not values(plain, name)
    cosines = values(close, "grad_cosine")
    assert all(0.5 < cosines[n] < 1 for n in (2, 4))  # the step was small
    assert values(close, "grad_norm_ce")[2] > values(close, "grad_norm_kl")[2] > 0
    centralized = run_experiment(tree | {"telemetry": {"every": 2}, "strategy": "centralized"})
    assert values(centralized, "train_clean_acc") and not values(centralized, "grad_cosine")


def test_an_agents_images_are_changed_and_the_test_images_are_not():
    own = [{}, {"rotate": 90.0}, {"brightness": 0.5}, {}]
    plain, changed = (
        LocalPool(make_plan(validate(digits(data={"transforms": t, "augment": "none"}))))
        for t in (None, own)
    )
    pairs = [
        (a.local.task.batch(1), b.local.task.batch(1))
        for a, b in zip(plain.agents, changed.agents, strict=True)
    ]
    torch.testing.assert_close(pairs[0][0][0], pairs[0][1][0])
    torch.testing.assert_close(pairs[1][0][0].rot90(1, (2, 3)), pairs[1][1][0])
    torch.testing.assert_close(0.5 * pairs[2][0][0], pairs[2][1][0])
    pair = [pool.evaluate("now")[0].known.right["clean"] for pool in (plain, changed)]
    assert pair[0] == pair[1]
    with pytest.raises(InputError, match=r"data.transforms has 1 tables for topology.agents = 4"):
        validate(digits(data={"transforms": [{}]}))


def test_one_step_training_that_fools_its_own_attack_is_told():
    """Accuracies under FGSM and PGD are read from the record; the first round counts."""
    plan = make_plan(validate(digits(attack={"name": "fgsm", "start": "uniform"}, rounds=9)))
    watch = Watch(plan)
    for n, (fgsm_acc, pgd_acc) in enumerate([(0.5, 0.45), (0.9, 0.1), (0.9, 0.0)]):
        known = {"val_fgsm_acc": fgsm_acc, "val_pgd10_acc": pgd_acc}
        assert watch.observe(Record(n, [{"loss": 1.0}], known)) is None
    assert watch.summary() == {"catastrophic_overfitting_round": 1.0}
    other = Watch(make_plan(validate(digits(rounds=9))))
    other.observe(Record(1, [{"loss": 1.0}], {"val_fgsm_acc": 0.9, "val_pgd10_acc": 0.1}))
    assert other.summary() == {}


@pytest.mark.parametrize(
    "change",
    [
        {"awp": {"gamma": 0.1}},
        {"telemetry": {"every": 5}},
        {"average": {"name": "ema"}},
        {"attack": {"name": "kl_pgd"}},
    ],
)
def test_what_is_for_images_is_refused_for_the_quadratic_task(change):
    with pytest.raises(InputError, match=r'is for images, not for data.set = "quadratic"'):
        make_plan(validate(quadratic(**change)))


def test_the_sign_of_the_accuracies_needs_them_at_every_measurement():
    stop = {"fosc": {"threshold": 1.0, "adv_above_clean": True}, "on_instability": "watch"}
    for telemetry in (0, 2):  # measured every 3 rounds
        with pytest.raises(
            InputError, match=r"adv_above_clean needs .* write telemetry = . every = 3 ."
        ):
            make_plan(validate(digits(stop=stop, telemetry={"every": telemetry})))
    result = run_experiment(digits(stop=stop, telemetry={"every": 3}))
    above = values(result, "train_adv_acc")[3] > values(result, "train_clean_acc")[3]
    assert values(result, "unstable", "centroid")[3] == float(above)
