"""A loss that misbehaves at one budget: what a user's own code may do to a trial."""

import os
import signal
import time
from pathlib import Path

from nodes import below

import raydist.engine.agent.agent
import raydist.engine.pool.board
from raydist.adversary.loss import pgd_at
from raydist.learning.data import load
from raydist.storage import Storage

BAD_EPS = 0.07


def cursed(model, x, x_adv):
    """Whether a batch is at the bad budget and its model past the passes of a probe."""
    if abs((x_adv - x).abs().max().item() - BAD_EPS) < 1e-6:
        model.calls = getattr(model, "calls", 0) + 1
        return model.calls > 2
    return False


def raising(model, x, x_adv, y, cure=""):
    if cursed(model, x, x_adv) and not os.path.exists(cure):
        raise ArithmeticError("this budget is cursed")
    return pgd_at(model, x, x_adv, y)


def killed(model, x, x_adv, y):
    """Kills the agent's own process, as the system does when memory runs out."""
    if cursed(model, x, x_adv):
        os.kill(os.getpid(), signal.SIGKILL)
    return pgd_at(model, x, x_adv, y)


def counted(log):
    """A data set that tells who reads it."""
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    return load("digits")


def workers(root):
    """The Ray workers below a process: id -> title, such as "ray::_Actor.step"."""
    return {pid: title for pid, title in below(root).items() if title.startswith("ray::")}


def trap(actor, moment, n):
    """Make the first agent of an actor kill its own process at a moment of round n."""
    agent = actor.agents[0]
    owner, name = {
        "attack": (agent.local, "attack"),
        "exchange": (agent, "combine"),
        "measurement": (agent.measurer, "validate"),
        "evaluation": (agent.measurer, "judge"),
        "weights": (raydist.engine.agent.agent, "save_tensors"),
        "snapshot": (agent, "snapshot"),
        "waiting": (raydist.engine.pool.board.Board, "_wait"),
        "writing": (Storage, "write"),
    }[moment]
    original = getattr(owner, name)

    def fatal(*args, **kwargs):
        if moment == "writing" and f"round-{n:06d}" in args[1]:
            store, file, data = args
            part = Path(store.url) / f"{file}.half.part"
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data[: len(data) // 2])
        elif n is not None and not any(isinstance(arg, int) and arg == n for arg in args):
            return original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, fatal)


def late(actor, seconds):
    """Make the first agent of an actor take its time over its next attack."""
    local = actor.agents[0].local
    attack = local.attack

    def waiting(*args):
        time.sleep(seconds)
        local.attack = attack
        return attack(*args)

    local.attack = waiting
