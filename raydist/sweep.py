"""python -m raydist.sweep FILE: a study, run by Ray Tune.

Read, check every trial at the door, hand the study to Tune, show progress, and summarise. Nothing
is written before everything that can be checked was checked.

What is imported in functions takes seconds; --help and a misspelt key are answered without it.
"""

import logging
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from raydist import cli, signals
from raydist.cli import check_new_folder
from raydist.config.experiment import Experiment, InputError, masked
from raydist.config.point import Point, folder_name, value_label
from raydist.config.study import Study, from_tree, read
from raydist.lock import Held, hold
from raydist.results.terminal import (
    console,
    footnotes,
    print_failures,
    results_table,
    say_unmeasured,
    seeds_table,
)
from raydist.storage import Store
from raydist.tune.resume import STUDY_FILE, check_resumed, study_in

if TYPE_CHECKING:
    import pandas as pd

    from raydist.tune.needs import Needs
    from raydist.tune.trial import Job


def run_sweep(
    study: Study | Mapping[str, Any] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    pool: str = "ray",
    address: str | None = None,
    max_concurrent: int | None = None,
    quiet: bool = True,
) -> "pd.DataFrame":
    """Run a study.

    Args:
        study: a study, its nested values, or the path of its file.
        out: the folder for its results, or an fsspec URL; default: runs/<name>.
        resume: continue in that folder: what ended there is kept, what did not goes on.
        pool: "ray": each agent is an actor; "local": each trial runs its agents in one process.
        address: of an existing Ray cluster; default: the environment's RAY_ADDRESS, else a private
            Ray on this machine, which is stopped again.
        max_concurrent: trials at a time; default: as many as fit.
        quiet: without progress.

    Returns:
        One row for each trial, as `raydist.load`.

    Raises:
        InputError: if something in the study cannot work; nothing was started or written.
        KeyboardInterrupt: if it was interrupted before a trial had begun.
    """
    if not isinstance(study, Study):
        study = from_tree(study) if isinstance(study, Mapping) else read(study)
    if pool not in ("ray", "local"):
        raise InputError(f'pool is "{pool}", expected "ray" or "local"')
    experiments = corner_experiments(study)
    if masked(str(out)) != str(out):
        raise InputError(
            f"{out} holds a password, which Ray hands to every process and Tune may keep: give it "
            "in the environment or in the files of that storage's own tools"
        )
    folder = Store(f"runs/{study.name}" if out is None else out)
    _check_shared(folder, study.name)
    if not resume:
        check_new_folder(folder)
    trials = needed(study, experiments)
    from raydist.engine.cluster.session import cluster_resources, ray_session
    from raydist.tune.trial import Job, stored_images

    max_concurrent = max_concurrent or study.search.max_concurrent
    if not quiet:
        console.print(f"{study.name}: {study.trials} trials")
        for line in dict.fromkeys(need.line for _, need in trials):
            console.print(f"  {line}")
    with hold(folder) as held:
        if resume:
            check_resumed(folder, study)
        else:  # again, now that nobody else is at it
            check_new_folder(folder)
        with ray_session(address):
            images = stored_images(study)
            job = Job(study, folder.url, pool, cluster_resources(), os.getcwd(), images)
            fit, line = check_cluster(job, trials, max_concurrent)
            if not quiet:
                console.print(f"  {line}")
            folder.write(STUDY_FILE, study.to_json().encode())  # what --resume reads
            longest = max(need.rounds for _, need in trials)
            ended = _run(job, max_concurrent, fit, longest, held, quiet)
        held.check(now=True)
        try:
            return _summarise(folder, ended)
        except InputError as error:
            if ended:
                raise
            raise KeyboardInterrupt from error  # before a trial had begun


def _check_shared(folder: Store, name: str) -> None:
    """Results can be left there by many processes, side by side."""
    cli.check_shared(folder.url)
    if not os.path.dirname(folder.root):
        raise InputError(f"{folder.url} is no folder: write --out {folder.url}/{name}")


def _summarise(folder: Store, ended: bool) -> "pd.DataFrame":
    """Write the table and the picture of a study, and return the table."""
    from raydist.results import load, plot

    frame = load.load(folder.url)
    frame.attrs["interrupted"] = not ended or bool((frame["status"] == "unfinished").any())
    folder.write("summary.png", plot.summary(frame, load.load_rounds(folder.url)))
    folder.write("results.csv", frame.to_csv(index=False).encode())
    return frame


