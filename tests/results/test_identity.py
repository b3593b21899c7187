"""What is continued is the same experiment: settings, contents and versions, whatever was added."""

import json
import logging

import numpy as np
import pandas as pd
import pydantic
import pytest
from experiments import digits, quadratic
from running import run
from safetensors.torch import load_file, save_file

from raydist import load, load_events, load_rounds, run_experiment, run_sweep
from raydist.config.experiment import Experiment, validate
from raydist.config.fields import Table
from raydist.config.study import from_tree
from raydist.engine import source
from raydist.engine.plan import make_plan
from raydist.errors import InputError
from raydist.results import identity as identities
from raydist.results.folder import Folder
from raydist.results.identity import ANY_VERSION, check_versions
from raydist.storage import Storage
from raydist.tune.resume import check_resumed

TREE = quadratic(rounds=8, snapshot={"every": 2})
PLAIN = {"topology": {"kind": "ring", "agents": 3}, "rounds": 4}
QUADRATIC = {
    "data": {"set": "quadratic", "centers": [[0.0, 1.0]] * 3, "hessian": [1.0, 1.0]},
    "model": "point",
    "loss": "quadratic",
}


def files(path):
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def cut(path, tree=TREE):
    """An unfinished run: what a process that was killed after round 5 leaves."""
    run(make_plan(validate(tree)), path, until=5)
    return json.loads((path / "experiment.json").read_text())


def spelt_out(model):
    """A table with every default written down, as a release that knows no more writes it."""
    return model.model_dump(mode="json")


def test_writing_a_default_down_changes_no_digest():
    short = validate(PLAIN | {"threat": {"agents": [{}, {"eps": 0.1}, {}]}, "average": {}})
    assert validate(spelt_out(short)).digest() == short.digest()
    assert validate(PLAIN | {"periods": [], "awp": {}}).digest() == validate(PLAIN).digest()
    assert validate(PLAIN | {"average": {}}).digest() != validate(PLAIN).digest()


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        ({}, {"attack.name": "pgd", "attack.alpha": 2 / 255, "attack.start": "uniform"}),
        ({"loss": "trades"}, {"loss.beta": 6.0, "attack.name": "kl_pgd"}),
        (
            {"loss": "trades", "threat": {"norm": "l2", "eps": 1.0}, "attack": {"steps": 1}},
            {"attack.alpha": 2.0},
        ),
        ({"loss": "mart"}, {"loss.beta": 5.0}),
        ({"loss": "standard", "attack": {"steps": 3}}, {"attack.name": "none"}),
        (
            {"loss": "wasserstein", "threat": {"eps": 0.1}},
            {"loss.delta": 0.1, "loss.eta": 1.0, "loss.order": "2", "loss.beta": 1.0},
        ),
        ({"attack": "fgsm", "threat": {"eps": 0.1}}, {"attack.alpha": 0.1, "attack.start": "zero"}),
        ({"optim": "deat"}, {"optim.k1": 1.0, "optim.k2": 0.81, "optim.normalise": True}),
        ({"average": "ema"}, {"average.decay": 0.995}),
        ({"data": {"partition": "dirichlet"}}, {"data.partition.alpha": 0.5}),
        ({"data": {"partition": "shards"}}, {"data.partition.shards": 2}),
        (
            {"threat": {"eps": 0.1, "schedule": "linear"}},
            {"threat.schedule.eps_max": 0.1, "threat.schedule.eps_min": 0.0},
        ),
        ({}, {"snapshot.seconds": 30.0, "evaluate.every": 0.1, "strategy": "diffusion"}),
        (QUADRATIC, {"evaluate.every": 1, "model.start": [0.0, 0.0], "attack.name": "fgsm"}),
    ],
)
def test_what_is_resolved_is_shown_and_writing_it_down_changes_nothing(written, resolved):
    config = validate(PLAIN | written)
    spelt = PLAIN | spelt_out(config)
    for key, value in resolved.items():
        found = spelt
        for part in key.split("."):
            found = found[part]
        assert found == value
    again = validate(spelt)
    assert again == config and again.digest() == config.digest()
    assert config.digest() == digest_with(written, resolved)


def digest_with(written, resolved):
    """Of an experiment in which some of the resolved values are written by hand."""
    study = from_tree({"base": PLAIN | written}, resolved)
    return study.only().digest()


