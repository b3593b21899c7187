"""Memory and leftovers of long studies: 1,000 tiny trials, and 40 real ones.

Each study runs in a process of its own with a private Ray. Every few seconds its driver's own
memory, that of the trials' and agents' processes, and the use of the object store are read;
afterwards, what is left of it. `python analysis/benchmarks/studies.py` prints the targets and
writes studies.json and studies.png beside this file.
"""

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from processes import below
from targets import Row, row

HERE = Path(__file__).parent
PERIOD = 3.0  # seconds between two samples
SETTLED = 0.2  # the share of the trials after which memory must be flat
TINY_KB, REAL_KB = 20.0, 500.0  # per trial: a study of 10,000 resp. 400 trials adds 200 MB
CACHE = "torchinductor_"  # PyTorch's own folder, which it keeps for the next time
TINY = {
    "name": "tiny",
    "base": {
        "topology": {"kind": "ring", "agents": 3},
        "rounds": 12,
        "dtype": "float64",
        "data": {"set": "quadratic", "centers": [[1.0], [0.0], [-1.0]], "hessian": [1.0]},
        "model": {"name": "point", "start": [2.0]},
        "loss": {"name": "quadratic"},
        "threat": {"eps": 0.0},
    },
}
REAL = {
    "name": "real",
    "base": {
        "topology": {"kind": "ring", "agents": 4},
        "rounds": 40,
        "data": {"set": "digits", "batch": 16},
        "model": {"name": "small-cnn", "width": 0.5},
        "attack": {"steps": 3},
        "evaluate": {
            "every": 5,
            "validation_images": 128,
            "test_images": 128,
            "pgd": [10],
            "autoattack": 0,
        },
        "agent": {"cpus": 0.25},
    },
    "search": {"scheduler": "asha", "metric": "val_pgd10_acc", "grace": 10},
}


