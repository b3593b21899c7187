"""python -m raydist.sweep FILE: a study, run by Ray Tune.

Read, check every trial at the door, hand the study to Tune, show progress, and summarise. Nothing
is written before everything that can be checked was checked.
"""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.table import Table

from raydist import command, plot, record
from raydist.command import check_new_folder
from raydist.config import InputError
from raydist.engine.plan import make_plan
from raydist.engine.ray_pool import layout
from raydist.engine.ray_session import cluster_resources, ray_session
from raydist.naming import folder_name, value_label
from raydist.show import console, errors, footnotes, print_failures, results_table
from raydist.study import Study, from_tree, read
from raydist.tune_progress import TuneProgress
from raydist.tune_trial import Job, Trial

STUDY_FILE = "study.json"


def run_sweep(
    study: Study | Mapping[str, Any] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    pool: str = "ray",
    address: str | None = None,
    max_concurrent: int | None = None,
    quiet: bool = True,
) -> pd.DataFrame:
    """Run a study.

    Args:
        study: a study, its nested values, or the path of its file.
        out: the folder for its results; default: runs/<name>.
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
    """
    if not isinstance(study, Study):
        study = from_tree(study) if isinstance(study, Mapping) else read(study)
    if pool not in ("ray", "local"):
        raise InputError(f'pool is "{pool}", expected "ray" or "local"')
    folder = Path(out or Path("runs") / study.name).expanduser().absolute()
    if not resume:
        check_new_folder(folder)
    facts = check_trials(study)
    if not quiet:
        console.print(f"{study.name}: {study.trials} trials", highlight=False)
        for line in facts:
            console.print(f"  {line}", highlight=False)
    with ray_session(address):
        job = Job(study, str(folder), pool, cluster_resources(), os.getcwd())
        if pool == "ray":
            for point in study.corners():
                layout(study.experiment(point), job.cluster)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}") from error
        (folder / STUDY_FILE).write_text(study.to_json())
        with TuneProgress(study.trials, quiet) as progress:
            _tuner(job, max_concurrent or study.search.max_concurrent, progress).fit()
    frame = record.load(folder)
    plot.summary(frame, record.load_rounds(folder), folder / "summary.png")
    frame.to_csv(folder / "results.csv", index=False)
    return frame


def check_trials(study: Study) -> list[str]:
    """Make the plan of every trial once.

    Args:
        study: the study.

    Returns:
        What the trials will need, without repetition.

    Raises:
        InputError: names the point of the axes at which something cannot work.
    """
    facts = []
    for point in study.corners():
        try:
            facts.append(make_plan(study.experiment(point)).describe())
        except InputError as error:
            at = ", ".join(f"{key} = {value_label(value)}" for key, value in point.items())
            where = f" (at {at})" if at else ""
            raise InputError(f"{error}{where}") from error
    return list(dict.fromkeys(facts))


def _tuner(job: Job, max_concurrent: int | None, progress: TuneProgress) -> tune.Tuner:
    # Failed trials are told by ourselves, in one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose verbose = 0 still prints a box
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths begin where the sweep was started
    study, out = job.study, Path(job.out)
    space = {
        key: tune.grid_search(axis) if isinstance(axis, list) else _domain(axis)
        for key, axis in study.axes.items()
    }
    # a trial's own process may die as often as an agent may
    survivable = study.experiment(next(study.corners())).snapshot.recoveries
    trainable = tune.with_resources(tune.with_parameters(Trial, job=job), job.resources)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=study.samples,
            reuse_actors=True,
            search_alg=BasicVariantGenerator(
                max_concurrent=max_concurrent or 0, random_state=study.search.seed
            ),
            trial_name_creator=lambda trial: folder_name(job.point(trial.config)),
            trial_dirname_creator=lambda trial: folder_name(job.point(trial.config)),
        ),
        run_config=tune.RunConfig(
            name=out.name,
            storage_path=str(out.parent),
            failure_config=tune.FailureConfig(max_failures=survivable, fail_fast=False),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[progress],
            verbose=0,
        ),
    )


def _domain(axis: Mapping[str, Any]) -> Any:
    """A search space of Ray Tune from its name and numbers."""
    (name, values), *_ = axis.items()
    sample: Callable[..., Any] = getattr(tune, name)
    return sample(values) if name == "choice" else sample(*values)


def main(
    file: Annotated[Path | None, typer.Argument(help="The study's TOML file.")] = None,
    settings: command.Settings = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Results; default: runs/<name>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the trials only.")] = False,
    pool: command.PoolName = "ray",
    address: command.Address = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    quiet: command.Quiet = False,
) -> int:
    """Run the study in FILE; continue one with --resume DIR."""
    if resume is not None and (file is not None or out is not None):
        raise InputError(f"--resume {resume} says all there is: write it without FILE and --out")
    if resume is None and file is None:
        raise InputError("which study? write python -m raydist.sweep FILE or --resume DIR")
    study = _study_in(resume) if resume else read(file or "", settings or [])
    if dry_run:
        check_trials(study)
        _show_plans(study)
        return 0
    out = resume or out or Path("runs") / study.name
    frame = run_sweep(
        study,
        out=out,
        resume=resume is not None,
        pool=pool,
        address=address,
        max_concurrent=max_concurrent,
        quiet=quiet,
    )
    if not quiet:
        console.print(results_table(frame, list(study.axes)))
        for note in footnotes(frame):
            console.print(note, style="dim", highlight=False)
        where = f"results {out}/results.csv   picture {out}/summary.png"
        console.print(where, highlight=False, markup=False)
    print_failures(frame)
    if len(frame) < study.trials or (frame["status"] == "unfinished").any():
        line = f"raydist: interrupted; continue with python -m raydist.sweep --resume {out}"
        errors.print(line, markup=False)
        return command.INTERRUPTED
    return command.FAILED if (frame["status"] == "failed").any() else 0


def _study_in(folder: Path) -> Study:
    try:
        return Study.from_json((folder / STUDY_FILE).read_text())
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder} holds no study to resume: {folder / STUDY_FILE} cannot be read"
        ) from error


def _show_plans(study: Study) -> None:
    """The trials and what each will need."""
    table = Table(header_style="bold")
    for name in (*study.axes, "agents", "rounds", "parameters", "mixing rate", "memory per agent"):
        table.add_column(name, justify="right")
    for point in study.corners():
        plan = make_plan(study.experiment(point))
        facts = [plan.agents, plan.rounds, f"{plan.parameters:,}", f"{plan.mixing_rate:.4f}"]
        cells = [*point.values(), *facts, f"{plan.agent_bytes() / 1e6:,.0f} MB"]
        table.add_row(*(value_label(cell) for cell in cells))
    console.print(table)
    drawn = f", drawn from {', '.join(study.spaces)} (shown at their ends)" if study.spaces else ""
    console.print(f"{study.trials} trials{drawn}", highlight=False)


if __name__ == "__main__":
    command.run(main)
