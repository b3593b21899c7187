"""Pictures of an evaluation: robustness, flatness, landscapes, and what lies between the agents."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raydist import metrics
from raydist.results.plot import CYCLE, STYLES

Scans = Mapping[str, Any]  # measure -> value, of one trial's centroid
PLANES = 6  # trials at most whose landscapes are drawn


def draw(frame: pd.DataFrame, scans: Mapping[str, Scans], folder: Path) -> list[Path]:
    """Draw every picture for which there is something to draw.

    Args:
        frame: one row for each trial and model, with the numbers by name.
        scans: name of a trial -> its results by measure.
        folder: the folder for the PNG files.

    Returns:
        The files.
    """
    figures: dict[str, Callable[[], Figure | None]] = {
        "robustness": lambda: robustness(frame),
        "flatness": lambda: flatness(scans),
        "landscapes": lambda: landscapes(scans),
        "agents": lambda: agents(scans),
    }
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in figures.items():
        figure = make()
        if figure is not None:
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=120)
            plt.close(figure)
    return files


def robustness(frame: pd.DataFrame) -> Figure | None:
    """Accuracy under each attack, a group of bars for each trial and model.

    Args:
        frame: one row for each trial and model, with the numbers by name.

    Returns:
        The figure; None without accuracies.
    """
    names = [str(name) for name in frame]
    columns = [n for n in names if n.endswith("_acc") and not n.startswith("val_")]
    columns.sort(key=metrics.order)
    if not columns:
        return None
    height = 1.2 + len(frame) * (0.3 + 0.16 * len(columns))
    fig, ax = plt.subplots(figsize=(9, height), layout="constrained")
    step = 0.85 / len(columns)
    colours = plt.get_cmap("viridis")(np.linspace(0.95, 0.05, len(columns)))
    at = np.arange(len(frame))[::-1]
    for i, name in enumerate(columns):
        offset = at + (len(columns) / 2 - i - 0.5) * step
        values = 100 * frame[name].to_numpy(dtype=float)
        ax.barh(offset, values, height=step, color=colours[i], label=metrics.find(name).heading)
        for y, value in zip(offset, values, strict=True):
            if np.isfinite(value):
                ax.text(value + 0.5, y, f"{value:.1f}", va="center", fontsize=6)
    words = frame.get("masking", pd.Series([""] * len(frame))).fillna("")
    labels = [
        "\n".join([_short(trial), model, *word.split(", ")]).strip()
        for trial, model, word in zip(frame["trial"], frame["model"], words, strict=True)
    ]
    ax.set_yticks(at, labels, fontsize=8)
    images = ", ".join(f"{n:.0f}" for n in sorted(frame["evaluation_images"].unique()))
    ax.set(xlabel=f"accuracy (%) on {images} test images", xlim=(0, 104))
    ax.set_ylim(-0.6, len(frame) - 0.4)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    _clean(ax)
    return fig


def flatness(scans: Mapping[str, Scans]) -> Figure | None:
    """Perturbation curves, largest eigenvalues, and spectral density.

    Args:
        scans: name of a trial -> its results by measure.

    Returns:
        The figure; None without any of them.
    """
    if not any(_of(s, "curve") or _of(s, "top") or _of(s, "density") for s in scans.values()):
        return None
    fig, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    for number, (trial, found) in enumerate(scans.items()):
        style = _style(trial, number, scans)
        curves = [value for _, value in _of(found, "curve")]
        if curves:
            t = np.array(curves[0]["t"])
            rise = np.array([value["loss"] for value in curves])
            rise = rise - rise[:, [int(np.argmin(np.abs(t)))]]
            mean, spread = rise.mean(0), rise.std(0)
            axes[0].plot(t, mean, label=_short(trial), **style)
            axes[0].fill_between(t, mean - spread, mean + spread, color=style["color"], alpha=0.15)
        for measure, values in _of(found, "top"):
            clean = "/clean/" in measure
            line = style | {"linestyle": ":" if clean else "-"}
            label = None if clean else _short(trial)
            axes[1].plot(range(1, len(values) + 1), values, marker=".", label=label, **line)
        for measure, value in _of(found, "density"):
            if "/clean/" not in measure:
                shown = np.maximum(value["density"], 1e-7)
                axes[2].plot(value["eigenvalue"], shown, label=_short(trial), **style)
    axes[0].set(
        xlabel="distance t along a random direction\n(1: as long as the weights, filter by filter)",
        ylabel="robust loss minus that at t = 0\n(mean ± s.d. over directions)",
    )
    axes[1].set(
        xlabel="rank", ylabel="Hessian eigenvalue\n(solid: frozen attack, dotted: clean loss)"
    )
    axes[2].set(
        xlabel="Hessian eigenvalue (frozen attack)", ylabel="spectral density", yscale="log"
    )
    axes[2].set_ylim(bottom=1e-6)
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    for ax in axes:
        _clean(ax)
        if not ax.lines:
            ax.set_axis_off()
    handles, labels = next(
        (pair for ax in axes if (pair := ax.get_legend_handles_labels())[0]), ([], [])
    )
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def landscapes(scans: Mapping[str, Scans]) -> Figure | None:
    """The loss on planes through each centroid: two random directions, two eigenvectors.

    Args:
        scans: name of a trial -> its results by measure.

    Returns:
        The figure; None without planes.
    """
    kinds = {
        "plane-random": "random directions",
        "plane-hessian": "top two Hessian eigenvectors\n(quadratic model: a rise of t²)",
    }
    planes = {
        (trial, kind): _plane(_of(found, kind))
        for trial, found in list(scans.items())[:PLANES]
        for kind in kinds
        if _of(found, kind)
    }
    if not planes:
        return None
    trials = list(dict.fromkeys(trial for trial, _ in planes))
    fig, axes = plt.subplots(
        2, len(trials), figsize=(4.2 * len(trials) + 1, 7.6), layout="constrained", squeeze=False
    )
    for row, (kind, title) in zip(axes, kinds.items(), strict=True):
        there = [planes[trial, kind] for trial in trials if (trial, kind) in planes]
        if not there:
            for ax in row:
                ax.set_axis_off()
            continue
        low = min(loss.min() for _, loss in there)
        high = max(np.quantile(loss, 0.9) for _, loss in there)
        levels = np.linspace(low, max(high, low + 1e-9), 16)
        for ax, trial in zip(row, trials, strict=True):
            if (trial, kind) not in planes:
                ax.set_axis_off()
                continue
            t, loss = planes[trial, kind]
            shown = ax.contourf(t, t, loss.T, levels=levels, cmap="viridis", extend="max")
            ax.contour(t, t, loss.T, levels=levels, colors="white", linewidths=0.3)
            ax.plot(0, 0, marker="+", color="#D55E00", markersize=12, markeredgewidth=2)
            ax.set(title=f"{_short(trial)}\n{title}", xlabel="first direction", ylabel="second")
            ax.title.set_fontsize(9)
            ax.set_aspect("equal")
        fig.colorbar(shown, ax=row, label="robust loss (attack anew at each point)")
    return fig


def agents(scans: Mapping[str, Scans]) -> Figure | None:
    """The loss between agents and to the centroid, trained curves, likeness of perturbations.

    Args:
        scans: name of a trial -> its results by measure.

    Returns:
        The figure; None without any of them.
    """
    shown = {
        trial: found
        for trial, found in list(scans.items())[:PLANES]
        if _of(found, "path") or _of(found, "similarity")
    }
    if not shown:
        return None
    fig, axes = plt.subplots(
        2, len(shown), figsize=(4.6 * len(shown), 7.6), layout="constrained", squeeze=False
    )
    for column, (trial, found) in zip(axes.T, shown.items(), strict=True):
        _paths(column[0], found)
        column[0].set_title(_short(trial), fontsize=9)
        for _, value in _of(found, "similarity"):
            names = [name.replace("agent-", "") for name in value["models"]]
            image = column[1].imshow(value["cosine"], vmin=0, vmax=1, cmap="viridis")
            column[1].set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            column[1].set_yticks(range(len(names)), names, fontsize=6)
            fig.colorbar(image, ax=column[1], label="mean cosine of perturbations", shrink=0.8)
    top = max(ax.get_ylim()[1] for ax in axes[0])
    for ax in axes[0]:
        ax.set_ylim(0, top)
    return fig


def _paths(ax: Axes, found: Scans) -> None:
    """Lines between agents, to the centroid, and the trained curve."""
    kinds = {"to the centroid": ("#0072B2", "-"), "to the next agent": ("#D55E00", "--")}
    drawn = set()
    for measure, value in _of(found, "path"):
        kind = "to the centroid" if measure.endswith("/centroid") else "to the next agent"
        colour, dash = kinds[kind]
        label = None if kind in drawn else kind
        drawn.add(kind)
        ax.plot(value["t"], value["loss"], dash, color=colour, alpha=0.6, lw=1.2, label=label)
    for _, value in _of(found, "bezier"):
        ax.plot(value["t"], value["curve"], color="#009E73", lw=2, label="trained Bezier curve")
        ax.plot(value["t"], value["line"], ":", color="#009E73", lw=2, label="its straight line")
    ax.set(xlabel="from an agent (0) to another model (1)", ylabel="robust loss")
    ax.legend(fontsize=8)
    _clean(ax)


def _of(found: Scans, kind: str) -> list[tuple[str, Any]]:
    """The results of one kind, in the order of their measures."""
    return [(m, value) for m, value in found.items() if kind in m.split("/")]


def _plane(rows: Sequence[tuple[str, Any]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    values = sorted((value for _, value in rows), key=lambda value: value["t"])
    loss = np.full((len(values[0]["s"]),) * 2, np.nan)
    for value in values:
        loss[values[0]["s"].index(value["t"])] = value["loss"]
    return np.array(values[0]["s"]), loss


def _style(trial: str, number: int, trials: Iterable[str]) -> dict[str, Any]:
    """The strategy's colour if that alone tells the trial from the others."""
    names = [next((name for name in STYLES if name in other), None) for other in trials]
    name = names[number]
    alone = name is not None and names.count(name) == 1
    colour = STYLES[name]["color"] if name and alone else CYCLE[number % len(CYCLE)]
    return {"color": colour, "linewidth": 1.6}


def _short(trial: str) -> str:
    return trial.rpartition("-")[0] or trial


def _clean(ax: Axes) -> None:
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
