"""Output of the commands: tables and lines for people."""

import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from raydist import metrics, signals
from raydist.errors import printable
from raydist.metrics import SHOWN

if TYPE_CHECKING:  # --help and a wrong setting need no table
    import pandas as pd

for _size in ("COLUMNS", "LINES"):  # 0 and "²" say nothing
    if not (os.environ.get(_size, "80").isdecimal() and int(os.environ.get(_size, "80"))):
        del os.environ[_size]


class _Plain(Console):
    """A console that prints text as it is: it finds no markup in it and lets no escape through."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), (sys.stderr if self.stderr else sys.stdout).fileno()
        )
        if not self.stderr:
            signals.end(signal.SIGPIPE)


console = _Plain() if Console().is_terminal else _Plain(width=120)
errors = _Plain(stderr=True, soft_wrap=True)


def say(line: str) -> None:
    """A line on stderr, if somebody reads that."""
    with suppress(OSError):  # a terminal that is gone
        errors.print(line)


class Words(TextColumn):
    """A column of a progress bar, whose text is printed as it is."""

    def render(self, task: Task) -> Text:
        """Implement `TextColumn.render`."""
        return Text(printable(self.text_format.format(task=task)))


def progress(quiet: bool, *columns: str | ProgressColumn) -> Progress:
    """Progress bars on a terminal.

    Args:
        quiet: whether to show none.
        *columns: the columns of `rich.progress.Progress`.

    Returns:
        The bars, a context manager.
    """
    off = quiet or not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=off)


def number(value: Any) -> str:
    """A value in few characters: three significant digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def numbers(values: Mapping[str, Any]) -> str:
    """Names and values in one line."""
    return "  ".join(f"{name} {number(value)}" for name, value in values.items())


def status(values: Mapping[str, Any], place: str = "progress") -> str:
    """Numbers of a trial in one line: while it runs, or with place = "end" of an ended one."""
    return numbers({name: values[name] for name in SHOWN[place] if name in values})


def results_table(frame: "pd.DataFrame", axes: Sequence[str]) -> Table:
    """The final table of a study, narrow enough for a terminal of 80 characters.

    Args:
        frame: one row for each trial, from `raydist.load`.
        axes: the columns that tell the trials apart.

    Returns:
        The table; accuracies in percent.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=0)
    columns = _axis_columns(frame, axes) or ["trial"]
    short = [name.rpartition(".")[2] for name in columns]
    for name, last in zip(columns, short, strict=True):
        table.add_column(last if short.count(last) == 1 else name)
    shown = [name for name in SHOWN["table"] if name in frame and frame[name].notna().any()]
    for name in shown:
        table.add_column(heading(frame, name), justify="left" if name == "status" else "right")
    for _, row in frame.sort_values(columns, key=_sortable).iterrows():
        cells = [number(row[name]) for name in columns]
        table.add_row(*cells, *(_cell(name, row[name]) for name in shown))
    return table


def heading(frame: "pd.DataFrame", name: str) -> str:
    """A column's heading: where accuracies are of unlike images, of how many its own are."""
    title = metrics.find(name).title
    rates = [n for n in SHOWN["table"] if metrics.find(n).unit == "%" and n in frame]
    counts = {n: images_of(frame, n) for n in rates}
    alike = len({count for count in counts.values() if count}) < 2
    return title if alike or not counts.get(name) else f"{title}\nof {counts[name]}"


def _cell(name: str, value: Any) -> str:
    """A value of a column in the column's unit."""
    return number(value * 100 if metrics.find(name).unit == "%" else value)


def images_of(frame: "pd.DataFrame", name: str) -> str:
    """The number of images of a number, in all rows that have it; "" if that is not known."""
    counts = metrics.counted(name)
    if counts not in frame:
        return ""
    return ", ".join(f"{n:.0f}" for n in sorted(frame[counts].dropna().unique()))


