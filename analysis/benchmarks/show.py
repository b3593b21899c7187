"""How targets are shown: a table for the terminal, a picture for the README."""

from collections.abc import Iterable

from matplotlib.figure import Figure
from rich.table import Table
from targets import Row, used

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
    """How much of its limit each target uses, on a logarithmic axis, the limit at 1.

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
        said = f" {share:.2g}" if each["met"] else f" {share:.2g} not met"
        ax.text(share, place, said, va="center", fontsize=8)
    ax.axvline(1, color="black", linewidth=1.5)
    ax.set_xscale("log")
    ax.set_yticks(range(len(drawn)), [each["target"] for each, _ in drawn], fontsize=8)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel("share of the limit that is used (at most 1 is met)")
    return figure
