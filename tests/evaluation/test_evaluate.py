"""Evaluations of finished trials: resumed, shared out and extended, they equal the plain one."""

import json
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import raydist
from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import validate
from raydist.engine.plan import make_plan
from raydist.errors import InputError
from raydist.evaluation import run as evaluation
from raydist.evaluation.folders import open_subject, trials
from raydist.evaluation.ledger import Entry, Ledger
from raydist.evaluation.request import Request
from raydist.evaluation.units import Ask, outstanding
from raydist.learning.data import load
from raydist.lock import hold
from raydist.storage import Storage

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
    "periods": [0.5],
    "evaluate": {"test_images": 12, "autoattack": 6, "pgd": [10], "validation_images": 32},
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

    def perform(unit, request, do=evaluation.perform):
        done.append(unit)
        yield from do(unit, request)

    monkeypatch.setattr(evaluation, "perform", perform)
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


LINEAR = TRIAL | {
    "model": {"name": "linear"},
    "average": None,
    "periods": [],
    "evaluate": {"test_images": 24, "autoattack": 12, "pgd": [10], "validation_images": 32},
}


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear") / "run"
    raydist.run_experiment(LINEAR, out=folder)
    return folder


def linear_weights(folder):
    """W, (10, 64), and b, (10,), of the centroid."""
    weights = load_file(folder / "weights" / "centroid.safetensors").values()
    return (
        next(value for value in weights if value.shape == shape).double().numpy()
        for shape in ((10, 64), (10,))
    )


def test_every_verdict_is_that_of_the_closed_form(linear, tmp_path):
    """Of a linear model the worst point in ball and box is known for every other label."""
    shutil.copytree(linear, tmp_path / "run")
    x, y = load("digits").test
    request = Request(("robustness",), ("pgd10", "apgd-t", "autoattack"), images=24)
    raydist.evaluate_runs(tmp_path / "run", request)
    W, b = linear_weights(tmp_path / "run")
    x = x.reshape(len(x), 64) / 16
    slope = (W[None] - W[y][:, None]) / 0.3760  # of z_c − z_y in the pixels, (60, 10, 64)
    worst = np.clip(x[:, None] + EPS * np.sign(slope), 0, 1)
    rise = (slope * (worst - 0.3053)).sum(2) + b - b[y][:, None]
    rise[np.arange(len(x)), y] = -np.inf
    found = images(tmp_path / "run").dropna(subset=[f"linf/{EPS:g}/ensemble"])
    assert len(found) == 24
    margin = -rise.max(1)[found["image"]]
    for name in ("ensemble", "apgd-t-alone"):
        kept = found[f"linf/{EPS:g}/{name}"].to_numpy(dtype=bool)
        sure = np.abs(margin) > 1e-3
        assert (kept == (margin > 0))[sure].all() and 0.1 < kept.mean() < 0.9
    assert found[f"linf/{EPS:g}/pgd10"].to_numpy(dtype=bool)[margin > 1e-3].all()


def test_what_the_end_of_the_trial_measured_is_not_measured_again(copy, monkeypatch):
    done = counted(monkeypatch)
    models = {"centroid": "", "average": "ema_", "ensemble": "ensemble_"}
    request = Request(parts=("robustness",), images=6, models=tuple(models))
    frame = raydist.evaluate_runs(copy, request).set_index("model")
    final = json.loads((copy / "final.json").read_text())
    assert done == []
    for model, prefix in models.items():
        for name in ("autoattack_acc", "fab_t_acc"):
            assert frame.loc[model, name] == final[prefix + name]


def test_validation_images_are_counted_too(linear, tmp_path):
    shutil.copytree(linear, tmp_path / "run")
    before = raydist.load(tmp_path / "run").iloc[0]
    assert before["val_pgd10_images"] == before["val_loss_images"] == 32
    for images in (8, 40):
        request = Request(("robustness",), ("val_pgd10",), images=images)
        found = raydist.evaluate_runs(tmp_path / "run", request).iloc[0]
        row = raydist.load(tmp_path / "run").iloc[0]
        expected = before if images < 32 else found
        for name in ("val_pgd10_acc", "val_pgd10_images", "val_clean_acc", "val_clean_images"):
            assert row[name] == expected[name]
        assert found["val_pgd10_images"] == images and row["val_loss"] == before["val_loss"]


SHIFT = 0


