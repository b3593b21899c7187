"""Every member of every family trains, twice the same: a new one joins by being in its list."""

from typing import get_args

import numpy as np
import pytest
from experiments import digits

from raydist import run_experiment
from raydist.config import adversary, training
from raydist.config.fields import tables_in
from raydist.network.strategy import STRATEGIES
from raydist.network.weights import RULES

NEEDED = {
    "piecewise": {"milestones": [0.5]},
    "dirichlet": {"alpha": 100.0},
    "quantity": {"alpha": 100.0},
}
ELSEWHERE = ("quadratic",)  # the loss of another task, see test_quadratic


def names(union):
    tables = tables_in(union)
    return [name for table in tables for name in get_args(table.model_fields["name"].annotation)]


FAMILIES = {
    "loss": names(adversary.Loss),
    "attack": names(adversary.Attack),
    "threat.schedule": names(adversary.EpsSchedule),
    "optim": names(training.Optim),
    "optim.schedule": names(training.Schedule),
    "data.partition": names(training.Partition),
    "average": names(training.Average),
    "strategy": [*STRATEGIES],
    "topology.weights": [*RULES],
}
MEMBERS = [(key, name) for key, known in FAMILIES.items() for name in known]


@pytest.mark.filterwarnings("ignore:the edge weights")
@pytest.mark.parametrize(
    ("key", "name"), [(key, name) for key, name in MEMBERS if name not in ELSEWHERE]
)
def test_a_member_trains_and_repeats_itself(key, name):
    outer, _, inner = key.partition(".")
    value = {"name": name, **NEEDED.get(name, {})}
    if key in ("strategy", "topology.weights"):
        value = name
    if name == "edge-weights":  # a graph that has them
        value = {"kind": "helpers_foreign:weighted", "agents": 4, "weights": name}
        inner = ""
    tree = digits(rounds=2, **{outer: {inner: value} if inner else value})
    first, second = (run_experiment(tree) for _ in range(2))
    assert first.final["status"] == "completed"
    assert np.isfinite(first.weights).all() and first.weights.std() > 0
    np.testing.assert_array_equal(first.weights, second.weights)
