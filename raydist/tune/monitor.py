"""Monitoring of a running trial: Prometheus' metrics and the folder's `log.txt`.

Every node of a cluster whose Ray has its dashboard (`ray[default]`) shows the metrics with the
prefix `ray_`. Means over the agents: their number multiplies no series.
"""

import logging
import math
from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge

from raydist import metrics
from raydist.errors import printable
from raydist.results.record import Event, Record, survived
from raydist.storage import Storage

PHASES = ("attack", "adapt", "combine")
FILE = "log.txt"
SPELLED = str.maketrans(
    {"ε": "eps", "Σ": "sum", "‖": "|", "²": "^2", "′": "'", "−": "-", "⟨": "<", "⟩": ">"}
)


def described(name: str) -> str:
    """Describe a metric in ASCII, because Ray takes no other letters.

    Args:
        name: the metric's name.

    Returns:
        Its meaning.

    Example:
        >>> described("distance")
        "|w_k - w_0| of the agents' weights from their start."
    """
    return metrics.find(name).meaning.translate(SPELLED).encode("ascii", "replace").decode()


class Metrics:
    """The metrics of the trials that one process runs one after the other."""

    def __init__(self, study: str) -> None:
        """Register them; Ray is running.

        Args:
            study: its name, a tag of every metric.
        """
        self._rounds = Counter("raydist_rounds", "Rounds that are done.", ("study", "trial"))
        self._seconds = Counter(
            "raydist_seconds",
            "Seconds in a phase of the rounds, mean over agents.",
            ("study", "trial", "phase"),
        )
        self._gauges = {
            name: Gauge(f"raydist_{name}", described(name), ("study", "trial"))
            for name in metrics.SHOWN["prometheus"]
        }
        self._study = study

    def tell(self, trial: str, records: Sequence[Record], events: Sequence[Event]) -> None:
        """Tell of new rounds.

        Args:
            trial: its name.
            records: the records of the rounds since the last call; at least one.
            events: all events that the trial has survived.
        """
        tags = {"study": self._study, "trial": trial}
        rounds = sum(record.round > 0 for record in records)
        if rounds:  # a counter takes nothing that is not above 0
            self._rounds.inc(rounds, tags)
        for phase in PHASES:
            found = [info.get(f"seconds_{phase}", 0.0) for r in records for info in r.agents]
            seconds = sum(found) / len(records[-1].agents)
            if seconds > 0:
                self._seconds.inc(seconds, tags | {"phase": phase})
        known = records[-1].numbers | survived(events)
        for name, gauge in self._gauges.items():
            if math.isfinite(known.get(name, math.nan)):
                gauge.set(known[name], tags)


class TrialLog(logging.Handler):
    """Keeps what the logger "raydist" says, after what an earlier try has said."""

    def __init__(self, folder: Storage) -> None:
        """Write nothing yet.

        Args:
            folder: the trial's folder.
        """
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._folder = folder
        self._text = (folder.find(FILE) or b"").decode()

    def emit(self, record: logging.LogRecord) -> None:
        """Implement `logging.Handler.emit`; each of the few messages writes the file anew."""
        try:
            self._text += printable(self.format(record)) + "\n"
            self._folder.write(FILE, self._text.encode(), durable=False)
        except Exception:  # as every handler: what cannot be logged must not end the run
            self.handleError(record)
