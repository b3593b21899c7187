"""One Ray for all tests that need it: starting it costs seconds, starting agents more."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("suite", deadline=None)  # how busy it is proves nothing
hypothesis.settings.load_profile("suite")
# Ray asks for this choice in a warning; agents that reserve no GPU never touch one.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Beside the other tests agents would starve: Ray starts workers with niceness 15.
os.environ.setdefault("RAY_worker_niceness", "0")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a core for each process


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs where when two processes share the tests: all Ray in one, else file by file."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[dict[str, float]]:
    import ray

    # the agents' processes import the helpers in support/, as a user's would import their own
    folders = sorted(str(f) for f in Path(__file__).parent.iterdir() if f.is_dir())
    known = [*folders, os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, known))
    ray.init(
        address="local",  # whatever other Ray runs on this machine
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield dict(ray.cluster_resources())
    ray.shutdown()
