"""A mutation test: small changes to the code, each of which some test should notice.

    nice python tests/support/mutants.py raydist/network --tests tests/network

Places are drawn at random and changed by the operators of cosmic-ray. One run of the tests records
which of them pass through which lines; then each mutant meets those that pass through its own, in a
forked process that imports the changed module from memory. No file is written, and a process that a
test starts runs the code as it is. Tests that need Ray, a GPU, data or much time are left out.
"""

import argparse
import ast
import difflib
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from time import process_time
from typing import NamedTuple

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("ray", "gpu", "slow", "train", "long", "chaos", "data")
OPTIONS = ("-oaddopts=", "-n0", "-pno:cacheprovider", "--doctest-modules")
BUDGET = 20  # seconds of tests that a mutant has to survive
SECONDS = 120  # of a processor that they may take when it makes them slower
MEMORY = 6 * 2**30  # bytes that it may take


class Mutant(NamedTuple):
    """One change: its module's file, its line there, and all that the module reads after it."""

    file: str
    line: int
    code: str


def sample(files, number, seed):
    """Mutants at places drawn evenly from all of the files, one change at each."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    classes = [get_operator(name) for name in operator_names()]
    operators = [operator() for operator in classes if not operator.arguments()]
    sources = {file: Path(file).read_text() for file in files}
    places = defaultdict(list)
    for file, source in sources.items():
        nodes, types = list(ast_nodes(get_ast(source))), list(annotations(source))
        for operator in operators:
            found = [(node, at) for node in nodes for at, _ in operator.mutation_positions(node)]
            for occurrence, (node, at) in enumerate(found):
                star = node.type == "operator" and node.parent.type in ("parameters", "lambdef")
                if not star and not any(begin <= at < end for begin, end in types):
                    places[file, at].append((operator, occurrence))
    rng = random.Random(seed)
    for file, at in rng.sample(sorted(places), min(number, len(places))):
        operator, occurrence = rng.choice(places[file, at])
        yield Mutant(file, at[0], mutate_code(sources[file], operator, occurrence))


def annotations(source):
    """Begin and end of each annotation, which no run depends on."""
    for node in ast.walk(ast.parse(source)):
        for type_ in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if type_ is not None:
                yield (type_.lineno, type_.col_offset), (type_.end_lineno, type_.end_col_offset)


class Recorder:
    """A plugin of pytest: the seconds of each test, and the lines of the files that it runs."""

    def __init__(self, files):
        self.files = {str(ROOT / file): file for file in files}
        self.tests, self.failed = {}, set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        lines, start = set(), process_time()

        def trace(frame, event, _):
            file = self.files.get(frame.f_code.co_filename)
            if file:
                lines.add((file, frame.f_lineno))
            return trace if file else None

        sys.settrace(trace)
        yield
        sys.settrace(None)
        self.tests[item.nodeid] = process_time() - start, sorted(lines)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)


class Chosen:
    """A plugin of pytest: only these tests, in this order, on a mutant."""

    def __init__(self, tests, mutant):
        self.order = {test: n for n, test in enumerate(tests)}
        self.finder, self.failed = Finder(mutant), ""

    def pytest_sessionstart(self):
        sys.meta_path.insert(0, self.finder)  # before pytest's own

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.order]
        items.sort(key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed = report.nodeid


class Finder(importlib.machinery.SourceFileLoader):
    """The way to a mutant's module, and what loads it."""

    def __init__(self, mutant):
        super().__init__(module_name(mutant.file), str(ROOT / mutant.file))
        self.code = mutant.code

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, name):
        return compile(self.code, self.path, "exec")


def module_name(file):
    return ".".join(Path(file).with_suffix("").parts)


def warm(files):
    """Import what the files need, and forget what is ours: a fork need not load the rest again."""
    for file in files:
        importlib.import_module(module_name(file))
    for name in [name for name in sys.modules if name.partition(".")[0] == "raydist"]:
        del sys.modules[name]
    gc.freeze()  # or each fork would look through all of it for garbage


def run_pytest(paths, plugin):
    settings = dict(deadline=None, derandomize=True, database=None)
    checks = list(hypothesis.HealthCheck)
    hypothesis.settings.register_profile("mutants", suppress_health_check=checks, **settings)
    hypothesis.settings.load_profile("mutants")
    marks = " and ".join(f"not {mark}" for mark in LEFT_OUT)
    loaded = "-Wignore::pytest.PytestAssertRewriteWarning"  # hypothesis, before pytest began
    return int(pytest.main([*OPTIONS, loaded, "-m", marks, *paths], plugins=[plugin]))