def shifted():
    """Digits whose test labels may change."""
    data = load("digits")
    x, y = data.test
    test = x, (y + SHIFT) % 10
    return {"train": data.train, "validation": data.validation, "test": test, "scale": 1 / 16}


def test_images_that_are_replaced_leave_no_verdict_of_the_old_ones(tmp_path, monkeypatch):
    few = {"test_images": 8, "autoattack": 4, "validation_images": 32}
    tree = LINEAR | {"data": {"set": "test_evaluate:shifted", "batch": 16}, "evaluate": few}
    raydist.run_experiment(tree, out=tmp_path / "run")
    request = Request(("robustness",), ("pgd10",), images=60)
    before = raydist.evaluate_runs(tmp_path / "run", request).iloc[0]
    monkeypatch.setattr("test_evaluate.SHIFT", 1)
    after = raydist.evaluate_runs(tmp_path / "run", request).iloc[0]
    row = raydist.load(tmp_path / "run").iloc[0]
    W, b = linear_weights(tmp_path / "run")
    x, y = load("digits").test
    chosen = images(tmp_path / "run")["image"]
    said = ((x[chosen].reshape(-1, 64) / 16 - 0.3053) / 0.3760 @ W.T + b).argmax(1)
    assert after["clean_acc"] == row["clean_acc"] == np.mean(said == (y[chosen] + 1) % 10)
    assert after["clean_acc"] < 0.2 < 0.6 < before["clean_acc"]
    assert "autoattack_acc" not in row and "val_loss" not in row


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
    assert len(judged) == 20  # of 40: not judged again
    assert frame["evaluation_images"].item() == 40
    assert "larger-eps-weaker" not in plain[1]["masking_unchecked"].item().split(", ")
    assert "masking" in plain[1] and "masking" not in frame  # in the numbers that were asked for


def test_an_error_stands_beside_the_model_that_it_is_of(copy, monkeypatch):
    def perform(unit, request, do=evaluation.perform):
        if unit.model == "agent-001":
            raise RuntimeError("a cable was cut")
        yield from do(unit, request)

    monkeypatch.setattr(evaluation, "perform", perform)
    models = ("centroid", "agent-001", "agent-002")
    few = Request(parts=("robustness",), attacks=("pgd10",), images=8, models=models)
    frame = raydist.evaluate_runs(copy, few).set_index("model")
    error = frame["error"].dropna().to_dict()
    assert error == {"agent-001": "judge: RuntimeError: a cable was cut"}


def test_weights_that_were_trained_again_are_unknown(copy, monkeypatch):
    request = Request(parts=("robustness",), attacks=("pgd10",), images=12)
    raydist.evaluate_runs(copy, request)
    shutil.copy(copy / "weights" / "agent-000.safetensors", copy / "weights/centroid.safetensors")
    (copy / "images.parquet").unlink()
    done = counted(monkeypatch)
    raydist.evaluate_runs(copy, request)
    assert len(done) == 1


def by_hand(frame, attack):
    """Accuracy and number of images, out of the rows of images.parquet."""
    seen = frame[attack].dropna().astype(bool)
    return seen.mean(), len(seen)


def test_the_results_of_the_run_gain_the_numbers(plain):
    folder, frame = plain
    row, found = raydist.load(folder).iloc[0], images(folder)
    for name, attack in (("clean", "clean"), ("pgd10", "pgd10"), ("autoattack", "ensemble")):
        column = attack if attack == "clean" else f"linf/{EPS:g}/{attack}"
        assert by_hand(found, column) == (row[f"{name}_acc"], row[f"{name}_images"])
        assert row[f"{name}_images"] == 40 == frame[f"{name}_images"].item()
    assert row["status"] == "completed"
    assert (folder / "evaluation" / "robustness.png").stat().st_size > 10_000


