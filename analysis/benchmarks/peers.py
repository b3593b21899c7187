"""What a round costs without learning, beside peers that install from the package index.

python analysis/benchmarks/peers.py [--quick] [--envs DIR]

Each contestant is a process (and its actors or ranks) in an environment of its own, made in DIR at
the first call (default ~/.cache/raydist-peers). Those of a heat start first, then they are measured
in turn, several times over, so that all meet the same load; a figure is the median of its turns.
16 agents, a ring lattice of degree 4 where the peer has graphs, weights that are returned as they
are. Each contestant compares what it averaged with NumPy's result.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from show import table
from targets import Row, row

HERE = Path(__file__).resolve().parent
ENVS = Path.home() / ".cache" / "raydist-peers"
SECONDS = 600.0  # that a contestant may take to start, or for one turn
ACCURATE = 1e-5  # float32 weights against the expected ones, over their spread
SIZES = {"0.5 M": 500_000, "11 M": 11_000_000}
TURNS = {"0.5 M": (4, 50), "11 M": (3, 6)}  # how many turns, of how many rounds
QUICK = {"0.5 M": (2, 5), "11 M": (1, 2)}
FLOWER, DECENT, OBJECTS, PACKED = "Flower", "Decent-DP", "one actor per agent", "packed 2 x 8"


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Attributes:
        script: in peer/.
        arguments: of the script.
        package: what its environment needs; "": it is raydist, in the running environment.
        shares: whether its environment may take torch and all else from the running one.
    """

    script: str
    arguments: tuple[str, ...] = ()
    package: str = ""
    shares: bool = True


CONTESTANTS = {
    OBJECTS: Contestant("ours.py", ("objects", "1")),
    PACKED: Contestant("ours.py", ("auto", "8")),
    FLOWER: Contestant("flower.py", package="flwr[simulation]", shares=False),  # it pins its Ray
    DECENT: Contestant("decent.py", ("rows",), "decent-dp"),
    "gossipy": Contestant("gossip.py", package="gossipy-dfl"),
    "fluke": Contestant("fluke_gossip.py", package="fluke-fl"),
}


HEATS = ((OBJECTS, FLOWER), (PACKED, DECENT, "gossipy", "fluke"))  # all at once need 25 GB


def python_for(contestant: Contestant, envs: Path) -> str:
    """The interpreter of a contestant's environment, which is made if it is not there.

    Args:
        contestant: who.
        envs: the folder of the environments.

    Returns:
        The path of the interpreter.

    Raises:
        RuntimeError: if the package does not install.
    """
    if not contestant.package:
        return sys.executable
    home = envs / contestant.package.partition("[")[0]
    python, ready = str(home / "bin" / "python"), home / "ready"
    if ready.exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    if contestant.shares:
        asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        Path(own, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "-q", contestant.package]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip install {contestant.package}: {last_line(done.stderr)}")
    ready.touch()
    return python


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


