"""Every family takes "module:function", and refuses at the door what breaks its contract."""

import random

import helpers_foreign
import numpy as np
import pytest
import torch
from experiments import digits, quadratic
from running import values

from raydist import Request, evaluate_runs, run_experiment
from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import validate
from raydist.config.training import TorchOptim
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.errors import InputError
from raydist.learning.optim import OPTIMISERS, try_out

OWN = "helpers_foreign:"


def weights(**tables):
    return run_experiment(digits(**tables)).weights


def scramble(i):
    torch.manual_seed(i)
    np.random.seed(i)
    random.seed(i)


def test_an_attack_of_ones_own_trains_as_ours_does():
    """It is PGD; ours draws the same start from the same generator."""
    own = weights(attack={"name": OWN + "ascends", "params": {"steps": 2}})
    np.testing.assert_array_equal(own, weights())
    assert np.abs(own - weights(attack={"name": OWN + "ascends", "params": {"steps": 3}})).max() > 0


def test_what_an_attack_draws_follows_from_seed_agent_and_round():
    found = []
    for i in (0, 1):
        helpers_foreign.DRAWN.clear()
        scramble(i)
        found.append(weights(attack={"name": OWN + "draws_globally"}))
        found.append(list(helpers_foreign.DRAWN))
    np.testing.assert_array_equal(found[0], found[2])
    assert found[1] == found[3]
    assert len(set(found[1])) == 4 * 3  # at the door that of round 1
    first = {k: weights(attack={"name": OWN + "shifted"}, seed=k) for k in (0, 1)}
    assert np.abs(first[0] - first[1]).max() > 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("too_far", r"returned points that lie 0\.2 from the images in linf, beyond eps = 0\.1"),
        ("out_of_the_box", "returned points that leave the box from 0 to 1"),
        ("flat_points", r"returned torch.float32 of shape \(\d+, 64\), expected points as its"),
        ("no_points", "returned NoneType, expected points as its images"),
        ("not_a_number", "returned points that lie nan from the images"),
    ],
)
@pytest.mark.parametrize("where", ["attack", "evaluate"])
def test_an_attack_that_breaks_the_contract_is_refused_before_the_run(name, line, where):
    tables = {"name": OWN + name} if where == "attack" else {"attacks": [OWN + name]}
    key = "" if where == "attack" else "evaluate.attacks: "
    with pytest.raises(InputError, match=rf'^{key}attack "{OWN}{name}" {line}'):
        make_plan(validate(digits(**{where: tables})))


def test_points_may_differ_by_rounding():
    x = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for threat in (ThreatModel("linf", 8 / 255), ThreatModel("l2", 0.5), ThreatModel("l1", 12.0)):
        far = threat.project(x + torch.randn(x.shape), x)
        assert threat.outside(far, x) == "" and threat.outside(x, x) == ""
        assert threat.outside(x + 1.001 * (far - x), x) != ""


def test_the_watched_fosc_needs_a_gradient_of_the_attack():
    rule = {"fosc": {"threshold": 0.5, "on": "train"}}
    with pytest.raises(InputError, match="leaves no gradient there: write on"):
        make_plan(validate(digits(attack={"name": OWN + "ascends"}, stop=rule)))


def test_an_attack_of_ones_own_judges(tmp_path):
    """In the evaluation at the end and in the command, with the verdicts of a function."""
    name = OWN + "ascends"
    run = run_experiment(digits(evaluate={"attacks": [name]}), out=tmp_path / "run")
    assert 0 <= run.final["helpers_foreign_ascends_acc"] <= run.final["clean_acc"]
    request = Request(images=24, attacks=(name, OWN + "draws_globally"), parts=("robustness",))
    tables = []
    for i in (0, 1):
        scramble(i)
        shown = evaluate_runs(tmp_path / "run", request)
        tables.append([shown[c][0] for c in shown if c.startswith("helpers_foreign")])
        for file in (tmp_path / "run").rglob("evaluation"):
            file.rename(tmp_path / f"old{i}")
    assert tables[0] == tables[1] and len(tables[0]) >= 2


@pytest.mark.parametrize("name", [n for n in OPTIMISERS if n not in ("sgd", "adam", "deat")])
def test_torchs_optimisers_are_known_where_they_can_step_a_vector(name):
    known = TorchOptim.model_fields["name"].annotation.__args__
    if name in known:
        try_out(name, lr=0.1)
    else:
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            try_out(name, lr=0.1)


def test_torchs_names_need_no_second_list():
    assert set(TorchOptim.model_fields["name"].annotation.__args__) < set(OPTIMISERS)


@pytest.mark.parametrize("name", ["AdamW", "RMSprop", "Rprop", OWN + "Plain"])
@pytest.mark.parametrize("combine", [False, True])
def test_an_optimiser_steps_and_its_state_travels(name, combine):
    pool = LocalPool(make_plan(validate(digits(optim={"name": name, "combine": combine}))))
    for n in (1, 2):
        pool.step(n)
        pool.close(n)
    vectors = [agent.local.state() for agent in pool.agents]
    assert len(vectors[0]) >= 1
    assert (pool.agents[0].message_size() > 650) == combine
    pool.shutdown()


