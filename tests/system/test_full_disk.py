"""A disk that is full, over quota, read-only; a Ray that cannot start: one line, nothing lost."""

import errno
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from experiments import QUADRATIC

from raydist import cli, errors, load, run, run_sweep
from raydist.config.values import shown
from raydist.engine import run as engine_run
from raydist.engine.cluster import private
from raydist.errors import InputError, MachineError
from raydist.storage import locate

TREE = QUADRATIC | {"snapshot": {"every": 4}, "rounds": 40}
mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@contextmanager
def mounted(folder, options):
    """A small file system of its own."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder])
    if done.returncode:
        pytest.skip("may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def told(tmp_path, monkeypatch, capsys, *arguments):
    """Exit code and stderr of `python -m raydist.run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.run(run.main)
    return left.value.code, capsys.readouterr().err


def study(tmp_path, rounds=40):
    lines = [f"rounds = {rounds}", 'dtype = "float64"', 'topology = { kind = "ring", agents = 3 }']
    lines += ['data = { set = "quadratic", centers = [[0], [3], [6]], hessian = [1.0] }']
    lines += ['model = { name = "point", start = [3.0] }', 'loss = { name = "quadratic" }']
    lines += ["threat = { eps = 0.0 }", "snapshot = { every = 4 }"]
    (tmp_path / "study.toml").write_text("\n".join(lines))
    return "study.toml"


def fill(folder):
    with pytest.raises(OSError, match="No space left"):
        with (folder / "filler").open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass


@mounts
@pytest.mark.parametrize(
    ("options", "fills"), [("size=256k", True), ("size=8m,nr_inodes=2", False)]
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    tmp_path, monkeypatch, capsys, options, fills
):
    with mounted(tmp_path / "disk", options) as disk:
        if fills:
            fill(disk)
        arguments = [study(tmp_path), "--quiet", "--out", disk / "run"]
        code, line = told(tmp_path, monkeypatch, capsys, *arguments)
        assert code == 1 and line.count("\n") == 1, line
        assert line.startswith(f"raydist: {disk}/run") and "No space left on device: make" in line
        assert not list(disk.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=8m,nr_inodes=1k", disk], check=True)
        (disk / "filler").unlink(missing_ok=True)
        code, line = told(tmp_path, monkeypatch, capsys, *arguments)
        if "--resume" in line:  # it had begun
            code, line = told(tmp_path, monkeypatch, capsys, "--quiet", "--resume", disk / "run")
        assert (code, line) == (0, "") and load(disk / "run")["status"].tolist() == ["completed"]


@mounts
def test_a_disk_that_can_only_be_read_is_one_line(tmp_path, monkeypatch, capsys):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        arguments = [study(tmp_path), "--quiet", "--out", disk / "run"]
        code, line = told(tmp_path, monkeypatch, capsys, *arguments)
        assert code == 1 and line == (
            f"raydist: {disk}/run cannot be written: Read-only file system: choose a folder that "
            "can be written\n"
        )


@pytest.mark.parametrize(
    ("number", "when"),
    [(errno.EROFS, "graph.json"), (errno.ENOSPC, "rounds"), (errno.EDQUOT, "final.json")],
)
def test_a_run_whose_disk_fails_is_one_line_and_goes_on(
    tmp_path, monkeypatch, capsys, number, when
):
    replace = os.replace

    def failing(part, path):
        if f"run/{when}" in str(path):
            raise OSError(number, os.strerror(number))
        replace(part, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        code, line = told(
            tmp_path, patched, capsys, study(tmp_path), "--quiet", "--out", tmp_path / "run"
        )
    assert code == 1 and line.count("\n") == 1 and os.strerror(number) in line
    assert line.endswith(f"; continue with python -m raydist.run --resume {tmp_path}/run\n")
    assert not list(tmp_path.rglob("*.part"))
    assert told(tmp_path, monkeypatch, capsys, "--quiet", "--resume", tmp_path / "run") == (0, "")
    assert load(tmp_path / "run")["rounds_run"].tolist() == [40]


def test_what_wraps_an_error_of_the_machine_is_seen_through():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "result.json")
        except OSError as error:
            raise RuntimeError("The trial failed") from error
    except RuntimeError as error:
        found = errors.machine_error(error)
    assert str(found).startswith("result.json cannot be written or read: No space left on device")
    assert errors.machine_error(RuntimeError("ours")) is None
    assert errors.machine_error(FileNotFoundError(errno.ENOENT, "no such file")) is None


@pytest.mark.parametrize("path", ["simplecache::s3://bucket/run", "a::b", "/runs/a::/b"])
def test_chained_file_systems_are_refused(path):
    with pytest.raises(InputError, match="chains file systems with ::"):
        locate(path)


def test_a_folder_with_a_long_name_is_not_where_a_private_ray_has_its_sockets(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 80)
    monkeypatch.setenv("TMPDIR", str(long))
    assert private.private_folder() == "/tmp/ray" and "too long for Ray's" in caplog.text
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert private.private_folder() == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(InputError, match="write export RAY_TMPDIR=/tmp"):
        private.private_folder()


@mounts
def test_a_private_ray_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(private, "SOCKET_BYTES", 1000)
    with mounted(tmp_path / "disk", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        monkeypatch.setenv("RAY_TMPDIR", str(disk))
        with pytest.raises(MachineError, match=r"a private Ray cannot start: .* Read-only .* RAY"):
            private.private_folder()
        monkeypatch.setenv("HOME", str(disk))
        with pytest.raises(MachineError, match=r"a private Ray cannot start: .* Read-only .* HOME"):
            private.protect_token()


def test_the_token_is_its_owners_alone(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    private.protect_token()
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
    token.write_text("mine")
    token.chmod(0o644)
    private.protect_token()
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text() == "mine"


def test_a_trials_folder_that_was_moved_is_not_made_anew(tmp_path):
    from raydist.config.experiment import validate
    from raydist.engine.plan import make_plan
    from raydist.results.folder import Folder

    plan = make_plan(validate(TREE))
    folder = Folder(tmp_path / "trial")
    folder.begin(plan.config, plan.graph, plan.A, plan.mixing_rate, plan.contents)
    (tmp_path / "trial").rename(tmp_path / "elsewhere")
    for write in (folder.flush, lambda: folder.fail(ValueError("x"))):
        with pytest.raises(MachineError, match="trial was moved or removed"):
            write()
    assert not (tmp_path / "trial").exists()


def test_no_password_of_a_url_is_shown_or_stored(tmp_path):
    url = "ftp://me:hunter2@nowhere.invalid/runs"
    for line in (f"{url} exists", f"out is {shown(url * 9)}", "x" * 780 + url):
        for error in (InputError(line), MachineError(line)):
            assert "hunter" not in str(error) and "ftp://me:***" in str(error)
    with pytest.raises(InputError, match=r"snapshot.path is .*, which holds a password") as caught:
        engine_run.run_experiment(TREE | {"snapshot": {"path": url}}, out=tmp_path / "run")
    assert "hunter2" not in str(caught.value) and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"me:\*\*\*@nowhere.invalid/runs cannot be reached"):
        engine_run.run_experiment(TREE, out=url)
    with pytest.raises(InputError, match=r"me:\*\*\*@nowhere.invalid/runs/a holds a password"):
        run_sweep({"base": TREE}, out=f"{url}/a")


def test_the_package_has_no_console_that_reads_markup():
    """Each text goes through `raydist.results.terminal`."""
    package = Path(cli.__file__).parent
    for file in package.rglob("*.py"):
        text = file.read_text()
        assert "from_markup" not in text and "markup=True" not in text, file
        if file.name != "terminal.py":
            assert "TextColumn(" not in text and "Console(" not in text, file
