"""The table that a sweep prints."""

import io

import pandas as pd
from rich.console import Console

from raydist.results.terminal import footnotes, number, results_table

FRAME = pd.DataFrame(
    {
        "trial": ["b", "a"],
        "optim.name": ["sgd", "deat"],
        "optim.lr": [10.0, 0.5],
        "optim.nesterov": [False, False],
        "loss.name": ["trades", "trades"],
        "periods": [[0.5], []],
        "clean_acc": [0.5, 0.25],
        "autoattack_acc": [None, 0.125],
        "autoattack_images": [None, 64.0],
        "autoattack_flags": ["", "zero-gradient"],
        "status": ["failed", "completed"],
    }
)


def lines(axes):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table(FRAME, axes))
    return [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]


def test_an_axis_of_tables_shows_the_keys_that_vary():
    head, _, *rows = lines(["optim", "loss.name"])
    assert head == "optim.name lr loss.name clean % AutoAttack % status"
    assert rows == ["deat 0.5 trades 25 12.5 completed", "sgd 10 trades 50 - failed"]


def test_the_table_of_the_quickstart_fits_into_80_characters():
    accuracies = {"clean_acc": 0.97778, "pgd20_acc": 0.90278, "autoattack_acc": 0.875}
    images = {"clean_images": 360.0, "pgd20_images": 360.0, "autoattack_images": 64.0}
    others = {"fosc": 0.1234, "disagreement": 1.2345e-12, "seconds": 1259.0, "status": "completed"}
    axes = {"strategy": "centralized", "threat.eps": 0.05}
    frame = pd.DataFrame([{"trial": "a"} | axes | accuracies | images | others])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(frame, [*axes]))
    head, of, _, row = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert head == "clean % PGD-20 % AutoAttack %".split()
    assert of == "strategy eps of 360 of 360 of 64 FOSC disagr. s status".split()
    assert row == "centralized 0.05 97.8 90.3 87.5 0.123 1.23e-12 1259 completed".split()


def test_an_axis_of_lists_has_an_order_and_no_axis_shows_the_trial():
    assert lines(["periods"])[2].startswith("[0.5] 50")
    assert [row.split()[0] for row in lines([])[2:]] == ["a", "b"]


def test_footnotes_say_how_many_images_and_what_was_raised():
    assert footnotes(FRAME) == [
        "AutoAttack on 64 test images",
        "AutoAttack raised: zero-gradient (column autoattack_flags)",
    ]


def test_numbers_are_short():
    shown = [number(v) for v in (None, float("nan"), 0.123456, 12345.6, 3, "x", 1e-12)]
    assert shown == ["-", "-", "0.123", "12346", "3", "x", "1e-12"]
