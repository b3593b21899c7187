"""Searches: which points run in which order, what optuna is told, which trials end early."""

import itertools
import json
import math
from types import SimpleNamespace

import helpers_for_ray
import numpy as np
import pytest
from experiments import QUADRATIC
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from safetensors.numpy import load_file

from raydist import load, load_rounds, over_seeds, run_experiment, run_sweep
from raydist.config.experiment import validate
from raydist.config.study import from_tree
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.errors import InputError
from raydist.metrics import SHOWN
from raydist.results.record import Outcome, Record
from raydist.storage import Storage
from raydist.sweep import counted
from raydist.tune.optuna import PROPOSALS, Proposals
from raydist.tune.points import OBJECTIVE, points
from raydist.tune.scheduler import scheduler

DIGITS = {
    "topology": {"kind": "ring", "agents": 2},
    "rounds": 6,
    "data": {"set": "digits", "batch": 8},
    "model": {"name": "linear"},
    "attack": {"steps": 1},
    "evaluate": {
        "every": 1,
        "validation_images": 64,
        "test_images": 64,
        "pgd": [1],
        "autoattack": 0,
    },
}
LR = {"optim.lr": {"loguniform": [1e-4, 1.0]}}


def study(axes, base=QUADRATIC, **search):
    return from_tree({"base": base, "axes": axes, "search": search})


def test_a_draw_runs_at_every_value_of_the_lists_and_seeds_are_neighbours():
    axes = {"seed": [5, 6], **LR, "strategy": ["consensus", "diffusion"], "data.batch": [1, 2, 3]}
    one = study(axes, samples=4)
    found = points(one)
    assert len(found) == one.trials == 4 * 3 * 2 * 2
    by_draw = {}
    for point in found:
        assert list(point) == list(axes)  # in the order of the file
        others = point["seed"], point["strategy"], point["data.batch"]
        by_draw.setdefault(point["optim.lr"], []).append(others)
    wanted = sorted(itertools.product(*(axes[key] for key in ("seed", "strategy", "data.batch"))))
    assert len(by_draw) == 4 and all(sorted(each) == wanted for each in by_draw.values())
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert {**first, "seed": 6} == second and first["seed"] == 5
    drawn = (
        ": 4 draws of optim.lr (shown at their ends), each at 2 seed × 2 strategy × 3 data.batch"
    )
    assert counted(one) == drawn and counted(study({"seed": [0]})) == ""


