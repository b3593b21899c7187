"""The list of all keys says of each what its field says, and says it of every field."""

import pytest
from typer.testing import CliRunner

from raydist.config.__main__ import main
from raydist.config.experiment import Experiment, validate
from raydist.config.keys import keys
from raydist.config.messages import dotted_keys
from raydist.config.search import Search
from raydist.config.study import parse_overrides
from raydist.errors import InputError


def one(name):
    (key,) = keys(name)
    return key


def test_every_field_is_listed_and_means_something():
    listed = {key.name.replace("[k]", "") for key in keys()}
    tables = {name.rpartition(".")[0] for name in listed}
    fields = {*dotted_keys(Experiment), *(f"search.{name}" for name in dotted_keys(Search))}
    assert fields - tables <= listed
    assert all(key.meaning and (key.allowed or key.choices) for key in keys())
    assert not [key for key in keys() if "any" in key.allowed.split()]


def test_a_default_is_what_an_experiment_without_the_key_has():
    base = {"topology": {"kind": "ring", "agents": 4}, "rounds": 1}
    for key in keys():
        table, _, name = key.name.rpartition(".")
        plain = key.default not in ("", "required", "{}") and not key.members and "[" not in table
        if plain and not table.startswith(("search", "stop.fosc", "average", "topology")):
            (override,) = parse_overrides([f"{key.name}={key.default}"]).items()
            tree = {name: override[1]}
            for part in reversed(table.split(".") if table else []):
                tree = {part: tree}
            assert validate(base | tree) == validate(base), key.name


@pytest.mark.parametrize(
    ("name", "default", "allowed"),
    [
        ("rounds", "", "whole number ≥ 1"),
        ("topology.agents", "required", "whole number in [1, 4096]"),
        ("threat.eps", '"8/255"', "fraction of the pixel range"),
        ("optim.momentum", "0.0", "number in [0, 1)"),
        ("loss.eta", "1.0", "number in (0, 1]"),
        ("stop.fosc.relative", "", "number > 1"),
        ("evaluate.autoattack", '"all"', '"all" or whole number ≥ 0'),
        ("evaluate.pgd", "[10, 20]", "list: whole number ≥ 1"),
        ("threat.agents[k].norm", "", '"linf", "l2"'),
        ("compile", "false", "true, false"),
    ],
)
def test_defaults_and_ranges_are_those_of_the_fields(name, default, allowed):
    assert (one(name).default, one(name).allowed) == (default, allowed)


def test_a_union_tells_which_member_has_which_key():
    assert [(k.default, k.members) for k in keys("loss.beta")] == [
        ("6.0", ("trades",)),
        ("5.0", ("mart",)),
        ("1.0", ("wasserstein",)),
    ]
    assert one("optim.lr").members == () and one("optim.k2").members == ("deat",)
    assert one("data.partition.alpha").members == ("dirichlet", "quantity")
    assert [names for names, _ in one("average.name").choices] == [("ema",), ("swa",)]


def test_a_prefix_holds_whole_names_only():
    assert {key.name.partition(".")[0] for key in keys("data")} == {"data"}
    assert keys("threat.agents")[0].name == "threat.agents" and len(keys("threat.agents")) == 3
    assert all(key.name.startswith("optim.schedule.") for key in keys("optim.schedule"))


@pytest.mark.parametrize(
    ("prefix", "meant"),
    [
        ("lss", "loss"),
        ("optim.lrr", "optim.lr"),
        ("beta", "loss.beta"),
        ("loss.bet", "loss.beta"),
        ("evaluate.images", "evaluate.validation_images"),
        ("loss.name.x", ""),
    ],
)
def test_an_unknown_prefix_is_told_in_a_line_with_the_closest_one(prefix, meant):
    with pytest.raises(InputError, match=f"{prefix} is .*{meant}") as told:
        keys(prefix)
    assert "\n" not in str(told.value)


def test_the_command_prints_lines_that_fit(monkeypatch):
    import typer

    from raydist.results import terminal

    app = typer.Typer()
    app.command()(main)
    for width in (80, 120):
        monkeypatch.setattr("raydist.config.__main__.console", terminal._Plain(width=width))
        printed = CliRunner().invoke(app, ["attack"]).stdout.splitlines()
        assert max(map(len, printed)) <= width
        assert all(line.startswith(("attack.", "    ")) for line in printed)
        assert printed[0].startswith('attack.name = "pgd"') and "ε/4" in "\n".join(printed)
