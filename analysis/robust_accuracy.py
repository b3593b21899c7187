"""Robust accuracy against eps by strategy, and disagreement and FOSC over rounds, of any sweep.

python analysis/robust_accuracy.py runs/quickstart [--out FILE.png]

Beside the figure it prints the numbers in it: mean and standard deviation over the trials of each
strategy and eps (seeds and every other axis), and how many trials that was.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from raydist import load, load_rounds, plot


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in percent by strategy and eps: mean, standard deviation, number of trials."""
    measured = [name for name in ("clean_acc", *plot.ROBUST) if name in frame]
    done = frame[frame["status"].isin(["completed", "stopped"])]
    percent = done.assign(**{name: 100 * done[name] for name in measured})
    return percent.groupby(["strategy", "threat.eps"])[measured].agg(["mean", "std", "count"])


def main(
    run: Annotated[Path, typer.Argument(help="The folder of a sweep.")],
    out: Annotated[Path | None, typer.Option(help="Default: robust_accuracy.png in it.")] = None,
) -> None:
    """Draw the figure of the sweep in RUN and print the numbers in it."""
    frame = load(run)
    file = out or run / "robust_accuracy.png"
    plot.summary(frame, load_rounds(run), file)
    print(table(frame).round(1).to_string())
    print(file)


if __name__ == "__main__":
    typer.run(main)
