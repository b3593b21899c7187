"""The numbers that raydist reports: each is described, once, and the README says the same.

`python tests/test_metrics.py` prints the glossary of `raydist/results/README.md`.
"""

import re
from pathlib import Path

import pytest
from experiments import EVERYTHING, QUADRATIC, digits

import raydist
from raydist import metrics
from raydist.config.experiment import Experiment
from raydist.evaluation.names import PARTS
from raydist.measure import attacks, masking
from raydist.metrics import METRICS, SHOWN, find

CHECKED = {
    "validation_images": 16,
    "test_images": 8,
    "pgd": [2, 10],
    "autoattack": 1,
    "attacks": ["fgsm", "apgd-dlr", "square5"],
    "hessian": 8,
    "agents": True,
    "every": 1,
}
WATCHED = {"fosc": {"threshold": 1e-9, "warmup": 0, "patience": 1}, "on_instability": "watch"}
TRIALS = {
    "trades": digits(
        loss="trades",
        topology={"kind": "ring", "agents": 2},
        average={"name": "swa"},
        telemetry={"every": 1},
        stop=WATCHED,
        evaluate=CHECKED,
        exchange="auto",
        data={"set": "digits", "batch": 64},
        rounds=4,
        periods=[0.5],
    ),
    "wasserstein": digits(**EVERYTHING, evaluate=CHECKED | {"autoattack": 0, "agents": False}),
    "escaping": digits(loss="standard", evaluate=CHECKED | {"excess_risk": 8, "subspace": 2}),
    "quadratic": QUADRATIC,
    "unpredicted": QUADRATIC | {"optim": {"lr": 0.1, "momentum": 0.9}},
}
LOOKED_AT = raydist.Request(
    parts=PARTS,
    attacks=("pgd10", "pgd3x2@1/255-margin", "apgd-t", "square5", "val_pgd3"),
    models=("centroid", "start"),
    images=4,
    eps=0.05,
    delta=0.04,
    subset=4,
    probes=2,
    top=1,
    directions=1,
    grid=3,
)


def glossary():
    """The table of the README, a line for each metric."""
    rows = ["| name | unit | better | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        kind = [of.replace("<name>", "its own") for of in (metric.unit, metric.better)]
        meaning = metric.meaning.replace("*", r"\*")
        rows.append(" | ".join(["| `" + metric.name + "`", *kind, meaning + " |"]))
    return "\n".join(rows)


def described(names):
    """That raydist says what the columns are that are no settings."""
    told = [str(name) for name in names if str(name).split(".")[0] not in Experiment.model_fields]
    assert told and not [name for name in told if not find(name).meaning]
    return set(told)


EXPECTED = {
    "trades": {"agents_worst_pgd10_acc", "autoattack_images", "swa_clean_acc", "onset_round"},
    "wasserstein": {"ema_hessian_trace_error", "ensemble_masking_unchecked", "sensitivity"},
    "escaping": {"excess_risk_theory", "square5_acc", "zero_gradient_share_images"},
    "quadratic": {"excess_risk_limit", "centroid_excess_risk"},
    "unpredicted": {"excess_risk_theory_missing"},
}


@pytest.mark.parametrize("kind", TRIALS)
def test_every_number_of_a_trial_and_its_evaluation_is_described(kind, tmp_path):
    raydist.run_experiment(TRIALS[kind], out=tmp_path / "run")
    rounds = described(raydist.load_rounds(tmp_path)["metric"].unique())
    assert {"trades": "grad_norm_kl", "wasserstein": "delta"}.get(kind, "distance") in rounds
    final = described(raydist.load(tmp_path))
    assert EXPECTED[kind] <= final | rounds
    described(f"{name}_sd" for name in final)
    if kind == "trades":
        asked = described(raydist.evaluate_runs(tmp_path, LOOKED_AT))
        assert {"w2_ratio", "barrier", "hessian_top", "pgd3x2_step_1_255_margin_acc"} <= asked
        expected = {"start_pgd10_acc@linf:0.05", "w2_images@linf:0.04", "val_pgd3_acc@linf:0.05"}
        assert expected <= described(raydist.load(tmp_path))


def test_each_metric_has_one_line_and_a_sentence():
    names = [metric.name for metric in METRICS]
    assert len({*names}) == len(names)
    for metric in METRICS:
        assert metric.meaning.endswith(".") and metric.meaning.count(". ") <= 1, metric.name
        assert metric.better in ("high", "low", "", "<name>"), metric.name
        assert metric.unit in ("%", "s", "bytes", "", "<name>"), metric.name
        assert metric.name.endswith("_acc") <= (metric.unit == "%"), metric.name


@pytest.mark.parametrize("place", SHOWN)
def test_what_is_shown_is_described(place):
    assert all(find(name).meaning for name in SHOWN[place])


def test_families_take_over_what_their_number_is():
    found = find("agents_worst_pgd50x5_acc")
    assert (found.title, found.better, found.attack) == ("worst PGD-50×5 %", "high", "")
    assert find("ema_hessian_trace_error").heading == "ema ± Hessian trace"
    assert find("pgd100_step_1_255_acc").given == {"steps": "100", "step": "1_255"}
    assert not find("pgd0_acc").meaning and not find("nonsense_images").meaning
    assert find("zero_gradient_share_images").meaning and find("w2_images").meaning


@pytest.mark.parametrize("name", [*attacks.EXAMPLES, "pgd7@.5", "pgd7x3@0.25-margin"])
def test_every_attack_by_name_has_a_column_that_is_described(name):
    found = find(attacks.column(name))
    assert found.attack and found.unit == "%"
    assert found.ascends == ("margin" if "margin" in name or "square" in name else found.ascends)


def test_a_margin_with_a_step_of_its_own_is_another_loss():
    """A regular expression over the names used to miss it."""
    numbers = {"pgd10_acc": 0.9, "pgd20_step_1_255_margin_acc": 0.5}
    assert masking.verdict(numbers, images=1000).signs == ("overestimation",)
    assert masking.verdict({"pgd10_acc": 0.9, "pgd20x5_acc": 0.5}, 1000).signs == ()


def test_bars_follow_the_order_of_the_lines():
    names = ["w2_acc", "autoattack_acc", "mine_acc", "pgd20_acc", "fgsm_acc", "clean_acc"]
    names.sort(key=metrics.order)
    assert names == ["clean_acc", "fgsm_acc", "pgd20_acc", "autoattack_acc", "w2_acc", "mine_acc"]


def test_the_readme_says_the_same():
    readme = Path(__file__).parents[1] / "raydist" / "results" / "README.md"
    table = re.search(r"\| name \|.*?\n\n", readme.read_text(), re.DOTALL)
    assert table and table[0].strip() == glossary(), "see python tests/test_metrics.py"


if __name__ == "__main__":
    print(glossary())
