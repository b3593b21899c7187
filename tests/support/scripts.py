"""The scripts of analysis/, which are no package."""

import importlib.util
from pathlib import Path


def script(name):
    """The module of a script."""
    file = Path(__file__).parents[2] / "analysis" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