def corner_experiments(study: Study) -> list[tuple[Point, Experiment]]:
    """The points to check and their experiments, valid in themselves; imports nothing heavy."""
    found = []
    for point in study.corners():
        with _told_at(point):
            experiment = study.experiment(point)
            cli.check_importable(experiment, ("model.name", "loss.name", "topology.kind"))
            cli.check_snapshots(experiment)
            found.append((point, experiment))
    return found


def needed(
    study: Study, experiments: list[tuple[Point, Experiment]]
) -> "list[tuple[Point, Needs]]":
    """The points and what each will need: the plan of every experiment is made once."""
    from raydist.engine.plan import make_plan
    from raydist.tune.needs import needs
    from raydist.tune.search import check_installed

    check_installed(study)
    found = []
    probed: dict[str, tuple[int, int]] = {}  # trials that differ in a budget have the same model
    for point, config in experiments:
        with _told_at(point):
            if config.engine == "train":  # and leaks that group if the trial is killed
                raise InputError(
                    'engine = "train" reserves its workers beside the trial, where Tune does not '
                    'see them: use python -m raydist.run --pool ray, or write engine = "agents"'
                )
            study.search.check_metric(config)
            found.append((point, needs(make_plan(config, probed))))
    return found


@contextmanager
def _told_at(point: Point) -> Generator[None]:
    """What is wrong with an experiment, and the point of the axes at which it is."""
    try:
        yield
    except InputError as error:
        at = ", ".join(f"{key} = {value_label(value)}" for key, value in point.items())
        where = f" (at {at})" if at else ""
        raise InputError(f"{error}{where}") from error


def check_cluster(
    job: "Job", trials: "Sequence[tuple[Point, Needs]]", max_concurrent: int | None
) -> tuple[int, str]:
    """Every trial fits on the nodes.

    Args:
        job: the study and the nodes.
        trials: its points and what each needs.
        max_concurrent: trials at a time; None: as many as fit.

    Returns:
        How many trials run at the same time at most, and what they need, in one line.

    Raises:
        InputError: if a trial asks for what no node or not all nodes together have.
    """
    from raydist.tune.needs import check_memory, describe

    local = job.pool == "local"
    shapes = {}
    for point, need in trials:
        check_memory(need, job.cluster, local)
        bundles = [{"CPU": 1.0}] if local else job.layout(point).bundles
        shapes[str(bundles), need.agents, need.parameters] = need, bundles
    count = min(max_concurrent or job.study.trials, job.study.trials)
    return describe([*shapes.values()], job.cluster, count, local)


