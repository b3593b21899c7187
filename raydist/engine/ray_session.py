"""Ray for as long as it is needed: a private one on this machine, or a cluster that is joined."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import ray

from raydist.config import InputError


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
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"no Ray cluster at {address}: {line}") from error
    try:
        yield
    finally:
        ray.shutdown()


def cluster_resources() -> dict[str, float]:
    """Total resources of the cluster, by Ray's names ("CPU", "GPU", "memory", ...)."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
