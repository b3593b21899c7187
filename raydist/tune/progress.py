"""Live progress of a sweep: a bar on a terminal, a line for each finished trial elsewhere."""

import time
from typing import Any

from ray import tune
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
from rich.text import Text

from raydist.errors import printable
from raydist.lock import Held
from raydist.results.terminal import Words, console, progress, status


class TuneProgress(tune.Callback):
    """Shows what Tune's trials report. A context manager: the bar is gone when it is left."""

    def __init__(self, trials: int, held: Held, quiet: bool) -> None:
        """Keep what to show; show nothing before the context is entered.

        Args:
            trials: the number of trials that there will be.
            held: the study's folder, which is looked after on the way.
            quiet: whether to show nothing at all.
        """
        self.quiet, self.finished, self.total, self.held = quiet, 0, trials, held
        self._began = time.monotonic()
        self._bar = progress(
            quiet,
            Words("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Words("{task.fields[status]}"),
        )
        self._overall = self._bar.add_task("trials", total=trials, status="starting agents ...")
        self._running: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune saves its callbacks, and a terminal cannot be saved."""
        return {}

    def __enter__(self) -> "TuneProgress":
        """Show the bars."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take them away."""
        self._bar.stop()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune again and again."""
        self.held.check()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune with each report of a trial."""
        name = str(trial)
        if name not in self._running:
            self._running[name] = self._bar.add_task(
                name.rpartition("-")[0] or name, total=result.get("rounds"), status=""
            )
        said = {"completed": result.get("round", 0), "status": status(result)}
        self._bar.update(self._running[name], **said)
        self._bar.update(self._overall, status="")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has ended well."""
        last = trial.last_result
        self._end(str(trial), f"{last.get('status', 'ended')} {status(last, 'end')}")
        # Tune keeps every trial for good, and writes all of them again and again. Nobody will read
        # the ten windows of each number that it reported, 90 kB, its name is made, 13 kB, and the
        # first thing that its process told is an object of Ray's.
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}
        trial.trial_name_creator = trial.trial_dirname_creator = None
        trial._default_result_or_future = None

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has failed."""
        self._end(str(trial), "failed", "red")

    def _end(self, name: str, how: str, style: str = "") -> None:
        self.finished += 1
        if name in self._running:
            self._bar.remove_task(self._running.pop(name))
        self._bar.update(self._overall, completed=self.finished)
        if not self.quiet:
            seconds = time.monotonic() - self._began
            counted = f"{self.finished}/{self.total}"
            count = (f"{seconds:6.0f} s {counted}", "dim")
            console.print(Text.assemble(count, f" {printable(name)} ", (printable(how), style)))
