"""Figures from the frames of `raydist.load` and `raydist.load_rounds`; nothing is computed here."""

import io
from typing import Any

import matplotlib

matplotlib.use("agg")  # no window: figures are files
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raydist import metrics
from raydist.results.seeds import comparable, kinds

# Okabe and Ito's colours, which colour-blind readers tell apart; a marker and a dash besides.
STYLES: dict[str, dict[str, Any]] = {
    "centralized": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "consensus": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "diffusion": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "local": {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
}
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
HUGE = 1e100  # what a run reaches just before it diverges: no axis can show it
ROUNDING = 1e-10  # smaller values are zero up to rounding: a logarithm would show only that


def accuracy_by_eps(ax: Axes, frame: pd.DataFrame) -> None:
    """Robust accuracy against eps, one line for each group, mean ± s.d. over the other axes.

    Means are over trials of the same length, status and number of images; the others are single
    crosses.

    Args:
        ax: the axes to draw in.
        frame: one row for each trial.
    """
    metric = _robust(frame)
    if metric is None:
        _nothing(ax, "no robust accuracy was measured")
        return
    heading = metrics.find(metric).heading
    frame = frame.assign(group=_groups(frame), percent=100 * frame[metric])
    for i, (name, rows) in enumerate(frame.groupby("group", sort=False)):
        alike, others = _alike(rows, "threat.eps", metric)
        by_eps = alike.groupby("threat.eps")["percent"].agg(["mean", "std"]).fillna(0.0)
        spread = by_eps["std"] if by_eps["std"].any() else None
        style = _style(str(name), i)
        ax.plot(others["threat.eps"], others["percent"], "x", color=style["color"], alpha=0.5)
        ax.errorbar(by_eps.index, by_eps["mean"], yerr=spread, label=str(name), capsize=3, **style)
    ticks = sorted(frame["threat.eps"].unique())
    whole = all(abs(eps * 255 - round(eps * 255)) < 1e-6 for eps in ticks)
    ax.set_xticks(ticks, [f"{eps * 255:.0f}/255" if whole else f"{eps:g}" for eps in ticks])
    ax.set(
        xlabel="budget ε in training and test (fraction of the pixel range)",
        ylabel=f"{heading} accuracy of the centroid (%){_images(frame, metric)}",
    )
    ax.set_ylim(bottom=0)
    ax.legend()


def accuracy_by_trial(ax: Axes, frame: pd.DataFrame) -> None:
    """Clean and robust accuracy of each trial, as bars: for studies with one budget.

    Args:
        ax: the axes to draw in.
        frame: one row for each trial.
    """
    metric = _robust(frame)
    if metric is None:
        _nothing(ax, "no robust accuracy was measured")
        return
    heading = metrics.find(metric).heading
    frame = frame.sort_values("trial", ascending=False)
    at = range(len(frame))
    ax.barh(at, 100 * frame["clean_acc"], color="#BBBBBB", label="clean")
    ax.barh(at, 100 * frame[metric], color="#0072B2", height=0.5, label=heading)
    ax.set_yticks(at, [_short(trial) for trial in frame["trial"]], fontsize=7)
    ax.set(xlabel=f"accuracy of the centroid (%){_images(frame, metric)}", xlim=(0, 100))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def over_rounds(
    ax: Axes, frame: pd.DataFrame, rounds: pd.DataFrame, metric: str, agent: str, label: str
) -> None:
    """A metric over rounds, one line for each group (mean over trials) with thin single trials.

    Means are over trials of the same length and status.

    Args:
        ax: the axes to draw in.
        frame: one row for each trial.
        rounds: the long frame of rounds.
        metric: its name.
        agent: the agent to draw: "mean" or "centroid".
        label: the label of the y axis, with its unit.
    """
    chosen = rounds[(rounds["metric"] == metric) & (rounds["agent"] == agent)]
    chosen = chosen[chosen["value"].abs() < HUGE]
    frame = frame.assign(group=_groups(frame))
    alike = {*_alike(frame, "group")[0]["trial"]}
    chosen = chosen.merge(frame[["trial", "group"]], on="trial")
    if chosen.empty:
        _nothing(ax, f"{metric} was not measured")
        return
    for i, (group, rows) in enumerate(chosen.groupby("group", sort=False)):
        name, style = str(group), _style(str(group), i)
        style.pop("marker")
        if (rows["value"].abs() < ROUNDING).all():
            ax.plot([], [], color=style["color"], label=f"{name}: 0 (rounding)")
            continue
        rows = rows[rows["value"].abs() >= ROUNDING]
        for _, trial in rows.groupby("trial"):
            ax.plot(trial["round"], trial["value"], **style, alpha=0.25, linewidth=1)
        mean = rows[rows["trial"].isin(alike)].groupby("round")["value"].mean()
        ax.plot(mean.index, mean, **style, linewidth=2, label=name)
    if (chosen["value"] > 0).any():
        ax.set_yscale("log")
    ax.set(xlabel="round n", ylabel=label)
    if chosen["group"].nunique() <= len(STYLES):
        ax.legend(fontsize=8)


def _alike(
    frame: pd.DataFrame, by: str, metric: str | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trials of each value of a column of which a metric may be averaged, and the others."""
    parts = [kinds(rows)[0] for _, rows in frame.groupby(by, sort=False)]
    if metric is not None:
        parts = [rows.loc[comparable(rows, metric).index] for rows in parts]
    alike = pd.concat(parts) if parts else frame
    return alike, frame.drop(alike.index)


def _groups(frame: pd.DataFrame) -> "pd.Series[str]":
    """The groups that lines stand for: strategies, or trials of one strategy and budget."""
    alone = frame["strategy"].nunique() == 1 and frame["threat.eps"].nunique() == 1
    return frame["trial"].map(_short) if alone else frame["strategy"]


def _style(name: str, number: int) -> dict[str, Any]:
    if name in STYLES:
        return dict(STYLES[name])
    return {"color": CYCLE[number % len(CYCLE)], "linestyle": "-", "marker": "o"}


def _short(trial: str) -> str:
    """A trial's folder without the digits that make it unique."""
    return trial.rpartition("-")[0] or trial


def _robust(frame: pd.DataFrame) -> str | None:
    robust = metrics.SHOWN["robust"]
    return next((name for name in robust if name in frame and frame[name].notna().any()), None)


def _images(frame: pd.DataFrame, metric: str) -> str:
    counts = metrics.counted(metric)
    seen = sorted(frame[counts].dropna().unique()) if counts in frame else []
    return f"\non {', '.join(f'{n:.0f}' for n in seen)} test images" if seen else ""


def figure(frame: pd.DataFrame, rounds: pd.DataFrame) -> Figure:
    """Robust accuracy by eps, disagreement and FOSC over rounds (or excess risk, if that is there).

    Args:
        frame: one row for each trial.
        rounds: the long frame of rounds.

    Returns:
        The figure.
    """
    fig, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    if (rounds["metric"] == "excess_risk").any():
        over_rounds(axes[0], frame, rounds, "excess_risk", "mean", "excess risk (mean over agents)")
        label = "excess risk, theory (E1; mean over agents)"
        over_rounds(axes[2], frame, rounds, "excess_risk_theory", "mean", label)
        axes[2].set_ylim(axes[0].get_ylim())
    else:
        budgets = frame["threat.eps"].nunique()
        (accuracy_by_eps if budgets > 1 else accuracy_by_trial)(axes[0], frame)
        over_rounds(axes[2], frame, rounds, "val_fosc", "centroid", "FOSC at PGD-10 (validation)")
    over_rounds(axes[1], frame, rounds, "disagreement", "mean", "disagreement (squared distance)")
    handles, labels = axes[2].get_legend_handles_labels()
    if len(STYLES) < len(labels) <= len(CYCLE):  # too many to stand among the lines
        fig.legend(handles, labels, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def summary(frame: pd.DataFrame, rounds: pd.DataFrame) -> bytes:
    """`figure` as the bytes of a PNG file."""
    fig, buffer = figure(frame, rounds), io.BytesIO()
    fig.savefig(buffer, dpi=120)
    plt.close(fig)
    return buffer.getvalue()


def _nothing(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes, color="grey")
    ax.set_axis_off()