def in_child(work, folder, seconds):
    """Run `work(answer)` in a forked process: its exit code (−signal), answer and output."""
    answer, output = folder / "answer", folder / "output"
    answer.write_text("")
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            os.killpg(child, signal.SIGKILL)  # what its tests have left
        except ProcessLookupError:
            pass
        return code, answer.read_text(), output.read_text(errors="replace")
    os.setpgid(0, 0)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    signal.alarm(10 * seconds)  # a deadlock takes no time of a processor
    code = 1
    try:
        code = work(answer)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def record(files, tests, folder):
    """Seconds and lines, [[file, line], ...], of each test that passes over the code as it is."""

    def work(answer):
        recorder = Recorder(files)
        code = run_pytest(tests, recorder)
        for test in recorder.failed:
            del recorder.tests[test]
        answer.write_text(json.dumps([recorder.tests, sorted(recorder.failed)]))
        return 0 if recorder.failed else code

    code, answer, output = in_child(work, folder, 7200)
    if code:
        sys.exit(f"{output[-4000:]}\nno record of the tests: exit code {code}")
    passed, failed = json.loads(answer)
    for test in failed:
        print(f"left out, because it fails without a mutant: {test}", flush=True)
    return passed


def meeting(mutant, tests):
    """The tests that a mutant meets, until they take the budget.

    First come those through its statement, the module's own before others. Behind them, since a
    constant has no line of its own and a fixture runs once, are others through its file.
    """
    tree = ast.walk(ast.parse((ROOT / mutant.file).read_text()))
    spans = [(node.lineno, node.end_lineno) for node in tree if isinstance(node, ast.stmt)]
    around = [span for span in spans if span[0] <= mutant.line <= span[1]]
    begin, end = min(around, key=lambda span: span[1] - span[0], default=(0, 0))  # a decorator
    same = (ROOT / "tests").rglob(f"test_{Path(mutant.file).stem}.py")
    own = (mutant.file, *(str(file.relative_to(ROOT)) for file in same))
    ranks = {}
    for test, (seconds, lines) in tests.items():
        here = [line for file, line in lines if file == mutant.file]
        through = any(begin <= line <= end for line in here)
        if here:
            ranks[test] = (not through, not test.startswith(own), seconds)
    used, chosen = 0.0, []
    for test in sorted(ranks, key=ranks.__getitem__):
        used += tests[test][0]
        if used > BUDGET:
            break
        chosen.append(test)
    return chosen


def judge(mutant, tests, folder):
    """What became of a mutant, "killed", "timed out" or "survived", and what tells so."""
    if not tests:
        return "survived", "no test runs it"

    def work(answer):
        by_file = defaultdict(list)
        for test in tests:
            by_file[test.partition("::")[0]].append(test)
        for file, some in by_file.items():
            plugin = Chosen(some, mutant)
            code = run_pytest(["-x", f"--basetemp={folder / 'tests'}", file], plugin)
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                answer.write_text(plugin.failed or f"{file} cannot be imported")
                return code
        return 0

    code, answer, output = in_child(work, folder, SECONDS)
    if code in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM):
        return "timed out", ""
    if code > pytest.ExitCode.INTERRUPTED:
        sys.exit(f"{output[-4000:]}\npytest failed, not a test: exit code {code}")
    return "killed" if code else "survived", answer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders of raydist/")
    parser.add_argument("--number", type=int, default=50, help="mutants")
    parser.add_argument("--seed", type=int, default=0, help="of their draw")
    parser.add_argument("--tests", nargs="+", default=["tests", "raydist"], help="as for pytest")
    parser.add_argument("--record", type=Path, help="JSON file of lines and seconds, to run again")
    return parser.parse_args()


def main():
    args = arguments()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    torch.set_num_threads(1)  # threads do not survive a fork
    found = [[path] if path.is_file() else path.rglob("*.py") for path in args.paths]
    files = sorted({str(path) for paths in found for path in paths})
    warm(files)
    outcomes = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.record and args.record.exists():
            tests = json.loads(args.record.read_text())
        else:
            tests = record(files, args.tests, folder)
            if args.record:
                args.record.write_text(json.dumps(tests))
        for mutant in sample(files, args.number, args.seed):
            outcome, why = judge(mutant, meeting(mutant, tests), folder)
            outcomes[mutant.file][outcome] += 1
            before, after = Path(mutant.file).read_text().splitlines(), mutant.code.splitlines()
            diff = [*difflib.unified_diff(before, after, n=0, lineterm="")][3:]
            print(f"{outcome} {mutant.file}:{mutant.line} {why}", *diff, sep="\n", flush=True)
    for file, counts in sorted(outcomes.items()):
        print(file, *(f"{number} {outcome}" for outcome, number in sorted(counts.items())))


if __name__ == "__main__":
    main()
