"""Small experiments that many tests vary."""

import numpy as np

EVERYTHING = {
    "loss": {"name": "wasserstein", "gamma": 0.5},
    "awp": {"gamma": 0.01},
    "data": {"set": "digits", "batch": 64, "partition": {"name": "dirichlet", "alpha": 5.0}},
    "optim": {"name": "deat", "lr": 0.05, "combine": True},
    "average": {"name": "ema"},
    "periods": [0.5],
    "channels_last": True,
    "telemetry": {"every": 2},
    "stop": {"fosc": {"threshold": 1e-9}, "on_instability": "heal"},
}
QUADRATIC = {
    "topology": {"kind": "ring", "agents": 3},
    "rounds": 12,
    "dtype": "float64",
    "data": {"set": "quadratic", "centers": [[1.0], [0.0], [-1.0]], "hessian": [1.0]},
    "model": {"name": "point", "start": [2.0]},
    "loss": {"name": "quadratic"},
    "optim": {"lr": 0.1},
    "threat": {"eps": 0.0},
}


def quadratic(strategy="diffusion", kind="ring", agents=4, rounds=20, **tables):
    rng = np.random.default_rng(agents)
    tree = {
        "strategy": strategy,
        "dtype": "float64",
        "rounds": rounds,
        "topology": {"kind": kind, "agents": agents},
        "data": {
            "set": "quadratic",
            "centers": rng.normal(size=(agents, 2)).tolist(),
            "hessian": [1.0, 0.5],
            "batch": 1,
        },
        "model": {"name": "point", "start": [0.3, -0.2]},
        "loss": {"name": "quadratic"},
        "optim": {"lr": 0.05},
        "threat": {"eps": 0.0},
    }
    for name, table in tables.items():
        tree[name] = tree[name] | table if isinstance(table, dict) and name in tree else table
    return tree


def digits(**tables):
    tree = {
        "strategy": "diffusion",
        "topology": {"kind": "ring", "agents": 4},
        "rounds": 3,
        "data": {"set": "digits", "batch": 8},
        "model": {"name": "linear"},
        "threat": {"eps": 0.1},
        "attack": {"steps": 2},
        "optim": {"lr": 0.05},
        "evaluate": {
            "every": 3,
            "validation_images": 32,
            "test_images": 32,
            "pgd": [2],
            "autoattack": 0,
        },
    }
    for name, table in tables.items():
        tree[name] = tree[name] | table if isinstance(table, dict) and name in tree else table
    return tree


def experiment(**tables):
    tree = {
        "topology": {"kind": "ring", "agents": 4},
        "rounds": 4,
        "data": {"set": "digits", "batch": 8},
        "model": {"name": "small-cnn"},
        "threat": {"eps": 0.1},
        "attack": {"steps": 2},
        "optim": {"lr": 0.05, "momentum": 0.9},
        "evaluate": {
            "every": 2,
            "validation_images": 32,
            "test_images": 64,
            "pgd": [2],
            "autoattack": 0,
        },
        "agent": {"cpus": 0.5},
    }
    return tree | tables
