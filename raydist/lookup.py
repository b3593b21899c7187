"""A name in a file: one of ours, the closest known one, or "package.module:function"."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")
OWN = '"package.module:function"'  # how a message says that anyone's will do
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
        written: the user's text.
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
    """Tell whether two names differ by case, hyphens and underscores alone, or by other tools."""
    return _bare(name) in (_bare(written), _bare(ELSEWHERE.get(written.lower(), "")))


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def nearest(name: str, known: Iterable[str], elsewhere: Iterable[str]) -> str:
    """The end of a message about an unknown key.

    Args:
        name: the key.
        known: the keys of its table.
        elsewhere: the dotted keys of all tables.

    Returns:
        The same one in other letters or in another table; else the closest one; else all of them.
    """
    known = list(known)
    places = [key for key in known if same(name, key)]
    places = places or [key for key in elsewhere if same(name, key.rpartition(".")[2])]
    meant = " or ".join(places) if len(places) in (1, 2) else closest(name, known)
    return f": did you mean {meant}?" if meant else f": known here are {', '.join(known)}"


def one_of(names: Sequence[str], written: object) -> str:
    """The names that were expected, and which of them was meant.

    Args:
        names: the names that there are; in quotes what stands for further ones.
        written: the user's text.

    Returns:
        Such as 'one of sgd, adam, deat: write "adam"'.
    """
    others = [name for name in names if name.startswith(('"', "the "))]
    plain = [name for name in names if name not in others]
    known = f"one of {', '.join(plain)}" if plain[1:] else f'"{plain[0]}"'
    meant = closest(str(written), plain)
    return " or ".join([known, *others]) + (f': write "{meant}"' if meant else "")


def ours(table: Mapping[str, T], name: str, key: str, further: Sequence[str] = ()) -> T:
    """The member of a family that one of our names means.

    Args:
        table: the members by name.
        name: one of these.
        key: the key under which it was written, for the message.
        further: other things that could have been written, for the message.

    Returns:
        The member.

    Raises:
        ValueError: there is none of that name; tells the known ones and the closest.

    Example:
        >>> import math
        >>> ours({"root": math.sqrt, "floor": math.floor}, "flor", "rule")
        Traceback (most recent call last):
        ValueError: rule is "flor", expected one of root, floor: write "floor"
    """
    if name not in table:
        raise ValueError(f'{key} is "{name}", expected {one_of([*table, *further], name)}')
    return table[name]


def named(
    table: Mapping[str, T], name: str, key: str, further: Sequence[str] = (OWN,)
) -> T | Callable[..., Any]:
    """The member of a family that a name means: one of ours, or anyone's.

    Args:
        table: our members by name.
        name: one of these, or "package.module:function".
        key: the key under which it was written, for the message.
        further: other things that could have been written, for the message.

    Returns:
        The member.

    Raises:
        ValueError: there is none of that name, as of `ours`, or `resolve` finds none.

    Example:
        >>> import math
        >>> named({"root": math.sqrt}, "root", "rule")(4.0), named({}, "math:gcd", "rule")(12, 18)
        (2.0, 6)
    """
    return resolve(name) if ":" in name else ours(table, name, key, further)


def member(name: str) -> Any:
    """The thing that `name` names, whatever it is.

    The current directory is importable, as it is under `python -m`.

    Args:
        name: "package.module:thing".

    Returns:
        The thing itself.

    Raises:
        ValueError: `name` has no colon, its module does not import, or it holds no such thing.
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
    return getattr(module, attribute)


def resolve(name: str) -> Callable[..., Any]:
    """The function that `name` names, as `member` finds it.

    Args:
        name: "package.module:function".

    Returns:
        The function (or class, or other callable) itself.

    Raises:
        ValueError: there is none.

    Example:
        >>> resolve("math:gcd")(12, 18)
        6
    """
    function: Callable[..., Any] = member(name)
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(f'"{name}" is not a function, it is of type {kind}: name a function')
    return function
