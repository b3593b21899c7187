"""Watching a run: detects divergence and instability, and applies the remedy.

Every measurement is judged by the signs of instability of arXiv:2410.07675. An unstable run stops,
or is healed by noise on its inputs, or is only watched; its episodes are always recorded.
"""

import math
from collections.abc import Mapping
from typing import Any

from raydist.adversary.instability import Chronicle, catastrophic_overfitting, remedy_rounds
from raydist.engine.plan import Plan
from raydist.network.topology import title
from raydist.results.record import Outcome, Record

FORMS = {"published": "val_fosc", "box": "val_fosc_box", "relative": "val_fosc_relative"}
FINITE = ("loss", "grad_norm", "distance", "val_loss")


class Watch:
    """Memory of a run's measurements, and the decisions that follow from them."""

    def __init__(self, plan: Plan) -> None:
        """Begin with no measurement."""
        self._plan, self._rule = plan, plan.config.stop.fosc
        rule = self._rule.model_dump() if self._rule else {}
        bounds = {name: rule[name] for name in ("threshold", "relative", "warmup") if name in rule}
        self._chronicle = Chronicle(**bounds)
        self._noisy: set[int] = set()  # rounds to come
        self._overfitting: int | None = None

    def dump(self) -> dict[str, Any]:
        """The state as JSON values, for a watch that goes on from here."""
        return {
            "chronicle": self._chronicle.dump(),
            "noisy": sorted(self._noisy),
            "overfitting": self._overfitting,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `dump`."""
        self._chronicle.load(state["chronicle"])
        self._noisy, self._overfitting = {*state["noisy"]}, state["overfitting"]

    def noisy(self, n: int) -> bool:
        """Tell if the inputs of round n get the remedy's noise."""
        return n in self._noisy

    def observe(self, record: Record) -> Outcome | None:
        """Add a record; return the outcome if the run ends with it.

        Args:
            record: the record of the next round; a measurement gets the field `unstable`.

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
        if n in self._noisy:
            self._chronicle.remedied()
        self._noisy = {later for later in self._noisy if later > n}
        reason = self._judge(record)
        if reason and self._plan.config.stop.on_instability == "stop":
            assert self._rule is not None
            if self._chronicle.in_a_row >= self._rule.patience:
                return Outcome("stopped", reason, n)
        return Outcome("completed", "", n) if n == self._plan.rounds else None

    def _judge(self, record: Record) -> str:
        """Return why a record is unstable, or ""; set `unstable` if it is a measurement."""
        rule, stop, n = self._rule, self._plan.config.stop, record.round
        if rule is None:
            return ""
        mean = record.mean
        fosc = mean.get("fosc") if rule.on == "train" else record.centroid.get(FORMS[rule.form])
        if fosc is None:
            return ""
        names = ("train_clean_acc", "train_adv_acc") if rule.adv_above_clean else ()
        found = self._chronicle.judge(n, fosc, *(mean.get(name, math.nan) for name in names))
        record.centroid["unstable"] = float(bool(found))
        if stop.on_instability == "heal":  # the last measurement of an epoch decides on the next
            coming = {*remedy_rounds(self._plan.epoch, n, stop.remedy.batches)}
            self._noisy = self._noisy | coming if found else self._noisy - coming
        if not found:
            return ""
        return (
            f"FOSC on {rule.on} is {fosc:.4g} in round {n}: {' and '.join(sorted(found))}, "
            f"{rule.patience} measurements in a row"
        )

    def _look_for_overfitting(self, record: Record) -> None:
        """Remember the first round in which FGSM looks much weaker than PGD, if it trains."""
        known = record.centroid
        if self._plan.config.attack.name == "fgsm" and self._overfitting is None:
            fgsm_acc = known.get("val_fgsm_acc", 0.0)
            if catastrophic_overfitting(fgsm_acc, known.get("val_pgd10_acc", fgsm_acc)):
                self._overfitting = record.round

    def summary(self) -> dict[str, float | str]:
        """Columns of the result: the first episode, its recovery, the number of episodes."""
        columns: dict[str, float | str] = {}
        if self._overfitting is not None:
            columns["catastrophic_overfitting_round"] = float(self._overfitting)
        if self._rule is None:
            return columns
        first = self._chronicle.first
        columns["unstable_episodes"] = float(self._chronicle.count)
        if first is not None:
            columns["onset_round"] = float(first.onset_round)
            columns["recovered_by"] = first.by
            if first.recovery_round is not None:
                columns["recovery_round"] = float(first.recovery_round)
        return columns
