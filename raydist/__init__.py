"""raydist: distributed adversarial training on graphs of Ray actors.

    run_sweep(study)        a study, run by Ray Tune; one row for each trial
    run_experiment(config)  one experiment, in this process or on Ray
    load(path)              the trials of a study as a data frame
    evaluate_runs(path)     measure what was trained: robustness, masking, curvature, landscapes
    robustness(model, ...)  judge any model on any images
    load_rounds(path)       everything that was measured, round by round
    load_events(path)       what the trials survived
    over_seeds(frame)       the trials of load, mean and deviation over seeds that ended alike

The modules of the equations (`raydist.network`, `raydist.adversary`, ...) need neither Ray nor a
configuration.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydist.engine.run import run_experiment
    from raydist.errors import InputError, MachineError
    from raydist.evaluation.bare import robustness
    from raydist.evaluation.request import Request
    from raydist.evaluation.run import evaluate_runs
    from raydist.results.load import load, load_events, load_rounds
    from raydist.results.seeds import over_seeds
    from raydist.tune.sweep import run_sweep

# Ray reads this when it is imported. Many agents on few cores start at once, and an agent that died
# is told as the failure of its trial: Ray's own paragraphs about both would only hide the progress.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    "PYTHON worker processes have been started|A worker died or was killed",
)
# What was under way when an agent died is dropped and done again.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")

__all__ = [
    "InputError",
    "MachineError",
    "Request",
    "evaluate_runs",
    "load",
    "load_events",
    "load_rounds",
    "over_seeds",
    "robustness",
    "run_experiment",
    "run_sweep",
]

_HOMES = {
    "InputError": "errors",
    "MachineError": "errors",
    "Request": "evaluation.request",
    "evaluate_runs": "evaluation.run",
    "load": "results.load",
    "load_events": "results.load",
    "load_rounds": "results.load",
    "over_seeds": "results.seeds",
    "robustness": "evaluation.bare",
    "run_experiment": "engine.run",
    "run_sweep": "tune.sweep",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: agents start without Tune and pandas."""
    if name not in _HOMES:
        raise AttributeError(f"module 'raydist' has no attribute {name!r}")
    import random
    from importlib import import_module

    state = random.getstate()  # Rich draws from it when it is imported
    try:
        return getattr(import_module(f"raydist.{_HOMES[name]}"), name)
    finally:
        random.setstate(state)
