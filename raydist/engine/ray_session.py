"""Ray for as long as it is needed: a private one on this machine, or a cluster that is joined."""

import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from raydist.config import InputError

CONNECT_SECONDS = 5.0


@contextmanager
def ray_session(address: str | None) -> Generator[None]:
    """Join a cluster and leave it as found, or start a private Ray and stop it again.

    Args:
        address: of the cluster; None: the environment's RAY_ADDRESS, else a private one.

    Yields:
        Nothing; Ray is initialised inside.

    Raises:
        InputError: if there is no cluster at the address.
    """
    if ray.is_initialized():  # the caller's own: leave it running
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    _check_reachable(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"no Ray cluster at {address}: {line}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Somebody listens there: Ray itself would go on trying for a long time."""
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
    """What a private Ray would find here, about; nothing is started."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = float(torch.cuda.device_count())
    return [{"CPU": float(os.cpu_count() or 1), "GPU": gpus, "memory": float(memory)}]
