"""A model as one flat vector, and ways to hold a model: frozen, untraced, elsewhere, restored.

`FlatModel` keeps parameters as views of w (P,), with running statistics behind them.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

VALUES, GRAD = methodcaller("values"), attrgetter("grad")
Parameters = Mapping[str, Tensor]
Array = NDArray[np.float64]


class _Place(NamedTuple):
    """Where a tensor lies in the vector, and how."""

    here: slice
    shape: torch.Size
    channels_last: bool

    def seen(self, vector: Tensor) -> Tensor:
        """The tensor, as a view of the vector."""
        if not self.channels_last:
            return vector[self.here].view(self.shape)
        out, channels, height, width = self.shape
        return vector[self.here].view(out, height, width, channels).permute(0, 3, 1, 2)


class _Bound(NamedTuple):
    """A tensor of the model, where the model keeps it, and its views of the vectors."""

    name: str
    table: Any  # of its module
    key: str
    tensor: Tensor
    view: Tensor
    grad: Tensor | None  # None: a statistic, which has none


class FlatModel:
    """A model whose parameters are views of one vector.

    Attributes:
        module: the model itself.
        w: all parameters, (P,), with its gradient in `w.grad`.
        whole: the state itself, parameters and statistics as they lie, (S,).
        statistics: the floating-point buffers that belong to the state (BatchNorm's running mean
            and variance; not a model's constants, which are not persistent), behind one another.
    """

    def __init__(self, module: nn.Module, channels_last: bool = False) -> None:
        """Lay out parameters and statistics of a module in one vector, in place.

        Args:
            module: the model.
            channels_last: whether the numbers of a kernel lie as (out, height, width, in), which
                passes over images that are laid out so would else bring about each time.
        """
        self.module = module
        parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        persistent = {value.data_ptr() for value in module.state_dict().values()}
        buffers = {
            name: buffer
            for name, buffer in module.named_buffers()
            if buffer.is_floating_point() and buffer.data_ptr() in persistent
        }
        tensors: dict[str, Tensor] = {**parameters, **buffers}
        size, first = sum(p.numel() for p in parameters.values()), next(iter(parameters.values()))
        self._places, at = [], 0
        for t in tensors.values():
            last = channels_last and t.ndim == 4
            self._places.append(_Place(slice(at, at + t.numel()), t.shape, last))
            at += t.numel()
        self.whole = torch.empty(at, dtype=first.dtype, device=first.device)
        self.w = nn.Parameter(self.whole[:size])
        self.w.grad = torch.zeros_like(self.w)
        self.statistics = self.whole[size:]
        self._bound, modules = [], dict(module.named_modules())
        for place, (name, t) in zip(self._places, tensors.items(), strict=True):
            view = place.seen(self.whole)
            grad = place.seen(self.w.grad) if name in parameters else None
            above, _, key = name.rpartition(".")
            owner = modules[above]
            table = owner._buffers if grad is None else owner._parameters
            self._bound.append(_Bound(name, table, key, t, view, grad))
            t.data, t.grad = view.copy_(t.detach()), grad
        self._tensors = [bound.tensor for bound in self._bound]
        self._grads = [bound.grad for bound in self._bound]
        self._pointers = [t.data_ptr() for t in self._tensors]
        self._remember()

    @property
    def grad(self) -> Tensor:
        """The gradient, (P,), that `backward` on the module accumulates into."""
        assert self.w.grad is not None
        return self.w.grad

    def bind(self, kept: bool = True) -> None:
        """Bring back into the vector what a pass through the model or the loss has put beside it.

        Where nothing has moved, this only looks: for microseconds.

        Args:
            kept: whether the vector takes the values of what comes back; else it keeps its own.

        Raises:
            ValueError: if the model has another parameter than before, or one of another shape or
                dtype; names it.
        """
        if not self._as_remembered():
            self._put_back()
            self._remember()
        pointers = [t.data_ptr() for t in self._tensors]
        if pointers == self._pointers and all(map(is_, map(GRAD, self._tensors), self._grads)):
            return
        with torch.no_grad():
            for bound, before, now in zip(self._bound, self._pointers, pointers, strict=True):
                if now != before:
                    _check_alike(bound)
                    bound.tensor.data = bound.view.copy_(bound.tensor) if kept else bound.view
                if bound.grad is not None and bound.tensor.grad is not bound.grad:
                    if kept:
                        found = bound.tensor.grad
                        bound.grad.zero_() if found is None else bound.grad.copy_(found)
                    bound.tensor.grad = bound.grad

    def _remember(self) -> None:
        """Which modules and tensors the model has, by identity: kept, so that none is reused."""
        modules = list(self.module.modules())
        self._tables = [t for m in modules for t in (m._parameters, m._buffers, m._modules)]
        self._members = self._present()
        self._ids = list(map(id, self._members))
        self._fixed = [p for p in self.module.parameters() if not p.requires_grad]

    def _present(self) -> list[Any]:
        return list(chain.from_iterable(map(VALUES, self._tables)))

    def _as_remembered(self) -> bool:
        same = list(map(id, self._present())) == self._ids
        return same and not any(p.requires_grad for p in self._fixed)

    def _put_back(self) -> None:
        """Our statistics in the place of others; others in the place of parameters are refused."""
        for name, table, key, tensor, _, grad in self._bound:
            now = table[key] if key in table else None
            if now is tensor:
                continue
            if grad is not None or now is None:
                raise ValueError(
                    f'"{name}" of the model was replaced in a pass, and what is in its place would '
                    f"not be exchanged: change it in place, as in self.{key}.data.copy_(...)"
                )
            tensor.data = now.detach()
            table[key] = tensor
        known = {id(bound.tensor) for bound in self._bound}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                raise ValueError(
                    f'the parameter "{name}" came into the model in a pass, too late to be trained '
                    "and exchanged: make it in __init__, with a gradient from the start"
                )

    def in_order(self, vector: Tensor) -> Tensor:
        """A gradient (P,) or state (S,) tensor by tensor in the model's own order, a new one."""
        places = [place for place in self._places if place.here.stop <= vector.numel()]
        return torch.cat([place.seen(vector).reshape(-1) for place in places])

    def state(self) -> Tensor:
        """Parameters and running statistics as they lie, a new tensor (S,)."""
        return self.whole.clone()

    def load(self, state: Tensor) -> None:
        """Set parameters and running statistics from a state (S,)."""
        self.whole.copy_(state)

    @contextmanager
    def holding(self, state: Tensor) -> Generator[nn.Module]:
        """The module with another state (S,) for as long as it is measured."""
        own = self.state()
        self.load(state)
        try:
            yield self.module
        finally:
            self.bind(kept=False)
            self.load(own)


def _check_alike(bound: _Bound) -> None:
    now, view = bound.tensor, bound.view
    if (now.shape, now.dtype, now.device) != (view.shape, view.dtype, view.device):
        raise ValueError(
            f'"{bound.name}" of the model became {now.dtype} {tuple(now.shape)} on {now.device} in '
            f"a pass, expected {view.dtype} {tuple(view.shape)} on {view.device}: keep it so"
        )


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Hold the model in eval mode with no trainable parameter; restore both exactly."""
    training = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def untraced(model: nn.Module) -> Generator[None]:
    """Undo what forward passes leave behind: changed buffers and draws of the global randomness.

    The mode stays as it is: in train mode BatchNorm normalises by the batch, as in training, and
    its running statistics are restored afterwards.
    """
    tables = [module._buffers for module in model.modules()]
    kept = [(t, name, b, b.clone()) for t in tables for name, b in t.items() if b is not None]
    cuda = {p.get_device() for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(cuda)):
        try:
            yield
        finally:
            with torch.no_grad():
                for table, name, buffer, value in kept:
                    buffer.copy_(value)
                    if table.get(name) is not buffer:  # a pass has put another one there
                        table[name] = buffer


def _tensors(model: nn.Module) -> list[Tensor]:
    kept = model.state_dict().keys()
    statistics = [b for n, b in model.named_buffers() if n in kept and b.is_floating_point()]
    return [*trainable(model).values(), *statistics]


def state(model: nn.Module) -> Tensor:
    """Trainable parameters, then the floating-point buffers of the state dict: a new (S,)."""
    return flat(_tensors(model))


@contextmanager
def holding(model: nn.Module, state: Tensor) -> Generator[nn.Module]:
    """The model at another state (S,); afterwards it is as before, bit for bit."""
    tensors = _tensors(model)
    with restored([*tensors, *model.buffers()]):
        write(tensors, state)
        yield model


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters w.

    Args:
        model: any.

    Returns:
        The trainable ones by name, in the model's order.

    Raises:
        ValueError: there is none.
    """
    w: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not w:
        raise ValueError("the model has no trainable parameter, and so no derivative")
    return w


@contextmanager
def moved(model: nn.Module, v: Array) -> Generator[nn.Module]:
    """Hold the model at w + v, v of shape (P,); afterwards its weights are w again, bit for bit."""
    w = trainable(model)
    own = {name: p.detach().clone() for name, p in w.items()}
    try:
        with torch.no_grad():
            for name, step in as_tensors(v, w).items():
                w[name].add_(step)
        yield model
    finally:
        with torch.no_grad():
            for name, value in own.items():
                w[name].copy_(value)


def as_vector(v: Array, w: Parameters) -> Tensor:
    """In the dtype and on the device of the parameters."""
    like = next(iter(w.values()))
    return torch.as_tensor(v, dtype=like.dtype, device=like.device)


def as_tensors(v: Array, w: Parameters) -> dict[str, Tensor]:
    """A vector (P,) in the shapes of the parameters."""
    parts = torch.split(as_vector(v, w), [p.numel() for p in w.values()])
    return {name: part.view(p.shape) for part, (name, p) in zip(parts, w.items(), strict=True)}


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """The numbers of all tensors, in order: one new vector."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def split(vector: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """The parts of a vector in the shapes of `like`, as views; the inverse of `flat`.

    Args:
        vector: (P,).
        like: tensors of P numbers in all.

    Returns:
        The parts, in order.

    Raises:
        ValueError: the vector has another length.
    """
    like = list(like)
    sizes = [t.numel() for t in like]
    if vector.shape != (sum(sizes),):
        raise ValueError(
            f"a vector has shape {tuple(vector.shape)}, expected ({sum(sizes)},), one number for"
            " each of the model's"
        )
    return [part.view_as(t) for part, t in zip(torch.split(vector, sizes), like, strict=True)]


def write(tensors: Iterable[Tensor], vector: Tensor) -> None:
    """Set the tensors, in place, to the parts of a vector."""
    tensors = list(tensors)
    with torch.no_grad():
        for tensor, part in zip(tensors, split(vector, tensors), strict=True):
            tensor.copy_(part)


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Generator[None]:
    """Whatever happens inside: afterwards the tensors are as before, bit for bit."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
