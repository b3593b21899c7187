"""A loss that misbehaves at one budget: what a user's own code may do to a trial."""

import os
import signal

from raydist.adversary.loss import pgd_at

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
