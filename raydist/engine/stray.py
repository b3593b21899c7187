"""Stray weights: a model computes with them, but no agent trains, exchanges or saves them.

`nn.Module` registers layers that are its attributes, not layers in a plain list, dict or object,
and no tensors except `nn.Parameter`. The graph of a forward pass contains all of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

OWN = frozenset(vars(nn.Module()))  # attributes that every module has
SINGLE = (str, bytes, int, float, complex, type, type(None))  # types that hold no tensors


class _Place(NamedTuple):
    """The place of a tensor in a model.

    Attributes:
        path: the path, such as "self.layers[0].weight".
        holder: path of the outermost list, dict or object on the way that is no module, or "".
        kind: "List", "Dict" or "", the holder's kind.
        layer: True if a module lies below the holder.
    """

    path: str
    holder: str = ""
    kind: str = ""
    layer: bool = False

    def remedy(self) -> str:
        """Code to write instead."""
        if self.holder and not self.kind:
            return f"{self.holder} as a torch.nn.Module"
        of = "Module" if self.layer else "Parameter"
        return f"{self.holder or self.path} = nn.{of}{self.kind}(...)"


def stray(model: nn.Module, output: Tensor) -> str:
    """Find tensors with gradients in a forward pass that are no parameters of the model.

    Args:
        model: the model, after the pass; "self" in the answer.
        output: output of the pass, for images without gradient.

    Returns:
        One line with the model's mistake and its remedy, or "". A tensor made in the pass and kept
        nowhere is no mistake, but a layer made in the pass is one.
    """
    own = {id(parameter) for parameter in model.parameters()}
    found = {id(leaf): leaf for leaf in _leaves(output) if id(leaf) not in own}
    if not found:
        return ""
    for place, tensor in _kept(model, _Place("self"), set()):
        if id(tensor) in found:
            return _line(place.path, tensor, place.remedy())
    for leaf in found.values():
        if isinstance(leaf, nn.Parameter):
            return _line("weights", leaf, "their layer as an attribute of the model")
    return ""


def _line(what: str, tensor: Tensor, remedy: str) -> str:
    return (
        f"computes with {what} of shape {tuple(tensor.shape)}, which is none of its parameters "
        f"and would stay untrained: write {remedy}, or requires_grad_(False) if that is meant"
    )


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """All tensors at the ends of a graph."""
    stack: list[Any] = [output.grad_fn]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
        stack.extend(above for above, _ in node.next_functions)


def _kept(value: Any, place: _Place, seen: set[int]) -> Iterator[tuple[_Place, Tensor]]:
    """All tensors that can be reached from a module through attributes and items."""
    if isinstance(value, (*SINGLE, torch.jit.ScriptModule)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield place, value
        return
    parts, kind = _parts(value)
    if isinstance(value, nn.Module):
        inside = place._replace(layer=bool(place.holder))
    else:
        inside = place if place.holder else place._replace(holder=place.path, kind=kind)
    for name, each in parts.items():
        yield from _kept(each, inside._replace(path=place.path + name), seen)


def _parts(value: Any) -> tuple[dict[str, Any], str]:
    """Parts of a value by their access path, and the kind of module that would hold them."""
    if isinstance(value, Mapping):
        return {f"[{key!r}]": each for key, each in value.items()}, "Dict"
    if isinstance(value, list | tuple | set):
        return {f"[{i}]": each for i, each in enumerate(value)}, "List"
    kept = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):
        known = {**value._parameters, **value._modules, **value._buffers}
        kept = known | {name: each for name, each in kept.items() if name not in OWN}
    return {f".{name}": each for name, each in kept.items()}, ""
