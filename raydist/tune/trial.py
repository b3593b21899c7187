"""A trial of a sweep as Ray Tune sees it: one `step` is some rounds, warm agents are kept.

A trial reserves its agents (and nothing for itself: it only passes references on) in one placement
group, which Ray takes back whole when the trial ends, however it ends. A trial that already ran to
its end in this study's folder reports its numbers again and starts nothing; one that was cut short
goes on from its last snapshot. Tune starts a trial again only if its process has died: what an
agent raises ends the trial, told by the trial itself.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from raydist.config.experiment import Experiment
from raydist.config.point import Point, folder_name
from raydist.config.search import Search
from raydist.config.study import Study
from raydist.engine.cluster.layout import Layout, Resources, layout
from raydist.engine.driver import train
from raydist.engine.plan import Plan, make_plan
from raydist.engine.pool.pool import LocalPool, Pool
from raydist.engine.pool.ray_pool import RayPool
from raydist.engine.recovery import Recovery
from raydist.engine.source import images_of, load_data
from raydist.errors import AgentError, InputError
from raydist.results.folder import Folder
from raydist.results.record import Record
from raydist.tune.monitor import Metrics, TrialLog
from raydist.tune.points import OBJECTIVE, WORST

REPORT_SECONDS = 2.0  # at most this long between two reports
PAUSE_SECONDS = 0.25  # and no more often, where nobody compares trials: a report costs as much as
# many rounds of a small model
SCALARS = (int, float, str, bool)


@dataclass(frozen=True)
class Job:
    """The job that all trials of a sweep share.

    Attributes:
        study: the study.
        out: its folder, an fsspec URL or a path that every node sees.
        pool: "ray" or "local".
        cluster: the resources of each node; the defaults of an agent are a share of them.
        home: the folder in which the sweep was started: relative paths begin there.
        images: references into the object store, by `images_of`: images were read once, there is
            one copy on each node, and trials read no file.
    """

    study: Study
    out: str
    pool: str
    cluster: Sequence[Resources]
    home: str
    images: Mapping[str, Any] = field(default_factory=dict)

    def point(self, config: Mapping[str, Any]) -> Point:
        """The point of a trial, from Tune's configuration of it."""
        return {key: config[key] for key in self.study.axes}

    def layout(self, config: Mapping[str, Any]) -> Layout:
        """The resources of a trial."""
        return layout(self.study.experiment(self.point(config)), self.cluster)

    def resources(self, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        """The placement group of a trial: nothing for its head, then its agents' bundles."""
        if self.pool == "local":
            return tune.PlacementGroupFactory([{"CPU": 1.0}])
        try:
            found = self.layout(config)
        except InputError:  # a drawn value that is invalid: the trial itself says so, and fails
            return tune.PlacementGroupFactory([{}, {"CPU": 0.01}])
        return tune.PlacementGroupFactory([{}, *found.bundles], strategy=found.strategy)


def stored_images(study: Study) -> dict[str, Any]:
    """The images of all trials of a study, each set once in the object store, by `images_of`."""
    configs = {images_of(each): each for each in map(study.experiment, study.corners())}
    found = {name: load_data(config) for name, config in configs.items() if name}
    for data in found.values():
        _ = data.digest  # travels with them, so no trial hashes them again
    return {name: ray.put(data) for name, data in found.items()}


class Trial(tune.Trainable):
    """One point of a study."""

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        """Called by Tune when the trial's process starts.

        Args:
            config: Tune's configuration.
            job: the job that all trials share.
        """
        assert job is not None
        if os.path.isdir(job.home):
            os.chdir(job.home)
        self.job = job
        self._pool: Pool | None = None
        self._layout: Layout | None = None
        self._metrics = Metrics(job.study.name)
        logging.getLogger("raydist").setLevel(logging.INFO)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Called by Tune to run another trial in this process, with its warm agents."""
        self._begin(new_config)
        return True

    def _begin(self, config: Mapping[str, Any]) -> None:
        self.point = self.job.point(config)
        self.folder = Folder(f"{self.job.out}/{folder_name(self.point)}")
        self.records: Iterator[Record] | None = None
        self.early = ""

    def end_early(self, reason: str) -> None:
        """Called by the study's scheduler between two steps: the next one ends the run.

        Args:
            reason: the reason in words.
        """
        self.early = reason

    def step(self) -> dict[str, Any]:
        """Called by Tune again and again: run until there is something to report."""
        try:
            return self._advance()
        except Exception as error:
            self.folder.fail(error)
            return {"status": "failed", "done": True}

    def _advance(self) -> dict[str, Any]:
        if self.records is None:
            experiment = self.job.study.experiment(self.point)
            done = self.folder.final(experiment)
            if done is not None:
                return _at_the_end(done) | {"round": done["rounds_run"], "done": True}
            self.records = self._open(experiment)
        record = next(self.records)
        report = {"round": record.round, "rounds": self.rounds, **record.numbers}
        report |= self._objective(record)
        if record.outcome is None:
            self.folder.flush()
            return report
        record.final.update(self._objective(record))
        final = self.folder.finish(record, self.keeper.seconds())
        return report | _at_the_end(final) | {"done": True}

    def _worth_reporting(self, records: Iterator[Record]) -> Iterator[Record]:
        """Yield records to report: where trials are compared, the same rounds of every trial."""
        search, last = self.job.study.search, -1
        began, found = time.monotonic(), list[Record]()
        for record in records:
            if record.round > last:  # the round after which it was ended early comes again
                found.append(record)
            last = record.round
            seconds = time.monotonic() - began
            late = seconds > (PAUSE_SECONDS if record.centroid else REPORT_SECONDS)
            if record.outcome is not None or (_judged(record, search) if search.judges else late):
                if found:
                    self._metrics.tell(self.folder.name, found, self.folder.events)
                yield record
                began, found = time.monotonic(), []

    def _objective(self, record: Record) -> dict[str, float]:
        """The number by which the study compares trials, finite even where a run diverged."""
        search = self.job.study.search
        if not search.judges:
            return {}
        value = record.numbers.get(search.metric, math.nan)
        worst = -WORST if search.better == "max" else WORST
        return {OBJECTIVE: value if math.isfinite(value) else worst}

    def _open(self, experiment: Experiment) -> Iterator[Record]:
        """Begin the run, or go on with it; the records that are to be reported."""
        stored = self.job.images.get(images_of(experiment))
        plan = make_plan(experiment, images=ray.get(stored) if stored else None)
        self.folder.begin(experiment, plan.graph, plan.A, plan.mixing_rate, plan.contents)
        logging.getLogger("raydist").handlers = [TrialLog(self.folder.store)]
        self.rounds, self.keeper = plan.rounds, Recovery(plan, self.folder)
        weights = f"{self.folder.url}/weights"
        pool = self._pool_for(plan)
        records = train(
            pool, plan, self.keeper, lambda pool, n: pool.save(weights, n), lambda: self.early
        )
        return self._worth_reporting(records)

    def _pool_for(self, plan: Plan) -> Pool:
        """The warm agents if they have the right shape, else new ones."""
        if self.job.pool == "local":
            self._pool = LocalPool(plan)
            return self._pool
        wanted = layout(plan.config, self.job.cluster)
        if isinstance(self._pool, RayPool) and self._layout == wanted:
            try:
                self._pool.reset(plan)  # wherever a failed run has left them
                return self._pool
            except AgentError as error:
                logging.getLogger("raydist").warning("all agents are started anew: %s", error)
        self.cleanup()
        self._pool, self._layout = RayPool(plan, wanted), wanted
        return self._pool

    def cleanup(self) -> None:
        """Called by Tune when the trial's process ends: give everything back."""
        if self._pool is not None and ray.is_initialized():
            self._pool.shutdown()
        self._pool = None


def _judged(record: Record, search: Search) -> bool:
    """Tell whether a record is of a measured state and holds the metric of comparison."""
    known = record.numbers
    return "distance" in known and search.metric in known


def _at_the_end(final: Mapping[str, Any]) -> dict[str, Any]:
    """The final numbers that Tune's loggers can draw, each under a name of its own."""
    # in rounds, fosc is that of the training attack; in final numbers, of PGD-10 on test images
    drawn = {name: value for name, value in final.items() if isinstance(value, SCALARS)}
    return {"test_fosc" if name == "fosc" else name: value for name, value in drawn.items()}
