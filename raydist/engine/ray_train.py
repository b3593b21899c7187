"""Centralized training on Ray Train: data-parallel workers that play all agents.

It checks the actors' centralized rounds independently, and is the fast way to make them, because
each worker has one model, one optimiser and one all-reduce for any number of agents. The workers
run in a placement group of Ray Train's own.
"""

import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import ray
import torch.distributed as dist
from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from raydist.config.experiment import Experiment
from raydist.config.running import Snapshot
from raydist.engine.checks import one_line
from raydist.engine.cluster.layout import Resources, at_once, place
from raydist.engine.driver import complete
from raydist.engine.plan import Plan
from raydist.engine.pool.data_parallel import ParallelPool
from raydist.errors import AgentError, InputError
from raydist.results.folder import Folder
from raydist.results.record import Result


def scaling(config: Experiment, nodes: Sequence[Resources]) -> ScalingConfig:
    """Choose as many workers as there are GPUs, or else CPUs, but no more than agents.

    Args:
        config: the experiment.
        nodes: resources of each node, as `session.cluster_resources()`.

    Returns:
        Their number and the resources of each: a GPU, and as many whole CPUs as all can have.

    Raises:
        InputError: if there is no room for one worker.

    Example:
        >>> from raydist.config.experiment import validate
        >>> config = validate({"topology": {"kind": "ring", "agents": 3}, "rounds": 1})
        >>> found = scaling(config, [{"CPU": 8}])
        >>> found.num_workers, found.resources_per_worker
        (3, {'CPU': 2})
    """
    cuda = config.agent.gpus != 0 and any(node.get("GPU", 0.0) >= 1 for node in nodes)
    one = {"CPU": 1.0} | ({"GPU": 1.0} if cuda else {})
    workers = at_once([one], nodes, config.topology.agents)
    if workers == 0:
        raise InputError('engine = "train" needs a whole CPU for each worker, the cluster has none')
    cpus = 1
    while place([one | {"CPU": cpus + 1.0}] * workers, nodes) is not None:
        cpus += 1
    return ScalingConfig(num_workers=workers, use_gpu=cuda, resources_per_worker={"CPU": cpus})


def run_on_train(plan: Plan, resources: ScalingConfig, folder: Folder | None) -> Result:
    """Run a plan on Ray Train.

    Args:
        plan: the run, with engine = "train".
        resources: the run's workers.
        folder: the folder to write to, on a file system of all nodes; None: write nothing.

    Returns:
        The result of the first worker.

    Raises:
        AgentError: if a worker raised or died.
        KeyboardInterrupt: if the run was interrupted.
    """
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths begin where the run was started
    config = plan.config.model_copy(update={"snapshot": Snapshot(every=0)})
    given = {
        "plan": ray.put(replace(plan, config=config)),
        "folder": folder,
        "threads": int(resources.num_cpus_per_worker),
    }
    # CPU tensors (objects travel as such, too) go by gloo in any case
    backend = "cpu:gloo,cuda:nccl" if resources.use_gpu else "gloo"
    with tempfile.TemporaryDirectory() as storage, _interrupt_kept():
        trainer: Any = TorchTrainer(
            cast(Callable[[dict[Any, Any]], None], _work),  # its return value is new in Ray
            train_loop_config=given,
            torch_config=TorchConfig(backend),
            scaling_config=resources,
            run_config=RunConfig(storage_path=storage),
        )
        try:
            found: Result | None = trainer.fit().return_value
        except TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}) or {0: error}
            raise AgentError(one_line(next(iter(failures.values())))) from error
    if found is None:
        raise KeyboardInterrupt
    return found


def _work(given: dict[Any, Any]) -> Result | None:
    """Run a worker; the first one writes the folder and returns the result."""
    # The arguments are read-only views of the object store, and are only read.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    plan: Plan = ray.get(given["plan"])
    first = dist.get_rank() == 0
    cuda = "nccl" in dist.get_backend_config()
    pool = ParallelPool(plan, given["threads"], cuda)
    result = complete(plan, pool, given["folder"] if first else None)
    return result if first else None


@contextmanager
def _interrupt_kept() -> Generator[None]:
    """Restore the Ctrl-C handler at the end, because Ray Train replaces it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
