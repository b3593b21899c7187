"""Optimisers: torch's by name, and DEAT."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, overload

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from raydist.lookup import named


def _spare_the_compiler() -> None:
    """Let torch's optimisers be built and step without importing its compiler.

    They import it (2 CPU seconds in each agent's process, of 6 in all) to keep it out of their own
    methods, and we compile none of them. The mark is the one that the first call would leave.
    """
    for method in vars(Optimizer).values():
        if undecorated := getattr(method, "__wrapped__", None):
            vars(undecorated).setdefault("__dynamo_disable", undecorated)


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


OPTIMISERS: Mapping[str, Callable[..., Any]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
} | {
    "sgd": torch.optim.SGD,  # torch's add the weight decay to the gradient
    "adam": torch.optim.Adam,
    "deat": DEAT,
}


@cache
def _spared(kind: Callable[..., Any]) -> Callable[..., Any]:
    """A class of torch with a step that does not import the compiler; others as they are."""
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)) or not (
        kind.__module__.startswith("torch.optim")
    ):
        return kind
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {"step": step})


def build(
    name: str, params: ParamsT, lr: float, *, weight_decay: float = 0.0, **options: Any
) -> Optimizer:
    """An optimiser by its name.

    Args:
        name: a name in `OPTIMISERS`, or anyone's "package.module:Class".
        params: the parameters, as of any torch optimiser.
        lr: learning rate μ.
        weight_decay: ≥ 0.
        **options: further keyword arguments of the class.

    Returns:
        The optimiser.

    Raises:
        ValueError: the name is unknown, or the class does not take an argument.
    """
    kind = named(OPTIMISERS, name, "optim.name")
    known = inspect.signature(kind).parameters
    if weight_decay or "weight_decay" in known:
        options["weight_decay"] = weight_decay
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for key in options:
        if key not in known and not anything:
            names = ", ".join([*known][1:])
            raise ValueError(f'optim "{name}" takes no {key}: its parameters are {names}')
    found = _spared(kind)(params, lr=lr, **options)
    if not isinstance(found, Optimizer):
        raise ValueError(f'optim "{name}" is {type(found).__name__}, expected a torch optimiser')
    return found


def try_out(name: str, **options: Any) -> None:
    """Make two steps with an optimiser, as an agent does on the vector of its weights.

    Args:
        name: its name, as `build` has it.
        **options: its options, as `build` has them.

    Raises:
        ValueError: agents cannot use it.
    """
    theta = torch.nn.Parameter(torch.ones(2))
    place, optimiser = theta.data_ptr(), build(name, [theta], **options)
    for _ in range(2):
        theta.grad = torch.ones(2)
        optimiser.step()
    if theta.data_ptr() != place:
        raise ValueError(
            f'optim "{name}" puts the weights elsewhere, expected a change in place: write '
            "p.add_(...), not p.data = ..."
        )
    for key, value in optimiser.state[theta].items():
        if not isinstance(value, torch.Tensor | float | int | None):
            raise ValueError(
                f'optim "{name}" keeps {key} of type {type(value).__name__}, which no snapshot '
                "holds: write a tensor or a number"
            )
