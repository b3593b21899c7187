"""Functions named in a file as "package.module:function"."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


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
