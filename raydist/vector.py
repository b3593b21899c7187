"""A model as one flat vector, and a model held: frozen, or at other weights for a while.

A vector w (P,) is a model's trainable parameters in its own order; a state (S,) has its running
statistics behind them. `FlatModel` keeps the parameters of a module as views of one vector.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

VALUES, GRAD = methodcaller("values"), attrgetter("grad")


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, in the model's order; ValueError if there is none."""
    w: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not w:
        raise ValueError("the model has no trainable parameter, and so no derivative")
    return w


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Floating-point buffers of the state: BatchNorm's mean and variance, not constants."""
    # a model's constants are not persistent, and so not in its state_dict
    persistent = {value.data_ptr() for value in model.state_dict().values()}
    floating = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    return {n: b for n, b in floating.items() if b.data_ptr() in persistent}


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """The numbers of all tensors, in order: one new vector."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def state(model: nn.Module) -> Tensor:
    """Trainable parameters and, behind them, running statistics: a new (S,)."""
    return flat([*trainable(model).values(), *_statistics(model).values()])


def split(vector: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """The parts of a vector in the shapes of `like`, as views; ValueError if the length differs."""
    like = list(like)
    sizes = [t.numel() for t in like]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"a vector has shape {tuple(vector.shape)}, expected ({sum(sizes)},)")
    return [part.view_as(t) for part, t in zip(torch.split(vector, sizes), like, strict=True)]


def write(tensors: Iterable[Tensor], vector: Tensor) -> None:
    """Set the tensors, in place, to the parts of a vector."""
    with torch.no_grad():
        for tensor, part in zip(tensors := list(tensors), split(vector, tensors), strict=True):
            tensor.copy_(part)


@contextmanager
def kept(tensors: Iterable[Tensor]) -> Generator[None]:
    """Restore the tensors afterwards, in place and bit for bit, whatever happens inside."""
    values = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


@contextmanager
def at(model: nn.Module, w: Tensor) -> Generator[nn.Module]:
    """Hold the model at parameters (P,) or a state (S,); restore its own bit for bit."""
    tensors = list(trainable(model).values())
    with kept([*tensors, *model.buffers()]):
        if len(w) != sum(t.numel() for t in tensors):
            tensors += _statistics(model).values()
        write(tensors, w)
        yield model


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Hold the model in eval mode with no trainable parameter; restore both exactly."""
    training = {module: module.training for module in model.modules()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode


class _Part(NamedTuple):
    """A tensor of the model: the table of the module that holds it, and its place in the vector."""

    name: str
    table: Any
    key: str
    tensor: Tensor
    place: slice
    shape: torch.Size
    channels_last: bool

    def view_of(self, vector: Tensor) -> Tensor:
        """The part of a vector in the shape of the tensor, as a view."""
        if not self.channels_last:
            return vector[self.place].view(self.shape)
        out, channels, height, width = self.shape
        return vector[self.place].view(out, height, width, channels).permute(0, 3, 1, 2)


class FlatModel:
    """A model whose parameters are views of one vector.

    Attributes:
        module: the model itself.
        w: all parameters, (P,).
        grad: their gradient, (P,), that `backward` on the module accumulates into; `w.grad` too.
        state_vector: the state itself, parameters and statistics as they lie, (S,).
        statistics: running statistics, behind one another; the end of the state vector.
    """

    def __init__(self, module: nn.Module, channels_last: bool = False) -> None:
        """Lay out parameters and statistics of a module in one vector, in place.

        Args:
            module: the model.
            channels_last: whether kernels lie as (out, height, width, in), as images lie then.
        """
        self.module, parameters = module, trainable(module)
        self._parts, modules, end = [], dict(module.named_modules()), 0
        for name, t in {**parameters, **_statistics(module)}.items():
            above, _, key = name.rpartition(".")
            owner, begin, end = modules[above], end, end + t.numel()
            table = owner._parameters if name in parameters else owner._buffers
            last = channels_last and t.ndim == 4
            self._parts.append(_Part(name, table, key, t, slice(begin, end), t.shape, last))
        size = sum(p.numel() for p in parameters.values())
        self.state_vector = next(iter(parameters.values())).detach().new_empty(end)
        self.w = nn.Parameter(self.state_vector[:size])
        self.w.grad = self.grad = torch.zeros_like(self.w)
        self.statistics = self.state_vector[size:]
        self._tensors = [part.tensor for part in self._parts]
        self._views = [part.view_of(self.state_vector) for part in self._parts]
        self._grads = [
            part.view_of(self.grad) if part.name in parameters else None for part in self._parts
        ]
        for t, view, grad in zip(self._tensors, self._views, self._grads, strict=True):
            t.data, t.grad = view.copy_(t.detach()), grad
        self._pointers = [t.data_ptr() for t in self._tensors]
        self._remember()

    def bind(self, adopt: bool = True) -> None:
        """Bring back into the vector what a pass through the model or the loss has put beside it.

        Where nothing has moved, this only looks: for microseconds.

        Args:
            adopt: whether the vector takes the values of what comes back; else it keeps its own.

        Raises:
            ValueError: a parameter was replaced, or has another shape, dtype or device.
        """
        if not self._as_remembered():
            self._put_back()
            self._remember()
        pointers = [t.data_ptr() for t in self._tensors]
        if pointers == self._pointers and all(map(is_, map(GRAD, self._tensors), self._grads)):
            return
        with torch.no_grad():
            for part, view, grad in zip(self._parts, self._views, self._grads, strict=True):
                tensor, found = part.tensor, part.tensor.grad
                if tensor.data_ptr() != view.data_ptr():
                    _check_alike(part.name, tensor, view)
                    tensor.data = view.copy_(tensor) if adopt else view
                if grad is not None and found is not grad:
                    if adopt:
                        grad.zero_() if found is None else grad.copy_(found)
                    tensor.grad = grad

    def _remember(self) -> None:
        """Remember the model's modules and tensors; keep them, so that no identity is reused."""
        modules = self.module.modules()
        self._tables = [t for m in modules for t in (m._parameters, m._buffers, m._modules)]
        self._members = self._present()
        self._fixed = [p for p in self.module.parameters() if not p.requires_grad]

    def _present(self) -> list[Any]:
        return list(chain.from_iterable(map(VALUES, self._tables)))

    def _as_remembered(self) -> bool:
        now = self._present()
        same = len(now) == len(self._members) and all(map(is_, now, self._members))
        return same and not any(p.requires_grad for p in self._fixed)

    def _put_back(self) -> None:
        """Put our statistics in the place of others; refuse others in the place of parameters."""
        for part, grad in zip(self._parts, self._grads, strict=True):
            now = part.table[part.key] if part.key in part.table else None
            if now is part.tensor:
                continue
            if grad is not None or now is None:
                raise ValueError(
                    f'"{part.name}" of the model was replaced in a pass, and what is in its place '
                    f"would not be exchanged: write self.{part.key}.data.copy_(...) instead"
                )
            part.tensor.data = now.detach()
            part.table[part.key] = part.tensor
        known = set(map(id, self._tensors))
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise ValueError(
                    f'the parameter "{name}" came into the model in a pass, too late to be trained '
                    "and exchanged: make it in __init__, with a gradient from the start"
                )

    def model_order(self, vector: Tensor) -> Tensor:
        """A gradient (P,) or state (S,) tensor by tensor in the model's own order, a new one."""
        parts = (part for part in self._parts if part.place.stop <= vector.numel())
        return flat(part.view_of(vector) for part in parts)

    def state(self) -> Tensor:
        """Parameters and running statistics as they lie, a new tensor (S,)."""
        return self.state_vector.clone()

    @contextmanager
    def at(self, state: Tensor) -> Generator[nn.Module]:
        """Hold the module at another state (S,), as it lies here; restore its own afterwards."""
        with kept([self.state_vector]):
            self.state_vector.copy_(state)
            try:
                yield self.module
            finally:
                self.bind(adopt=False)


def _check_alike(name: str, now: Tensor, view: Tensor) -> None:
    if (now.shape, now.dtype, now.device) != (view.shape, view.dtype, view.device):
        raise ValueError(
            f'"{name}" of the model became {now.dtype} {tuple(now.shape)} on {now.device} in '
            f"a pass, expected {view.dtype} {tuple(view.shape)} on {view.device}: keep it so"
        )
