"""Models and losses of users: what they draw follows from the seed, what they move comes back."""

import random
import shutil

import helpers_foreign
import numpy as np
import pytest
import torch
from experiments import digits

from raydist import Request, evaluate_runs, run_experiment
from raydist.config.experiment import validate
from raydist.engine.agent import verdicts
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.errors import InputError

NOISY = {
    "model": {"name": "helpers_foreign:drawing_net"},
    "loss": {"name": "helpers_foreign:noisy"},
}


def scramble(i):
    """As if another process went on from here."""
    torch.manual_seed(i)
    np.random.seed(i)
    random.seed(i)


def after(rounds=3, agents=4, between=lambda n: None, **tables):
    """The states of all agents after some rounds, each measured, and the last measurement."""
    plan = make_plan(validate(digits(**tables)))
    helpers_foreign.DRAWN.clear()
    pool = LocalPool(plan)
    for n in range(1, rounds + 1):
        between(n)
        pool.step(n)
        pool.close(n)
        measured = [
            ({name: v for name, v in own.items() if not name.startswith("seconds_")}, sums)
            for own, sums in pool.measure(n)
        ]
    judged = verdicts.summary(verdicts.merge(pool.evaluate("now")))
    pool.shutdown()
    return np.stack(pool.states()), measured, judged


@pytest.mark.parametrize("name", ["clears", "forgets"])
@pytest.mark.parametrize("awp", [0.0, 0.01])
def test_a_loss_that_clears_the_gradients_learns_the_same(name, awp):
    def learnt(name):
        return after(
            loss={"name": f"helpers_foreign:{name}"}, awp={"gamma": awp}, optim={"momentum": 0.9}
        )

    np.testing.assert_array_equal(learnt(name)[0], learnt("plain")[0])


@pytest.mark.parametrize("kind", ["clamp", "center"])
@pytest.mark.parametrize("strategy", ["consensus", "centralized"])
def test_weights_and_statistics_that_are_put_elsewhere_come_back(kind, strategy):
    """The same model in place is the right answer: measurements change neither of them."""
    new, in_place = (
        after(
            strategy=strategy,
            loss={"name": "trades"},
            awp={"gamma": 0.01},
            model={"name": f"helpers_foreign:{kind}_{how}"},
            optim={"lr": 1.0},
            telemetry={"every": 2},
            combine_buffers=strategy == "consensus",
        )
        for how in ("new", "in_place")
    )
    np.testing.assert_array_equal(new[0], in_place[0])
    assert new[1:] == in_place[1:]
    assert np.abs(new[0][0] - new[0][1]).max() > 0 or strategy == "centralized"


def test_what_cannot_come_back_is_refused_by_its_name():
    with pytest.raises(InputError, match=r'"2\.bias" of the model was replaced'):
        replacing = {"loss": {"name": "helpers_foreign:replaces"}}
        make_plan(validate(digits(model={"name": "helpers_foreign:center_new"}, **replacing)))
    with pytest.raises(InputError, match=r'the parameter "first\.weight" came into the model'):
        make_plan(validate(digits(model={"name": "helpers_foreign:too_late"})))


def test_draws_follow_from_seed_agent_and_round():
    still = after(**NOISY)
    drawn = list(helpers_foreign.DRAWN)
    moved = after(between=lambda n: scramble(n), **NOISY)
    assert drawn == helpers_foreign.DRAWN and len(set(drawn)) == len(drawn) == 12
    assert len({value for draws in drawn for value in draws}) == 36
    np.testing.assert_array_equal(still[0], moved[0])
    assert still[1:] == moved[1:]
    assert not np.array_equal(still[0], after(seed=1, **NOISY)[0])


def test_another_agent_reshuffles_no_draws():
    ring = {"kind": "ring", "agents": 5}
    after(rounds=1, **NOISY)
    few = list(helpers_foreign.DRAWN)
    after(rounds=1, topology=ring, **NOISY)
    assert helpers_foreign.DRAWN[:4] == few


def test_images_and_graph_of_ones_own_code_are_the_same_in_every_process():
    plans = []
    for i in (0, 1):
        scramble(i)
        graph = {"kind": "helpers_foreign:drawn_graph", "agents": 8}
        data = {"set": "helpers_foreign:drawn_images", "batch": 4, "params": {"number": 200}}
        plans.append(make_plan(validate(digits(topology=graph, data=data))))
    np.testing.assert_array_equal(*(plan.data.train[0] for plan in plans))
    assert len({frozenset(plan.graph.edges) for plan in plans}) == 1
    other = {"kind": "helpers_foreign:drawn_graph", "agents": 8, "seed": 1}
    drawn = make_plan(validate(digits(topology=other))).graph
    assert set(drawn.edges) != set(plans[0].graph.edges)


def test_global_randomness_is_left_as_it_was():
    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    scramble(5)
    np.random.randn()  # NumPy keeps a second number
    before = state()
    after(**NOISY)
    assert state() == before


def test_an_evaluation_draws_the_same_again(tmp_path):
    run_experiment(digits(rounds=2, **NOISY), out=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    tables = []
    for i, name in enumerate("ab"):
        scramble(i)
        request = Request(images=32, attacks=("pgd2", "apgd-ce"), parts=("robustness", "masking"))
        tables.append(evaluate_runs(tmp_path / name, request))
    same = [c for c in tables[0] if c not in ("trial", "run") and "seconds" not in c]
    assert tables[0][same].equals(tables[1][same])
