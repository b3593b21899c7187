"""Evaluate the models of finished trials: here, or as tasks on a cluster."""

import os
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from raydist.errors import InputError
from raydist.evaluation import pictures
from raydist.evaluation.folders import forget, functions_named, open_subject, trials
from raydist.evaluation.ledger import Entry
from raydist.evaluation.request import Request
from raydist.evaluation.results import Results
from raydist.evaluation.subject import Subject
from raydist.evaluation.units import Unit
from raydist.evaluation.work import perform
from raydist.lock import hold
from raydist.results.terminal import Words, console, progress, say
from raydist.storage import Storage, locate

TELL_SECONDS = 20.0

Done = Iterator[tuple[Unit, Any]]  # (unit, entry), and at last (unit, None) or (unit, its error)


def evaluate_runs(
    runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    request: Request | None = None,
    pool: str = "local",
    *,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float | None = None,
    quiet: bool = True,
) -> pd.DataFrame:
    """Measure the models of finished trials, and add the numbers to their results.

    What an earlier evaluation, finished or not, or the end of the trial has measured is not
    measured again.

    Args:
        runs: folders of studies, trials or single runs.
        request: the request; default: PGD-10, AutoAttack, masking checks of the centroid.
        pool: "local": in this process; "ray": as tasks on a cluster.
        address: the address of an existing Ray cluster, for pool = "ray".
        cpus: the CPUs that one task takes, for pool = "ray".
        gpus: the GPUs that one task takes; None: a quarter if the cluster has any, else 0.
        quiet: whether to show no progress.

    Returns:
        One row for each trial and model: `trial`, `model`, the numbers by name, and `error` where
        something could not be measured.

    Raises:
        InputError: if something in the request cannot work; nothing was started or written.
    """
    request = request or Request()
    if pool not in ("local", "ray"):
        raise InputError(f'pool is "{pool}", expected "local" or "ray"')
    paths = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    with ExitStack() as stack:
        subjects = _subjects(paths, request, quiet)
        for subject in subjects:  # before what is known is read: nobody adds to it
            stack.enter_context(hold(Storage(subject.folder)))
        results = [Results(subject, request) for subject in subjects]
        for note in (note for each in results for note in each.notes):
            _warn(note, quiet)
        by_folder = {each.subject.folder: each for each in results}
        units = [unit for each in results for unit in each.missing()]
        do = stack.enter_context(_pool(pool, address, cpus, gpus)) if units else locally
        try:
            for last in (False, True):  # planes need what the others leave in files
                wave = [unit for unit in units if (unit.task == "plane") == last]
                for unit, found in shown(wave, do(partial(perform, request=request), wave), quiet):
                    by_folder[unit.folder].take(unit, found)
        finally:
            frame = pd.concat([each.write() for each in results], ignore_index=True)
            _leave(results, frame, Path(paths[0]), quiet)
    return frame


def locally(do: Callable[[Unit], Iterator[Entry]], units: Sequence[Unit]) -> Done:
    """The units in this process, one after the other."""
    for unit in units:
        try:
            for entry in do(unit):
                yield unit, entry
        except Exception as error:  # of the user's own model, or a diverged one
            yield unit, error
        else:
            yield unit, None


@contextmanager
def _pool(
    pool: str, address: str | None, cpus: float, gpus: float | None
) -> Generator[Callable[..., Done]]:
    """The pool that does the units."""
    if pool == "local":
        yield locally
        return
    from raydist.engine.cluster.session import cluster_resources, ray_session
    from raydist.engine.cluster.tasks import spread  # Ray takes a second to import

    with ray_session(address):
        has = any(node.get("GPU") for node in cluster_resources())
        share = gpus if gpus is not None else 0.25 * has
        yield partial(spread, cpus=cpus, gpus=share)


def _subjects(
    paths: Sequence[str | os.PathLike[str]], request: Request, quiet: bool
) -> list[Subject]:
    """The trials that can be evaluated; of the others one line says why not."""
    found: list[Subject] = []
    why: list[str] = []
    places = [locate(path) for path in paths]
    for place in places:
        if "://" in place:
            raise InputError(f"{place} is a URL: copy that folder to this machine, and evaluate it")
    folders = trials(map(Path, places))
    functions = functions_named(folders)
    if functions and not quiet:
        line = f"these runs name functions, which are imported and run: {', '.join(functions)}"
        say(line)
    forget()
    for folder in folders:
        try:
            subject = open_subject(folder)
            request.threat(subject.threat)
        except InputError as error:
            why.append(str(error))
            continue
        if not subject.chosen(request.models):
            why.append(
                f"{folder} has no model {', '.join(request.models)}: it has "
                f"{', '.join(subject.models)}"
            )
            continue
        found.append(subject)
    if not found:
        raise InputError(why[0])
    for line in why if not quiet else []:
        say(f"left out: {line}")
    return found


def _warn(line: str, quiet: bool) -> None:
    """Tell of what could not be read: in a line, or where nothing is printed, as a warning."""
    if quiet:
        warnings.warn(line, stacklevel=3)
    else:
        say(line)


def shown(units: Sequence[Unit], done: Done, quiet: bool) -> Iterator[tuple[Unit, Any]]:
    """Yield results and show progress: a bar on a terminal, else a line now and then."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    off = quiet or not console.is_terminal
    began = told = time.monotonic()
    finished = 0
    with progress(quiet, *columns, Words("{task.description}")) as bar:
        task = bar.add_task("", total=len(units))
        for unit, found in done:
            what = f"{unit.folder.name} {unit.model} {unit.task}"
            finished += not isinstance(found, Entry)
            bar.update(task, completed=finished, description=what[:60])
            if found is not None:
                yield unit, found
            now = time.monotonic()
            if off and not quiet and now - told > TELL_SECONDS:
                told = now
                line = f"{now - began:6.0f} s {finished}/{len(units)} {what}"
                console.print(line)


def _leave(results: Sequence[Results], frame: pd.DataFrame, run: Path, quiet: bool) -> None:
    """The table and the pictures of all trials, in the folder of the first run."""
    folder = run.expanduser().absolute() / "evaluation"
    Storage(folder).write("evaluation.csv", frame.to_csv(index=False).encode())
    scans = {
        each.subject.folder.name: each.scans(each.subject.main)
        for each in results
        if each.subject.main in each.models
    }
    try:
        pictures.draw(frame, scans, folder)
    except Exception as error:  # of what a damaged file holds: the numbers are worth more
        _warn(f"{folder}: a picture cannot be drawn: {type(error).__name__}: {error}", quiet)
