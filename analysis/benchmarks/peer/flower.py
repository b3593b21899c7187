"""Flower's Ray simulation: FedAvg of 16 clients, one to an actor, identity training.

A round is everything that `FedAvg.start` does in one: messages with all weights from the server to
16 clients and back through its link state, and their mean. There is a server where we have a graph.
"""

import time
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from serve import AGENTS, serve, start_value

CPUS, WARM = 2, 2

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def identity(message: Message, context: Context) -> Message:
    """In round 1 the client's own start, then the weights as they came."""
    arrays = message.content["arrays"]
    if message.content["config"]["server-round"] == 1:
        own = np.full_like(arrays.to_numpy_ndarrays()[0], start_value(partition(context)))
        arrays = ArrayRecord([own])
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def partition(context: Context) -> int:
    """The number of the client."""
    return int(context.node_config["partition-id"])


@server_app.main()
def server(grid: Grid, context: Context) -> None:
    """Answer until the input ends."""

    def run(parameters: int, rounds: int) -> dict[str, Any]:
        moments = []

        def mark(n: int, arrays: ArrayRecord) -> None:
            moments.append(time.perf_counter())

        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=AGENTS, min_available_nodes=AGENTS)
        start = ArrayRecord([np.zeros(parameters, np.float32)])
        result = strategy.start(grid, start, num_rounds=WARM + rounds, evaluate_fn=mark)
        (weights,) = result.arrays.to_numpy_ndarrays()
        mean = np.mean([start_value(k) for k in range(AGENTS)])
        return {
            "seconds": (moments[-1] - moments[WARM]) / rounds,
            "error": float(np.abs(weights - mean).max() / (AGENTS - 1)),
        }

    serve(run)


if __name__ == "__main__":
    backend = {
        "init_args": {"num_cpus": CPUS, "include_dashboard": False, "log_to_driver": False},
        "client_resources": {"num_cpus": CPUS / AGENTS, "num_gpus": 0.0},
    }
    run_simulation(server_app, client_app, AGENTS, backend_config=backend)