def test_later_measurements_do_not_falsify_earlier_ones(linear, tmp_path):
    """The same trial, looked at again and again: nothing becomes worse founded."""
    shutil.copytree(linear, tmp_path / "run")
    asked = [
        Request(parts=("robustness",), attacks=("pgd10",)),
        Request(parts=("robustness",), attacks=("pgd10",), images=8),
        Request(parts=("robustness", "masking"), attacks=("apgd-ce",), images=8),
    ]
    before = raydist.load(tmp_path / "run").iloc[0]
    assert (before["pgd10_images"], before["autoattack_images"]) == (24, 12)
    assert before["overestimation_images"] == 12
    for request in asked:
        frame = raydist.evaluate_runs(tmp_path / "run", request)
        row = raydist.load(tmp_path / "run").iloc[0]
        count = 360 if request.images == "all" else 8
        assert frame["pgd10_images"].item() == count if "pgd10_images" in frame else True
        assert row["pgd10_images"] == 360
        for name in ("autoattack_acc", "autoattack_images", "overestimation"):
            assert row[name] == before[name]
        assert row["masking_images"] >= before["masking_images"]
    found = images(tmp_path / "run")
    both = found.dropna(subset=[f"linf/{EPS:g}/ensemble"])
    gap = (
        both[f"linf/{EPS:g}/pgd10"].astype(int) - both[f"linf/{EPS:g}/ensemble"].astype(int)
    ).mean()
    assert row["overestimation"] == pytest.approx(gap)


def test_weights_that_are_replaced_leave_no_verdict_of_the_old_ones(linear, tmp_path):
    shutil.copytree(linear, tmp_path / "run")
    file = tmp_path / "run" / "weights" / "centroid.safetensors"
    save_file({name: value * 0 for name, value in load_file(file).items()}, file)
    raydist.evaluate_runs(tmp_path / "run", Request(("robustness",), ("pgd10",), images=100))
    row = raydist.load(tmp_path / "run").iloc[0]
    y = load("digits").test[1]
    zeros = np.mean(y[images(tmp_path / "run")["image"]] == 0)  # what a model without weights says
    assert row["clean_acc"] == zeros and row["clean_images"] == 100
    assert "autoattack_acc" not in row and "hessian_trace" not in row


def test_a_folder_that_is_trained_anew_is_read_anew(tmp_path):
    """The same folder twice in one process, with another model and other test images."""
    request = Request(("robustness",), ("pgd10",), images=20)
    short = {"rounds": 4, "average": None, "periods": [], "evaluate": LINEAR["evaluate"]}
    rows = []
    for model in ("small-cnn", "linear"):
        name = {"name": model} | ({"width": 0.25} if model == "small-cnn" else {})
        raydist.run_experiment(TRIAL | short | {"model": name}, out=tmp_path / "run")
        raydist.evaluate_runs(tmp_path / "run", request)
        rows.append(raydist.load(tmp_path / "run").iloc[0])
        assert len(open_subject(tmp_path / "run").model("centroid").state_dict()) > 0
        shutil.copytree(tmp_path / "run", tmp_path / model)
        shutil.rmtree(tmp_path / "run")
    shutil.copytree(tmp_path / "linear", tmp_path / "elsewhere")
    raydist.evaluate_runs(tmp_path / "elsewhere", request)
    assert raydist.load(tmp_path / "elsewhere").iloc[0]["pgd10_acc"] == rows[1]["pgd10_acc"]


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


