"""A model as one flat vector: parameters as views of w (P,), running statistics behind them.

The optimiser then sees one parameter, and combining is one weighted sum. What a pass through the
model has put beside the vector (`weight.data = ...`, `grad = None`) is brought back by `bind`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

VALUES, GRAD = methodcaller("values"), attrgetter("grad")


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
