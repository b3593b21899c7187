"""Results of an evaluation in a trial's folder: ledger, numbers, one row for each image."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from raydist.adversary.threat import ThreatModel
from raydist.errors import whole
from raydist.evaluation.ledger import Entry, Ledger
from raydist.evaluation.request import Request
from raydist.evaluation.subject import Subject
from raydist.evaluation.table import (
    asked_numbers,
    images_frame,
    known_numbers,
    known_of,
    w2_numbers,
)
from raydist.evaluation.trial_end import from_trial
from raydist.evaluation.units import Unit, missing
from raydist.measure.columns import Numbers, joined, over_agents
from raydist.results.folder import pack_frame, pack_json, plain
from raydist.storage import Storage

TOLD = 5  # bad lines that are told one by one


class Results:
    """One trial under evaluation."""

    def __init__(self, subject: Subject, request: Request) -> None:
        """Read what is known.

        Args:
            subject: the trial.
            request: the request.
        """
        self.subject, self.request = subject, request
        self.models = subject.chosen(request.models)
        self.errors: dict[str, str] = {}  # of a model, why something could not be measured
        self.notes: list[str] = []  # what could not be read, in lines
        entries: list[Entry] = []
        try:
            entries = from_trial(subject)
        except ValueError as error:
            file = subject.folder / "images.parquet"
            self.notes.append(f"{file} cannot be read, its images are judged anew: {error}")
        self._ledger = Ledger(subject.folder / "evaluation" / "ledger.jsonl", entries)
        bad = [f"line {number} ({why})" for number, why in self._ledger.bad.items()]
        if bad:
            told = ", ".join(bad[:TOLD]) + (", ..." if len(bad) > TOLD else "")
            lines = f"{len(bad)} line{'s' * (len(bad) > 1)} of {self._ledger.file}"
            self.notes.append(f"{lines} cannot be used, and the others are: {told}")

    def missing(self) -> Iterator[Unit]:
        """The units that are still to be measured."""
        for model in self.models:
            yield from missing(self.subject, model, self.request, self._ledger)

    def take(self, unit: Unit, found: Entry | BaseException) -> None:
        """Keep what a unit found, or why it failed."""
        if isinstance(found, Entry):
            self._ledger.append(found)
        else:
            self.errors.setdefault(
                unit.model, f"{unit.task}: {whole(found)}"
            )  # the first: others may follow from it

    def write(self) -> pd.DataFrame:
        """Write the numbers and the images, beside what earlier requests found.

        Returns:
            One row for each model: `trial`, `model`, the numbers, `error`.
        """
        known, rows = self._earlier(), list[dict[str, Any]]()
        for model in self.models:
            row = asked_numbers(self.subject, model, self.request, self._ledger)
            rows.append({"trial": self.subject.folder.name, "model": model, **row})
            if model in self.errors:
                rows[-1]["error"] = self.errors[model]
            tagged = {n: value for n, value in known.get(model, {}).items() if "@" in n}
            found = {"weights": self.subject.digest(model)} | joined(tagged, self._known(model))
            known[model] = {n: plain(value) for n, value in found.items()}
        known["agents"] = {n: plain(value) for n, value in self._over_agents().items()}
        store = Storage(self.subject.folder)
        store.write("evaluation.json", pack_json(known))
        frame = images_frame(self.subject, self.models, self._ledger)
        store.write("evaluation/images.parquet", pack_frame(frame))
        return pd.DataFrame(rows)

    def scans(self, model: str) -> dict[str, Any]:
        """The results of curvature and scans of a model, by measure."""
        return self._ledger.all_values(self.subject.digest(model))

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """The numbers that earlier requests left of the weights and images that are there."""
        try:
            found = json.loads((self.subject.folder / "evaluation.json").read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict) or not all(isinstance(of, dict) for of in found.values()):
            return {}
        there = [name for name in self.subject.models if name in found]
        return {n: found[n] for n in there if found[n].get("weights") == self.subject.digest(n)}

    def _known(self, model: str) -> Numbers:
        """All that is known of a model, at the trial's own budget and at the one that was asked."""
        subject, own = self.subject, self.subject.threat
        asked = self.request.threat(own)
        found = known_numbers(subject, model, own, self._ledger)
        if asked != own:
            found |= _tagged(known_numbers(subject, model, asked, self._ledger), asked)
        if self.request.delta is not None and self.request.delta != asked.eps:
            weights, delta = subject.digest(model), self.request.delta
            other = w2_numbers(subject, self._ledger, weights, asked.norm, delta)
            found |= _tagged(other, ThreatModel(asked.norm, delta))
        return found

    def _over_agents(self) -> Numbers:
        """Mean, worst and best over the agents, where all of them were judged."""
        each = [
            known_of(
                self.subject, self._ledger, self.subject.digest(name), "test", self.subject.threat
            )
            for name in self.subject.agents
        ]
        found = over_agents(each) if each and all(known.right for known in each) else {}
        return {name.removeprefix("agents_"): value for name, value in found.items()}


def _tagged(found: Numbers, threat: ThreatModel) -> Numbers:
    """Numbers at another budget than the trial's own, which their names say."""
    return {f"{name}@{threat.norm}:{threat.eps:.6g}": value for name, value in found.items()}