def test_nothing_that_a_result_depends_on_is_null():
    """What is null is absent, or says where something runs."""
    absent = {"epochs", "average", "threat.agents", "data.transforms", "model.checkpoint"}
    absent |= {"stop.fosc", "data.root", "agent.cpus", "agent.gpus"}
    absent |= {"snapshot.every", "snapshot.path"}
    for loss in ("pgd_at", "trades", "wasserstein"):
        tree = PLAIN | {"loss": loss, "threat": {"schedule": "cosine"}}
        flat = identities._flat(spelt_out(validate(tree)))
        assert {key for key, value in flat.items() if value is None} == absent


def test_a_sweep_over_the_budget_moves_what_follows_from_it():
    for written, alpha in (({}, 0.05), ({"attack": {"alpha": 0.025}}, 0.025)):
        study = from_tree({"base": PLAIN | written, "axes": {"threat.eps": [0.1, 0.2]}})
        steps = [study.experiment({"threat.eps": eps}).attack.alpha for eps in (0.1, 0.2)]
        assert steps == [0.025, alpha]


def test_a_key_that_a_later_release_adds_changes_no_digest():
    """Two later releases, made here: a new key at the top, and a whole new table with defaults."""

    class Sparsity(Table):
        share: float = 0.0
        layers: list[str] = pydantic.Field(default_factory=list)

    class Later(Experiment):
        rewind: int = 0
        sparsity: Sparsity = Sparsity()

    assert Later(**PLAIN).digest() == Experiment(**PLAIN).digest()
    assert Later(**PLAIN, rewind=3).digest() != Experiment(**PLAIN).digest()
    assert Later(**PLAIN, sparsity={"share": 0.5}).digest() != Experiment(**PLAIN).digest()


@pytest.mark.parametrize("how", ["an earlier release", "another way of hashing"])
def test_an_earlier_release_s_run_goes_on_where_it_was(tmp_path, how):
    """It knew fewer keys, hashed all of them, and recorded neither contents nor versions."""
    straight = run(make_plan(validate(TREE)), tmp_path / "straight")
    known = cut(tmp_path / "cut")
    del known["contents"], known["versions"]
    if how == "an earlier release":
        del known["config"]["telemetry"], known["config"]["awp"]
    # the hash under which it began stands in its snapshots: whatever it was made of
    text = json.dumps(known).replace(known["hash"], "0123456789ab")
    (tmp_path / "cut" / "experiment.json").write_text(text)
    for file in (tmp_path / "cut").glob("snapshots/*/manifest.json"):
        whole = json.loads(file.read_text())
        body = whole["body"].replace(known["hash"], "0123456789ab")
        sha256 = identities.hashlib.sha256(body.encode()).hexdigest()
        file.write_text(json.dumps({"sha256": sha256, "body": body}))
    found = run(make_plan(validate(TREE)), tmp_path / "cut")
    np.testing.assert_array_equal(found[0], straight[0])
    assert load_events(tmp_path / "cut")["replayed_from"].tolist() == [4]
    assert json.loads((tmp_path / "cut" / "experiment.json").read_text())["hash"] == "0123456789ab"


def test_a_run_with_keys_that_are_called_otherwise_now_is_refused_in_one_line(tmp_path):
    known = cut(tmp_path / "run")
    known["config"]["loss"]["awp"] = 0.0
    (tmp_path / "run" / "experiment.json").write_text(json.dumps(known))
    line = r"of another release .loss.awp is called awp.gamma now: .*: continue it with that one"
    with pytest.raises(InputError, match=line):
        run_experiment(TREE, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 3}, r"seed is the default there, 3 here"),
        ({"optim": {"lr": 0.2}, "seed": 3}, r"optim.lr is 0.1\d* there, 0.2 here and 1 more"),
    ],
)
def test_another_experiment_is_refused_with_what_differs(tmp_path, change, line):
    tree = TREE | {"optim": {"lr": 0.125}}
    cut(tmp_path / "run", tree)
    before = files(tmp_path)
    with pytest.raises(InputError, match=f"run holds another experiment .{line}.: write --out"):
        run_experiment(tree | change, out=tmp_path / "run", resume=True)
    assert files(tmp_path) == before


