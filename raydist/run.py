"""python -m raydist.run FILE: one experiment, without Ray Tune, on either pool."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raydist import command
from raydist.config import Experiment, InputError, validate
from raydist.engine.driver import train
from raydist.engine.plan import Plan, make_plan
from raydist.engine.pool import LocalPool, Pool, parameters_of
from raydist.folder import Folder, final_numbers
from raydist.record import Record, Result, rounds_frame
from raydist.show import console, number, numbers
from raydist.study import from_tree, read


def run_experiment(
    config: Experiment | Mapping[str, Any] | str | os.PathLike[str],
    pool: str = "local",
    *,
    address: str | None = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = True,
) -> Result:
    """Run one experiment.

    Args:
        config: an experiment, its nested values, or the path of its file.
        pool: "local": the agents run in this process; "ray": each is an actor.
        address: of an existing Ray cluster, for pool = "ray".
        out: a new folder to leave the run in; default: nothing is written.
        quiet: without progress.

    Returns:
        The rounds as a frame, the final numbers, every agent's weights and the centroid.

    Raises:
        InputError: if something in the experiment cannot work; nothing was started or written.

    Example:
        >>> result = run_experiment(
        ...     {
        ...         "topology": {"kind": "ring", "agents": 3},
        ...         "rounds": 2,
        ...         "dtype": "float64",
        ...         "data": {"set": "quadratic", "centers": [[0], [3], [6]], "hessian": [1.0]},
        ...         "model": {"name": "point", "start": [3.0]},
        ...         "loss": {"name": "quadratic"},
        ...         "threat": {"eps": 0.0},
        ...     }
        ... )
        >>> result.centroid.round(9).tolist(), result.final["status"]
        ([3.0], 'completed')
    """
    experiment = _experiment(config)
    if pool not in ("local", "ray"):
        raise InputError(f'pool is "{pool}", expected "local" or "ray"')
    folder = None if out is None else Folder(Path(out).expanduser().absolute())
    if folder is not None:
        command.check_new_folder(folder.path)
    plan = make_plan(experiment)
    if pool == "local":
        return _run(plan, LocalPool(plan), folder, quiet)
    from raydist.engine.layout import layout
    from raydist.engine.ray_pool import RayPool  # Ray takes a second to import
    from raydist.engine.ray_session import cluster_resources, ray_session

    with ray_session(address):
        resources = layout(experiment, cluster_resources())
        return _run(plan, RayPool(plan, resources), folder, quiet)


def _experiment(config: Experiment | Mapping[str, Any] | str | os.PathLike[str]) -> Experiment:
    if isinstance(config, Experiment):
        return validate(config.model_dump())
    study = from_tree(config) if isinstance(config, Mapping) else read(config)
    return study.only()


def _run(plan: Plan, pool: Pool, folder: Folder | None, quiet: bool) -> Result:
    """Run a plan on a pool and give the pool back."""
    began = time.monotonic()
    records: list[Record] = []
    try:
        if folder is not None:
            folder.begin(plan.config, plan.graph, plan.A, plan.mixing_rate)
        with _progress(quiet) as bar:
            task = bar.add_task("rounds", total=plan.rounds, status="")
            for record in train(pool, plan):
                records.append(record)
                bar.update(task, completed=record.round, status=_status(record))
                if folder is not None:
                    folder.add(record)
                    if record.centroid:
                        folder.flush()
        seconds = time.monotonic() - began
        last = records[-1]
        if folder is not None:
            pool.save(folder.path / "weights")
            folder.finish(last, seconds)
        weights = parameters_of(pool.states(), plan.parameters)
    finally:
        pool.shutdown()
    name = folder.path.name if folder is not None else "run"
    final = final_numbers(last, seconds)
    return Result(rounds_frame(name, records), final, weights, weights.mean(axis=0))


def _progress(quiet: bool) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    status = TextColumn("{task.fields[status]}")
    off = quiet or not console.is_terminal
    return Progress(*columns, status, console=console, transient=True, disable=off)


def _status(record: Record) -> str:
    shown = ("loss", "val_clean_acc", "val_pgd10_acc", "val_fosc", "excess_risk")
    known = record.mean | record.centroid
    return numbers({name: known[name] for name in shown if name in known})


def main(
    file: Annotated[Path, typer.Argument(help="The experiment's TOML file.")],
    settings: command.Settings = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Results; default: runs/<name>.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it needs only.")] = False,
    pool: command.PoolName = "local",
    address: command.Address = None,
    quiet: command.Quiet = False,
) -> int:
    """Run the experiment in FILE."""
    study = read(file, settings or [])
    experiment = study.only()
    plan = make_plan(experiment)
    if not quiet:
        console.print(f"{experiment.strategy}: {plan.describe()}", highlight=False)
    if dry_run:
        return 0
    folder = out or Path("runs") / study.name
    result = run_experiment(experiment, pool, address=address, out=folder, quiet=quiet)
    if not quiet:
        for name, value in result.final.items():
            console.print(f"{name:24} {number(value)}", highlight=False)
        console.print(f"results {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    command.run(main)
