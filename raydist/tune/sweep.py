"""A study, run by Ray Tune.

Check every trial at the door, hand the study to Tune, show progress, and summarise. Nothing is
written before everything that can be checked was checked.

What is imported in functions takes seconds; --help and a misspelt key are answered without it.
"""

import logging
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raydist import signals
from raydist.config.experiment import Experiment
from raydist.config.point import Point, folder_name, value_label
from raydist.config.study import Study, from_tree, read
from raydist.errors import InputError, masked
from raydist.lock import Held, hold
from raydist.results import door
from raydist.results.door import check_new_folder
from raydist.results.terminal import console
from raydist.storage import Storage
from raydist.tune.resume import STUDY_FILE, check_resumed

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
        resume: whether to continue there: what ended is kept, what did not end goes on.
        pool: "ray": each agent is an actor; "local": each trial runs its agents in one process.
        address: a Ray cluster's address; default: the environment's RAY_ADDRESS, else a private
            Ray on this machine, which is stopped again.
        max_concurrent: trials at a time; default: as many as fit.
        quiet: whether to show no progress.

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
    folder = Storage(f"runs/{study.name}" if out is None else out)
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


def _check_shared(folder: Storage, name: str) -> None:
    """Results can be left there by many processes, side by side."""
    door.check_shared(folder.url)
    if not os.path.dirname(folder.root):
        raise InputError(f"{folder.url} is no folder: write --out {folder.url}/{name}")


def _summarise(folder: Storage, ended: bool) -> "pd.DataFrame":
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
            door.check_importable(experiment, ("model.name", "loss.name", "topology.kind"))
            door.check_snapshots(experiment)
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
    """The message about a wrong experiment, with its point on the axes."""
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
        trials: its points and the needs of each.
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
    study, out = job.study, Storage(job.out)
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