def test_a_checkpoint_counts_by_its_content_wherever_it_lies(tmp_path):
    tree = digits(rounds=6, snapshot={"every": 2}, model={"name": "linear"})
    tree["evaluate"] = {
        "every": 6,
        "validation_images": 4,
        "test_images": 4,
        "pgd": [1],
        "autoattack": 0,
    }
    run_experiment(tree, out=tmp_path / "start")
    file = tmp_path / "start" / "weights" / "centroid.safetensors"
    tree["model"] |= {"checkpoint": str(file)}
    cut(tmp_path / "run", tree)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(file.read_bytes())
    tree["model"]["checkpoint"] = str(moved)
    Folder(tmp_path / "run").check(validate(tree), {})  # the same start at another place
    before = files(tmp_path / "run")
    save_file({name: t + 1 for name, t in load_file(file).items()}, moved)
    with pytest.raises(InputError, match=r"another (experiment|content)"):
        run_experiment(tree, out=tmp_path / "run", resume=True)
    save_file({name: t + 1 for name, t in load_file(file).items()}, file)
    tree["model"]["checkpoint"] = str(file)
    with pytest.raises(InputError, match=r"another content of model.checkpoint .*bring that file"):
        run_experiment(tree, out=tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == before


PIXELS = "import numpy as np\nLIGHT = 0.5\n"
MINE = """
def images():
    x = np.full((40, 1, 4, 4), LIGHT, np.float32); x[::2] = 0.25
    y = np.arange(40) % 2
    return {"train": (x[:30], y[:30]), "test": (x[30:], y[30:])}
"""


def test_images_count_by_their_content(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_images.py").write_text(PIXELS + MINE)
    tree = digits(rounds=6, snapshot={"every": 2}, model={"name": "linear"})
    tree |= {"data": {"set": "own_images:images", "batch": 4, "validation": 0.2}}
    cut(tmp_path / "run", tree)
    monkeypatch.setattr("own_images.LIGHT", 0.75)
    source._cached.cache_clear()
    with pytest.raises(InputError, match=r"another content of data .own_images:images.: bring"):
        run_experiment(tree, out=tmp_path / "run", resume=True)
    monkeypatch.setattr("own_images.LIGHT", 0.5)
    source._cached.cache_clear()
    assert run_experiment(tree, out=tmp_path / "run", resume=True).final["status"] == "completed"


@pytest.mark.parametrize(
    ("recorded", "installed", "verdict"),
    [
        ("2.14.1", "2.14.1+cu130", ""),
        ("2.13.0", "2.14.1", "newer"),
        ("2.14.1", "2.14.0", "newer"),  # a patch release is told, whichever way
        ("2.14.1", "2.13.9", "refused"),
        ("1.13.0", "2.14.1", "refused"),
        ("3.0.0", "2.14.1", "refused"),
    ],
)
def test_versions_are_compared(monkeypatch, caplog, recorded, installed, verdict):
    monkeypatch.setattr(identities, "versions", lambda: {"torch": installed, "ray": "2.60.0"})
    known = {"torch": recorded}  # of Ray nothing was recorded
    said = f"run was begun with torch {recorded}, this is {installed}"
    with caplog.at_level(logging.WARNING, "raydist"):
        if verdict == "refused":
            with pytest.raises(
                InputError, match=rf"{said}: install torch=={recorded}, or set"
            ) as e:
                check_versions("run", known)
            assert "\n" not in str(e.value) and f"{ANY_VERSION}=1" in str(e.value)
            monkeypatch.setenv(ANY_VERSION, "1")
        check_versions("run", known)
    assert [r.getMessage().startswith(said) for r in caplog.records] == [True] * bool(verdict)


def test_a_newer_version_is_told_once_and_an_older_one_refused(tmp_path, monkeypatch, caplog):
    known = cut(tmp_path / "run")
    assert known["versions"] == identities.versions() and {*known["versions"]} >= {"torch", "ray"}
    one, *rest = known["versions"]["torch"].partition("+")[0].split(".")
    known["versions"]["torch"] = f"{int(one) + 1}.{'.'.join(rest)}"
    (tmp_path / "run" / "experiment.json").write_text(json.dumps(known))
    with pytest.raises(InputError, match="this is"):
        run_experiment(TREE, out=tmp_path / "run", resume=True)
    known["versions"]["torch"] = f"{one}.0.0"
    (tmp_path / "run" / "experiment.json").write_text(json.dumps(known))
    run_experiment(TREE, out=tmp_path / "run", resume=True)
    told = [record for record in caplog.records if "was begun with torch" in record.getMessage()]
    assert len(told) == 1
    now = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert now["versions"] == identities.versions()  # so it is told no more


def a_study(path, study):
    """Of two trials, as a sweep leaves them: one finished, one cut short."""
    from raydist.config.point import folder_name

    path.mkdir()
    (path / "study.json").write_text(study.to_json())
    for point, until in (({"seed": 0}, None), ({"seed": 1}, 5)):
        trial = path / folder_name(point)
        run(make_plan(study.experiment(point)), trial, until=until)
        (trial / "params.json").write_text(json.dumps(point))


STUDY = {"name": "s", "base": TREE, "axes": {"seed": [0, 1]}}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"axes": {"seed": [0, 1, 2]}}, "its axes differ in seed"),
        ({"axes": {"optim.lr": [0.1], "seed": [0, 1]}}, "its axes differ in optim.lr"),
        ({"base": TREE | {"optim": {"lr": 0.3}}}, "its base differs"),
        ({"search": {"scheduler": "median", "metric": "excess_risk"}}, "its search differ in "),
    ],
)
def test_another_study_is_not_mixed_into_the_one_that_is_there(tmp_path, change, differs):
    a_study(tmp_path / "s", from_tree(STUDY))
    before = files(tmp_path)
    line = rf"s holds another study .{differs}.*write --out with a new folder, or continue that one"
    with pytest.raises(InputError, match=line):
        run_sweep(STUDY | change, out=tmp_path / "s", resume=True, pool="local")
    assert files(tmp_path) == before
    check_resumed(Storage(tmp_path / "s"), from_tree(STUDY | {"search": {"max_concurrent": 1}}))