def _run(
    job: "Job", max_concurrent: int | None, fit: int, rounds: int, held: Held, quiet: bool
) -> bool:
    """Hand the trials to Tune; `rounds` is the length of the longest. Says whether all ended."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray import tune

    from raydist.tune.files import TuneFiles
    from raydist.tune.progress import TuneProgress
    from raydist.tune.scheduler import scheduler
    from raydist.tune.search import source
    from raydist.tune.trial import Trial

    # Failed trials are told by ourselves, in one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose verbose = 0 still prints a box
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a failed trial has no objective
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths begin where the sweep was started
    study, out = job.study, Store(job.out)
    # a trial's own process may die as often as an agent may
    survivable = study.experiment(next(study.corners())).snapshot.recoveries
    trials = source(study, out, max_concurrent, fit)
    if trials.count == 0:
        return True
    shown = TuneProgress(trials.count, held, quiet)
    with signals.gently(), TuneFiles(out) as files, shown as progress:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(Trial, job=job), job.resources),
            tune_config=tune.TuneConfig(
                num_samples=trials.count,
                reuse_actors=True,
                search_alg=trials.searcher,
                scheduler=scheduler(study, rounds, out),
                trial_name_creator=lambda trial: folder_name(job.point(trial.config)),
                trial_dirname_creator=lambda trial: folder_name(job.point(trial.config)),
            ),
            run_config=tune.RunConfig(
                name=out.name,
                storage_path=os.path.dirname(out.root),
                storage_filesystem=None if out.local else PyFileSystem(FSSpecHandler(out.files)),
                failure_config=tune.FailureConfig(max_failures=survivable, fail_fast=False),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[progress, files],
                verbose=0,
            ),
        ).fit()
    return progress.finished >= trials.count or trials.exhausted()


def main(
    file: Annotated[Path | None, typer.Argument(help="The study's TOML file.")] = None,
    settings: cli.Settings = None,
    *,
    out: cli.Out = None,
    resume: cli.Resume = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the trials only.")] = False,
    pool: cli.PoolName = "ray",
    address: cli.Address = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    quiet: cli.Quiet = False,
) -> int:
    """Run the study in FILE; continue one with --resume DIR."""
    if resume is not None and (file is not None or out is not None):
        raise InputError(f"--resume {resume} says all there is: write it without FILE and --out")
    if resume is None and file is None:
        raise InputError("which study? write python -m raydist.sweep FILE or --resume DIR")
    study = read(file or "", settings or []) if resume is None else study_in(resume)
    if dry_run:
        _show_plans(study, pool, address, max_concurrent)
        return 0
    out = resume or (f"runs/{study.name}" if out is None else out)
    try:
        frame = run_sweep(
            study,
            out=out,
            resume=resume is not None,
            pool=pool,
            address=address,
            max_concurrent=max_concurrent,
            quiet=quiet,
        )
    except InputError:
        raise
    except (KeyboardInterrupt, Exception) as error:
        return cli.told(error, _how_to_resume(out))
    if not quiet:
        _show(frame, study, out)
    print_failures(frame)
    if frame.attrs["interrupted"]:
        return cli.told(KeyboardInterrupt(), _how_to_resume(out))
    failed = bool((frame["status"] == "failed").any())
    if "unmeasured" in frame:
        for _, row in frame.dropna(subset="unmeasured").iterrows():
            say_unmeasured(row["trial"], row["unmeasured"], f"{out}/{row['trial']}")
            failed = True
    return cli.FAILED if failed else 0


def _how_to_resume(out: str) -> str:
    """The command that goes on; "" where nothing has begun."""
    there = Store(out).find(STUDY_FILE) is not None
    return f"python -m raydist.sweep --resume {out}" if there else ""


def _show(frame: "pd.DataFrame", study: Study, out: str) -> None:
    """The tables of a study, and where everything else is."""
    console.print(results_table(frame, list(study.axes)))
    if "seed" in study.axes:
        from raydist.results.seeds import over_seeds

        console.print(seeds_table(over_seeds(frame), list(study.axes)))
    for note in footnotes(frame):
        console.print(note, style="dim")
    console.print(f"results {out}/results.csv   picture {out}/summary.png")


def _show_plans(study: Study, pool: str, address: str | None, max_concurrent: int | None) -> None:
    """The trials and what each and all will need; asks the cluster where there is one."""
    trials = needed(study, corner_experiments(study))
    from raydist.engine.cluster.session import cluster_resources, ray_session, this_machine
    from raydist.tune.needs import size
    from raydist.tune.trial import Job

    cluster = this_machine()
    if address or os.environ.get("RAY_ADDRESS"):
        with ray_session(address):
            cluster = cluster_resources()
    at_a_time = max_concurrent or study.search.max_concurrent
    _, line = check_cluster(Job(study, "", pool, cluster, ""), trials, at_a_time)
    table = Table(header_style="bold")
    facts = ("agents", "rounds", "parameters", "mixing rate", "memory per agent", "per trial")
    for name in (*study.axes, *facts):
        table.add_column(name, justify="right")
    for point, need in trials:
        counts = [need.agents, need.rounds, f"{need.parameters:,}", f"{need.mixing_rate:.4f}"]
        sizes = [f"{need.memory / 1e6:,.0f} MB", size(need.total(pool == "local"))]
        cells = [*point.values(), *counts, *sizes]
        table.add_row(*(value_label(cell) for cell in cells))
    console.print(table)
    console.print(f"{study.trials} trials{counted(study)}")
    console.print(line)


def counted(study: Study) -> str:
    """How many trials that makes, where values are drawn: each draw runs at all values of lists."""
    if not study.spaces:
        return ""
    lists = {k: len(axis) for k, axis in study.axes.items() if k not in study.spaces}
    draws = f"{study.samples} draws of {', '.join(study.spaces)} (shown at their ends)"
    each = f", each at {' × '.join(f'{n} {key}' for key, n in lists.items())}" if lists else ""
    return f": {draws}{each}"


if __name__ == "__main__":
    cli.run(main)
