"""A loss that misbehaves at one budget: what a user's own code may do to a trial."""

import json
import os
import signal
from pathlib import Path

import raydist.engine.agent
from raydist.adversary.loss import pgd_at
from raydist.engine.store import Store

BAD_EPS = 0.07


def raising(model, x, x_adv, y, cure=""):
    if abs((x_adv - x).abs().max().item() - BAD_EPS) < 1e-6 and not os.path.exists(cure):
        raise ArithmeticError("this budget is cursed")
    return pgd_at(model, x, x_adv, y)


def killed(model, x, x_adv, y):
    """Kills the agent's own process, as the system does when memory runs out."""
    if abs((x_adv - x).abs().max().item() - BAD_EPS) < 1e-6:
        os.kill(os.getpid(), signal.SIGKILL)
    return pgd_at(model, x, x_adv, y)


def trial_killed(model, x, x_adv, y, runs=""):
    """Kills the process of its trial, once, when a snapshot is there."""
    if list(Path(runs).glob("*/snapshots/*/manifest.json")):
        reported = next(Path(runs).glob("*/result.json")).read_text().splitlines()
        if reported and not (Path(runs) / "killed").exists():
            (Path(runs) / "killed").touch()
            os.kill(json.loads(reported[-1])["pid"], signal.SIGKILL)
    return pgd_at(model, x, x_adv, y)


def trap(agent, moment, n):
    """Make an agent kill its own process at a moment of round n."""
    owner, name = {
        "attack": (agent.local, "attack"),
        "exchange": (agent, "combine"),
        "measurement": (agent.measurer, "validate"),
        "evaluation": (agent.measurer, "judge"),
        "weights": (raydist.engine.agent, "save_file"),
        "snapshot": (agent.shards, "write"),
        "writing": (Store, "write"),
    }[moment]
    original = getattr(owner, name)

    def fatal(*args, **kwargs):
        if moment == "writing" and f"round-{n:06d}" in args[1]:
            store, file, data = args
            part = Path(store.url) / f"{file}.half.part"
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data[: len(data) // 2])
        elif n is not None and n not in args:
            return original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, fatal)
