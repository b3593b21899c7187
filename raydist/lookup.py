"""A name in a file: one of ours, the closest known one, or "package.module:function"."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

ALIKE = 0.75  # "trade" and "trades" are, "epsilon" and "precision" are not
# What other tools call it; not to be found by the spelling.
ELSEWHERE = {
    "bfloat16": "bf16",
    "batch_size": "batch",
    "batchsize": "batch",
    "bs": "batch",
    "dataset": "set",
    "epsilon": "eps",
    "learning_rate": "lr",
    "n_epochs": "epochs",
    "num_agents": "agents",
    "num_epochs": "epochs",
    "optimiser": "optim",
    "optimizer": "optim",
    "step_size": "alpha",
    "val": "validation",
    "valid": "validation",
    "wd": "weight_decay",
}


def closest(written: str, known: Iterable[str]) -> str | None:
    """The known name that was meant, None where none is close.

    Args:
        written: what the user wrote.
        known: the names that there are.

    Returns:
        One of them: the same but for case, hyphens and underscores; what other tools call so; or
        one of nearly the same letters, of two equally close ones that with the same initial.

    Example:
        >>> closest("resnet18", ["resnet-18", "vgg-16"]), closest("epsilon", ["precision"])
        ('resnet-18', None)
    """
    names = {_bare(name): name for name in known}
    for name in names:
        if same(written, name):
            return names[name]
    bare = _bare(written)
    close = get_close_matches(bare, names, cutoff=ALIKE)
    best = min(close, key=lambda name: name[:1] != bare[:1], default=None)
    return None if best is None else names[best]


def same(written: str, name: str) -> bool:
    """Whether a name is the same but for case, hyphens and underscores, or so called elsewhere."""
    return _bare(name) in (_bare(written), _bare(ELSEWHERE.get(written.lower(), "")))


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def nearest(name: str, known: Iterable[str], elsewhere: Iterable[str]) -> str:
    """What to add to a message about an unknown key.

    Args:
        name: the key.
        known: those of its table.
        elsewhere: the dotted keys of all tables.

    Returns:
        The same one in other letters or in another table; else the closest one; else all of them.
    """
    known = list(known)
    places = [key for key in known if same(name, key)]
    places = places or [key for key in elsewhere if same(name, key.rpartition(".")[2])]
    meant = " or ".join(places) if len(places) in (1, 2) else closest(name, known)
    return f": did you mean {meant}?" if meant else f": known here are {', '.join(known)}"


def resolve(name: str) -> Callable[..., Any]:
    """The function that `name` names.

    The current directory is importable, as it is under `python -m`.

    Args:
        name: "package.module:function".

    Returns:
        The function (or class, or other callable) itself.

    Raises:
        ValueError: `name` has no colon, its module does not import, or there is no such callable.

    Example:
        >>> resolve("math:gcd")(12, 18)
        6
    """
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(f'"{name}" names no function: write "package.module:function"')
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises as it loads
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f'"{name}": module {module_name} does not import ({cause})') from error
    if not hasattr(module, attribute):
        raise ValueError(
            f'"{name}": module {module_name} ({getattr(module, "__file__", "built in")}) '
            f"has no {attribute}: check the spelling after the colon"
        )
    function: Callable[..., Any] = getattr(module, attribute)
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(f'"{name}" is not a function, it is of type {kind}: name a function')
    return function
