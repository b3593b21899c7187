"""Optimisers: torch's by name, and DEAT."""

import inspect
import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


def _spare_the_compiler() -> None:
    """Let torch's optimisers be built and step without importing its compiler.

    They import it (2 CPU seconds in each agent's process, of 6 in all) to keep it out of their own
    methods, and we compile none of them. The mark is the one that the first call would leave.
    """
    for method in vars(Optimizer).values():
        if undecorated := getattr(method, "__wrapped__", None):
            vars(undecorated).setdefault("__dynamo_disable", undecorated)


class _SGD(torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _Adam(torch.optim.Adam):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


_spare_the_compiler()


class DEAT(Optimizer):
    """Diffusion-enhanced adversarial training (arXiv:2306.02618, Algorithm 1).

    Two interleaved chains of averaged gradients, of odd and of even steps, enter with opposite
    signs, which raises the variance of the step but not its mean:

        h_t = k2 h_{t−2} + (1 − k2) g_t,   h_0 = h_{−1} = 0
        θ_t = (1 − μ d) θ_{t−1} − μ' [(1 + k1) h_t − k1 h_{t−1}]

    with μ' = μ / √((1 + k1)² + k1²), as in the authors' code (μ' = μ without `normalise`), and
    weight decay d decoupled from the gradient.

    Args:
        params: the parameters, as of any torch optimiser.
        lr: learning rate μ ≥ 0.
        k1: weight of the previous chain, ≥ 0.
        k2: decay of the averages, in [0, 1).
        weight_decay: d ≥ 0.
        normalise: whether the step is divided by √((1 + k1)² + k1²).

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        k1: float = 1.0,
        k2: float = 0.81,
        weight_decay: float = 0.0,
        normalise: bool = True,
    ) -> None:
        """Check the options; arguments and errors as of the class."""
        if not (lr >= 0 and k1 >= 0 and 0 <= k2 < 1 and weight_decay >= 0):
            raise ValueError(
                f"DEAT has lr {lr}, k1 {k1}, k2 {k2}, weight_decay {weight_decay}, expected "
                "lr >= 0, k1 >= 0, 0 <= k2 < 1, weight_decay >= 0: write k1 = 1.0, k2 = 0.81"
            )
        options = dict(lr=lr, k1=k1, k2=k2, weight_decay=weight_decay, normalise=normalise)
        super().__init__(params, options)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient.

        Args:
            closure: recomputes the loss and its gradients, or None.

        Returns:
            The closure's loss, or None.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for theta in group["params"]:
                    if theta.grad is not None:
                        self._update(theta, theta.grad, group)
        return loss

    def _update(self, theta: torch.Tensor, g: torch.Tensor, group: dict[str, Any]) -> None:
        lr, k1, k2 = group["lr"], group["k1"], group["k2"]
        state = self.state[theta]
        if not state:
            state["h1"] = torch.zeros_like(theta)  # h_{t−1}
            state["h2"] = torch.zeros_like(theta)  # h_{t−2}
        h = state["h2"].mul_(k2).add_(g, alpha=1 - k2)
        step = lr / math.hypot(1 + k1, k1) if group["normalise"] else lr
        theta.mul_(1 - lr * group["weight_decay"])
        theta.add_(h, alpha=-step * (1 + k1)).add_(state["h1"], alpha=step * k1)
        state["h1"], state["h2"] = h, state["h1"]


def build(
    name: str,
    params: ParamsT,
    lr: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    k1: float = 1.0,
    k2: float = 0.81,
    normalise: bool = True,
) -> Optimizer:
    """An optimiser by its name.

    Args:
        name: "sgd" or "adam" (torch's: weight decay is added to the gradient), or "deat".
        params: the parameters, as of any torch optimiser.
        lr: learning rate μ.
        momentum: the momentum of sgd, in [0, 1).
        nesterov: whether sgd takes Nesterov's momentum.
        weight_decay: ≥ 0.
        k1: weight of the previous chain of deat.
        k2: decay of the averages of deat.
        normalise: whether deat normalises its step.

    Returns:
        The optimiser.

    Raises:
        ValueError: the name is unknown, or momentum is given to another one than sgd.
    """
    if name == "sgd":
        return _SGD(params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    if name not in ("adam", "deat"):
        raise ValueError(f'optim.name is "{name}", expected one of sgd, adam, deat: write "sgd"')
    if momentum or nesterov:
        raise ValueError(f'optim "{name}" takes no momentum or nesterov: write name = "sgd"')
    if name == "adam":
        return _Adam(params, lr, weight_decay=weight_decay)
    return DEAT(params, lr, k1=k1, k2=k2, weight_decay=weight_decay, normalise=normalise)