def test_everything_at_once_leaves_every_number_and_picture(linear, tmp_path):
    copy = shutil.copytree(linear, tmp_path / "run")
    request = Request(
        parts=("robustness", "masking", "w2", "hessian", "landscape", "similarity"),
        attacks=("pgd10", "val_pgd10", "apgd-dlr", "square50", "fab-t"),
        images=6,
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
    names += [
        "grad_norm",
        "grad_norm_clean",
        "distance_from_start",
        "barrier",
        "fosc",
        "fosc_relative",
    ]
    assert all(np.isfinite(row[name]) for name in names)
    subject = open_subject(copy)
    center, start = (subject.model(name) for name in ("centroid", "start"))
    moved = [p - q for p, q in zip(center.parameters(), start.parameters(), strict=True)]
    length = torch.cat([d.flatten() for d in moved]).norm().item()
    assert row["distance_from_start"] == pytest.approx(length)
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


TRACE = {"mean": 1.0, "error": 0.5}


def test_a_torn_last_line_is_as_if_it_had_not_been_written(tmp_path):
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(file)
    ledger.append(Entry("w", "test/clean", [True, False], [0, 1]))
    ledger.append(Entry("w", "trace", TRACE))
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    again = Ledger(file)
    assert again.images("w", "test/clean") == {0: True, 1: False} and again.bad == {}
    assert again.value("w", "trace") is None
    again.append(Entry("w", "trace", TRACE))
    assert file.read_bytes() == whole
    assert Ledger(file).value("w", "trace") == TRACE


def test_a_last_line_without_its_end_counts_and_the_next_one_is_a_line_of_its_own(tmp_path):
    file = tmp_path / "ledger.jsonl"
    Ledger(file).append(Entry("w", "trace", TRACE))
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    ledger = Ledger(file)
    assert ledger.value("w", "trace") == TRACE and ledger.bad == {}
    ledger.append(Entry("w", "test/clean", [True], [0]))
    again = Ledger(file)
    assert again.value("w", "trace") == TRACE and again.images("w", "test/clean") == {0: True}


def test_entries_about_the_same_weights_add_up_and_what_is_known_of_an_image_stays(tmp_path):
    file, before = tmp_path / "ledger.jsonl", [Entry("w", "test/clean", [True], [3], 1.5, ["a"])]
    ledger = Ledger(file, before)
    ledger.append(Entry("w", "test/clean", [False, True], [3, 4], 2.0, ["b"]))
    ledger.append(Entry("v", "test/clean", [False], [5], 0.25))
    ledger.append(Entry("w", "a/trace/5", TRACE, seconds=4.0))
    for known in (ledger, Ledger(file, before)):
        assert known.all_images("w") == {"test/clean": {3: True, 4: True}}
        assert known.all_values("w") == {"a/trace/5": TRACE} and known.all_values("v") == {}
        assert [known.seconds(of, "test/clean") for of in "wvu"] == [3.5, 0.25, 0.0]
        assert known.seconds("w", "a/trace/5") == 4.0
        assert [known.flags(of) for of in "wvu"] == [{"a", "b"}, set(), set()]
        assert known.images("u", "test/clean") == {}


BAD_LINES = [
    b"nonsense",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"3",
    b"[" * 100_000,
    b'{"weights": "w"}',
    b'{"weights": "w", "measure": "test/clean", "value": [true], "images": [0], "more": 1}',
    b'{"weights": ["w"], "measure": "test/clean", "value": [true], "images": [0]}',
    b'{"weights": "w", "measure": 7, "value": [true], "images": [0]}',
    b'{"weights": "w", "measure": "test/clean", "value": [true, false], "images": [0]}',
    b'{"weights": "w", "measure": "test/clean", "value": true, "images": [0]}',
    b'{"weights": "w", "measure": "test/clean", "value": ["yes"], "images": [0]}',
    b'{"weights": "w", "measure": "test/clean", "value": [null], "images": [0]}',
    b'{"weights": "w", "measure": "test/clean", "value": [true], "images": [-1]}',
    b'{"weights": "w", "measure": "test/clean", "value": [true], "images": ["0"]}',
    b'{"weights": "w", "measure": "test/clean", "value": [true], "images": 0}',
    b'{"weights": "w", "measure": "test/clean", "value": [true], "images": [0], "seconds": "1"}',
    b'{"weights": "w", "measure": "test/clean", "value": [true], "images": [0], "flags": 1}',
    b'{"weights": "w", "measure": "test/clean", "value": [true]}',
    b'{"weights": "w", "measure": "a/trace/5", "value": 3}',
    b'{"weights": "w", "measure": "a/trace/5", "value": {"mean": "big", "error": 1}}',
    b'{"weights": "w", "measure": "a/top/5", "value": []}',
    b'{"weights": "w", "measure": "a/top/5", "value": {"0": 1}}',
    b'{"weights": "w", "measure": "a/top/5", "value": [1' + b"0" * 5000 + b"]}",
]


def test_bad_lines_are_left_out_and_named_and_hide_nothing(tmp_path):
    good = json.dumps({"weights": "w", "measure": "test/clean", "value": [True], "images": [7]})
    file = tmp_path / "ledger.jsonl"
    file.write_bytes(b"\n".join([*BAD_LINES, b"", good.encode(), b""]))
    ledger = Ledger(file)
    assert sorted(ledger.bad) == list(range(1, len(BAD_LINES) + 1))
    assert ledger.images("w", "test/clean") == {7: True}
    ledger.append(Entry("w", "trace", TRACE))
    assert file.read_bytes().count(b"\n") == len(BAD_LINES) + 3
    assert Ledger(file).value("w", "trace") == TRACE


def test_an_evaluation_with_damaged_files_counts_them_and_measures(linear, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(linear, folder)
    request = Request(("robustness",), ("pgd10",), images=60)
    expected = raydist.evaluate_runs(folder, request)
    ledger = folder / "evaluation" / "ledger.jsonl"
    out_of_range = {"weights": open_subject(folder).digest("centroid"), "measure": "test/clean"}
    odd = json.dumps(out_of_range | {"value": [True], "images": [10**6]}).encode()
    ledger.write_bytes(b"nonsense\n" + odd + b"\n" + ledger.read_bytes())
    (folder / "evaluation.json").write_bytes(b"{")
    done = counted(monkeypatch)
    with pytest.warns(UserWarning, match=r"1 line of .*ledger.jsonl .*: line 1 \(it is not JSON\)"):
        same(raydist.evaluate_runs(folder, request), expected)
    assert done == []
    ledger.unlink()
    (folder / "images.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=r"images.parquet cannot be read"):
        raydist.evaluate_runs(folder, request)


def test_each_attack_sees_what_stands_before_it():
    threat = ThreatModel("linf", 0.1)
    asks = [Ask("test", "clean", threat), Ask("test", "pgd10", threat)]
    asks += [Ask("test", name, threat, True) for name in ("apgd-ce", "apgd-t", "ensemble")]
    asks.append(Ask("test", "apgd-t", threat))
    known = {"test/clean": {0: True, 1: False, 2: True, 3: True}}
    seen = []
    for ask, settled, todo in outstanding(asks, (0, 1, 2, 3), known):
        seen.append((ask.measure.split("/")[-1], settled, todo))
        if ask.attack != "clean":
            known[ask.measure] = settled | {i: i != 2 for i in todo}
    assert seen == [
        ("clean", {}, []),
        ("pgd10", {1: False}, [0, 2, 3]),
        ("apgd-ce", {1: False}, [0, 2, 3]),
        ("apgd-t", {}, [0, 3]),
        ("ensemble", {0: True, 1: False, 2: False, 3: True}, []),
        ("apgd-t-alone", {0: True, 1: False, 3: True}, [2]),  # the others were run in the ensemble
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
    with hold(Storage(copy)), pytest.raises(InputError, match="run is in use by process"):
        raydist.evaluate_runs(copy, Request(parts=("robustness",), images=4))
    assert not (copy / "evaluation.json").exists()


def test_a_model_that_diverged_is_named_and_the_others_are_measured(copy, capsys):
    from safetensors.torch import load_file, save_file

    request = Request(parts=("robustness",), attacks=("pgd10",), images=40, models=("agents",))
    shutil.copytree(copy, copy.with_name("whole"))
    whole = raydist.evaluate_runs(copy.with_name("whole"), request).set_index("model")
    file = copy / "weights" / "agent-000.safetensors"
    save_file({name: value * np.nan for name, value in load_file(file).items()}, file)
    frame = raydist.evaluate_runs(copy, request).set_index("model")
    accuracies = ["clean_acc", "pgd10_acc"]
    others = [f"agent-00{k}" for k in (1, 2, 3)]
    pd.testing.assert_frame_equal(frame.loc[others, accuracies], whole.loc[others, accuracies])
    assert frame.loc["agent-000", accuracies].tolist() == [0, 0]
    assert (whole.loc[others, "clean_acc"] > 0).all()


def test_trials_of_a_study_are_found(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "study" / "a")
    shutil.copytree(trained, tmp_path / "study" / "b")
    assert [path.name for path in trials([tmp_path / "study", tmp_path / "study" / "b"])] == [
        "a",
        "b",
    ]


def test_a_model_is_loaded_once_for_all_its_units(trained):
    subject = open_subject(trained)
    load = partial(subject.loaded, "centroid", subject.digest("centroid"))
    assert load() is load()
    with pytest.raises(InputError, match="trained anew meanwhile"):
        subject.loaded("centroid", "0" * 16)


SEEN = TRIAL | {  # agents that see their images in other light
    "model": {"name": "linear"},
    "rounds": 20,
    "threat": {"eps": 0.0},
    "loss": {"name": "standard"},
    "data": {"batch": 16, "transforms": [{}, {"brightness": 0.4}, {"brightness": 0.7}, {}]},
    "average": None,
    "periods": [],
    "evaluate": {"test_images": 8, "autoattack": 0, "validation_images": 32, "hessian": 10**6},
}


def trace_of_a_softmax(folder):
    """Tr H of the mean loss over all training images, as their agents see them: closed form.

    The loss of an image is convex in the logits W z + b with Hessian diag(p) − p p'.
    """
    plan = make_plan(validate(SEEN))
    W, b = linear_weights(folder)
    found = []
    for k, light in enumerate([1, 0.4, 0.7, 1]):
        x = plan.share(k)[0].reshape(-1, 64) / 16 * light
        z = (x - 0.3053) / 0.3760
        p = np.exp(z @ W.T + b)
        p /= p.sum(1, keepdims=True)
        found.append((p * (1 - p)).sum(1) * ((z**2).sum(1) + 1))
    return np.concatenate(found).mean()


def test_the_trace_is_that_of_the_images_as_their_agents_see_them(tmp_path):
    result = raydist.run_experiment(SEEN, out=tmp_path / "run")
    exact = trace_of_a_softmax(tmp_path / "run")
    request = Request(parts=("hessian",), subset=10**6, probes=20, top=1)
    later = raydist.evaluate_runs(tmp_path / "run", request).iloc[0]
    for found in (result.final, later):
        error = found["hessian_trace_error"]
        assert found["hessian_trace"] == pytest.approx(exact, abs=4 * error)
        assert error < 0.05 * exact and found["hessian_trace_images"] == 1293
    row = raydist.load(tmp_path / "run").iloc[0]  # more probes stand
    for name in ("hessian_trace", "hessian_trace_error"):
        assert row[name] == result.final[name] != later[name]
    assert (row["hessian_trace_probes"], later["hessian_trace_probes"]) == (50, 20)


def test_further_attacks_at_the_end_of_a_trial_have_columns_and_verdicts(tmp_path):
    names = ["fgsm", "apgd-ce", "apgd-t", "square"]
    wanted = {"test_images": 16, "autoattack": 8, "attacks": names, "validation_images": 32}
    result = raydist.run_experiment(LINEAR | {"evaluate": wanted}, out=tmp_path / "run")
    frame = pd.read_parquet(tmp_path / "run" / "images.parquet")
    columns = {"fgsm": "fgsm", "apgd-ce": "apgd_ce"}
    columns |= {"apgd-t-alone": "apgd_t_alone", "square5000": "square5000"}
    for attack, name in columns.items():
        accuracy = result.final[f"{name}_acc"], result.final[f"{name}_images"]
        assert accuracy == by_hand(frame, attack) and accuracy[1] == 16
        assert not (frame[attack].astype(bool) & ~frame["clean"].astype(bool)).any()
    given = frame.dropna(subset="broken_by")
    left = given["broken_by"].isin(["fab-t", "square", "none"]).mean()
    assert (result.final["apgd_t_acc"], result.final["apgd_t_images"]) == (left, 8)
    assert result.final["autoattack_acc"] == (given["broken_by"] == "none").mean()
    assert set(frame["weights"]) == {open_subject(tmp_path / "run").digest("centroid")}


class Quantised(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))

    def forward(self, x):
        return self.net((x * 16).round() / 16)


class Noisy(Quantised):
    def forward(self, x):
        return self.net(x + 0.01 * torch.randn_like(x))


@pytest.mark.parametrize(("net", "sign"), [("Quantised", "zero-gradient"), ("Noisy", "randomised")])
def test_what_the_attacks_warn_of_is_not_trusted(net, sign):
    wanted = {"test_images": 12, "autoattack": 12, "validation_images": 32}
    tree = LINEAR | {"model": {"name": f"test_evaluate:{net}"}, "evaluate": wanted, "rounds": 4}
    final = raydist.run_experiment(tree).final
    assert sign in final["masking"].split(", ")
    if net == "Quantised":
        assert "square-stronger" in final["masking"]


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
    from raydist import cli, evaluate

    written = set(trained.rglob("*"))
    line = ["evaluate", *(part.format(run=trained) for part in arguments)]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as ended:
        cli.run(evaluate.main)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("raydist: ") and len(error.splitlines()) == 1
    assert words in error
    assert set(trained.rglob("*")) == written


def test_the_command_prints_the_table_and_says_where_it_is(copy, capsys, monkeypatch):
    from raydist import cli, evaluate

    line = ["evaluate", str(copy), "--images", "6", "--attacks", "pgd10,autoattack"]
    monkeypatch.setattr("sys.argv", [*line, "--parts", "robustness"])
    with pytest.raises(SystemExit) as ended:
        cli.run(evaluate.main)
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "autoattack %" in out and "on 6 test images" in out
    assert (copy / "evaluation" / "evaluation.csv").exists()