def test_an_optimiser_of_ones_own_is_the_one_that_it_repeats():
    plain = {"name": OWN + "Plain", "lr": 0.025, "params": {"scale": 2.0}}
    np.testing.assert_array_equal(weights(optim=plain), weights())
    twin = {"name": "SGD", "params": {"momentum": 0.9}}
    np.testing.assert_array_equal(weights(optim=twin), weights(optim={"momentum": 0.9}))


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"name": "AdamW", "params": {"betaz": [0.9]}}, 'optim "AdamW" takes no betaz: its'),
        ({"name": "Rprop", "weight_decay": 0.1}, 'optim "Rprop" takes no weight_decay: its'),
        ({"name": OWN + "Plain", "params": {"k": 1}}, "takes no k: its parameters are lr, scale"),
        ({"name": OWN + "Elsewhere"}, "puts the weights elsewhere, expected a change in place"),
        ({"name": OWN + "Hoards"}, "keeps past of type list, which no snapshot holds"),
        ({"name": "math:gcd"}, "optim"),
    ],
)
def test_an_optimiser_that_agents_cannot_use_is_refused(table, line):
    with pytest.raises(InputError, match=line):
        make_plan(validate(digits(optim=table)))


def test_schedules_of_ones_own():
    rate = {"name": OWN + "halves", "params": {"after": 0.7}}
    found = values(run_experiment(digits(rounds=4, optim={"schedule": rate})), "lr", "0")
    assert [found[n] for n in range(1, 5)] == [0.05, 0.05, 0.05, 0.025]
    own = [{}, {"eps": 0.2}, {}, {}]
    threat = {"eps": 0.1, "schedule": {"name": OWN + "halves"}, "agents": own}
    run = run_experiment(digits(rounds=2, threat=threat))
    for k, eps in (("0", [0.1, 0.05]), ("1", [0.2, 0.1])):
        assert [values(run, "eps", k)[n] for n in (1, 2)] == eps


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (
            {"optim": {"schedule": OWN + "negative"}},
            r"returned -1\.0 at progress 0, expected",
        ),
        ({"threat": {"schedule": OWN + "doubles"}}, r"returned 0\.2 at progress 0, .* 0 to 0\.1"),
        (
            {"optim": {"schedule": {"name": OWN + "halves", "params": {"x": 1}}}},
            "unexpected keyword argument 'x'; its parameters: after",
        ),
    ],
)
def test_a_schedule_that_leaves_its_range_is_refused(table, line):
    with pytest.raises(InputError, match=line):
        make_plan(validate(digits(**table)))


def test_a_partition_of_ones_own():
    plan = make_plan(validate(digits(data={"partition": OWN + "stripes"})))
    assert plan.shares[1][:3].tolist() == [1, 5, 9]
    shares = []
    for i in (0, 1):
        scramble(i)
        drawn = {"partition": OWN + "drawn_partition"}
        shares.append(make_plan(validate(digits(data=drawn))).shares[0].tolist())
    assert shares[0] == shares[1]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (
            {"name": OWN + "stripes", "params": {"skip": 1}},
            r"1292 indices \(int64\), expected",
        ),
        (OWN + "fewer", r"returned shares of sizes .*, expected 4 arrays of indices, none empty"),
    ],
)
def test_a_partition_that_loses_images_is_refused(table, line):
    with pytest.raises(InputError, match=line):
        make_plan(validate(digits(data={"partition": table})))


def test_a_rule_of_ones_own_weighs_the_graph():
    ring = {"kind": "ring", "agents": 4, "weights": OWN + "lazy_rule"}
    plan = make_plan(validate(digits(topology=ring)))
    assert plan.A[0, 0] == pytest.approx(2 / 3)


def test_parameters_without_a_field_are_finite():
    for key, table in {
        "attack": {"name": OWN + "shifted"},
        "optim.schedule": {"name": OWN + "halves"},
        "threat.schedule": {"name": OWN + "halves"},
        "data.partition": {"name": OWN + "stripes"},
        "optim": {"name": "AdamW"},
    }.items():
        outer, _, inner = key.partition(".")
        table = table | {"params": {"a": float("inf")}}
        with pytest.raises(InputError, match=f"^{key}.params.a is inf, expected a finite"):
            validate(digits(**{outer: {inner: table} if inner else table}))


def test_the_quadratic_task_takes_an_optimiser_and_says_that_no_theory_is_about_it():
    plan = make_plan(validate(quadratic(optim={"name": "AdamW"})))
    assert plan.theory_missing == "optim is not plain SGD"


@pytest.mark.parametrize("name", ["diffusion", "centralized"])
def test_a_strategy_of_ones_own_is_the_one_that_it_repeats(name):
    tables = {"optim": {"momentum": 0.9, "combine": True}, "telemetry": {"every": 1}}
    own = run_experiment(digits(strategy=f"{OWN}same_{name}", **tables))
    ours = run_experiment(digits(strategy=name, **tables))
    np.testing.assert_array_equal(own.weights, ours.weights)
    assert {*own.rounds.metric} == {*ours.rounds.metric}


def test_the_theory_is_about_a_strategy_of_ones_own():
    """Half the consensus: the excess risk of the run is the predicted one to the last digits."""
    run = run_experiment(quadratic(strategy=OWN + "half_consensus", kind="path"))
    for n, expected in values(run, "excess_risk_theory").items():
        assert values(run, "excess_risk")[n] == pytest.approx(expected, rel=1e-9, abs=1e-13)
    other = run_experiment(quadratic(strategy="consensus", kind="path"))
    assert np.abs(run.weights - other.weights).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lazy_rule", "lazy_rule. is of type function, expected a raydist.network.strategy"),
        ("halves_all", "strategy: column 0 of weights sums to 0.5, expected 1"),
        ("nothing", "has no nothing: check the spelling after the colon"),
    ],
)
def test_a_strategy_that_is_none_is_refused(name, line):
    with pytest.raises(InputError, match=line):
        make_plan(validate(digits(strategy=OWN + name)))
