"""python -m raydist.evaluate RUN...: how robust and how flat is what was trained.

What is imported in functions takes seconds; --help is answered without it.
"""

import re
from typing import Annotated, Literal

import typer

from raydist import cli
from raydist.config.fields import parse_budget
from raydist.errors import InputError
from raydist.evaluation.names import PARTS, PRESETS
from raydist.results.terminal import console, evaluation_notes, evaluation_table, say
from raydist.storage import locate


def main(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of studies, trials or runs; with --model section.key=value."),
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option(help="Instead of RUNS: a model of ours, or module:function.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Its weights, with --model.")] = None,
    data: Annotated[str | None, typer.Option(help="Its images, with --model.")] = None,
    out: Annotated[str | None, typer.Option(help="Its results, with --model.")] = None,
    parts: Annotated[
        str, typer.Option(help=f"What to measure: all, or some of {', '.join(PARTS)}.")
    ] = "robustness,masking",
    attacks: Annotated[
        str | None,
        typer.Option(help="Such as pgd10,pgd50x5,pgd20-margin,apgd-dlr,square1000,autoattack."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"A protocol's attacks: {', '.join(PRESETS)}.")
    ] = None,
    models: Annotated[
        str, typer.Option(help="Some of centroid, agents, agent-000, average, ensemble, start.")
    ] = "centroid",
    images: Annotated[str, typer.Option(help="Test images, or all.")] = "all",
    norm: Annotated[
        Literal["linf", "l2", "l1"] | None, typer.Option(help="Default: the trial's.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Default: the trial's.")] = None,
    delta: Annotated[str | None, typer.Option(help="W2 budget; default: eps.")] = None,
    subset: Annotated[int, typer.Option(help="Training images for curvature and scans.")] = 256,
    probes: Annotated[int, typer.Option(help="Of the Hessian's trace.")] = 50,
    top: Annotated[int, typer.Option(help="Eigenvalues.")] = 20,
    directions: Annotated[int, typer.Option(help="Of the perturbation curves.")] = 5,
    grid: Annotated[int, typer.Option(help="Points along each axis of a scan.")] = 11,
    reach: Annotated[float, typer.Option(help="Half the length of each axis of a scan.")] = 1.0,
    batch: Annotated[int, typer.Option(help="Images per forward pass.")] = 256,
    pool: cli.PoolName = "local",
    address: cli.Address = None,
    cpus: Annotated[float, typer.Option(min=0.01, help="Of one task, with --pool ray.")] = 1.0,
    gpus: Annotated[float | None, typer.Option(min=0, help="Of one task, --pool ray.")] = None,
    quiet: cli.Quiet = False,
) -> int:
    """Measure the robustness and the flatness of what was trained in RUNS, or of --model."""
    _check_what(runs, model, data, {"--checkpoint": checkpoint, "--data": data, "--out": out})
    if model is not None and models != "centroid":
        raise InputError(f"--models {models} chooses among a trial's models: leave out --model")
    if attacks is not None and preset is not None:
        raise InputError("--attacks and --preset: write one of them")
    if preset is not None and preset not in PRESETS:
        raise InputError(f'--preset is "{preset}", expected one of {", ".join(PRESETS)}')
    from raydist.evaluation.request import Request
    from raydist.evaluation.run import evaluate_runs

    defaults = Request()
    names = PRESETS[preset] if preset else _names(attacks) if attacks else defaults.attacks
    request = Request(
        parts=PARTS if parts == "all" else _names(parts),
        attacks=tuple(names),
        models=_names(models) if model is None else ("model",),
        images=_count("--images", images),
        norm=norm,
        eps=_budget("--eps", eps),
        delta=_budget("--delta", delta),
        batch=batch,
        subset=subset,
        probes=probes,
        top=top,
        directions=directions,
        grid=grid,
        reach=reach,
    )
    folders = runs or []
    if model is not None and data is not None:
        from raydist.evaluation.named import budget_of, name_model

        threat = budget_of(norm, request.eps)
        folders = [str(name_model(model, data, checkpoint, threat, folders, out))]
    try:
        frame = evaluate_runs(
            folders, request, pool, address=address, cpus=cpus, gpus=gpus, quiet=quiet
        )
    except (KeyboardInterrupt, Exception) as error:
        return cli.told(error, "the same command, which goes on where it stopped")
    if not quiet:
        console.print(evaluation_table(frame))
        for note in evaluation_notes(frame):
            console.print(note, style="dim")
        where = f"{locate(folders[0])}/evaluation"
        console.print(f"table {where}/evaluation.csv   pictures {where}/*.png")
    if "error" not in frame:
        return 0
    for _, row in frame[frame["error"].notna()].iterrows():
        say(f"failed: {row['trial']} {row['model']}: {row['error']}")
    return cli.FAILED


def _check_what(
    runs: list[str] | None, model: str | None, data: str | None, of_model: dict[str, str | None]
) -> None:
    """Either runs are named, or a model with its images."""
    if model is not None and data is None:
        raise InputError("--data is missing: write --data cifar10, or module:function")
    if model is None and not runs:
        raise InputError("what to evaluate? write python -m raydist.evaluate RUN, or --model")
    for flag, value in of_model.items():
        if model is None and value is not None:
            raise InputError(f"{flag} belongs to a model on its own: write --model module:function")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in re.split(r"[,\s]+", text) if name)


def _count(flag: str, text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not (text.isascii() and text.isdigit()):
        raise InputError(f'{flag} is "{text}", expected "all" or a whole number, 1 or more')
    return int(text)


def _budget(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_budget(text)
    except ValueError as error:
        raise InputError(f'{flag} is "{text}", {error}') from error


if __name__ == "__main__":
    cli.run(main)
