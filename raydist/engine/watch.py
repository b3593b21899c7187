"""Watching a run: when it diverges, when it becomes unstable, and what is done about it.

Instability is judged by the signs of arXiv:2410.07675 on every measurement. A run then stops, or is
healed by noise on its inputs, or is only watched; either way its episodes are recorded.
"""

import math
from collections.abc import Mapping
from typing import Any

from raydist.adversary.instability import (
    catastrophic_overfitting,
    episodes,
    persistent,
    remedy_rounds,
    signs,
)
from raydist.engine.plan import Plan
from raydist.network.topology import title
from raydist.record import Outcome, Record

FORMS = {"published": "val_fosc", "box": "val_fosc_box", "relative": "val_fosc_relative"}
FINITE = ("loss", "grad_norm", "distance", "val_loss")


class Watch:
    """The history of a run's measurements and what follows from it."""

    def __init__(self, plan: Plan) -> None:
        """Begin with no measurement."""
        self._plan, self._rule = plan, plan.config.stop.fosc
        self._rounds: list[int] = []
        self._fosc: list[float] = []
        self._accuracies: tuple[list[float], list[float]] = ([], [])
        self._flags: list[bool] = []
        self._noisy: set[int] = set()
        self._overfitting: int | None = None

    def dump(self) -> dict[str, Any]:
        """The history as JSON has it, for a watch that goes on from here."""
        return {
            "rounds": [*self._rounds],
            "fosc": [*self._fosc],
            "accuracies": [[*history] for history in self._accuracies],
            "flags": [*self._flags],
            "noisy": sorted(self._noisy),
            "overfitting": self._overfitting,
        }

    def load(self, history: Mapping[str, Any]) -> None:
        """Go on from what `dump` gave."""
        self._rounds, self._fosc = [*history["rounds"]], [*history["fosc"]]
        clean, adversarial = history["accuracies"]
        self._accuracies = [*clean], [*adversarial]
        self._flags, self._noisy = [*history["flags"]], {*history["noisy"]}
        self._overfitting = history["overfitting"]

    def noisy(self, n: int) -> bool:
        """Whether the inputs of round n get the remedy's noise."""
        return n in self._noisy

    def observe(self, record: Record) -> Outcome | None:
        """Take in a record; says so if the run ends with it, and how.

        Args:
            record: of the round after the last one; gets `unstable` where it is a measurement.

        Returns:
            The outcome, or None if the run goes on.
        """
        n = record.round
        for k, info in enumerate([*record.agents, record.centroid]):
            bad = [name for name in FINITE if not math.isfinite(info.get(name, 0.0))]
            if bad:
                known = k < len(record.agents)
                who = title(self._plan.graph, k) if known else "the centroid"
                return Outcome("diverged", f"{bad[0]} of {who} is {info[bad[0]]} in round {n}", n)
        self._look_for_overfitting(record)
        found = self._judge(record)
        if found and self._plan.config.stop.on_instability == "heal":
            self._noisy |= set(
                remedy_rounds(self._plan.epoch, n, self._plan.config.stop.remedy.batches)
            )
        if found and self._plan.config.stop.on_instability == "stop":
            assert self._rule is not None
            if persistent(self._flags, self._rule.patience):
                return Outcome(
                    "stopped",
                    f"FOSC on {self._rule.on} is {self._fosc[-1]:.4g} in round {n}: "
                    f"{' and '.join(sorted(found))}, {self._rule.patience} measurements in a row",
                    n,
                )
        return Outcome("completed", "", n) if n == self._plan.rounds else None

    def _judge(self, record: Record) -> set[str]:
        """The signs of instability in a record, which gets `unstable` if it is a measurement."""
        rule = self._rule
        if rule is None:
            return set()
        train = rule.on == "train"
        fosc = record.mean.get("fosc") if train else record.centroid.get(FORMS[rule.form])
        if fosc is None:
            return set()
        self._rounds.append(record.round)
        self._fosc.append(fosc)
        if rule.adv_above_clean:
            for history, name in zip(
                self._accuracies, ("train_clean_acc", "train_adv_acc"), strict=True
            ):
                history.append(record.mean.get(name, math.nan))
        found: set[str] = set(
            signs(
                self._fosc,
                *self._accuracies,
                threshold=rule.threshold,
                relative=rule.relative,
                warmup=rule.warmup,
            )
        )
        self._flags.append(bool(found))
        record.centroid["unstable"] = float(bool(found))
        return found

    def _look_for_overfitting(self, record: Record) -> None:
        """Remember the first round in which FGSM looks much weaker than PGD, if it trains."""
        known = record.centroid
        if self._plan.config.attack.name == "fgsm" and self._overfitting is None:
            fgsm_acc = known.get("val_fgsm_acc", 0.0)
            if catastrophic_overfitting(fgsm_acc, known.get("val_pgd10_acc", fgsm_acc)):
                self._overfitting = record.round

    def summary(self) -> dict[str, float | str]:
        """Columns of the result: the first episode, its recovery, and how many there were."""
        columns: dict[str, float | str] = {}
        if self._overfitting is not None:
            columns["catastrophic_overfitting_round"] = float(self._overfitting)
        if self._rule is None:
            return columns
        found = episodes(self._rounds, self._flags, self._noisy)
        columns["unstable_episodes"] = float(len(found))
        if found:
            columns["onset_round"] = float(found[0].onset_round)
            columns["recovered_by"] = found[0].by
            if found[0].recovery_round is not None:
                columns["recovery_round"] = float(found[0].recovery_round)
        return columns
