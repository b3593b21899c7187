"""One Ray for all tests that need it: starting it costs seconds, starting agents more."""

import os
from collections.abc import Iterator

import pytest

# Ray asks for this choice in a warning; agents that reserve no GPU never touch one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[dict[str, float]]:
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield dict(ray.cluster_resources())
    ray.shutdown()