def test_a_grid_keeps_the_order_of_its_lists():
    axes = {"strategy": ["consensus", "diffusion"], "optim.lr": [0.1, 0.2], "seed": [0, 1]}
    expected = [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
    assert points(study(axes)) == expected
    assert points(study(axes, algorithm="grid")) == expected


def test_a_random_search_draws_from_lists_too_and_no_point_twice():
    tables = [{"kind": "ring", "agents": 3}, {"kind": "path", "agents": 3}]
    one = study(
        {"topology": tables, "optim.lr": [0.1, 0.2], "seed": [0, 1]}, algorithm="random", samples=3
    )
    found = points(one)
    assert one.spaces == ["topology", "optim.lr"] and one.trials == len(found) == 6
    distinct = {json.dumps({**point, "seed": None}) for point in found}
    assert len(distinct) == 3 and all(point["topology"] in tables for point in found)
    assert found == points(one)
    assert len(points(study({"optim.lr": [0.1, 0.2]}, algorithm="random", samples=50))) == 2


def test_draws_follow_the_seed_of_the_search_and_stay_in_their_space():
    drawn = [[p["optim.lr"] for p in points(study(LR, samples=9, seed=s))] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(1e-4 <= lr <= 1 and type(lr) is float for lr in drawn[0])
    steps = points(study({"data.batch": {"randint": [1, 5]}}, samples=4))
    assert sorted(point["data.batch"] for point in steps) == [1, 2, 3, 4]


def test_many_combinations_to_draw_from_are_checked_one_axis_at_a_time():
    axes = {"optim.lr": [n / 100 for n in range(1, 41)], "data.batch": list(range(1, 41))}
    assert len(list(study(axes).corners())) == 1600
    assert len(list(study(axes, algorithm="random").corners())) == 79


@pytest.mark.parametrize(
    ("axes", "search", "line"),
    [
        (LR, {"metric": "clean_acc"}, r'search.metric is "clean_acc", expected one that trials'),
        (LR, {"metric": "val_pgd20_acc"}, r"that trials .*: did you mean val_pgd10_acc\?"),
        (LR, {"metric": "loss"}, r"search.metric and mode belong to algorithm = \"optuna\" or"),
        (LR, {"grace": 3}, r"search.grace belongs to a scheduler: remove it or write"),
        (LR, {"scheduler": "median", "reduction": 3}, r'search.reduction belongs to "asha"'),
        (LR, {"scheduler": "ahsa"}, r'search.scheduler is "ahsa", .*write "asha"'),
        (LR, {"scheduler": "asha", "reduction": 1}, r"search.reduction is 1, expected .* above 1"),
        (LR, {"algorithm": "grid"}, r"axes.optim.lr is a search space: write a list"),
        ({"seed": [0, 1]}, {"algorithm": "optuna"}, r"there is nothing to choose: write an axis"),
        (
            {"data.batch": {"qloguniform": [2, 8, 2]}},
            {"algorithm": "optuna"},
            r"axes.data.batch: qloguniform is no space of optuna",
        ),
    ],
)
def test_a_search_that_cannot_work_is_one_line(axes, search, line):
    with pytest.raises(InputError, match=line):
        study(axes, **search)


def test_a_metric_of_the_other_task_is_refused_before_anything_is_written(tmp_path):
    tree = {"base": QUADRATIC, "axes": {"seed": [0]}, "search": {"scheduler": "asha"}}
    with pytest.raises(InputError, match=r"val_pgd10_acc.* does not report: write one of excess_r"):
        run_sweep(tree, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_study_without_optuna_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("raydist.tune.search.find_spec", lambda name: None)
    tree = {"base": QUADRATIC, "axes": LR}
    tree["search"] = {"algorithm": "optuna", "metric": "excess_risk"}
    with pytest.raises(InputError, match=r"pip install 'raydist\[optuna\]'"):
        run_sweep(tree, out=tmp_path / "study")


@pytest.mark.parametrize(("kind", "base"), [("search-quadratic", QUADRATIC), ("search", DIGITS)])
def test_every_metric_is_reported_whenever_the_state_is_measured(kind, base):
    rounds = run_experiment({**base, "rounds": 4, "evaluate": {**DIGITS["evaluate"], "every": 2}})
    found = rounds.rounds[rounds.rounds["agent"].isin(["mean", "centroid"])]
    for name in SHOWN[kind]:
        assert {2, 4} <= set(found[found["metric"] == name]["round"]), name


@pytest.mark.parametrize(("metric", "better"), [("val_pgd10_acc", "max"), ("val_loss", "min")])
def test_what_is_better_follows_from_the_metric_unless_it_is_written(metric, better):
    search = study(LR, DIGITS, scheduler="asha", metric=metric).search
    assert search.better == better
    assert study(LR, scheduler="asha", metric=metric, mode="max").search.better == "max"


def optuna_study(samples=12, axes=None, **search):
    axes = axes or {"seed": [0, 1], "optim.lr": {"uniform": [0.0, 1.0]}, "strategy": ["local", "x"]}
    return study(axes, algorithm="optuna", samples=samples, metric="excess_risk", **search)


def converse(proposals, objective, trials, first=0):
    """What Tune does: ask for a trial, and tell how it ended."""
    found = []
    for i in range(first, first + trials):
        point = proposals.suggest(f"t{i}")
        if point == Searcher.FINISHED:
            break
        value = objective(point)
        result = None if value is None else {OBJECTIVE: value}
        proposals.on_trial_complete(f"t{i}", result, error=value is None)
        found.append(point)
    return found


def valley(point):
    return (point["optim.lr"] - 0.7) ** 2 + 0.1 * (point["strategy"] == "x") + point["seed"] / 100


def test_optuna_is_told_the_mean_over_seeds_and_learns(tmp_path):
    proposals = Proposals(optuna_study(40), Storage(tmp_path / "p"))
    assert proposals.trials_left == 80
    found = converse(proposals, valley, 80)
    assert [point["seed"] for point in found] == [0, 1] * 40
    assert all(a["optim.lr"] == b["optim.lr"] for a, b in zip(found[::2], found[1::2], strict=True))
    kept = json.loads((tmp_path / "p" / PROPOSALS).read_text())
    for proposal, point in zip(kept, found[::2], strict=True):
        assert proposal["value"] == pytest.approx(valley(point) + 0.005)
    early, late = (sum(valley(p) for p in part) for part in (found[:20], found[-20:]))
    assert late - 0.1 < (early - 0.1) / 2  # without what the seeds add
    again = converse(Proposals(optuna_study(40), Storage(tmp_path / "q")), valley, 80)
    assert again == found


def test_a_resumed_search_keeps_what_is_known_and_repeats_what_had_not_ended(tmp_path):
    folder = Storage(tmp_path)
    before = Proposals(optuna_study(), folder)
    done = converse(before, valley, 6)
    begun = [before.suggest("lost"), before.suggest("lost too")]
    after = Proposals(optuna_study(), folder)
    assert after.trials_left == 24 - 6
    found = converse(after, valley, 18)
    assert found[:2] == begun
    names = {json.dumps(point) for point in [*done, *found]}
    assert len(names) == 24  # no point runs twice
    assert len(json.loads(folder.read(PROPOSALS))) == 12
    assert Proposals(optuna_study(), folder).trials_left == 0


def test_a_space_that_has_no_more_points_ends_the_search(tmp_path):
    one = optuna_study(50, {"optim.lr": [0.1, 0.2], "strategy": ["local", "consensus"]})
    proposals = Proposals(one, Storage(tmp_path / "p"))
    found = converse(proposals, lambda point: point["optim.lr"], 50)
    assert len(found) == 4 and proposals.exhausted


def test_failed_trials_do_not_count_and_are_proposed_again_when_resumed(tmp_path):
    def half(point):
        return None if point["seed"] == 0 else valley(point)

    converse(Proposals(optuna_study(4), Storage(tmp_path / "p")), half, 8)
    kept = json.loads((tmp_path / "p" / PROPOSALS).read_text())
    assert all(proposal["value"] is not None for proposal in kept)  # of the seed that ran
    converse(Proposals(optuna_study(4), Storage(tmp_path / "q")), lambda point: None, 8)
    assert Proposals(optuna_study(4), Storage(tmp_path / "q")).trials_left == 8


@pytest.mark.parametrize(
    ("name", "reason"), [("asha", "asha: excess_risk is not"), ("median", "median: excess_risk is")]
)
def test_a_scheduler_tells_the_trial_to_end_itself(name, reason, tmp_path):
    one = study(LR, scheduler=name, metric="excess_risk", grace=2)
    chosen = scheduler(one, 12, Storage(tmp_path))
    told = []
    for i in range(6):
        actor = SimpleNamespace(end_early=SimpleNamespace(remote=told.append))
        trial = type("Trial", (), {})()
        trial.trial_id, trial.temporary_state = str(i), SimpleNamespace(ray_actor=actor)
        controller = SimpleNamespace(get_live_trials=lambda: [])
        chosen.on_trial_add(controller, trial)
        ended = len(told)
        for n in range(4):
            if len(told) > ended:
                break
            result = {"round": n, OBJECTIVE: float(i)}
            decision = chosen.on_trial_result(controller, trial, result)
            assert decision == TrialScheduler.CONTINUE
            assert n >= 2 or len(told) == ended  # everyone gets the grace period
    assert told and all(each.startswith(reason) for each in told)


def assert_one_meaning(frame, out):
    """Every row's excess risks are those of the weights that its trial has left.

    J(w) - J(w*) = w^2 / 2, because the centres of QUADRATIC are 1, 0, -1 and its Hessian is 1.
    """
    for _, row in frame.iterrows():
        files = (out / row["trial"] / "weights").glob("agent-*.safetensors")
        own = np.array([t.item() for file in files for t in load_file(file).values()])
        assert len(own) == 3
        assert row["excess_risk"] == pytest.approx(np.mean(own**2) / 2, rel=1e-9)
        assert row["centroid_excess_risk"] == pytest.approx(np.mean(own) ** 2 / 2, rel=1e-9)
        assert abs(row["excess_risk"] - row["centroid_excess_risk"]) > 1e-8
        assert row["objective"] == row["excess_risk"]
        reports = (out / row["trial"] / "result.json").read_text().splitlines()
        assert json.loads(reports[-1])["excess_risk"] == row["excess_risk"]


def test_a_name_stands_for_one_thing():
    with pytest.raises(ValueError, match="loss: of the agents and of the centroid"):
        assert Record(1, [{"loss": 1.0}], {"loss": 2.0, "val_loss": 3.0}).numbers


def test_a_trial_that_is_ended_early_knows_all_but_the_test_images():
    tree = {**DIGITS, "stop": {"fosc": {"threshold": 1e-9}, "on_instability": "watch"}}
    plan = make_plan(validate({**tree, "exchange": "auto"}))
    saved, told = [], []

    def early():
        return "not good enough" if told[-1].round == 3 else ""

    for record in train(LocalPool(plan), plan, None, lambda pool, n: saved.append(n), early):
        told.append(record)
    *before, last = told
    whole = run_experiment(tree | {"exchange": "auto"})
    assert [record.round for record in before] == [0, 1, 2, 3] and saved == [3]
    assert (last.round, last.outcome) == (3, Outcome("stopped", "not good enough", 3))
    assert last.images is None and last.final["onset_round"] == 1 == whole.final["onset_round"]
    ours = {name for name in last.final if not name.startswith("val_")}
    assert ours == {
        *("train_loss", "disagreement", "distance", "unstable", "unstable_episodes"),
        *("onset_round", "recovered_by", "exchange_chosen"),
    }
    assert ours <= whole.final.keys()


@pytest.mark.ray
def test_a_trial_that_a_scheduler_ends_leaves_a_whole_folder_and_is_not_resumed(
    ray_cluster, tmp_path
):
    lrs = [0.3, 0.2, 0.001, 0.002]
    base = {**QUADRATIC, "topology": {"kind": "path", "agents": 3}}  # whose agents differ
    tree = {"base": base, "axes": {"optim.lr": lrs, "seed": [0, 1]}}
    tree["search"] = {"scheduler": "asha", "metric": "excess_risk", "grace": 3, "max_concurrent": 1}
    frame = run_sweep(tree, out=tmp_path / "study", pool="local")
    status = frame.groupby("optim.lr")["status"].agg(set).to_dict()
    assert status[0.001] == status[0.002] == {"stopped"} and "completed" in status[0.3]
    ended = frame[frame["status"] == "stopped"]
    assert ended["stop_reason"].str.startswith("asha: excess_risk is not among the best").all()
    assert set(ended["stop_round"]) == {3} and not frame.attrs["interrupted"]
    assert_one_meaning(frame, tmp_path / "study")
    rounds = load_rounds(tmp_path / "study").groupby("trial")["round"].max()
    for _, row in frame.iterrows():
        folder = tmp_path / "study" / row["trial"]
        assert rounds[row["trial"]] == row["rounds_run"]
        assert {file.name for file in (folder / "weights").iterdir()} == {
            *(f"agent-00{k}.safetensors" for k in range(3)),
            "centroid.safetensors",
        }
    # a completed trial is the very run that it is without a scheduler
    best = frame[frame["status"] == "completed"].iloc[0]
    alone = run_experiment({**base, "optim": {"lr": best["optim.lr"]}, "seed": best["seed"]})
    assert alone.final["excess_risk"] == best["excess_risk"]
    finals = sorted((tmp_path / "study").glob("*/final.json"))
    before = [file.stat().st_mtime_ns for file in finals]
    again = run_sweep(tree, out=tmp_path / "study", pool="local", resume=True)
    assert [file.stat().st_mtime_ns for file in finals] == before
    assert again["status"].tolist() == frame["status"].tolist()


@pytest.mark.long
@pytest.mark.ray
def test_the_fosc_rule_works_beside_a_scheduler(ray_cluster, tmp_path):
    tree = {
        "base": DIGITS,
        "axes": {"optim.lr": [0.1, 1e-6]},
        "stop": {"fosc": {"threshold": 1e-9, "patience": 2, "warmup": 3}},
        "search": {"scheduler": "asha", "metric": "val_loss", "grace": 1, "max_concurrent": 1},
    }
    frame = run_sweep(tree, out=tmp_path / "study", pool="local").set_index("optim.lr")
    assert set(frame["status"]) == {"stopped"}
    assert frame.loc[0.1, "stop_reason"].startswith("FOSC on validation")
    assert frame.loc[1e-6, "stop_reason"].startswith("asha: val_loss")
    assert frame.loc[0.1, "stop_round"] == 5 and frame.loc[1e-6, "stop_round"] == 1
    assert math.isnan(frame.loc[1e-6, "clean_acc"])  # the test images were not looked at


@pytest.mark.ray
def test_a_study_with_optuna_resumes(ray_cluster, tmp_path):
    tree = {"base": QUADRATIC, "axes": {"seed": [0, 1], **LR, "strategy": ["local", "diffusion"]}}
    tree["search"] = {"algorithm": "optuna", "samples": 2, "metric": "excess_risk"}
    tree["search"]["max_concurrent"] = 1
    frame = run_sweep(tree, out=tmp_path / "a", pool="local")
    assert len(frame) == 4 and set(frame["status"]) == {"completed"}
    assert not frame.attrs["interrupted"]
    assert over_seeds(frame)["seeds"].tolist() == [2, 2]
    tree["search"]["samples"] = 3
    more = run_sweep(tree, out=tmp_path / "a", pool="local", resume=True)
    assert len(more) == 6 and set(frame["trial"]) < set(more["trial"])
    assert load(tmp_path / "a")["trial"].tolist() == more["trial"].tolist()


@pytest.mark.ray
def test_a_trial_that_fails_before_it_was_compared_does_not_end_the_study(ray_cluster, tmp_path):
    base = DIGITS | {"loss": {"name": "helpers_for_ray:raising"}, "attack": {"alpha": 0.2}}
    base["evaluate"] = DIGITS["evaluate"] | {"every": 3}  # the loss fails in round 2
    tree = {"base": base, "axes": {"threat.eps": [helpers_for_ray.BAD_EPS, 0.03], "seed": [0, 1]}}
    tree["search"] = {"algorithm": "optuna", "samples": 2, "scheduler": "median"}
    tree["search"] |= {"metric": "val_loss", "max_concurrent": 1}
    frame = run_sweep(tree, out=tmp_path / "study", pool="local").set_index("threat.eps")
    assert set(frame.loc[0.03, "status"]) == {"completed"}
    failed = frame.loc[helpers_for_ray.BAD_EPS]
    assert set(failed["status"]) == {"failed"} and failed["error"].str.contains("cursed").all()
    assert not frame.attrs["interrupted"]
    kept = json.loads((tmp_path / "study" / PROPOSALS).read_text())
    assert sorted(each["value"] is None for each in kept) == [False, True]
