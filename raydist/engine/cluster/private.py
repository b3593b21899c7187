"""A private Ray on this machine: its folder, its token, and errors at its start."""

import logging
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import ray

from raydist import signals
from raydist.errors import InputError, MachineError

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
# Nobody looks into a private Ray, and its events of each task cost a fifth of a small round.
UNWATCHED = {"task_events_report_interval_ms": 0, "enable_metrics_collection": False}
# The longest path that Ray appends to its folder, and the longest that Linux accepts.
LONGEST_SOCKET = "session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
SOCKET_BYTES = 107
log = logging.getLogger("raydist")


def start() -> None:
    """Start a private Ray.

    Raises:
        InputError: if the configured folder has too long a name.
        MachineError: if Ray cannot start.
    """
    folder = private_folder()
    protect_token()
    try:
        with signals.kept():
            ray.init(
                "local",
                include_dashboard=False,
                _temp_dir=folder,
                _system_config=UNWATCHED,
                **QUIET,
            )
    except Exception as error:  # Ray raises Exception itself where a node does not come up
        told = MachineError.of(f"a private Ray cannot start (logs: {folder})", error)
        raise told from error


def private_folder() -> str:
    """Folder of a private Ray's sockets and logs: the usual one, if its name is short enough.

    Returns:
        The folder.

    Raises:
        InputError: if the configured folder's name is too long, and there is no shorter one.
        MachineError: if the folder or the shared memory cannot be written.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = os.path.join(usual, "ray")
    if len(os.fsencode(os.path.join(os.path.abspath(folder), LONGEST_SOCKET))) > SOCKET_BYTES:
        if os.environ.get("RAY_TMPDIR") or not os.access("/tmp", os.W_OK):
            raise InputError(
                f"a private Ray cannot start: its sockets have {SOCKET_BYTES} characters at most, "
                f"too few for {usual}: write export RAY_TMPDIR=/tmp, or another short folder"
            )
        log.warning("TMPDIR is too long for Ray's sockets: they and its logs are in /tmp/ray")
        folder = "/tmp/ray"
    for place, remedy in {
        os.path.dirname(folder): "set RAY_TMPDIR to a folder that can be written",
        "/dev/shm": "the processes of Ray share memory there",
    }.items():
        _check_written(place, remedy)
    return folder


def _check_written(folder: str, remedy: str) -> None:
    """Check that a file can be written in `folder`."""
    if not os.path.isdir(folder):  # Ray makes it, or does without
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"1")
    except OSError as error:
        why = error.strerror or error
        line = f"a private Ray cannot start: {folder} cannot be written: {why}: {remedy}"
        raise MachineError(line) from error


def protect_token() -> None:
    """Write the token of private Rays if it is missing; let its owner alone read it.

    The token lets its holder run code here, and Ray itself would write it readable for all.

    Raises:
        MachineError: if the token is missing and cannot be written.
    """
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = Path.home() / ".ray" / "auth_token"
    try:
        file.parent.mkdir(exist_ok=True)
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
                new.write(secrets.token_hex(32))
        except FileExistsError:
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)
    except OSError as error:
        if not os.access(file, os.R_OK):
            why = error.strerror or error
            line = f"a private Ray cannot start: {file} cannot be written: {why}: set HOME to a "
            raise MachineError(f"{line}folder that can be written") from error
