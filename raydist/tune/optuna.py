"""Points of a study that optuna proposes one after the other, from the results so far."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raydist.config.point import Point
from raydist.config.study import Study
from raydist.storage import Storage
from raydist.tune.points import OBJECTIVE, REPEATS, domain, value, with_seeds

PROPOSALS = "proposals.json"


@dataclass
class Proposal:
    """A point that optuna proposed.

    Attributes:
        params: the point as optuna knows it: positions instead of values of lists.
        name: optuna's name for the point, by which it is told how good the point was.
        ended: the objective of each of its trials that has ended; None where that failed.
        value: their mean once all have ended; None until then, and if all failed.
    """

    params: dict[str, Any]
    name: str = ""
    ended: list[float | None] = field(default_factory=list)
    value: float | None = None


class Proposals(Searcher):
    """Points from optuna: each runs with every seed and counts with the mean of its objectives.

    All of them are kept in a file of JSON. A resumed study tells them to a new sampler and proposes
    first what had not ended; what follows is drawn anew, so it is not what would have followed.
    """

    def __init__(self, study: Study, folder: Storage) -> None:
        """Begin, or go on from what is kept.

        Args:
            study: the study.
            folder: the study's folder, where the proposals are kept in a file.
        """
        super().__init__(metric=OBJECTIVE, mode=study.search.better)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study, self._folder = study, folder
        self._seeds = study.trials // study.samples  # of each point
        kept = json.loads(folder.find(PROPOSALS) or "[]")
        before = [Proposal(**each) for each in kept]
        self._made = [each for each in before if each.value is not None]
        self._optuna = OptunaSearch(
            OptunaSearch.convert_search_space({k: domain(study.axes[k]) for k in study.spaces}),
            metric=OBJECTIVE,
            mode=study.search.better,
            points_to_evaluate=[each.params for each in before if each.value is None],
            seed=study.search.seed + len(self._made),  # the same one would draw the same again
        )
        self._points = {json.dumps(each.params, sort_keys=True): each for each in self._made}
        for each in self._made:
            assert each.value is not None
            self._optuna.add_evaluated_point(each.params, each.value)
        self.exhausted = False  # whether it found no further point
        self._queue: list[tuple[Point, Proposal]] = []
        self._running: dict[str, Proposal] = {}

    @property
    def trials_left(self) -> int:
        """The number of trials, besides those of points that had ended before."""
        return self._seeds * (self._study.samples - len(self._made))

    def suggest(self, trial_id: str) -> Any:
        """Implement `Searcher.suggest`: the next seed of a point, or the first of a new one."""
        if not self._queue:
            proposal = self._propose(trial_id)
            if proposal is None:
                self.exhausted = True
                return Searcher.FINISHED
            self._made.append(proposal)
            self._write()
            point = {k: value(self._study.axes[k], drawn) for k, drawn in proposal.params.items()}
            self._queue = [(each, proposal) for each in with_seeds(self._study, point)]
        point, self._running[trial_id] = self._queue.pop(0)
        return point

    def _propose(self, name: str) -> Proposal | None:
        """A point that was not proposed before; None if optuna finds no more."""
        for attempt in range(REPEATS):
            params = self._optuna.suggest(f"{name}-{attempt}")
            assert params is not None
            point = json.dumps(params, sort_keys=True)
            if point not in self._points:
                self._points[point] = Proposal(params, f"{name}-{attempt}")
                return self._points[point]
            again = self._points[point]
            self._tell(f"{name}-{attempt}", again.value)
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Implement `Searcher.on_trial_complete`: with the last seed of a point, optuna is told."""
        proposal = self._running.pop(trial_id)
        proposal.ended.append((result or {}).get(OBJECTIVE))
        if len(proposal.ended) == self._seeds:
            values = [each for each in proposal.ended if each is not None]
            proposal.value = sum(values) / len(values) if values else None
            self._tell(proposal.name, proposal.value)
            self._write()

    def _tell(self, name: str, value: float | None) -> None:
        result = None if value is None else {OBJECTIVE: value}
        self._optuna.on_trial_complete(name, result, error=value is None)

    def _write(self) -> None:
        made = [{"params": each.params, "value": each.value} for each in self._made]
        self._folder.write(PROPOSALS, json.dumps(made, indent=1).encode())

    def save(self, checkpoint_path: str) -> None:
        """Implement `Searcher.save`, which nobody reads: proposals are in a file of their own."""
        Path(checkpoint_path).touch()
