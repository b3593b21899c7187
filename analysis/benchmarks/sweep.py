"""Where the time of a sweep goes: the quickstart, watched from outside.

Start: imports, checks, Ray, Tune, the trial's own process. Agents: what the first trial takes
longer than the others do. Gaps: from the last file of a trial to the first one of the next. End:
tables, picture, Ray's stop. What is left is learning and evaluation.

    python analysis/benchmarks/sweep.py [--quick]
"""

import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from processes import below
from targets import Row, row, tell

STUDY = Path(__file__).parents[2] / "sweeps" / "quickstart.toml"
LEARNING, GAP, HELP = 0.7, 2.0, 1.0  # limits: a share, seconds, seconds
AGENTS = 8.0  # of the quickstart: all of its trials have the same ones
POLL_SECONDS = 0.2
HELP_TRIES = 5


@dataclass
class Timeline:
    """Seconds since the command was started.

    Attributes:
        trials: of each trial in order: its first file and its last one.
        end: of the command.
        agents: ids of all processes that were agents.
    """

    trials: list[tuple[float, float]]
    end: float
    agents: set[int] = field(default_factory=set)


def measure(quick: bool) -> list[Row]:
    """Time --help and run the quickstart once.

    Args:
        quick: only two of its trials; the shares are then of those, and not judged.

    Returns:
        One row for each target.
    """
    found = [
        row(f"raydist.{name} --help", help_seconds(name), "CPU seconds", limit=HELP)
        for name in ("sweep", "run", "evaluate")
    ]
    with tempfile.TemporaryDirectory() as folder:
        line = watch(Path(folder) / "out", ["strategy=diffusion"] if quick else [])
    parts = split(line)
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(line.trials)]
    agents = float(len(line.agents))
    return [
        *found,
        row(
            "quickstart: learning and evaluation",
            parts["learning and evaluation"] / line.end,
            "of its time",
            limit=None if quick else LEARNING,
            at_least=True,
            note="; ".join(f"{name} {seconds:.1f} s" for name, seconds in parts.items()),
        ),
        row("from one trial to the next, at most", max(gaps), "seconds", limit=GAP),
        row("agents' processes of all trials", agents, "processes", limit=AGENTS),
    ]


def help_seconds(name: str) -> float:
    """CPU seconds of --help: that is its time on a machine with nothing else to do.

    Args:
        name: of the command.

    Returns:
        The least of some tries.
    """
    tries = []
    for _ in range(HELP_TRIES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", f"raydist.{name}", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        tries.append(used)
    return min(tries)


def watch(out: Path, settings: list[str]) -> Timeline:
    """Run the quickstart and look at its files and processes meanwhile.

    Args:
        out: a folder that does not exist.
        settings: as on the command line.

    Returns:
        What was seen.

    Raises:
        RuntimeError: if it fails.
    """
    began, clock = time.time(), time.monotonic()
    flags = ["--out", str(out), "--quiet"]
    command = [sys.executable, "-m", "raydist.sweep", str(STUDY), *settings, *flags]
    agents: set[int] = set()
    with subprocess.Popen(command, cwd=STUDY.parents[1]) as run:
        while run.poll() is None:
            agents |= {pid for pid, name in below(run.pid).items() if "ray::Actor" in name}
            time.sleep(POLL_SECONDS)
    end = time.monotonic() - clock
    if run.returncode:
        raise RuntimeError(f"the quickstart ended with exit code {run.returncode}")
    trials = []
    for final in out.glob("*/final.json"):
        first = (final.parent / "experiment.json").stat().st_mtime
        trials.append((first - began, final.stat().st_mtime - began))
    return Timeline(sorted(trials), end, agents)


def split(line: Timeline) -> dict[str, float]:
    """The parts of a command's time, in seconds; they add up to it."""
    lengths = [last - first for first, last in line.trials]
    agents = max(0.0, lengths[0] - statistics.median(lengths[1:]))
    gaps = sum(after[0] - before[1] for before, after in itertools.pairwise(line.trials))
    return {
        "start": line.trials[0][0],
        "agents": agents,
        "learning and evaluation": sum(lengths) - agents,
        "gaps": gaps,
        "end": line.end - line.trials[-1][1],
    }


if __name__ == "__main__":
    tell(measure)