class Running:
    """A contestant's process: it is told a size and answers with the seconds of a round."""

    def __init__(self, contestant: Contestant, python: str, scratch: Path) -> None:
        """Start it.

        Args:
            contestant: who.
            python: the interpreter of its environment.
            scratch: an empty folder, for its log and what it writes.
        """
        self._log = scratch / "log"
        foreign = {"RAY_ADDRESS", "PYTHONPATH"}
        environment = {k: v for k, v in os.environ.items() if k not in foreign}
        environment |= {"RAY_TMPDIR": str(scratch), "FLWR_HOME": str(scratch)}
        environment |= {"FLWR_TELEMETRY_ENABLED": "0"}
        if not contestant.package:
            paths = (str(HERE.parents[1]), str(HERE / "peer"), str(HERE))
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / "peer" / contestant.script), *contestant.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
                text=True,
                bufsize=1,
            )

    def ask(self, parameters: int, rounds: int) -> float:
        """Milliseconds of a round.

        Args:
            parameters: P.
            rounds: to be timed.

        Returns:
            The mean over the rounds.

        Raises:
            RuntimeError: if the contestant failed, or did not average.
        """
        assert self._process.stdin is not None
        print(json.dumps({"parameters": parameters, "rounds": rounds}), file=self._process.stdin)
        answer = self.answer()
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        if not answer["error"] <= ACCURATE:
            raise RuntimeError(f"its weights are {answer['error']:.2g} off what averaging gives")
        return 1e3 * float(answer["seconds"])

    def answer(self) -> dict[str, Any]:
        """The next line that it says; the first one says that it is ready.

        Returns:
            What was in the line.

        Raises:
            RuntimeError: if there is none in time.
        """
        assert self._process.stdout is not None
        patience = threading.Timer(SECONDS, self._process.kill)
        patience.start()
        # Ray, too, says things on standard output
        line = next((line for line in self._process.stdout if line.startswith("{")), "")
        patience.cancel()
        if not line:
            raise RuntimeError(last_line(self._log.read_text()))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End it and whatever it started."""
        with self._process as process:  # closes its pipes
            assert process.stdin is not None
            try:
                process.stdin.close()
                process.wait(30)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL)


def compete(
    turns: dict[str, tuple[int, int]], envs: Path
) -> tuple[dict[tuple[str, str], float], dict[str, str]]:
    """Measure all contestants, in turn with those of their heat.

    Args:
        turns: of each size: how many, of how many rounds.
        envs: the folder of the environments.

    Returns:
        Milliseconds of a round by (size, contestant); and why others have none.
    """
    failed: dict[str, str] = {}
    times: dict[tuple[str, str], list[float]] = {}
    for names in HEATS:
        running: dict[str, Running] = {}
        with tempfile.TemporaryDirectory(prefix="peers") as scratch:
            try:
                for name in filter(CONTESTANTS.__contains__, names):
                    attempt(failed, name, start, name, running, envs, Path(scratch))
                for size, (count, rounds) in turns.items():
                    for name in list(running) * count:
                        found = attempt(failed, name, running[name].ask, SIZES[size], rounds)
                        if found is not None:
                            times.setdefault((size, name), []).append(found)
            finally:
                for each in running.values():
                    each.stop()
    return {key: statistics.median(found) for key, found in times.items()}, failed


def start(name: str, running: dict[str, Running], envs: Path, scratch: Path) -> None:
    """Start a contestant and wait until it is there: one after the other, for it costs much."""
    folder = scratch / str(len(running))
    folder.mkdir()
    contestant = CONTESTANTS[name]
    running[name] = Running(contestant, python_for(contestant, envs), folder)
    running[name].answer()


def attempt(failed: dict[str, str], name: str, act: Any, *arguments: Any) -> Any:
    """What a contestant answers; None if it fails, or failed before, which is then remembered."""
    if name in failed:
        return None
    try:
        return act(*arguments)
    except (RuntimeError, BrokenPipeError) as error:
        failed[name] = str(error)
        return None


def rows(times: dict[tuple[str, str], float], failed: dict[str, str]) -> list[Row]:
    """The targets, and beside them every contestant's own figure.

    Args:
        times: milliseconds by (size, contestant).
        failed: why others have none.

    Returns:
        The rows.
    """
    bounds = [
        ("0.5 M", OBJECTS, FLOWER, 0.14, "the aim is 0.1; FedAvg through a server"),
        ("0.5 M", PACKED, DECENT, 1.0, "groups of four by all-reduce, one step late"),
        ("11 M", OBJECTS, FLOWER, 0.25, "FedAvg through a server"),
    ]
    found: list[Row] = []
    for size, name, peer, limit, note in bounds:
        ours, theirs = times.get((size, name)), times.get((size, peer))
        label = f"round at {size}, {name} / {peer}"
        if ours is not None and theirs is not None:
            found.append(row(label, ours, "ms", reference=theirs, limit=limit, note=note))
        else:
            missing = name if ours is None else peer
            note = f"{missing} did not run: {failed.get(missing, 'not asked')}"
            found.append(row(label, None, "ms", limit=limit, note=note))
    for size in SIZES:
        for name in CONTESTANTS:
            label, note = f"round at {size}, {name}", ""
            if (size, name) not in times:
                note = f"did not run: {failed.get(name, 'not asked')}"
            found.append(row(label, times.get((size, name)), "ms", limit=None, note=note))
    return found


def measure(quick: bool, envs: Path = ENVS) -> list[Row]:
    """The overhead of a round beside peers, target 6.2.

    Args:
        quick: fewer turns.
        envs: the folder of the peers' environments.

    Returns:
        The targets, then each contestant's figure.
    """
    return rows(*compete(QUICK if quick else TURNS, envs.expanduser()))


def main(
    *,
    quick: Annotated[bool, typer.Option("--quick")] = False,
    envs: Annotated[Path, typer.Option(help="Where the peers' environments are.")] = ENVS,
) -> None:
    """Print the targets."""
    Console(width=160).print(table(measure(quick, envs)))


if __name__ == "__main__":
    typer.run(main)
