"""python -m raydist.config [PREFIX]: every key with its default, its range and its meaning."""

import textwrap
from typing import Annotated

import typer

from raydist import cli
from raydist.config.keys import Key, keys, markdown
from raydist.results.terminal import console


def main(
    prefix: Annotated[
        str, typer.Argument(help="Only keys that begin so: loss, loss.beta, optim.schedule.")
    ] = "",
    *,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the sections of raydist/config/README.md.")
    ] = False,
) -> None:
    """List the keys of an experiment and of a study's search."""
    if as_markdown:
        console.print(markdown(), soft_wrap=True, end="")
        return
    for key in keys(prefix):
        _show(key)


def _show(key: Key) -> None:
    """Print one key: default and range, then what it means and the names that may stand there."""
    known = key.default not in ("", "required")
    facts = [
        "one of these" if key.choices else key.allowed,
        "" if known else key.default or "not set",
    ]
    if key.members:
        facts.append(f"of {', '.join(key.members)}")
    _print(f"{key.name} = {key.default}" if known else key.name, ", ".join(filter(None, facts)))
    _print("  ", key.meaning)
    for names, meaning in key.choices:
        _print(f"      {', '.join(names):<11}", meaning)


def _print(head: str, text: str) -> None:
    """Print a head and a text behind it, whose further lines are indented."""
    console.print(textwrap.fill(f"{head}  {text}", console.width, subsequent_indent=" " * 8))


if __name__ == "__main__":
    cli.run(main)
