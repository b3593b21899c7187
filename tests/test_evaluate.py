"""Evaluations of finished trials: resumed, shared out and extended, they equal the plain one."""

import json
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import raydist
from raydist.adversary.threat import ThreatModel
from raydist.config import InputError
from raydist.engine.lock import hold
from raydist.engine.store import Store
from raydist.evaluation import runs
from raydist.evaluation.ledger import Entry, Ledger
from raydist.evaluation.request import Request
from raydist.evaluation.subject import Subject, loaded, open_subject, trials
from raydist.evaluation.units import Ask, outstanding
from raydist.measure.autoattack import autoattack

EPS = 0.08
TRIAL = {
    "topology": {"kind": "ring", "agents": 4},
    "rounds": 30,
    "data": {"batch": 16},
    "model": {"name": "small-cnn", "width": 0.25},
    "threat": {"norm": "linf", "eps": EPS},
    "attack": {"steps": 3},
    "optim": {"lr": 0.02, "momentum": 0.9},
    "average": {"name": "ema", "decay": 0.9},
    "restarts": [0.5],
    "evaluate": {"test": 12, "autoattack": 6, "pgd": [10], "images": 32},
}
SMALL = Request(parts=("robustness", "masking"), images=40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    raydist.run_experiment(TRIAL, out=folder)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory):
    """An evaluation at once, in this process."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    shutil.copytree(trained, folder)
    return folder, raydist.evaluate_runs(folder, SMALL)


def images(folder):
    return pd.read_parquet(folder / "evaluation" / "images.parquet")


def same(frame, other):
    columns = [name for name in frame if name != "trial"]
    pd.testing.assert_frame_equal(frame[columns], other[columns])


def counted(monkeypatch):
    """The units that are done, in order."""
    done = []

    def perform(unit, request, do=runs.perform):
        done.append(unit)
        yield from do(unit, request)

    monkeypatch.setattr(runs, "perform", perform)
    return done


def test_the_models_of_a_trial_are_found_by_name(trained):
    subject = open_subject(trained)
    agents = [f"agent-00{k}" for k in range(4)]
    snapshots = ["snapshot-0", "snapshot-1"]
    assert subject.models == ["centroid", "average", "ensemble", *snapshots, *agents, "start"]
    assert subject.chosen(["agents", "centroid", "nothing"]) == [*agents, "centroid"]
    other = [name for name in subject.models if name != "snapshot-1"]  # that is the last centroid
    assert len({subject.digest(name) for name in other}) == len(other)


def test_the_centroid_is_the_mean_of_the_agents(trained):
    subject = open_subject(trained)
    states = [subject.model(name).state_dict() for name in subject.agents]
    for name, value in subject.model("centroid").state_dict().items():
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(value.double(), mean)


def test_the_ensemble_averages_the_ends_of_the_periods(trained):
    subject = open_subject(trained)
    x, _ = subject.tensors("test", np.arange(8))
    members = subject.model("ensemble").members
    assert len(members) == 2
    with torch.no_grad():
        outputs = subject.model("ensemble")(x).exp()
        expected = torch.stack([member(x).softmax(1) for member in members]).mean(0)
        torch.testing.assert_close(outputs, expected)
        assert not torch.equal(members[0](x), members[1](x))


def test_every_verdict_is_that_of_the_attacks_run_directly(plain):
    folder, frame = plain
    subject, found = open_subject(folder), images(folder).set_index("image")
    where = f"linf/{EPS:g}"
    for first in (0, 32):  # the blocks; what the trial judged at its end is not judged again
        index = np.arange(first, min(first + 32, 40))
        index = index[index >= 6]
        x, y = subject.tensors("test", index)
        seed = runs_seed(subject, first)
        verdict = autoattack(
            subject.model("centroid"),
            x,
            y,
            ThreatModel("linf", EPS),
            classes=10,
            batch=SMALL.batch,
            seed=seed,
        )
        for position, name in enumerate(verdict.attacks, start=1):
            tried = (verdict.broken_by == -1) | (verdict.broken_by >= position)
            kept = (verdict.broken_by != position)[tried]
            ours = found.loc[index[tried], f"{where}/{name}"].astype(bool).to_numpy()
            assert (ours == kept).all()
    assert frame["autoattack_acc"].item() <= frame["pgd10_acc"].item()


def runs_seed(subject, first):
    from raydist.evaluation.work import _seed

    return _seed(subject, first)


def test_what_the_end_of_the_trial_measured_is_not_measured_again(copy, monkeypatch):
    done = counted(monkeypatch)
    request = Request(parts=("robustness",), images=6)
    frame = raydist.evaluate_runs(copy, request)
    final = json.loads((copy / "final.json").read_text())
    assert done == []
    assert frame["autoattack_acc"].item() == final["autoattack_acc"]
    assert frame["fab_t_acc"].item() == final["fab_t_acc"]


def test_an_interrupted_evaluation_goes_on_and_equals_the_plain_one(copy, plain, monkeypatch):
    appended = 0

    def append(self, entry, write=Ledger.append):
        nonlocal appended
        appended += 1
        if appended in (2, 5, 9):
            raise KeyboardInterrupt
        write(self, entry)

    monkeypatch.setattr(Ledger, "append", append)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            raydist.evaluate_runs(copy, SMALL)
    frame = raydist.evaluate_runs(copy, SMALL)
    folder, expected = plain
    same(frame, expected)
    pd.testing.assert_frame_equal(images(copy), images(folder), check_like=True)


def test_nothing_is_measured_twice(plain, monkeypatch):
    folder, expected = plain
    done = counted(monkeypatch)
    same(raydist.evaluate_runs(folder, SMALL), expected)
    assert done == []


def test_more_images_keep_the_verdicts_on_the_first_ones(copy, plain, monkeypatch):
    few = Request(parts=("robustness",), attacks=("pgd10",), images=20)
    many = Request(parts=("robustness",), attacks=("pgd10",), images=40)
    raydist.evaluate_runs(copy, few)
    done = counted(monkeypatch)
    frame = raydist.evaluate_runs(copy, many)
    judged = {i for unit in done for ask in unit.args["known"].values() for i in ask}
    assert judged == set(range(20))
    assert frame["evaluation_images"].item() == 40


def test_weights_that_were_trained_again_are_unknown(copy, monkeypatch):
    request = Request(parts=("robustness",), attacks=("pgd10",), images=12)
    raydist.evaluate_runs(copy, request)
    shutil.copy(copy / "weights" / "agent-000.safetensors", copy / "weights/centroid.safetensors")
    (copy / "images.parquet").unlink()
    done = counted(monkeypatch)
    raydist.evaluate_runs(copy, request)
    assert len(done) == 1


def test_the_results_of_the_run_gain_the_numbers(plain):
    folder, frame = plain
    row = raydist.load(folder).iloc[0]
    assert row["masking"] == frame["masking"].item()
    assert row["autoattack_acc"] == frame["autoattack_acc"].item()
    assert row["status"] == "completed"
    assert (folder / "evaluation" / "robustness.png").stat().st_size > 10_000


def test_another_budget_has_names_of_its_own(copy):
    before = raydist.load(copy).iloc[0]
    request = Request(parts=("robustness",), attacks=("pgd10",), images=12, eps=1e-7)
    frame = raydist.evaluate_runs(copy, request)
    row = raydist.load(copy).iloc[0]
    assert row["pgd10_acc"] == before["pgd10_acc"] < frame["clean_acc"].item()
    assert row["pgd10_acc@linf:1e-07"] == frame["clean_acc"].item()  # which changes no image


def test_agents_average_and_ensemble_have_their_columns(copy):
    request = Request(
        parts=("robustness",),
        attacks=("pgd10",),
        images=12,
        models=("agents", "average", "ensemble"),
    )
    frame = raydist.evaluate_runs(copy, request).set_index("model")
    row = raydist.load(copy).iloc[0]
    agents = frame.loc[[name for name in frame.index if name.startswith("agent")], "pgd10_acc"]
    assert row["agents_worst_pgd10_acc"] == agents.min()
    assert row["agents_mean_pgd10_acc"] == pytest.approx(agents.mean())
    assert row["ema_pgd10_acc"] == frame.loc["average", "pgd10_acc"]
    assert row["ensemble_pgd10_acc"] == frame.loc["ensemble", "pgd10_acc"]


def test_everything_at_once_leaves_every_number_and_picture(copy):
    request = Request(
        parts=("robustness", "masking", "w2", "hessian", "landscape", "similarity"),
        attacks=("pgd10", "val_pgd10", "apgd-dlr", "square50", "fab-t"),
        images=8,
        subset=12,
        probes=3,
        top=3,
        grid=3,
        directions=2,
        batch=24,
    )
    frame = raydist.evaluate_runs(copy, request)
    row = frame.iloc[0]
    assert "error" not in frame
    names = ["clean_acc", "pgd10_acc", "val_pgd10_acc", "apgd_dlr_acc", "square50_acc"]
    names += ["fab_t_alone_acc", "w2_acc", "w_pgd_acc", "sensitivity", "radius_median"]
    names += ["hessian_trace", "hessian_trace_error", "hessian_top", "clean_hessian_trace"]
    names += ["grad_norm", "grad_norm_clean", "distance", "barrier", "fosc", "fosc_relative"]
    assert all(np.isfinite(row[name]) for name in names)
    subject = open_subject(copy)
    center, start = (subject.model(name) for name in ("centroid", "start"))
    moved = [p - q for p, q in zip(center.parameters(), start.parameters(), strict=True)]
    assert row["distance"] == pytest.approx(torch.cat([d.flatten() for d in moved]).norm().item())
    assert row["w2_acc"] <= row["clean_acc"]
    for name in ("robustness", "flatness", "landscapes", "agents"):
        assert (copy / "evaluation" / f"{name}.png").stat().st_size > 10_000
    ledger = Ledger(copy / "evaluation" / "ledger.jsonl")
    values = ledger.all_values(open_subject(copy).digest("centroid"))
    planes = [value for name, value in values.items() if "plane-random" in name]
    at_zero = next(value for value in planes if value["t"] == 0)
    curve = next(value for name, value in values.items() if "/curve/" in name)
    assert at_zero["loss"][1] == curve["loss"][1]  # both are the loss at the centroid itself


@pytest.mark.ray
def test_tasks_on_ray_equal_this_process(copy, plain, ray_cluster):
    frame = raydist.evaluate_runs(copy, SMALL, "ray", cpus=1)
    folder, expected = plain
    same(frame, expected)
    pd.testing.assert_frame_equal(images(copy), images(folder), check_like=True)


def test_a_torn_last_line_is_as_if_it_had_not_been_written(tmp_path):
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(file)
    ledger.append(Entry("w", "test/clean", [True, False], [0, 1]))
    ledger.append(Entry("w", "trace", {"mean": 1.0}))
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    again = Ledger(file)
    assert again.images("w", "test/clean") == {0: True, 1: False}
    assert again.value("w", "trace") is None
    again.append(Entry("w", "trace", {"mean": 1.0}))
    assert file.read_bytes() == whole
    assert Ledger(file).value("w", "trace") == {"mean": 1.0}


def test_each_attack_sees_what_stands_before_it():
    threat = ThreatModel("linf", 0.1)
    asks = [Ask("test", "clean", threat), Ask("test", "pgd10", threat)]
    asks += [Ask("test", name, threat, True) for name in ("apgd-ce", "apgd-t")]
    known = {"test/clean": {0: True, 1: False, 2: True, 3: True}}
    seen = []
    for ask, todo in outstanding(asks, (0, 1, 2, 3), known):
        seen.append((ask.attack, todo))
        if ask.attack != "clean":
            known[ask.measure] = {i: i != 2 for i in todo}
    assert seen == [
        ("clean", []),
        ("pgd10", [0, 2, 3]),
        ("apgd-ce", [0, 2, 3]),
        ("apgd-t", [0, 3]),
    ]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"parts": ("robust",)}, "robustness"),
        ({"attacks": ("pdg10",)}, "pdg10"),
        ({"images": 0}, "--images is 0"),
        ({"delta": -1.0}, "--delta"),
        ({"reach": 0.0}, "--reach"),
    ],
)
def test_what_cannot_be_asked_is_told(request_, words):
    with pytest.raises(InputError, match=words):
        Request(**request_)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"eps": 8.0}, "8/255"),
        ({"norm": "l2"}, "write --eps too"),
        ({"models": ("swa",)}, "it has centroid"),
    ],
)
def test_what_does_not_fit_the_trial_is_told(trained, request_, words):
    with pytest.raises(InputError, match=words):
        raydist.evaluate_runs(trained, Request(**request_))


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        raydist.evaluate_runs(tmp_path)


def test_a_trial_without_weights_is_told(copy):
    shutil.rmtree(copy / "weights")
    with pytest.raises(InputError, match="has no weights"):
        raydist.evaluate_runs(copy)


def test_only_one_process_evaluates_a_trial(copy):
    with hold(Store(copy)), pytest.raises(InputError, match="run is in use by process"):
        raydist.evaluate_runs(copy, Request(parts=("robustness",), images=4))
    assert not (copy / "evaluation.json").exists()


def test_a_model_that_diverged_is_named_and_the_others_are_measured(copy, capsys):
    from safetensors.torch import load_file, save_file

    request = Request(parts=("robustness",), attacks=("pgd10",), images=8, models=("agents",))
    shutil.copytree(copy, copy.with_name("whole"))
    whole = raydist.evaluate_runs(copy.with_name("whole"), request).set_index("model")
    file = copy / "weights" / "agent-000.safetensors"
    save_file({name: value * np.nan for name, value in load_file(file).items()}, file)
    frame = raydist.evaluate_runs(copy, request).set_index("model")
    accuracies = ["clean_acc", "pgd10_acc"]
    others = [f"agent-00{k}" for k in (1, 2, 3)]
    pd.testing.assert_frame_equal(frame.loc[others, accuracies], whole.loc[others, accuracies])
    assert frame.loc["agent-000", accuracies].tolist() == [0, 0]
    assert (whole.loc[others, "clean_acc"] > 0.2).all()


def test_trials_of_a_study_are_found(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "study" / "a")
    shutil.copytree(trained, tmp_path / "study" / "b")
    assert [path.name for path in trials([tmp_path / "study", tmp_path / "study" / "b"])] == [
        "a",
        "b",
    ]


def test_a_model_is_loaded_once_for_all_its_units(trained):
    subject = open_subject(trained)
    load = partial(loaded, trained, "centroid", subject.digest("centroid"))
    assert load() is load()
    assert isinstance(subject, Subject)


def test_the_trace_at_the_end_of_a_trial_is_that_of_all_its_images(monkeypatch):
    from torch.nn.functional import cross_entropy

    from raydist.adversary.attack import pgd
    from raydist.config import validate
    from raydist.engine.driver import train
    from raydist.engine.plan import make_plan
    from raydist.engine.pool import LocalPool
    from raydist.measure import masks
    from raydist.measure.curvature import attacked, hessian_trace

    monkeypatch.setattr(masks, "PROBES", 5)
    tree = TRIAL | {"rounds": 4, "evaluate": TRIAL["evaluate"] | {"hessian": 10, "autoattack": 0}}
    plan = make_plan(validate(tree))
    pool = LocalPool(plan)
    final = list(train(pool, plan))[-1].final
    batches = []
    for k in range(4):
        x, y = plan.share(k)
        count = 10 // 4 + (k < 10 % 4)
        batches.append((torch.tensor(x[:count] / 16.0).float(), torch.tensor(y[:count])))
    center = torch.from_numpy(np.mean(pool.states(), axis=0))
    threat = ThreatModel("linf", EPS)
    attack = partial(pgd, threat=threat, steps=10, alpha=EPS / 4)
    with pool.agents[0].flat.holding(center) as model:
        points = [
            pair for batch in batches for pair in attacked(model, [batch], attack, plan.config.seed)
        ]
        mean, error = hessian_trace(model, cross_entropy, points, 5, plan.config.seed)
    pool.shutdown()
    assert final["hessian_trace"] == pytest.approx(mean, rel=1e-4)
    assert final["hessian_trace_error"] == pytest.approx(error, rel=1e-3)


def test_further_attacks_at_the_end_of_a_trial_have_columns_and_verdicts(tmp_path):
    wanted = {"test": 16, "autoattack": 0, "attacks": ["fgsm", "apgd-dlr"], "images": 32}
    result = raydist.run_experiment(TRIAL | {"evaluate": wanted}, out=tmp_path / "run")
    frame = pd.read_parquet(tmp_path / "run" / "images.parquet")
    for name in ("fgsm", "apgd-dlr"):
        assert result.final[f"{name.replace('-', '_')}_acc"] == frame[name].mean()
        assert not (frame[name] & ~frame["clean"]).any()
    assert result.final["masking"] != "unchecked"


COMMAND = [
    (["nowhere"], "nowhere holds no run"),
    (["{run}", "--parts", "robust"], "expected some of robustness"),
    (["{run}", "--attacks", "pdg10"], 'attack is "pdg10"'),
    (["{run}", "--preset", "paper"], '--preset is "paper", expected one of autoattack'),
    (["{run}", "--preset", "autoattack", "--attacks", "fgsm"], "write one of them"),
    (["{run}", "--images", "many"], '--images is "many", expected "all" or a whole number'),
    (["{run}", "--images", "²"], '--images is "²", expected "all" or a whole number'),
    (["{run}", "--eps", "eight"], '--eps is "eight", expected a number or a fraction'),
    (["{run}", "--eps", "8"], '"8/255"'),
    (["{run}", "--models", "teacher"], "has no model teacher: it has centroid"),
    (["{run}", "--pool", "slurm"], 'pool is "slurm", expected "local" or "ray"'),
    (["{run}", "--norm", "l3"], "l3"),
]


@pytest.mark.parametrize(("arguments", "words"), COMMAND)
def test_wrong_input_is_one_line_and_code_2(trained, arguments, words, capsys, monkeypatch):
    from raydist import command, evaluate

    written = set(trained.rglob("*"))
    line = ["evaluate", *(part.format(run=trained) for part in arguments)]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as ended:
        command.run(evaluate.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("raydist: ") and len(error.splitlines()) == 1
    assert words in error
    assert set(trained.rglob("*")) == written


def test_the_command_prints_the_table_and_says_where_it_is(copy, capsys, monkeypatch):
    from raydist import command, evaluate

    line = ["evaluate", str(copy), "--images", "6", "--attacks", "pgd10,autoattack"]
    monkeypatch.setattr("sys.argv", [*line, "--parts", "robustness"])
    with pytest.raises(SystemExit) as ended:
        command.run(evaluate.main)
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "autoattack %" in out and "on the first 6 test images" in out
    assert (copy / "evaluation" / "evaluation.csv").exists()
