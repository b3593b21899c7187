"""Every target of speed: measured figure, ratio, met or not met.

python analysis/benchmarks/run.py [--quick] [--only step,exchange] [--out DIR]

Runs the benchmarks in this folder, each in a process of its own, prints their targets and writes
results.json (what was measured, on what, when, with which versions) and results.png. What was not
run now, failed, or found no GPU, keeps the entry that it has. The machine should do nothing else
meanwhile: its load average stands beside the figures.
"""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from show import picture, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LONG = ("studies",)  # hours: only if named
LIMIT_SECONDS = 3600.0 * 6
ONE = "import json, sys, {0}; json.dump({0}.measure({1}), open(sys.argv[1], 'w'))"
console = Console(width=None if sys.stdout.isatty() else 160)


def benchmarks(folder: Path) -> list[str]:
    """The names of the files in a folder that measure something."""
    return sorted(f.stem for f in folder.glob("*.py") if "\ndef measure(" in f.read_text())


def machine() -> dict[str, Any]:
    """What the figures depend on: device, versions, commit, date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    packages = ("torch", "ray", "numpy", "raydist")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """The commit of this checkout, with a + if files differ from it; "" outside of git."""
    told = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(told, capture_output=True, text=True, check=False).stdout.strip()


def run(name: str, quick: bool, folder: Path = HERE) -> dict[str, Any]:
    """Run one benchmark in a process of its own.

    Args:
        name: of its file.
        quick: whether a rough answer will do.
        folder: where its file is.

    Returns:
        Where and when it ran, and its `targets`; or why there are none, as `failed`.
    """
    paths = filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    found = machine() | {"quick": quick, "load_before": os.getloadavg()[0]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        answer, log = Path(scratch, "answer.json"), Path(scratch, "log")
        command = [sys.executable, "-c", ONE.format(name, quick), str(answer)]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                code = process.wait(LIMIT_SECONDS)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                code = process.wait()
        said = [line for line in log.read_text().splitlines() if line.strip()]
        found |= {"seconds": time.monotonic() - began, "load_after": os.getloadavg()[0]}
        if code == 0:
            return found | {"targets": json.loads(answer.read_text())}
        return found | {"failed": (said or [f"it ended with code {code}"])[-1]}


def figures(found: dict[str, Any]) -> bool:
    """Whether anything was measured."""
    return any(each["measured"] is not None for each in found.get("targets", []))


def keep(results: dict[str, Any], file: Path) -> None:
    """Write results and their picture; where they lack figures, the entry that is there stays."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    new = {name: found for name, found in results.items() if name not in kept or figures(found)}
    everything = dict(sorted((kept | new).items()))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(everything, indent=1) + "\n")
    rows = [each for found in everything.values() for each in found.get("targets", [])]
    picture(rows).savefig(file.with_suffix(".png"), dpi=150)


def main(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Rough; writes only to --out.")] = False,
    only: Annotated[str, typer.Option(help="Names of benchmarks, with commas.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where results go; default: here.")] = None,
    folder: Annotated[Path, typer.Option(hidden=True)] = HERE,
) -> None:
    """Run the benchmarks and show every target.

    Args:
        quick: a rough answer will do.
        only: names of benchmarks; "": all but the long ones.
        out: the folder of results.json and results.png.
        folder: where the benchmarks are.

    Raises:
        Exit: with code 2 if a name is unknown; with code 1 if a benchmark failed.
    """
    known = benchmarks(folder)
    names = only.split(",") if only else [name for name in known if name not in LONG]
    for name in names:
        if name not in known:
            line = f'--only names "{name}", expected some of {",".join(known)}'
            typer.echo(line, err=True)
            raise typer.Exit(2)
    out = out if out is not None or quick else folder
    file = None if out is None else out / "results.json"
    results: dict[str, Any] = {}
    for name in names:
        console.print(f"{name} ...", highlight=False)
        results[name] = found = run(name, quick, folder)
        if "failed" in found:
            console.print(f"{name} failed: {found['failed']}", markup=False, highlight=False)
        if file is not None:
            keep(results, file)
    targets = [each for found in results.values() for each in found.get("targets", [])]
    console.print(table(targets))
    judged = [each["met"] for each in targets if each["met"] is not None]
    console.print(f"{sum(judged)} of {len(judged)} targets met")
    if file is not None:
        console.print(f"{file}, {file.with_suffix('.png').name}", highlight=False)
    failed = [name for name, found in results.items() if "failed" in found]
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
