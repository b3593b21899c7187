"""What a trial's process says while it runs, in the trial's folder: `log.txt`."""

import logging

from raydist.config.experiment import printable
from raydist.storage import Store

FILE = "log.txt"


class TrialLog(logging.Handler):
    """Keeps what the logger "raydist" says, after what an earlier try has said."""

    def __init__(self, folder: Store) -> None:
        """Write nothing yet.

        Args:
            folder: of the trial.
        """
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._folder = folder
        self._text = (folder.find(FILE) or b"").decode()

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`; messages are few, so each writes the file anew, whole."""
        try:
            self._text += printable(self.format(record)) + "\n"
            self._folder.write(FILE, self._text.encode(), durable=False)
        except Exception:  # as every handler: what cannot be logged must not end the run
            self.handleError(record)
