"""Robust accuracy against eps by strategy, and disagreement and FOSC over rounds, of any sweep.

python analysis/robust_accuracy.py runs/quickstart [--out FILE.png]

Beside the figure it prints the numbers in it: mean and standard deviation over the trials of each
strategy and eps (seeds and every other axis) that have the same length, status and number of
images, and how many trials that was.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from raydist import load, load_rounds
from raydist.metrics import SHOWN
from raydist.results import plot
from raydist.results.seeds import LIKE, comparable


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """By strategy, eps, status and length: mean, deviation and number of what was measured.

    Args:
        frame: one row for each trial.

    Returns:
        Accuracies in percent; for the quadratic task the excess risk and its theory.
    """
    done = frame[frame["status"].isin(["completed", "stopped"])]
    accuracies = [name for name in ("clean_acc", *SHOWN["robust"]) if name in done]
    risks = [name for name in ("excess_risk", "excess_risk_theory") if name in done]
    shown = done.assign(**{name: 100 * done[name] for name in accuracies})
    by = ["strategy", "threat.eps", *LIKE]
    for name in accuracies:
        parts = [comparable(rows, name) for _, rows in shown.groupby(by)]
        shown[name] = pd.concat(parts) if parts else shown[name]
    groups = shown.groupby(by)
    return groups[accuracies + risks].agg(["mean", "std", "count"])


def main(
    run: Annotated[Path, typer.Argument(help="The folder of a sweep.")],
    out: Annotated[Path | None, typer.Option(help="Default: robust_accuracy.png in it.")] = None,
) -> None:
    """Draw the figure of the sweep in RUN and print the numbers in it.

    Args:
        run: the folder of a sweep.
        out: the figure's file.

    Raises:
        Exit: with code 2 if there is no sweep in the folder.
    """
    try:
        frame = load(run)
    except ValueError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from error
    file = out or run / "robust_accuracy.png"
    file.write_bytes(plot.summary(frame, load_rounds(run)))
    print(table(frame).to_string(float_format="{:.4g}".format))
    print(file)


if __name__ == "__main__":
    typer.run(main)
