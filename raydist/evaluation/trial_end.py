"""What the end of a trial already measured of its centroid, as entries of a ledger."""

import io
import json

import pandas as pd

from raydist.adversary.threat import ThreatModel
from raydist.engine.store import Store
from raydist.evaluation.ledger import Entry
from raydist.evaluation.subject import Subject
from raydist.evaluation.units import budget
from raydist.measure.columns import CLEAN

NO_VERDICTS = ("image", "label", "weights", "broken_by")
DERIVED = ("few-classes", "square-stronger")  # follow from the verdicts


def from_trial(subject: Subject, weights: str) -> list[Entry]:
    """The verdicts of `images.parquet`, if they are of these weights.

    Args:
        subject: the trial.
        weights: digest of the centroid's weights.

    Returns:
        The entries; none of other weights.

    Raises:
        ValueError: if the file cannot be read.
    """
    store = Store(subject.folder)
    data = store.find("images.parquet")
    if data is None:
        return []
    try:
        frame = pd.read_parquet(io.BytesIO(data))
        if "weights" not in frame or not (frame["weights"] == weights).all():
            return []
        final = json.loads(store.find("final.json") or b"{}")
        raised = [flag for flag in final.get("autoattack_flags", "").split(", ") if flag]
        return _entries(subject, frame, weights, [f for f in raised if f not in DERIVED])
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _entries(subject: Subject, frame: pd.DataFrame, weights: str, flags: list[str]) -> list[Entry]:
    threat = ThreatModel(subject.config.threat.norm, subject.config.threat.eps)
    entries = []
    for name in (str(column) for column in frame if column not in NO_VERDICTS):
        known = frame[["image", name]].dropna()
        where = "test" if name == CLEAN else budget("test", threat)
        images, values = known["image"].tolist(), known[name].tolist()
        entries.append(Entry(weights, f"{where}/{name}", values, images, flags=flags))
    return entries
