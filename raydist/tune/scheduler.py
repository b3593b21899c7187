"""Schedulers that end trials early, and go on after --resume as they had begun.

What a scheduler was told of a trial, in which order among all trials, and how it answered lies in
the trial's folder, `decisions.json`. A resumed study tells its new scheduler all of that again: the
rungs of ASHA and the means of the median rule are those of a study that was never interrupted. A
round that a trial reports again, because it went on from a snapshot, gets the same answer.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from raydist.config.fields import in_rounds
from raydist.config.study import Study
from raydist.storage import Storage
from raydist.tune.points import OBJECTIVE

DECISIONS = "decisions.json"


@dataclass(frozen=True)
class Decision:
    """A report to a scheduler, and its answer.

    Attributes:
        order: its place among all of the study.
        round: the report's round.
        objective: the report's objective.
        stop: whether the trial was to end.
        last: whether it had ended.
    """

    order: int
    round: int
    objective: float
    stop: bool = False
    last: bool = False


class _Known:
    """A trial as a scheduler knows it: by the name that it keeps when the study is resumed."""

    def __init__(self, name: str) -> None:
        """Begin without decisions."""
        self.trial_id = name
        self.decisions: list[Decision] = []

    def find(self, n: int, last: bool) -> Decision | None:
        """The earlier decision about the same report."""
        same = (d for d in self.decisions if d.last == last and (last or d.round == n))
        return next(same, None)


class _EndsGently:
    """A scheduler that lets a trial end itself, so that it leaves a whole folder."""

    reason = ""
    folder: Storage
    known: dict[str, _Known]

    def recall(self, folder: Storage) -> None:
        """Take in all that was decided in a study, in its order.

        Args:
            folder: the study's folder, where decisions are kept.
        """
        self.folder, self.known = folder, {}
        told: list[tuple[Decision, _Known]] = []
        for name in folder.names():
            for decision in _kept(folder.find(f"{name}/{DECISIONS}")):
                told.append((decision, self._trial(name)))
        for decision, trial in sorted(told, key=lambda each: each[0].order):
            self._tell(trial, decision.round, decision.objective, decision.last)
            trial.decisions.append(decision)

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """Implement `TrialScheduler.on_trial_add`."""
        self._trial(str(trial))

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        """Implement `TrialScheduler.on_trial_remove`: what is known of it still counts."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Implement `TrialScheduler.on_trial_result`."""
        if OBJECTIVE in result and self._decide(trial, result, last=False).stop:
            trial.temporary_state.ray_actor.end_early.remote(self.reason)  # before the next step
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Implement `TrialScheduler.on_trial_complete`; failed trials are not compared."""
        if OBJECTIVE in result:
            self._decide(trial, result, last=True)

    def _trial(self, name: str) -> _Known:
        if name not in self.known:
            self.known[name] = _Known(name)
            super().on_trial_add(None, self.known[name])  # type: ignore[misc]
        return self.known[name]

    def _decide(self, trial: Any, result: dict[str, Any], last: bool) -> Decision:
        """The answer to a report, kept before anything follows from it."""
        known = self._trial(str(trial))
        n, objective = int(result["round"]), float(result[OBJECTIVE])
        found = known.find(n, last)
        if found is None:
            stop = self._tell(known, n, objective, last)
            order = sum(len(each.decisions) for each in self.known.values())
            found = Decision(order, n, objective, stop, last)
            known.decisions.append(found)
            kept = json.dumps([asdict(each) for each in known.decisions])
            self.folder.write(f"{known.trial_id}/{DECISIONS}", kept.encode())
        return found

    def _tell(self, trial: _Known, n: int, objective: float, last: bool) -> bool:
        """Tell the scheduler; says whether it wants the trial to end."""
        told = {"round": n, OBJECTIVE: objective}
        if last:
            super().on_trial_complete(None, trial, told)  # type: ignore[misc]
            return False
        answer: str = super().on_trial_result(None, trial, told)  # type: ignore[misc]
        return answer == TrialScheduler.STOP


def _kept(data: bytes | None) -> list[Decision]:
    """The decisions in a file; none if it is damaged, and they are made anew."""
    try:
        return [Decision(**each) for each in json.loads(data or b"[]")]
    except (ValueError, TypeError):
        return []


class Asha(_EndsGently, ASHAScheduler):
    """Asynchronous successive halving (arXiv:1810.05934)."""


class Median(_EndsGently, MedianStoppingRule):
    """The median stopping rule of Vizier."""


def scheduler(study: Study, rounds: int, folder: Storage) -> TrialScheduler | None:
    """The scheduler that compares running trials and ends the worse ones early.

    Args:
        study: the study.
        rounds: the rounds of its longest trial.
        folder: the study's folder, which may have been begun before.

    Returns:
        Tune's scheduler, with our own round as its time; None if all trials run to their end.
    """
    search = study.search
    if search.scheduler is None:
        return None
    common: dict[str, Any] = {"time_attr": "round", "metric": OBJECTIVE, "mode": search.better}
    grace = min(in_rounds(search.grace, rounds), rounds)
    found: Asha | Median
    if search.scheduler == "asha":
        reduction = search.reduction
        found = Asha(**common, max_t=rounds, grace_period=grace, reduction_factor=reduction)
        found.reason = f"asha: {search.metric} is not among the best 1 in {reduction:g} at its rung"
    else:  # it would pause a trial that has none to be compared with; ours go on
        common["min_time_slice"] = math.inf
        found = Median(**common, grace_period=grace)
        found.reason = f"median: {search.metric} is worse than the median of the other trials"
    found.recall(folder)
    return found
