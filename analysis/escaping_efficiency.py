"""Excess risk over rounds by strategy, measured beside its prediction (arXiv:2509.11337).

python analysis/escaping_efficiency.py runs/escaping_adversarial [MORE RUNS] [--out FILE.png]

One panel for each eps. Markers are measured: means over seeds, filled for the agents' mean (with a
band from the least seed to the most), hollow for the centroid. Lines are the prediction for the
agents, (E1); of networks it is within a few dimensions. What is below the start, and so negative,
is not in the picture, but all numbers of the last round are printed. Several folders, such as one
for each eps, are drawn together.
"""

from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import pandas as pd
import typer
from matplotlib.axes import Axes

from raydist import load, load_rounds
from raydist.results import plot
from raydist.results.seeds import kinds

POINTS = 15  # markers on a line, about
NUMBERS = ["excess_risk", "centroid_excess_risk", "excess_risk_theory", "excess_risk_limit"]


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """The last round by eps and strategy: means over seeds, and how many times the centralized.

    Args:
        frame: one row for each trial.

    Returns:
        Excess risk of the agents (mean, standard deviation) and of the centroid, its prediction
        there and in the limit, and the ratio of the agents' to that of the centralized strategy
        (none where that one is not above 0); over how many trials, of the same length and status,
        and how many ended otherwise.
    """
    done = frame[frame["status"].isin(["completed", "stopped"])]
    by = ["threat.eps", "strategy"]
    alike = pd.concat([kinds(trials)[0] for _, trials in done.groupby(by)])
    groups = alike.groupby(by)
    found = groups[[name for name in NUMBERS if name in done]].mean()
    found.insert(1, "s.d.", groups["excess_risk"].std())
    found["trials"] = groups.size()
    found["others"] = done.groupby(by).size() - groups.size()
    if "centralized" in found.index.get_level_values("strategy"):
        central = found["excess_risk"].xs("centralized", level="strategy")
        above = central[central > 0].to_dict()
        found["ratio"] = found["excess_risk"] / found.index.get_level_values(0).map(above)
    return found


def curve(rounds: pd.DataFrame, metric: str, agent: str) -> pd.DataFrame:
    """Mean, least and most over the trials in `rounds` of a metric, by round."""
    chosen = rounds[(rounds["metric"] == metric) & (rounds["agent"] == agent)]
    found = chosen.groupby("round")["value"].agg(["mean", "min", "max"])
    return found[found["mean"].abs() > plot.ROUNDING]  # not round 0, where all is 0


def panel(ax: Axes, rounds: pd.DataFrame, theory: bool) -> None:
    """One eps: every strategy's measured excess risk and its prediction.

    Args:
        ax: where to draw.
        rounds: as `raydist.load_rounds`, with the column `strategy`.
        theory: whether to draw the prediction.
    """
    for name, rows in rounds.groupby("strategy"):
        style = {key: plot.STYLES[str(name)][key] for key in ("color", "marker")}
        style |= {"linestyle": "", "markersize": 5}
        agents = curve(rows, "excess_risk", "mean")
        centroid = curve(rows, "centroid_excess_risk", "centroid")
        every = max(1, len(agents) // POINTS)
        ax.plot(agents.index, agents["mean"], **style, markevery=every, label=f"{name}, agents")
        ax.plot(centroid.index, centroid["mean"], **style, markevery=every, mfc="none")
        color = style["color"]
        ax.fill_between(agents.index, agents["min"], agents["max"], color=color, alpha=0.2, lw=0)
        if theory:
            line = curve(rows, "excess_risk_theory", "mean")["mean"]
            ax.plot(line.index, line, color=color, lw=1.5)
    risks = rounds["metric"].isin(["excess_risk", "centroid_excess_risk"])
    chosen = rounds[risks & rounds["agent"].isin(["mean", "centroid"])]
    seen = chosen.groupby(["strategy", "metric", "round"])["value"].mean()
    seen = seen[seen > plot.ROUNDING]
    if len(seen):  # a prediction may grow without bound, and a seed come close to 0
        ax.set_yscale("log")
        ax.set_ylim(seen.min() / 5, 5 * seen.max())
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def read(runs: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames of `load` and `load_rounds` of several folders, whose trials may share names."""
    frames = [
        pd.concat(
            [(f := of(run)).assign(trial=f"{run}/" + f["trial"]) for run in runs], ignore_index=True
        )
        for of in (load, load_rounds)
    ]
    return frames[0], frames[1]


def draw(frame: pd.DataFrame, rounds: pd.DataFrame, file: Path, theory: bool = True) -> None:
    """Draw one panel for each eps into a PNG file; other arguments as in `read` and `panel`."""
    rounds = rounds.merge(frame[["trial", "strategy", "threat.eps"]], on="trial")
    budgets = sorted(rounds["threat.eps"].unique())
    size = (2 + 3.2 * len(budgets), 4.4)
    fig, axes = plt.subplots(
        1, len(budgets), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for ax, eps in zip(axes[0], budgets, strict=True):
        panel(ax, rounds[rounds["threat.eps"] == eps], theory)
        ax.set(title=f"ε = {eps:g}", xlabel="round n")
    axes[0][0].set_ylabel("excess risk J(w) − J(w*)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    handles += axes[0][0].plot([], [], "o", color="grey", mfc="none")
    labels += ["centroid"]
    if theory:
        handles += axes[0][0].plot([], [], "-", color="grey")
        labels += ["agents, predicted (E1)"]
    columns = len(labels) if len(budgets) > 2 else 2
    fig.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    fig.savefig(file, dpi=120)
    plt.close(fig)


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of sweeps.")],
    out: Annotated[
        Path | None, typer.Option(help="Default: escaping_efficiency.png in it.")
    ] = None,
    theory: Annotated[bool, typer.Option(help="Draw the prediction.")] = True,
) -> None:
    """Draw the figure of the sweeps in RUNS and print the numbers in it.

    Args:
        runs: folders of sweeps; the figure is left in the first.
        out: the figure's file.
        theory: whether the prediction is in the figure.

    Raises:
        Exit: with code 2 if there is no sweep in a folder, or none that measured the excess risk.
    """
    try:
        frame, rounds = read(runs)
    except ValueError as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from error
    if not (rounds["metric"] == "excess_risk").any():
        typer.echo("no excess risk in these runs: write evaluate.excess_risk = 512", err=True)
        raise typer.Exit(2)
    file = out or runs[0] / "escaping_efficiency.png"
    draw(frame, rounds, file, theory)
    print(table(frame).to_string(float_format="{:.4g}".format))
    print(file)


if __name__ == "__main__":
    typer.run(main)
