"""One Ray for all tests that need it: starting it costs seconds, starting agents more."""

import os
from collections.abc import Iterator

import pytest

# Ray asks for this choice in a warning; agents that reserve no GPU never touch one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[dict[str, float]]:
    import ray

    # the agents' processes import the helpers beside this file, as a user's would import their own
    here = os.path.dirname(__file__)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield dict(ray.cluster_resources())
    ray.shutdown()