def study(kind: str, trials: int) -> dict[str, Any]:
    """The study of a kind with about so many trials; always several seeds of each point."""
    if kind == "tiny":
        rates = [round(0.001 + 0.9 * n / trials, 6) for n in range(max(1, trials // 5))]
        return TINY | {"axes": {"optim.lr": rates, "seed": [0, 1, 2, 3, 4]}}
    axes = {
        "strategy": ["consensus", "diffusion"],
        "optim.lr": [0.1, 0.03, 0.01, 0.001][: max(1, trials // 10)],
        "seed": [0, 1, 2, 3, 4],
    }
    return REAL | {"axes": axes}


def run(kind: str, trials: int, folder: Path) -> dict[str, Any]:
    """Run a study in this process, sampled.

    Args:
        kind: "tiny" or "real".
        trials: how many.
        folder: an empty folder for everything that it writes.

    Returns:
        Samples and the state afterwards.
    """
    import ray
    from ray.util import placement_group_table

    from raydist import run_sweep

    here = {*os.listdir("/dev/shm")}
    out, own = folder / "out", folder / "tmp"
    own.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(own)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=500_000_000,
        _temp_dir=str(folder / "ray"),
    )
    over = threading.Event()
    samples: list[dict[str, float]] = []
    seen: dict[tuple[int, str], str] = {}
    began = time.monotonic()

    def sample() -> None:
        while not over.wait(PERIOD):
            samples.append(_sample(out, time.monotonic() - began, seen))

    sampler = threading.Thread(target=sample)
    sampler.start()
    tree = study(kind, trials)
    frame = run_sweep(tree, out=out, pool="local" if kind == "tiny" else "ray")
    seconds = time.monotonic() - began
    over.set()
    sampler.join()
    states = [group["state"] for group in placement_group_table().values()]
    held = _used("CPU")
    ray.shutdown()
    patience = time.monotonic() + 60
    while _alive(seen) and time.monotonic() < patience:
        time.sleep(1)
    return {
        "origin": origin(),
        "kind": kind,
        "trials": len(frame),
        "status": frame["status"].value_counts().to_dict(),
        "seconds": seconds,
        "samples": samples,
        "trial_processes": len({pid for pid, title in seen if "Trainable" in title}),
        "agent_processes": len({pid for pid, title in seen if "ray::Actor" in title}),
        "after": {
            "processes": _alive(seen),
            "shared_memory": sorted(_unused({*os.listdir("/dev/shm")} - here)),
            "temporary_files": sorted(str(file.relative_to(own)) for file in own.rglob("*")),
            "parts": sorted(str(file.relative_to(out)) for file in out.rglob("*.part")),
            "placement_groups": {state: states.count(state) for state in set(states)},
            "held_resources": {"CPU": held} if held else {},
        },
    }


def _sample(out: Path, seconds: float, seen: dict[tuple[int, str], str]) -> dict[str, float]:
    memory = {"trials": 0, "agents": 0}
    for pid, title in below(os.getpid()).items():
        seen[pid, title.partition(".")[0]] = _start(pid)
        titles = " ".join(t for p, t in seen if p == pid)  # a process that waits is called IDLE
        for kind, word in (("trials", "Trainable"), ("agents", "ray::Actor")):
            if word in titles:
                memory[kind] += _own_memory(pid)
    return {
        "seconds": round(seconds, 1),
        "trials_ended": sum(1 for _ in out.glob("*/final.json")),
        "driver_mb": _own_memory(os.getpid()) / 1e6,
        "driver_cpu": sum(os.times()[:2]),
        "trials_mb": memory["trials"] / 1e6,
        "agents_mb": memory["agents"] / 1e6,
        "store_mb": _used("object_store_memory") / 1e6,
    }


def _used(resource: str) -> float:
    """How much of a resource of Ray's is held."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    return float(total[resource] - free.get(resource, 0))


def _alive(seen: dict[tuple[int, str], str]) -> list[str]:
    """The titles of those that still run."""
    return sorted({title for (pid, title), start in seen.items() if start == _start(pid)})


def _start(pid: int) -> str:
    """When a process started, "" if it is gone: with its id, what tells it from every other one."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else rest[18]


def _own_memory(pid: int) -> int:
    """Its anonymous memory, in bytes: whose the libraries' pages are depends on who else runs."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def _unused(names: set[str]) -> set[str]:
    """Those of the files in /dev/shm that no living process has mapped: others may run here."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text()
        except OSError:
            continue
        mapped |= {name for name in names if f"/dev/shm/{name}" in text}
    return names - mapped


def slope(samples: list[dict[str, float]], column: str, after: float = SETTLED) -> float:
    """Least-squares growth of a column in kB per trial, until the last one has ended."""
    import numpy as np

    last = samples[-1]["trials_ended"]
    kept = [each for each in samples if after * last <= each["trials_ended"] < last]
    ended, values = ([each[name] for each in kept] for name in ("trials_ended", column))
    if len({*ended}) < 2:
        return float("nan")
    return float(np.polyfit(ended, values, 1)[0]) * 1e3


def pace(samples: list[dict[str, float]]) -> float:
    """The driver's CPU time per trial in the last quarter of them over that in the second one."""
    import numpy as np

    ended = np.array(_column(samples, "trials_ended"))
    during = ended < ended[-1]  # then the table and the picture are made
    quarters = ended[-1] * np.array([0.25, 0.5, 0.75, 1.0])
    at = np.interp(quarters, ended[during], np.array(_column(samples, "driver_cpu"))[during])
    return float((at[3] - at[2]) / (at[1] - at[0]))


def _column(samples: list[dict[str, float]], name: str) -> list[float]:
    return [each[name] for each in samples]


def targets(found: dict[str, Any]) -> list[Row]:
    """The targets of one study that has run."""
    name, samples, after = (
        f"{found['trials']} {found['kind']} trials",
        found["samples"],
        found["after"],
    )
    limit = TINY_KB if found["kind"] == "tiny" else REAL_KB
    grown = slope(samples, "driver_mb")
    store = _column(samples, "store_mb")
    later, earlier = max(store[len(store) // 2 :]), max(store[: len(store) // 2])
    groups = {k: n for k, n in after["placement_groups"].items() if k != "REMOVED"}
    left = [*after["processes"], *after["shared_memory"], *after["parts"]]
    left += [f for f in after["temporary_files"] if not f.startswith(CACHE)]
    share = f"after the first {SETTLED:.0%} of the trials"

    def target(what: str, measured: float, unit: str, most: float, note: str) -> Row:
        return row(f"study of {name}: {what}", measured, unit, limit=most, note=note)

    bad = found["trials"] - sum(found["status"].get(s, 0) for s in ("completed", "stopped"))
    return [
        target("trials lost", bad, "trials", 0, f"{found['status']} in {found['seconds']:.0f} s"),
        target("growth of the driver", grown, "kB per trial", limit, f"own memory, {share}"),
        target("object store", later - earlier, "MB", 5, "most in the second half over the first"),
        target(
            "pace",
            pace(samples),
            "ratio",
            1.5,
            "driver's CPU time per trial, last over second quarter",
        ),
        target("left behind", len(left), "things", 0, f"processes and files {left}"),
        target("placement groups", sum(groups.values()), "groups", 0, f"not removed: {groups}"),
    ]


def studies(quick: bool) -> list[dict[str, Any]]:
    """Run both studies, each in a process of its own; what each has told."""
    found = []
    for kind, trials in (("tiny", 60 if quick else 1000), ("real", 10 if quick else 40)):
        with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp") as folder:
            told = Path(folder) / "told.json"
            subprocess.run([sys.executable, __file__, kind, str(trials), folder], check=True)
            found.append(json.loads(told.read_text()))
    return found


def measure(quick: bool) -> list[Row]:
    """The targets of both studies.

    Args:
        quick: 60 and 10 trials instead of 1,000 and 40.

    Returns:
        One entry for each target.
    """
    return [target for found in studies(quick) for target in targets(found)]


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Memory over ended trials, a panel for each study."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lines = {
        "driver_mb": ("driver", "#0072B2", "-"),
        "trials_mb": ("trials' processes", "#D55E00", "--"),
        "agents_mb": ("agents' processes", "#009E73", "-."),
        "store_mb": ("object store", "#CC79A7", ":"),
    }
    fig, axes = plt.subplots(1, len(found), figsize=(11, 4), layout="constrained")
    for ax, each in zip(axes, found, strict=True):
        for column, (label, colour, dash) in lines.items():
            values = _column(each["samples"], column)
            if any(values):
                ended = _column(each["samples"], "trials_ended")
                ax.plot(ended, values, dash, color=colour, label=label)
        ax.set(xlabel="trials that have ended", ylabel="memory (MB)", ylim=(0, None))
        ax.set_title(f"{each['trials']} {each['kind']} trials", fontsize=10)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    fig.savefig(file, dpi=120)


def origin() -> dict[str, Any]:
    """Where figures come from: device, versions, commit."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    commit = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    return {
        "device": f"{os.cpu_count()} x {cpu[0].partition(': ')[2] if cpu else platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("ray", "torch", "numpy")},
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "when": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure, print, write and draw; or run one study for `studies`."""
    if sys.argv[1:2] and sys.argv[1] in ("tiny", "real"):
        kind, trials, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
        (folder / "told.json").write_text(json.dumps(run(kind, trials, folder)))
        return
    found = studies("--quick" in sys.argv)
    told = [target for each in found for target in targets(each)]
    for each in told:
        print(f"{each['met']!s:5} {each['target']}: {each['measured']:.4g} {each['unit']}")
        print(f"      at most {each['limit']}; {each['note']}")
    whole = {"targets": told, "studies": found}
    (HERE / "studies.json").write_text(json.dumps(whole, indent=1))
    draw(found, HERE / "studies.png")


if __name__ == "__main__":
    main()
