"""python -m raydist.run FILE: one experiment, without Ray Tune, on either pool.

What is imported in functions takes seconds; --help and a misspelt key are answered without it.
"""

from pathlib import Path
from typing import Annotated

import typer

from raydist import cli, errors
from raydist.config.experiment import Experiment
from raydist.config.study import read
from raydist.engine.run import experiment_in, run_experiment, show_plan
from raydist.errors import AgentError, InputError
from raydist.results.terminal import console, number, say, say_unmeasured
from raydist.storage import Storage


def main(
    file: Annotated[Path | None, typer.Argument(help="The experiment's TOML file.")] = None,
    settings: cli.Settings = None,
    *,
    out: cli.Out = None,
    resume: cli.Resume = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it needs only.")] = False,
    pool: cli.PoolName = "local",
    address: cli.Address = None,
    quiet: cli.Quiet = False,
) -> int:
    """Run the experiment in FILE; continue one with --resume DIR."""
    if resume is not None and (file is not None or out is not None):
        raise InputError(f"--resume {resume} says all there is: write it without FILE and --out")
    if resume is None and file is None:
        raise InputError("which experiment? write python -m raydist.run FILE or --resume DIR")
    if resume is None:
        study = read(file or "", settings or [])
        experiment, folder = study.only(), f"runs/{study.name}" if out is None else out
    else:
        experiment, folder = experiment_in(Storage(resume)), resume
    if dry_run:
        from raydist.engine.plan import make_plan

        show_plan(make_plan(experiment))
        return 0
    try:
        result = run_experiment(
            experiment,
            pool,
            address=address,
            out=folder,
            resume=resume is not None,
            quiet=quiet,
        )
    except InputError:
        raise
    except (KeyboardInterrupt, Exception) as error:
        return _told(error, experiment, folder)
    if not quiet:
        for name, value in result.final.items():
            console.print(f"{name:24} {number(value)}")
        console.print(f"results {folder}")
    if "unmeasured" in result.final:
        say_unmeasured("the run", result.final["unmeasured"], folder)
        return cli.FAILED
    return 0


def _told(error: BaseException, experiment: Experiment, path: str) -> int:
    """Tell in a line what ended a run, where its log is, how to go on; return the exit code."""
    from raydist.results.folder import Folder

    folder = Folder(path)
    begun = folder.store.find("experiment.json") is not None
    resume = f"python -m raydist.run --resume {path}"
    resume = resume if begun and experiment.engine != "train" else ""
    if not isinstance(error, AgentError) or errors.machine_error(error):
        return cli.told(error, resume)
    line = f"raydist: {error}"
    if begun:
        line += f" (log: {path}/error.txt)"
    say(line + (f"; continue with {resume}" if resume else ""))
    return cli.FAILED


if __name__ == "__main__":
    cli.run(main)
