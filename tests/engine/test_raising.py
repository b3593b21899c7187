"""What an agent's own code raises ends a run in this process as it does in an actor."""

import helpers_foreign
import pytest
from experiments import digits
from ray.exceptions import ActorDiedError, RayTaskError

import raydist
from raydist import run, run_experiment
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.pool.ray_errors import agent_error
from raydist.errors import AgentError, InputError
from raydist.tune.sweep import run_sweep

RAISING = {"loss": {"name": "helpers_foreign:raises_later", "params": {"after": 5}}}


def toml(path, **more):
    text = """rounds = 9
topology = { kind = "ring", agents = 3 }
data = { batch = 8 }
model = { name = "linear" }
loss = { name = "helpers_foreign:raises_later", params = { after = 20 } }
evaluate = { autoattack = 0, test_images = 8, validation_images = 8, pgd = [1] }
snapshot = { every = 1 }
"""
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def fresh():
    helpers_foreign.CALLS.clear()


def test_a_run_in_one_process_ends_like_one_of_actors(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(helpers_foreign, "BROKEN", True)
    out = tmp_path / "run"
    assert run.main(toml(tmp_path / "a.toml"), out=str(out), quiet=True) == 1
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "Traceback" not in line
    assert line.startswith("raydist: agent ") and "ArithmeticError: this batch is cursed" in line
    assert f"continue with python -m raydist.run --resume {out}" in line
    text = (out / "error.txt").read_text()
    assert "raises_later" in text and text.count("Traceback") >= 1
    row = raydist.load(out).iloc[0]
    assert row["status"] == "failed" and "this batch is cursed" in row["error"]


def test_the_continued_run_is_the_undisturbed_one(tmp_path, monkeypatch):
    undisturbed = run_experiment(digits(**RAISING))
    helpers_foreign.CALLS.clear()
    monkeypatch.setattr(helpers_foreign, "BROKEN", True)
    tree = digits(**RAISING, snapshot={"every": 1})
    with pytest.raises(AgentError, match=r"^agent \d: ArithmeticError: this batch is cursed$") as e:
        run_experiment(tree, out=tmp_path / "run")
    assert isinstance(e.value.__cause__, ArithmeticError)
    assert raydist.load(tmp_path / "run")["status"].tolist() == ["failed"]
    monkeypatch.setattr(helpers_foreign, "BROKEN", False)
    result = run_experiment(tree, out=tmp_path / "run", resume=True)
    assert (result.weights == undisturbed.weights).all()


def test_an_agent_that_cannot_be_made_says_why(monkeypatch):
    monkeypatch.setattr(helpers_foreign, "STARTS", 1)  # the probe's own
    with pytest.raises(AgentError, match=r"^an agent could not start: RuntimeError: no libfoo$"):
        run_experiment(digits(model={"name": "helpers_foreign:starts"}))


def test_an_actor_has_a_name_before_its_agents_are_made():
    from raydist.engine.pool.ray_actor import Actor

    def spec(k):
        found = object.__new__(AgentSpec)
        for name, value in {"agent": k, "title": f"agent {k}"}.items():
            object.__setattr__(found, name, value)
        return found

    for specs, name in (([spec(3)], "agent 3"), ([spec(3), spec(4)], "agents 3 to 4")):
        actor = object.__new__(Actor)
        with pytest.raises(AttributeError):
            actor.__init__(specs, [None] * len(specs), {}, None)
        assert repr(actor) == name


def test_ray_tells_the_whole_message_of_what_raised_in_an_actor():
    trace = """ray::Actor.__init__()
  File "/a/b.py", line 3, in made
    raise ValueError(text)
           ^^^^^^^^^^^^^^^
ValueError: two
lines"""
    task = RayTaskError("f", trace, ValueError("two\nlines"))
    died = ActorDiedError(task)
    assert str(agent_error(died, {})) == "an agent could not start: ValueError: two lines"
    assert str(agent_error(task, {})) == "ValueError: two lines"


@pytest.mark.parametrize("key", ["model", "loss"])
def test_functions_of_the_script_are_refused_where_others_must_import_them(key, monkeypatch):
    import __main__

    monkeypatch.setattr(__main__, "thing", helpers_foreign.linear, raising=False)
    tree = digits(**{key: {"name": "__main__:thing"}})
    for start in (
        lambda: run_experiment(tree, "ray"),
        lambda: run_sweep({"base": tree, "name": "a"}),
    ):
        with pytest.raises(InputError, match=rf'^{key}.name is "__main__:thing".* write "mine:thi'):
            start()
    if key == "model":
        assert run_experiment(tree).final["status"] == "completed"
