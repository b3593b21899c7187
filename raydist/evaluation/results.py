"""What an evaluation leaves in a trial's folder: ledger, numbers, one row for each image."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from raydist.engine.store import Store
from raydist.evaluation.ledger import Entry, Ledger
from raydist.evaluation.request import Request
from raydist.evaluation.subject import Subject
from raydist.evaluation.table import from_trial, images_frame, numbers
from raydist.evaluation.units import Unit, missing
from raydist.folder import pack_frame, pack_json, plain


class Results:
    """One trial under evaluation."""

    def __init__(self, subject: Subject, request: Request) -> None:
        """Read what is known.

        Args:
            subject: the trial.
            request: what is asked.
        """
        self.subject, self.request = subject, request
        self.models = subject.chosen(request.models)
        self.errors: dict[str, str] = {}  # of a model, why something could not be measured
        self._ledger = Ledger(subject.folder / "evaluation" / "ledger.jsonl")
        if "centroid" in subject.models:
            for entry in from_trial(subject, subject.digest("centroid")):
                self._ledger.learn(entry)

    def missing(self) -> Iterator[Unit]:
        """What is still to be measured."""
        for model in self.models:
            yield from missing(self.subject, model, self.request, self._ledger)

    def take(self, unit: Unit, found: Entry | BaseException) -> None:
        """Keep what a unit found, or why it failed."""
        if isinstance(found, Entry):
            self._ledger.append(found)
        else:
            lines = str(found).strip().splitlines() or [""]
            told = f"{unit.task}: {type(found).__name__}: {lines[-1]}"
            self.errors.setdefault(unit.model, told)  # the first: others may follow from it

    def write(self) -> pd.DataFrame:
        """Write the numbers and the images, beside what earlier requests found.

        Returns:
            One row for each model: `trial`, `model`, the numbers, `error`.
        """
        file = self.subject.folder / "evaluation.json"
        known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        rows = []
        for model in self.models:
            row = numbers(self.subject, model, self.request, self._ledger)
            rows.append({"trial": self.subject.folder.name, "model": model, **row})
            if model in self.errors:
                rows[-1]["error"] = self.errors[model]
            tag, weights = self._tag(), self.subject.digest(model)
            earlier = known.get(model, {})
            if earlier.get("weights") != weights:
                earlier = {"weights": weights}
            known[model] = earlier | {name + tag: plain(value) for name, value in row.items()}
        store = Store(self.subject.folder)
        store.write("evaluation.json", pack_json(known))
        frame = images_frame(self.subject, self.models, self._ledger)
        store.write("evaluation/images.parquet", pack_frame(frame))
        return pd.DataFrame(rows)

    def scans(self, model: str) -> dict[str, Any]:
        """The results of curvature and scans of a model, by measure."""
        return self._ledger.all_values(self.subject.digest(model))

    def _tag(self) -> str:
        """What is put behind the names of numbers at another budget than the trial's own."""
        config, threat = self.subject.config, self.request.threat(self.subject.config)
        own = (config.threat.norm, config.threat.eps) == (threat.norm, threat.eps)
        return "" if own else f"@{threat.norm}:{threat.eps:.6g}"