def seeds_table(points: "pd.DataFrame", axes: Sequence[str]) -> Table:
    """The final table of a study, mean ± standard deviation over the seeds of each point.

    Args:
        points: the frame of `raydist.over_seeds`, a row for each kind of end that seeds had.
        axes: the columns that tell the points apart.

    Returns:
        The table; accuracies in percent.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    columns = _axis_columns(points, [axis for axis in axes if axis != "seed"])
    there = [name for name in SHOWN["table"] if f"{name}_sd" in points]
    shown = [name for name in there if points[name].notna().any()]
    for name in columns:
        table.add_column(name.rpartition(".")[2])
    for said in ("seeds", *(heading(points, name) for name in shown), "status"):
        table.add_column(said, justify="left" if said == "status" else "right")
    for _, row in points.iterrows():
        cells = [_mean(row, name) for name in shown]
        ended = str(row["status"])
        if ended not in ("completed", "failed") and not math.isnan(row.get("rounds_run", math.nan)):
            ended += f" at {row['rounds_run']:.0f}"  # the others ran to their end
        table.add_row(*(number(row[c]) for c in [*columns, "seeds"]), *cells, ended)
    return table


def _mean(row: "pd.Series[Any]", name: str) -> str:
    """Mean ± deviation; in brackets over how many seeds, where that is not over all of the row."""
    some = row.get(f"{name}_seeds", math.nan)
    counted = "" if math.isnan(some) else f" ({some:.0f})"
    return f"{_cell(name, row[name])} ± {_cell(name, row[f'{name}_sd'])}{counted}"


def _axis_columns(frame: "pd.DataFrame", axes: Sequence[str]) -> list[str]:
    """The columns that tell trials apart; of an axis of whole tables, its keys that vary."""
    columns: list[str] = []
    for axis in axes:
        if axis in frame:
            columns.append(axis)
        else:
            below = [str(name) for name in frame if str(name).startswith(f"{axis}.")]
            columns += [name for name in below if frame[name].astype(str).nunique() > 1]
    return columns


def _sortable(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column as it is if it holds numbers, else as text: lists have no order."""
    return column if column.dtype.kind in "biuf" else column.astype(str)


def footnotes(frame: "pd.DataFrame") -> list[str]:
    """The notes below a study's table."""
    notes = []
    for name, what in {"clean_acc": "accuracies", "autoattack_acc": "AutoAttack"}.items():
        if images_of(frame, name):
            notes.append(f"{what} on {images_of(frame, name)} test images")
    if "autoattack_flags" in frame:
        raised = sorted({flag for flag in frame["autoattack_flags"].dropna() if flag})
        notes += [f"AutoAttack raised: {flag} (column autoattack_flags)" for flag in raised]
    return notes


WIDEST = 4  # trials and models side by side


def evaluation_table(frame: "pd.DataFrame") -> Table:
    """The table of an evaluation: a row for each number, or of many trials a row for each of them.

    Args:
        frame: one row for each trial and model, from `raydist.evaluate_runs`.

    Returns:
        The table; accuracies in percent.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    short = frame["trial"].map(lambda trial: trial.rpartition("-")[0] or trial)
    columns = [str(name) for name in frame if frame[name].notna().any()]
    names = [n for n in columns if n not in SHOWN["note"] and not n.endswith(metrics.BESIDE)]
    if len(frame) > WIDEST:
        names = [name for name in names if name in SHOWN["evaluation"]]
        table.add_column("trial")
        table.add_column("model")
        for name in names:
            table.add_column(_heading(frame, name), justify="right")
        for position, (trial, model) in enumerate(zip(short, frame["model"], strict=True)):
            table.add_row(trial, model, *(_cells(frame, name)[position] for name in names))
        return table
    table.add_column("")
    for trial, model in zip(short, frame["model"], strict=True):
        table.add_column(f"{trial}\n{model}", justify="right", overflow="fold")
    for name in names:
        table.add_row(_heading(frame, name), *_cells(frame, name))
    return table


def _heading(frame: "pd.DataFrame", name: str) -> str:
    """A number's heading: of how many images it is, if not of those that were asked for."""
    unit = metrics.find(name).unit
    title = f"{name.removesuffix('_acc')} {unit}".strip()
    counts = images_of(frame, name) if unit == "%" else ""
    return title if counts in ("", images_of(frame, "evaluation")) else f"{title} of {counts}"


def _cells(frame: "pd.DataFrame", name: str) -> list[str]:
    """A column as text, with its standard error if there is one."""
    cells = [_cell(name, value) for value in frame[name]]
    if f"{name}_error" in frame:
        errors_of = frame[f"{name}_error"]
        cells = [f"{cell} ± {number(e)}" for cell, e in zip(cells, errors_of, strict=True)]
    return cells


def evaluation_notes(frame: "pd.DataFrame") -> list[str]:
    """The notes below an evaluation's table."""
    notes = [f"accuracies on {images_of(frame, 'evaluation')} test images"]
    if "hessian_trace" in frame:
        notes.append("hessian_...: of the loss at frozen adversarial points; clean_...: clean loss")
    told = {"left_out": "left out", "autoattack_flags": "the attacks' own checks raised"}
    for name, what in told.items():
        if name in frame:
            notes += [f"{what}: {text}" for text in sorted(set(frame[name].dropna())) if text]
    return notes


def print_failures(frame: "pd.DataFrame") -> None:
    """One line on stderr for each failed trial: its error's last line and the path of its log."""
    for _, row in frame[frame["status"] == "failed"].iterrows():
        say(f"failed: {row['trial']}: {row['error']} (log: {row['log']})")


def say_unmeasured(trial: str, what: str, folder: str) -> None:
    """A line on stderr about what could not be measured of a run that is otherwise complete."""
    say(
        f"raydist: {trial} was trained and kept, but not measured in full: {what}; to measure it "
        f"write python -m raydist.evaluate {folder}"
    )
