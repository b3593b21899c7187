"""Figures from the frames of `raydist.load` and `raydist.load_rounds`; nothing is computed here."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # no window: figures are files
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; a marker and a dash besides.
STYLES: dict[str, dict[str, Any]] = {
    "centralized": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "consensus": {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    "diffusion": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "local": {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
}
SOME = ("autoattack_acc",)  # measured on the first `autoattack_images` only
ROUNDING = 1e-10  # smaller values are zero up to rounding: a logarithm would show only that
ROBUST = {"autoattack_acc": "AutoAttack", "pgd20_acc": "PGD-20", "pgd10_acc": "PGD-10"}


def accuracy_by_eps(ax: Axes, frame: pd.DataFrame) -> None:
    """Robust accuracy against eps, one line for each strategy, mean ± s.d. over the other axes.

    Args:
        ax: where to draw.
        frame: one row for each trial.
    """
    metric = next((m for m in ROBUST if m in frame and frame[m].notna().any()), None)
    if metric is None:
        _nothing(ax, "no robust accuracy was measured")
        return
    for strategy, rows in frame.groupby("strategy"):
        percent = rows.assign(percent=100 * rows[metric])
        by_eps = percent.groupby("threat.eps")["percent"].agg(["mean", "std"]).fillna(0.0)
        ax.errorbar(
            by_eps.index,
            by_eps["mean"],
            yerr=by_eps["std"] if by_eps["std"].any() else None,
            label=str(strategy),
            capsize=3,
            **STYLES[str(strategy)],
        )
    seen = sorted(frame["autoattack_images"].dropna().unique()) if metric in SOME else []
    images = f"\nfirst {', '.join(f'{n:.0f}' for n in seen)} test images" if seen else ""
    in_255 = frame["threat.eps"] * 255
    whole = bool(((in_255 - in_255.round()).abs() < 1e-6).all())
    ticks = sorted(frame["threat.eps"].unique())
    ax.set_xticks(ticks, [f"{eps * 255:.0f}/255" if whole else f"{eps:g}" for eps in ticks])
    ax.set(
        xlabel="budget ε in training and test (fraction of the pixel range)",
        ylabel=f"{ROBUST[metric]} accuracy of the centroid (%){images}",
    )
    ax.set_ylim(bottom=0)
    ax.legend()


def over_rounds(
    ax: Axes, frame: pd.DataFrame, rounds: pd.DataFrame, metric: str, agent: str, label: str
) -> None:
    """A metric over rounds, one line for each strategy (mean over trials) with thin single trials.

    Args:
        ax: where to draw.
        frame: one row for each trial.
        rounds: the long frame of rounds.
        metric: its name.
        agent: whose: "mean" or "centroid".
        label: of the y axis, with its unit.
    """
    chosen = rounds[(rounds["metric"] == metric) & (rounds["agent"] == agent)]
    chosen = chosen.merge(frame[["trial", "strategy"]], on="trial")
    if chosen.empty:
        _nothing(ax, f"{metric} was not measured")
        return
    for strategy, rows in chosen.groupby("strategy"):
        name = str(strategy)
        if (rows["value"].abs() < ROUNDING).all():
            ax.plot([], [], color=STYLES[name]["color"], label=f"{name}: 0 (rounding)")
            continue
        rows = rows[rows["value"].abs() >= ROUNDING]
        style = {key: STYLES[name][key] for key in ("color", "linestyle")}
        for _, trial in rows.groupby("trial"):
            ax.plot(trial["round"], trial["value"], **style, alpha=0.25, linewidth=1)
        mean = rows.groupby("round")["value"].mean()
        ax.plot(mean.index, mean, **style, linewidth=2, label=name)
    if (chosen["value"] > 0).any():
        ax.set_yscale("log")
    ax.set(xlabel="round n", ylabel=label)
    ax.legend()


def figure(frame: pd.DataFrame, rounds: pd.DataFrame) -> Figure:
    """Robust accuracy by eps, disagreement and FOSC over rounds (or excess risk, if that is there).

    Args:
        frame: one row for each trial.
        rounds: the long frame of rounds.

    Returns:
        The figure.
    """
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    if (rounds["metric"] == "excess_risk").any():
        over_rounds(axes[0], frame, rounds, "excess_risk", "mean", "excess risk (mean over agents)")
        over_rounds(
            axes[2], frame, rounds, "excess_risk_theory", "centroid", "excess risk, theory (E1)"
        )
        axes[2].set_ylim(axes[0].get_ylim())
    else:
        accuracy_by_eps(axes[0], frame)
        over_rounds(axes[2], frame, rounds, "val_fosc", "centroid", "FOSC at PGD-10 (validation)")
    over_rounds(axes[1], frame, rounds, "disagreement", "mean", "disagreement (squared distance)")
    for ax in axes:
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    return fig


def summary(frame: pd.DataFrame, rounds: pd.DataFrame, file: Path) -> None:
    """Draw `figure` into a PNG file."""
    fig = figure(frame, rounds)
    fig.savefig(file, dpi=120)
    plt.close(fig)


def _nothing(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes, color="grey")
    ax.set_axis_off()
