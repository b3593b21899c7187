"""Sessions of Ray: a private Ray on this machine, or a cluster joined for a time."""

import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import AuthenticationError

from raydist import signals
from raydist.engine.cluster.private import QUIET, start
from raydist.errors import InputError

CONNECT_SECONDS = 5.0
TRIES = "RAY_gcs_server_port_wait_time_s"  # Ray's own: of joining a cluster, a second apart
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit`
PACKAGE = 2  # folders above this file: raydist
TOKEN = "RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"


@contextmanager
def ray_session(address: str | None) -> Generator[None]:
    """Join a cluster and leave it as found, or start a private Ray and stop it again.

    Args:
        address: the cluster's address; None: the environment's RAY_ADDRESS, else a private Ray.

    Yields:
        None; Ray is initialised inside the context.

    Raises:
        InputError: if there is no cluster at the address.
        MachineError: if a private Ray cannot start, see `private.start`.
    """
    if ray.is_initialized():  # the caller's own: leave it running
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        start()
    else:
        _check_reachable(address)
        mode = os.environ.get("RAY_AUTH_MODE")  # Ray may change it
        try:
            with signals.kept():
                _join(address)
        except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
            raise InputError(_why(error, address, mode)) from error
    try:
        yield
    finally:
        with signals.undisturbed():
            ray.shutdown()


def _join(address: str) -> None:
    """Join a cluster; send our code along, so that its nodes need raydist's packages only."""
    travelling: dict[str, Any] = {"py_modules": code(Path.cwd()), "excludes": ["__pycache__"]}
    if JOB in os.environ:  # the job's own runtime_env has brought it
        travelling = {}
    tries = os.environ.get(TRIES)
    os.environ[TRIES] = tries or "1"  # somebody listens there: the first try tells
    try:
        with _silent():  # Ray has lines of its own for each refusal
            ray.init(address, runtime_env=travelling, **QUIET)
    finally:
        if tries is None:
            del os.environ[TRIES]


def _why(error: Exception, address: str, mode: str | None) -> str:
    """Explain what is wrong with an address or the token; Ray sends a token only if told to."""
    if AuthenticationError.__name__ not in f"{error!r} {error.__cause__}":
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"no Ray cluster at {address}: {line}"
    if mode != "token" and address != "auto":
        return (
            f"the Ray cluster at {address} asks for its token, and RAY_AUTH_MODE is "
            f"{mode or 'not set'}: write export RAY_AUTH_MODE=token, with the token in {TOKEN}"
        )
    return (
        f"the Ray cluster at {address} refuses this machine's token: put the cluster's own into "
        f"{TOKEN}"
    )


def code(home: Path) -> list[str]:
    """Source code that a run needs: raydist, and the modules imported from the user's folder.

    Args:
        home: the folder in which the run was started. Every "module:function" named in its files
            is imported by now.

    Returns:
        Paths of the modules and packages directly in this folder, and of raydist.
    """
    found = {str(Path(__file__).parents[PACKAGE])}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or name == "__main__" or not file:
            continue
        path = Path(file).resolve()
        path = path.parent if path.name == "__init__.py" else path
        if path.parent == home and (path.is_dir() or path.suffix == ".py"):
            found.add(str(path))
    return sorted(found)


@contextmanager
def _silent() -> Generator[None]:
    """Silence stderr inside this context, even for native code."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_reachable(address: str) -> None:
    """Check that an address answers, because Ray itself would try for a long time."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "local" and "auto": Ray knows at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"no Ray cluster at {address}: {error.strerror or error}; write --address auto on a "
            "machine of the cluster, or the address that ray start --head printed"
        ) from error


def cluster_resources() -> list[dict[str, float]]:
    """Resources of each node of the cluster, by Ray's names ("CPU", "GPU", "memory", ...)."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def this_machine() -> list[dict[str, float]]:
    """Estimate the resources of a private Ray on this machine, without starting it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = float(torch.cuda.device_count())
    return [{"CPU": float(os.cpu_count() or 1), "GPU": gpus, "memory": float(memory)}]
