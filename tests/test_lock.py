"""A folder belongs to one process at a time, on a disk and on storage without locks."""

import errno
import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from experiments import QUADRATIC
from fsspec.implementations.memory import MemoryFileSystem

import raydist.engine.cluster.session
from raydist import lock, run_experiment, run_sweep
from raydist.errors import InputError, MachineError
from raydist.lock import hold
from raydist.storage import Storage

HOLDER = """
import sys, time
from raydist.lock import hold
from raydist.storage import Storage
with hold(Storage(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "RENEW", 0.05)
    monkeypatch.setattr(lock, "EXPIRE", 0.5)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["disk", "without flock", "memory"])
def place(request, tmp_path, monkeypatch, quick):
    """A folder on each kind of storage."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "without flock":
        monkeypatch.setattr(fcntl, "flock", refuse)
    return Storage("memory://bucket/run" if request.param == "memory" else tmp_path / "new" / "run")


def test_a_second_one_is_refused_in_one_line_until_the_first_has_ended(place):
    with hold(place) as held:
        with pytest.raises(InputError, match=r"run is in use by process \d+ on .*: wait"):
            with hold(place):
                pass
        place.write("a", b"1")
        held.check(now=True)
    assert place.names() == ["a"]
    with hold(place):
        pass


def test_a_folder_that_stays_empty_is_taken_away_again(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(Storage(tmp_path / "a" / "b")):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_lock_dies_with_its_process(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        for part in ("x.json.0.part", "weights/y.part"):
            Storage(tmp_path / "run").write(part, b"half")
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on"):
            with hold(Storage(tmp_path / "run")):
                pass
        holder.kill()
        holder.wait()
    with hold(Storage(tmp_path / "run")):
        assert Storage(tmp_path / "run").names() == ["lock", "weights"]
        assert Storage(tmp_path / "run").names("weights") == []


def test_what_a_process_left_that_died_before_it_wrote_is_no_run(tmp_path):
    Storage(tmp_path).write("lock", b"{}")
    Storage(tmp_path).write("experiment.json.1.part", b"{")
    run_experiment(QUADRATIC, out=tmp_path)
    assert not {"lock", "experiment.json.1.part"} & {*Storage(tmp_path).names()}


def test_of_many_at_once_one_has_it(tmp_path):
    """Each takes the file away when it leaves, while others open it."""
    inside, most, times = [0], [0], [0]

    def again_and_again():
        for _ in range(150):
            try:
                with hold(Storage(tmp_path / "run")):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    times[0] += 1
                    time.sleep(0)
                    inside[0] -= 1
            except InputError:
                pass

    threads = [threading.Thread(target=again_and_again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and times[0] > 10 and not Storage(tmp_path / "run").names()


@pytest.mark.parametrize("how", ["moved", "removed", "replaced"])
def test_a_folder_that_is_no_longer_there_is_told(tmp_path, how):
    folder = tmp_path / "run"
    with hold(Storage(folder)) as held:
        held.check(now=True)
        Storage(folder).remove("lock") if how == "removed" else folder.rename(tmp_path / "other")
        if how == "replaced":
            folder.mkdir()
        with pytest.raises(MachineError, match=r"run was moved, removed or taken over"):
            held.check(now=True)


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_owner_told(quick, caplog):
    store = Storage("memory://bucket/run")
    with hold(store) as held:
        held._lock._ended.set()  # as a process that hangs
        held._lock._thread.join()
        began = time.monotonic()
        with hold(store) as other:
            assert time.monotonic() - began >= 0.5
            assert "see who has it" in caplog.text
            other.check(now=True)
            held._lock._ended.clear()  # it wakes up
            held._lock._renew()
            with pytest.raises(MachineError, match="taken over"):
                held.check(now=True)
            other.check(now=True)
    assert not store.names()


def test_commands_are_refused_at_the_door(tmp_path, monkeypatch):
    monkeypatch.setattr(raydist.engine.cluster.session, "ray_session", None)  # nobody gets so far
    tree = QUADRATIC | {"snapshot": {"every": 4}}
    run_experiment(tree, out=tmp_path / "run")
    ended = Storage(tmp_path / "run").names()
    Storage(tmp_path / "run").remove("final.json")
    for busy, start in {
        "new": lambda: run_experiment(tree, out=tmp_path / "new"),
        "study": lambda: run_sweep({"base": tree}, out=tmp_path / "study", pool="local"),
        "run": lambda: run_experiment(tree, out=tmp_path / "run", resume=True),
    }.items():
        with hold(Storage(tmp_path / busy)):
            with pytest.raises(InputError, match=f"{busy} is in use by process"):
                start()
            assert len(Storage(tmp_path / busy).names()) == (len(ended) if busy == "run" else 1)
    assert run_experiment(tree, out=tmp_path / "run", resume=True).final["status"] == "completed"
    assert {*Storage(tmp_path / "run").names()} == {*ended, "events.parquet"}


def test_a_run_whose_folder_is_moved_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOOK", 0.0)
    tree = QUADRATIC | {"rounds": 3000}

    def move():
        while not (tmp_path / "run" / "rounds.parquet").exists():
            time.sleep(0.01)
        (tmp_path / "run").rename(tmp_path / "elsewhere")

    mover = threading.Thread(target=move)
    mover.start()
    with pytest.raises(MachineError, match="was moved"):
        run_experiment(tree, out=tmp_path / "run")
    mover.join()
    assert "final.json" not in Storage(tmp_path / "elsewhere").names()


def test_what_fails_in_a_folder_that_was_moved_is_told_as_that(tmp_path):
    with pytest.raises(MachineError, match="was moved") as caught:
        with hold(Storage(tmp_path / "run")):
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            raise MachineError("run/final.json cannot be written: No such file or directory")
    assert "final.json" in str(caught.value.__context__)
    with pytest.raises(MachineError, match="no space"):
        with hold(Storage(tmp_path / "run")):
            raise MachineError("no space")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_place_without_room_for_folders_is_told_as_it_is():
    with pytest.raises(MachineError, match="/proc/x/y cannot be written: No such file"):
        with hold(Storage("/proc/x/y")):
            raise AssertionError("it was made")
