"""Means over seeds: over runs that ended alike, and with how many stand behind each number."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console

from raydist import over_seeds
from raydist.results.terminal import seeds_table

TRIALS = pd.DataFrame(
    [
        # strategy, seed, status, rounds_run, clean_acc, late: measured of some only
        ("diffusion", 0, "stopped", 20, 0.2, None),
        ("diffusion", 1, "completed", 300, 0.90, 0.5),
        ("diffusion", 2, "completed", 300, 0.94, 0.7),
        ("diffusion", 3, "completed", 300, 0.98, None),
        ("diffusion", 4, "stopped", 40, 0.4, None),
        ("diffusion", 5, "failed", None, None, None),
        ("local", 0, "completed", 300, 0.5, None),
    ],
    columns=["strategy", "seed", "status", "rounds_run", "clean_acc", "autoattack_acc"],
)


def test_only_runs_of_the_same_length_and_status_are_averaged():
    found = over_seeds(TRIALS)
    kinds = found[["strategy", "status", "rounds_run", "seeds"]].astype(object)
    assert kinds.where(found[kinds.columns].notna(), None).values.tolist() == [
        ["diffusion", "completed", 300, 3],
        ["diffusion", "stopped", 20, 1],
        ["diffusion", "stopped", 40, 1],
        ["diffusion", "failed", None, 1],
        ["local", "completed", 300, 1],
    ]
    assert found["seeds"].sum() == len(TRIALS)  # nobody is lost
    whole, *others = found.to_dict("records")
    assert whole["clean_acc"] == pytest.approx(0.94)
    assert whole["clean_acc_sd"] == pytest.approx(0.04)
    assert [row["clean_acc"] for row in others] == pytest.approx(
        [0.2, 0.4, math.nan, 0.5], nan_ok=True
    )


def test_a_number_says_how_many_stand_behind_it():
    whole, *others = over_seeds(TRIALS).to_dict("records")
    assert (whole["seeds"], whole["autoattack_acc_seeds"]) == (3, 2)
    assert whole["autoattack_acc"] == pytest.approx(0.6)
    assert "clean_acc_seeds" not in whole  # of all
    assert all(math.isnan(row["autoattack_acc_seeds"]) for row in others)


def test_a_mean_is_over_runs_that_were_judged_on_as_many_images():
    """Two of five are of 20 images: they are no part of the mean over those of 100."""
    frame = pd.DataFrame(
        {
            "seed": [0, 1, 2, 3, 4],
            "clean_acc": [0.5, 0.9, 0.7, 0.1, 0.6],
            "clean_images": [100.0, 20.0, 100.0, 20.0, 100.0],
            "hessian_trace": [1.0, 2.0, 3.0, 4.0, 5.0],  # as many of each: the larger number
            "hessian_trace_error": [0.1, 0.2, 0.3, 0.4, None],
            "hessian_trace_images": [8.0, 8.0, 64.0, 64.0, None],
            "seconds": [1.0, 2.0, 3.0, 4.0, 5.0],
        }
    )
    (row,) = over_seeds(frame).to_dict("records")
    assert (row["clean_acc"], row["clean_images"]) == (pytest.approx(0.6), 100)
    assert row["clean_acc_sd"] == pytest.approx(0.1)
    assert (row["seeds"], row["clean_acc_seeds"]) == (5, 3)
    assert (row["hessian_trace"], row["hessian_trace_images"]) == (3.5, 64)
    assert row["hessian_trace_error"] == pytest.approx(0.35) and row["hessian_trace_seeds"] == 2
    assert row["seconds"] == 3.0 and "seconds_seeds" not in row


def test_the_table_shows_the_others_apart():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(seeds_table(over_seeds(TRIALS), ["strategy", "seed"]))
    _, _, *rows = (
        " ".join(line.split()) for line in console.export_text().splitlines() if line.strip()
    )
    assert rows == [
        "diffusion 3 94 ± 4 60 ± 14.1 (2) completed",
        "diffusion 1 20 ± - - ± - stopped at 20",
        "diffusion 1 40 ± - - ± - stopped at 40",
        "diffusion 1 - ± - - ± - failed",
        "local 1 50 ± - - ± - completed",
    ]
