"""Measurements at the end of a trial, as entries of a ledger."""

import io

import pandas as pd

from raydist.evaluation.ledger import Entry
from raydist.evaluation.subject import Subject
from raydist.evaluation.units import budget
from raydist.measure.columns import CLEAN
from raydist.storage import Storage

NO_VERDICTS = ("model", "image", "label", "weights", "broken_by", "flags")


def from_trial(subject: Subject) -> list[Entry]:
    """The verdicts of `images.parquet` that are of the weights and images which are there.

    Args:
        subject: the trial.

    Returns:
        The entries; none of weights that were replaced, or of other images.

    Raises:
        ValueError: if the file cannot be read.
    """
    store = Storage(subject.folder)
    data = store.find("images.parquet")
    if data is None:
        return []
    try:
        frame = pd.read_parquet(io.BytesIO(data))
        there = [name for name in frame["model"].unique() if name in subject.models]
        return [
            entry
            for name in there
            for entry in _entries(subject, frame[frame["model"] == name], subject.digest(name))
        ]
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _entries(subject: Subject, frame: pd.DataFrame, weights: str) -> list[Entry]:
    frame = frame[frame["weights"] == weights]
    flags = sorted({flag for text in frame["flags"] for flag in text.split(", ") if flag})
    entries = []
    for name in (str(column) for column in frame if column not in NO_VERDICTS):
        known = frame[["image", name]].dropna()
        where = "test" if name == CLEAN else budget("test", subject.threat)
        images, values = known["image"].tolist(), known[name].tolist()
        entries.append(Entry(weights, f"{where}/{name}", values, images, flags=flags))
    return entries
