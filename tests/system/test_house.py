"""The house: imports run down, floor by floor, and what is heavy stays in its rooms."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUNDATIONS = "errors lookup seeding signals storage lock metrics vector"
COMMANDS = "cli config.__main__ evaluate run sweep"
# a module imports from its own room, its own floor and those below, and never in circles
FLOORS = [
    {f"raydist.{name}" for name in FOUNDATIONS.split()},
    {"raydist.network", "raydist.adversary", "raydist.learning", "raydist.config"},
    {"raydist.measure"},
    {"raydist.results"},
    {"raydist.engine"},
    {"raydist.evaluation", "raydist.tune"},
    {"raydist", *(f"raydist.{name}" for name in COMMANDS.split())},
]
PURE = ("raydist.network", "raydist.adversary", "raydist.learning", "raydist.measure")
HEAVY = {  # who may import it, even late
    "ray": ("engine.cluster", "engine.pool.ray_", "engine.ray_train", "tune"),
    "torch": (
        *("seeding", "vector", "network", "adversary", "learning", "measure"),
        *("engine", "evaluation"),
    ),
    "pandas": ("results", "engine.ending", "tune.sweep", "evaluation", "sweep"),
    "matplotlib": ("results.plot", "evaluation.pictures"),
}


def name_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted((ROOT / "raydist").rglob("*.py"))}


def imports(node, typed=False):
    """What a module imports anywhere, and whether for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, typed) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "write the whole path"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield (inner if inner in MODULES else child.module), typed
        only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from imports(child, typed or only)


IMPORTS = {module: set(imports(ast.parse(file.read_text()))) for module, file in MODULES.items()}
ARROWS = {
    module: {to for to, typed in found if to in MODULES and not typed and to != module}
    for module, found in IMPORTS.items()
}


def within(module, package):
    return module == package or module.startswith(f"{package}.")


def room_of(module):
    """A folder; commands and files directly in raydist/ or raydist/engine/ are their own rooms."""
    folder = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    alone = folder in ("raydist", "raydist.engine") or module.endswith(".__main__")
    return module if alone else folder


def floor_of(module):
    places = ((len(room), n) for n, floor in enumerate(FLOORS) for room in floor if room == module)
    inner = (
        (len(room), n)
        for n, floor in enumerate(FLOORS)
        for room in floor - {"raydist"}
        if within(module, room)
    )
    return max([*places, *inner])[1]


def circle(arrows):
    """Some circle of arrows, [] if there is none."""
    done = set()

    def follow(start, path):
        if start in path:
            return [*path[path.index(start) :], start]
        if start in done:
            return []
        for to in sorted(arrows.get(start, ())):
            if found := follow(to, [*path, start]):
                return found
        done.add(start)
        return []

    return next((found for start in sorted(arrows) if (found := follow(start, []))), [])


def rooms(arrows):
    found = {}
    for module, others in arrows.items():
        for other in others:
            if room_of(module) != room_of(other):
                found.setdefault(room_of(module), set()).add(room_of(other))
    return found


def test_every_module_has_a_floor():
    for module in MODULES:
        assert floor_of(module) >= 0


def test_no_module_imports_itself_by_way_of_others():
    assert circle(ARROWS) == []


def test_no_room_needs_itself_by_way_of_others():
    assert circle(rooms(ARROWS)) == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module):
    up = {to for to in ARROWS[module] if floor_of(to) > floor_of(module)}
    assert not up


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(PURE)])
def test_the_equations_know_no_configuration(module):
    """Neither experiments nor results nor agents: plain arguments in, values out."""
    known = {to for to in ARROWS[module] if to != module and not to.startswith(PURE)}
    assert not {to for to in known if floor_of(to) > 0 or to == "raydist"}


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_stay_in_their_rooms(package):
    allowed = tuple(f"raydist.{name}" for name in HEAVY[package])
    using = {
        module
        for module, found in IMPORTS.items()
        if any(within(name, package) and not typed for name, typed in found)
    }
    assert using and not {module for module in using if not module.startswith(allowed)}


def test_no_module_imports_the_tests_or_the_scripts_and_those_only_read():
    reading = {"raydist", "raydist.metrics"}
    reading |= {f"raydist.results.{name}" for name in ("plot", "record", "seeds")}
    for module, found in IMPORTS.items():
        assert not {name for name, _ in found if name.split(".")[0] in ("analysis", "tests")}, (
            module
        )
    for file in (ROOT / "analysis").glob("*.py"):  # the benchmarks measure the parts themselves
        found = {name for name, _ in imports(ast.parse(file.read_text()))}
        assert {name for name in found if within(name, "raydist")} <= reading, file
    assert not list((ROOT / "sweeps").glob("*.py")) + list((ROOT / "topologies").glob("*.py"))


TOLD = [f"raydist.{name}" for name in "config results tune evaluation engine".split()]
TOP = [f"raydist.{name}" for name in f"{FOUNDATIONS} {COMMANDS}".split()]
RIDDLES = "what which how who whom whose that as where when why whether whatever nothing so"


@pytest.mark.parametrize("room", [*PURE, *TOLD])
def test_docstrings_begin_with_a_noun_or_an_imperative(room):
    for file in (file for name, file in MODULES.items() if name.startswith(room)):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                doc = ast.get_docstring(node) or "Documented elsewhere."
                first, name = doc.split()[0].strip(".,:;"), getattr(node, "name", "the module")
                assert first.lower() not in RIDDLES.split(), f"{file}: {name} begins with {first}"


@pytest.mark.parametrize("room", [*PURE, *TOLD, *TOP])
def test_arguments_are_told_by_a_noun(room):
    """Not "agents: of each actor", which leaves the reader to find out what is of each actor."""
    for file in (file for name, file in MODULES.items() if name.startswith(room)):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                for line in (ast.get_docstring(node) or "").splitlines():
                    found = re.match(r"    [*\w]+: (of|as in|as of|what|which|how) ", line)
                    assert not found, f"{file}: {node.name}: {line.strip()}"


@pytest.mark.parametrize("module", ["agent.agent", "agent.step", "agent.own", "plan"])
def test_nobody_asks_of_what_kind_a_task_is(module):
    """`tasks`, `source` and `agent.wasserstein` know it, and are asked for what follows from it."""
    text = MODULES[f"raydist.engine.{module}"].read_text()
    asked = re.findall(r'(?:data|share) is (?:not )?None|[!=]= "(?:quadratic|wasserstein)"', text)
    assert not asked, f"{module} asks {asked}"
