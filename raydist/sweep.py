"""python -m raydist.sweep FILE: a study, run by Ray Tune.

What is imported in functions takes seconds; --help and a misspelt key are answered without it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from raydist import cli
from raydist.config.point import value_label
from raydist.config.study import Study, read
from raydist.errors import InputError
from raydist.results.terminal import (
    console,
    footnotes,
    print_failures,
    results_table,
    say_unmeasured,
    seeds_table,
)
from raydist.storage import Storage
from raydist.tune.resume import STUDY_FILE, study_in
from raydist.tune.sweep import check_cluster, corner_experiments, needed, run_sweep

if TYPE_CHECKING:
    import pandas as pd


def main(
    file: Annotated[Path | None, typer.Argument(help="The study's TOML file.")] = None,
    settings: cli.Settings = None,
    *,
    out: cli.Out = None,
    resume: cli.Resume = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the trials only.")] = False,
    pool: cli.PoolName = "ray",
    address: cli.Address = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    quiet: cli.Quiet = False,
) -> int:
    """Run the study in FILE; continue one with --resume DIR."""
    if resume is not None and (file is not None or out is not None):
        raise InputError(f"--resume {resume} says all there is: write it without FILE and --out")
    if resume is None and file is None:
        raise InputError("which study? write python -m raydist.sweep FILE or --resume DIR")
    study = read(file or "", settings or []) if resume is None else study_in(resume)
    if dry_run:
        _show_plans(study, pool, address, max_concurrent)
        return 0
    out = resume or (f"runs/{study.name}" if out is None else out)
    try:
        frame = run_sweep(
            study,
            out=out,
            resume=resume is not None,
            pool=pool,
            address=address,
            max_concurrent=max_concurrent,
            quiet=quiet,
        )
    except InputError:
        raise
    except (KeyboardInterrupt, Exception) as error:
        return cli.told(error, _how_to_resume(out))
    if not quiet:
        _show(frame, study, out)
    print_failures(frame)
    if frame.attrs["interrupted"]:
        return cli.told(KeyboardInterrupt(), _how_to_resume(out))
    failed = bool((frame["status"] == "failed").any())
    if "unmeasured" in frame:
        for _, row in frame.dropna(subset="unmeasured").iterrows():
            say_unmeasured(row["trial"], row["unmeasured"], f"{out}/{row['trial']}")
            failed = True
    return cli.FAILED if failed else 0


def _how_to_resume(out: str) -> str:
    """The command that goes on; "" where nothing has begun."""
    there = Storage(out).find(STUDY_FILE) is not None
    return f"python -m raydist.sweep --resume {out}" if there else ""


def _show(frame: "pd.DataFrame", study: Study, out: str) -> None:
    """The tables of a study, and where everything else is."""
    console.print(results_table(frame, list(study.axes)))
    if "seed" in study.axes:
        from raydist.results.seeds import over_seeds

        console.print(seeds_table(over_seeds(frame), list(study.axes)))
    for note in footnotes(frame):
        console.print(note, style="dim")
    console.print(f"results {out}/results.csv   picture {out}/summary.png")


def _show_plans(study: Study, pool: str, address: str | None, max_concurrent: int | None) -> None:
    """The trials and what each and all will need; asks the cluster where there is one."""
    trials = needed(study, corner_experiments(study))
    from raydist.engine.cluster.session import cluster_resources, ray_session, this_machine
    from raydist.tune.needs import size
    from raydist.tune.trial import Job

    cluster = this_machine()
    if address or os.environ.get("RAY_ADDRESS"):
        with ray_session(address):
            cluster = cluster_resources()
    at_a_time = max_concurrent or study.search.max_concurrent
    _, line = check_cluster(Job(study, "", pool, cluster, ""), trials, at_a_time)
    table = Table(header_style="bold")
    facts = ("agents", "rounds", "parameters", "mixing rate", "memory per agent", "per trial")
    for name in (*study.axes, *facts):
        table.add_column(name, justify="right")
    for point, need in trials:
        counts = [need.agents, need.rounds, f"{need.parameters:,}", f"{need.mixing_rate:.4f}"]
        sizes = [f"{need.memory / 1e6:,.0f} MB", size(need.total(pool == "local"))]
        cells = [*point.values(), *counts, *sizes]
        table.add_row(*(value_label(cell) for cell in cells))
    console.print(table)
    console.print(f"{study.trials} trials{counted(study)}")
    console.print(line)


def counted(study: Study) -> str:
    """The number of trials in words, where values are drawn: each draw runs at all lists."""
    if not study.spaces:
        return ""
    lists = {k: len(axis) for k, axis in study.axes.items() if k not in study.spaces}
    draws = f"{study.samples} draws of {', '.join(study.spaces)} (shown at their ends)"
    each = f", each at {' × '.join(f'{n} {key}' for key, n in lists.items())}" if lists else ""
    return f": {draws}{each}"


if __name__ == "__main__":
    cli.run(main)
