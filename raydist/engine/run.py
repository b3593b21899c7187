"""One experiment, without Ray Tune, on either pool.

Slow imports stay inside functions, because --help and a misspelt key need an answer without them.
"""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

from raydist import errors
from raydist.config.experiment import Experiment, validate
from raydist.config.study import from_tree, read
from raydist.errors import AgentError, InputError
from raydist.lock import Held, hold
from raydist.results import door
from raydist.results.identity import check_versions
from raydist.results.terminal import Words, console, progress, status
from raydist.storage import Storage

if TYPE_CHECKING:
    from raydist.engine.plan import Plan
    from raydist.engine.pool.pool import Pool
    from raydist.results.folder import Folder
    from raydist.results.record import Record, Result


def run_experiment(
    config: Experiment | Mapping[str, Any] | str | os.PathLike[str],
    pool: str = "local",
    *,
    address: str | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = True,
) -> "Result":
    """Run one experiment.

    Args:
        config: an experiment, its nested values, or the path of its file.
        pool: "local": the agents run in this process; "ray": each is an actor.
        address: the address of an existing Ray cluster, for pool = "ray".
        out: a new folder for the run, or an fsspec URL; default: write nothing.
        resume: True to go on with this very experiment in that folder, from its last snapshot.
        quiet: True to omit progress and the line about the run.

    Returns:
        The rounds as a frame, the final numbers, every agent's weights and the centroid.

    Raises:
        InputError: if something in the experiment cannot work; nothing was started or written.
        AgentError: if an agent raised, in either pool; `out` then holds its traceback, and the run
            can be continued.

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
    from raydist.engine.plan import make_plan
    from raydist.engine.pool.pool import LocalPool
    from raydist.results.folder import Folder

    experiment = _experiment(config)
    if pool not in ("local", "ray"):
        raise InputError(f'pool is "{pool}", expected "local" or "ray"')
    if experiment.engine == "train":
        _check_train(pool, resume)
    folder = None if out is None else Folder(out)
    if pool == "ray":
        door.check_importable(experiment, ("model.name", "loss.name"))
        door.check_snapshots(experiment)
        if folder is not None:
            door.check_shared(folder.url)
    _check_folder(folder, experiment, resume)
    plan = make_plan(experiment)
    if folder is not None:
        check_versions(folder.url, folder.check(experiment, plan.contents))
    if not quiet:
        show_plan(plan)
    with hold(None if folder is None else folder.store) as held:
        _check_folder(folder, experiment, resume)  # again, now that no other process can use it
        try:
            if pool == "local":
                result = _run(plan, LocalPool(plan), folder, held, quiet)
            else:
                result = _run_on_ray(plan, address, folder, held, quiet)
        except AgentError as error:
            _note(error, folder)
            raise
        held.check(now=True)
    return result


def show_plan(plan: "Plan") -> None:
    """Print the plan of the run, in one line."""
    console.print(f"{plan.config.strategy}: {plan.describe()}")


def _note(error: AgentError, folder: "Folder | None") -> None:
    """Write a run's error to its folder, unless the machine itself cannot write."""
    if folder is None or errors.machine_error(error):
        return
    if folder.store.find("experiment.json") is not None:
        folder.fail(error)


def _check_train(pool: str, resume: bool) -> None:
    """Refuse the options that engine = "train" lacks."""
    if pool != "ray":
        raise InputError('engine = "train" runs on Ray, not in this process: write --pool ray')
    if resume:
        raise InputError('engine = "train" keeps no snapshots to resume from: run it anew')


def _check_folder(folder: "Folder | None", experiment: Experiment, resume: bool) -> None:
    """Check that the folder is new, or holds an unfinished try of this experiment."""
    if not resume:
        if folder is not None:
            door.check_new_folder(folder.store)
        return
    if folder is None:
        raise InputError("which run? resume = True needs out, the folder of the run")
    experiment_in(folder.store)
    folder.check(experiment, {})
    if folder.final(experiment) is not None:
        raise InputError(f"{folder.url} has run to its end: read it with raydist.load")


def experiment_in(folder: Storage) -> Experiment:
    """The experiment whose run a folder holds.

    Args:
        folder: the folder of a run.

    Returns:
        The experiment.

    Raises:
        InputError: if the folder holds no experiment.
    """
    name = "experiment.json"
    try:
        tree = json.loads(folder.read(name))["config"]
    except (OSError, ValueError, KeyError) as error:
        line = f"{folder.url} holds no run to resume: {folder.url}/{name} cannot be read"
        raise InputError(line) from error
    try:
        return validate(tree)
    except InputError as error:
        line = f"{folder.url}/{name} is of another release ({error}): continue it with that one"
        raise InputError(line) from error


def _experiment(config: Experiment | Mapping[str, Any] | str | os.PathLike[str]) -> Experiment:
    if isinstance(config, Experiment):
        return validate(config.model_dump())
    study = from_tree(config) if isinstance(config, Mapping) else read(config)
    return study.only()


def _run(plan: "Plan", pool: "Pool", folder: "Folder | None", held: Held, quiet: bool) -> "Result":
    """Run a plan on a pool with a progress bar."""
    from raydist.engine.driver import complete

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress(quiet, *columns, Words("{task.fields[status]}")) as bar:
        task = bar.add_task("rounds", total=plan.rounds, status="")

        def tell(record: "Record") -> None:
            held.check()
            bar.update(task, completed=record.round, status=status(record.numbers))

        return complete(plan, pool, folder, tell)


def _run_on_ray(
    plan: "Plan", address: str | None, folder: "Folder | None", held: Held, quiet: bool
) -> "Result":
    """Run a plan on the cluster at an address, by agents or by the workers of Ray Train."""
    from raydist.engine.cluster.layout import layout
    from raydist.engine.cluster.session import cluster_resources, ray_session
    from raydist.engine.pool.ray_pool import RayPool

    with ray_session(address):
        if plan.config.engine == "train":
            from raydist.engine.ray_train import run_on_train, scaling

            return run_on_train(plan, scaling(plan.config, cluster_resources()), folder)
        resources = layout(plan.config, cluster_resources())
        return _run(plan, RayPool(plan, resources), folder, held, quiet)
