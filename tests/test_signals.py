"""Whatever ends a command from outside, it puts things in order and leaves one line."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from rich.table import Table

from raydist import signals as ending
from raydist.results.terminal import _Plain

# A command that needs a second to put things in order when it is ended.
COMMAND = """
import time
from raydist import cli
from raydist.results.terminal import console

def main() -> int:
    console.print("begun")
    try:
        time.sleep(60)
        return 0
    except BaseException as error:
        return cli.told(error, "again")
    finally:
        time.sleep(0.5)
        open("in order", "w").close()

if __name__ == "__main__":
    cli.run(main)
"""
TALKS = COMMAND.replace("time.sleep(60)", "[console.print('word ' * 1000) for _ in range(100)]")


def started(tmp_path, text=COMMAND):
    (tmp_path / "own.py").write_text(text)
    return subprocess.Popen(
        [sys.executable, "own.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        text=True,
    )


@pytest.mark.parametrize(
    ("signals", "code", "line"),
    [
        ([signal.SIGTERM], 143, "ended by SIGTERM"),
        ([signal.SIGHUP], 129, "ended by SIGHUP"),
        ([signal.SIGINT] * 3, 130, "interrupted"),
        ([signal.SIGINT, signal.SIGTERM], 130, "interrupted"),
    ],
)
def test_signals_end_a_command_like_ctrl_c(tmp_path, signals, code, line):
    with started(tmp_path) as process:
        assert process.stdout.readline() == "begun\n"
        for each in signals:
            threading.Event().wait(0.1)
            process.send_signal(each)
        _, told = process.communicate()
    assert (process.returncode, told) == (code, f"raydist: {line}; continue with again\n")
    assert (tmp_path / "in order").exists()


def test_under_nohup_a_terminal_that_is_closed_ends_nothing(tmp_path):
    text = COMMAND.replace("import time", "import signal, time").replace("60", "1")
    text = text.replace("if __name", "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nif __name")
    with started(tmp_path, text) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGHUP)
        _, told = process.communicate()
    assert (process.returncode, told) == (0, "")


def test_an_output_that_nobody_reads_is_told(tmp_path):
    with started(tmp_path, TALKS) as process:
        assert process.stdout.readline() == "begun\n"
        process.stdout.close()
        told = process.stderr.read()
        process.wait()
    line = "ended, because nobody reads its output any more"
    assert (process.returncode, told) == (141, f"raydist: {line}; continue with again\n")
    assert (tmp_path / "in order").exists()


def test_what_a_library_does_with_signals_does_not_last():
    before = {each: signal.getsignal(each) for each in ending.CAUGHT}
    with ending.heard():
        with pytest.raises(KeyboardInterrupt), ending.kept():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ray
            signal.raise_signal(signal.SIGTERM)
        assert (ending.code(), ending.words()) == (143, "ended by SIGTERM")
        assert signal.getsignal(signal.SIGTERM) is ending.end
        ending._by.clear()
    assert {each: signal.getsignal(each) for each in ending.CAUGHT} == before


NASTY = ["[red]eps[/red]", "[/nothing]", ":smile:", "\x1b[31mred", "ftp://me:secret@host/runs"]


def test_text_of_others_is_printed_as_it_is(capsys):
    console = _Plain(width=200, force_terminal=True, no_color=True)
    table = Table()
    table.add_column(NASTY[0])
    for text in NASTY:
        table.add_row(text)
    console.print(table)
    console.print(*NASTY)
    told = capsys.readouterr().out
    for text in (*NASTY[:3], "\\x1b[31mred", "ftp://me:***@host/runs"):
        assert told.count(text) >= 2
    assert "\x1b[31m" not in told and "secret" not in told
