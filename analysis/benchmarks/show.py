"""How targets are shown: a table for the terminal, a picture for the README."""

from collections.abc import Iterable

from matplotlib.figure import Figure
from rich.table import Table
from targets import Row, used

LEAST = 0.02
MET, MISSED = "#0072B2", "#D55E00"  # told apart by every kind of eye, and by hatching and words


def table(rows: Iterable[Row]) -> Table:
    """The rows as a table for the terminal."""
    shown = Table("target", "measured", "reference", "ratio", "limit", "", "note", box=None)
    for each in rows:
        verdict = {True: "met", False: "[bold]NOT MET[/bold]", None: ""}[each["met"]]
        numbers = (each["reference"], each["ratio"], each["limit"])
        cells = ("" if value is None else f"{value:.4g}" for value in numbers)
        measured = each["measured"]
        unit = "-" if measured is None else f"{measured:.4g} {each['unit']}"
        shown.add_row(each["target"], unit, *cells, verdict, each["note"])
    return shown


def picture(rows: Iterable[Row]) -> Figure:
    """How much of its limit each target uses, on a logarithmic axis that begins at LEAST.

    Args:
        rows: those without a limit are left out.

    Returns:
        The figure.
    """
    drawn = [(each, share) for each in rows if (share := used(each)) is not None]
    figure = Figure(figsize=(9, 1.2 + 0.36 * max(1, len(drawn))), layout="constrained")
    ax = figure.subplots()
    for place, (each, share) in enumerate(drawn):
        colour, hatch = (MET, "") if each["met"] else (MISSED, "///")
        ax.barh(place, share, color="white" if hatch else colour, edgecolor=colour, hatch=hatch)
        said = f" {share:.3g}" if each["met"] else f" {share:.3g} not met"
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        ax.text(max(1.03 * share, LEAST), place, said, va="center", fontsize=8, bbox=paper)
    ax.axvline(1, color="black", linewidth=1.5)
    ax.set_xscale("log")
    ax.set_xlim(LEAST, 3 * max([2.0, *(share for _, share in drawn)]))
    ax.set_yticks(range(len(drawn)), [each["target"] for each, _ in drawn], fontsize=8)
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.set_xlabel("share of the limit that is used (at most 1 is met)")
    return figure