def test_a_study_whose_trials_are_other_experiments_is_refused_before_anything_starts(tmp_path):
    """A base default changed with a release: finished and unfinished trials would be done anew."""
    a_study(tmp_path / "s", from_tree(STUDY))
    check_resumed(Storage(tmp_path / "s"), from_tree(STUDY))
    (trial,) = tmp_path.glob("s/seed=0*")
    known = json.loads((trial / "experiment.json").read_text())
    known["config"]["optim"]["weight_decay"] = 5e-4
    (trial / "experiment.json").write_text(json.dumps(known))
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"optim.weight_decay is 0.0005 there, the default here"):
        run_sweep(STUDY, out=tmp_path / "s", resume=True, pool="local")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["rounds.parquet/part-000000.parquet", "events.parquet"])
@pytest.mark.parametrize("damage", ["half", "empty", "zeros"])
def test_half_written_files_are_ignored_with_one_line(tmp_path, caplog, name, damage):
    straight = run(make_plan(validate(TREE)), tmp_path / "straight")
    run(make_plan(validate(TREE)), tmp_path / "run", until=5)
    run(make_plan(validate(TREE)), tmp_path / "run", until=7)  # now there is an event, too
    file = tmp_path / "run" / name
    data = file.read_bytes()
    file.write_bytes(
        {"half": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[damage]
    )
    caplog.clear()
    found = run(make_plan(validate(TREE)), tmp_path / "run")
    np.testing.assert_array_equal(found[0], straight[0])
    told = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert told == [f"{tmp_path}/run/{name} is damaged, and left out"]
    rounds = [load_rounds(tmp_path / each) for each in ("straight", "run")]
    one, other = (f[~f["metric"].str.startswith("seconds")].drop(columns="trial") for f in rounds)
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))
    assert load_events(tmp_path / "run")["replayed_from"].tolist()[-1] == 6


def test_one_file_of_rounds_as_earlier_releases_wrote_it_is_read_and_continued(tmp_path):
    straight = run(make_plan(validate(TREE)), tmp_path / "straight")
    run(make_plan(validate(TREE)), tmp_path / "run", until=5)
    parts = tmp_path / "run" / "rounds.parquet"
    frame = load_rounds(tmp_path / "run")
    (part,) = parts.iterdir()
    part.unlink()
    parts.rmdir()
    frame.to_parquet(parts)
    pd.testing.assert_frame_equal(load_rounds(tmp_path / "run"), frame)
    found = run(make_plan(validate(TREE)), tmp_path / "run")
    np.testing.assert_array_equal(found[0], straight[0])
    assert load_rounds(tmp_path / "run")["round"].max() == 8


def test_no_clock_of_a_disk_counts(tmp_path):
    """Files of the future and of 1970: what was lost is what the run itself counted."""
    import os

    cut(tmp_path / "run")
    for file, when in zip(sorted((tmp_path / "run").rglob("*")), [4e9, 0] * 99, strict=False):
        os.utime(file, (when, when))
    run(make_plan(validate(TREE)), tmp_path / "run")
    (row,) = load(tmp_path / "run").to_dict("records")
    assert 0 <= row["seconds_lost"] <= row["seconds"] < 60


def test_a_finished_run_is_neither_done_again_nor_ignored(tmp_path):
    run_experiment(TREE, out=tmp_path / "run")
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"has run to its end: read it with raydist.load"):
        run_experiment(TREE, out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="exists: write --out with another folder"):
        run_experiment(TREE, out=tmp_path / "run")
    assert files(tmp_path) == before and Folder(tmp_path / "run").final(validate(TREE))
