"""Models by name: inputs in [0, 1], so that budgets are in pixels; normalisation inside."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from raydist.learning import resnet, small
from raydist.learning.wideresnet import wide_resnet
from raydist.lookup import named
from raydist.seeding import Purpose, drawing

MODELS: dict[str, Callable[..., nn.Module]] = {
    "linear": small.linear,
    "small-cnn": small.small_cnn,
    "lenet": small.lenet,
    "resnet-18": resnet.resnet_18,
    "preact-resnet-18": resnet.preact_resnet_18,
    "senet-18": resnet.senet_18,
    "wrn-16-4": partial(wide_resnet, 16, 4),
    "wrn-28-10": partial(wide_resnet, 28, 10),
    "wrn-34-10": partial(wide_resnet, 34, 10),
    "vgg-16": small.vgg_16,
    "point": small.point,
}

# mean and standard deviation of the training pixels, per channel
NORMALISATION: dict[str, dict[str, tuple[float, ...]]] = {
    "digits": {"mean": (0.3053,), "std": (0.3760,)},
    "mnist": {"mean": (0.1307,), "std": (0.3081,)},
    "fashion-mnist": {"mean": (0.2860,), "std": (0.3530,)},
    "cifar10": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    "cifar100": {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)},
    "svhn": {"mean": (0.4377, 0.4438, 0.4728), "std": (0.1980, 0.2010, 0.1970)},
}


class Normalise(nn.Module):
    """(x − mean) / std per channel, as constants: no parameters, nothing in the state dict."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep the constants.

        Args:
            mean: the mean of each channel.
            std: the standard deviation of each channel, above 0.
        """
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The images of shape (N, C, H, W), normalised."""
        return (x - self.mean) / self.std


def build(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    *,
    width: float = 1.0,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **params: Any,
) -> nn.Module:
    """A model with inputs in [0, 1], initialised by the seed alone.

    Args:
        name: a name in `MODELS`, or "package.module:function": the function is called with `shape`,
            `classes` and `params` (and `width`, where it is not 1) and returns a module; a builder
            of torchvision or timm is called with `num_classes` instead of the first two. That
            module is used as it is: it normalises its inputs itself.
        shape: (C, H, W) of an image; (M,) for "point".
        classes: number of classes.
        width: factor on the numbers of channels, > 0.
        seed: the run's seed.
        mean: the mean of the pixels, per channel; None: nothing is normalised.
        std: their standard deviation; needed with `mean`.
        **params: the model's own.

    Returns:
        The model, on the CPU, in train mode.

    Raises:
        ValueError: the name is unknown, an argument does not fit the model, or what a
            "package.module:function" returns is no module.

    Example:
        >>> parameter_count(build("linear", (1, 8, 8), 10))
        650
    """
    if not width > 0:
        raise ValueError(f"model.width is {width}, expected a factor above 0: write 1.0")
    if (mean is None) != (std is None):
        raise ValueError(f"mean is {mean}, std is {std}: give both, or neither")
    function = named(MODELS, name, "model.name")
    kwargs = params if width == 1 else {**params, "width": width}
    kwargs = {**_contract(function, shape, classes), **kwargs}
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError as error:
        raise ValueError(
            f'model "{name}": {error}; its arguments are '
            + (", ".join(inspect.signature(function).parameters) or "none")
        ) from None
    with drawing(Purpose.MODEL, seed):
        model = function(**kwargs)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f'model "{name}" returned a {type(model).__name__}, expected a torch.nn.Module'
        )
    if mean is None or std is None or ":" in name:
        return model
    if not len(mean) == len(std) == shape[0]:
        raise ValueError(f"mean is {mean}, std is {std}, expected {shape[0]} numbers each")
    return nn.Sequential(OrderedDict(normalise=Normalise(mean, std), net=model))


def whole(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A model with all of its layers, those too that it makes in its first pass.

    Args:
        model: the model as it was built; left as it is.
        shape: the shape of an input.

    Returns:
        The model after a pass of two black images in eval mode, if that has made parameters; else
        the model, through which nothing has passed.

    Raises:
        ValueError: if it has lazy layers, and the pass fails.
    """
    lazy = any(map(is_lazy, model.parameters()))
    first = next((p for p in model.parameters() if not is_lazy(p)), torch.zeros(()))
    try:
        tried = copy.deepcopy(model)
        modes = {module: module.training for module in tried.modules()}
        with torch.no_grad():
            tried.eval()(torch.zeros(2, *shape, dtype=first.dtype))
    except Exception as error:
        if lazy:
            raise ValueError(
                f"the model's lazy layers cannot be made from images of shape {shape}: {error}"
            ) from error
        return model  # what is wrong with it is told by who uses it
    if not lazy and _names(tried) == _names(model):
        return model
    tried.train()
    for module, mode in modes.items():
        module.training = mode
    return tried


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _contract(function: Callable[..., Any], shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Arguments of a builder: shape and classes; num_classes if, as in torchvision, it has none."""
    named = inspect.signature(function).parameters
    if "num_classes" in named or ("shape" not in named and _takes_anything(function)):
        return {"num_classes": classes}
    return {"shape": shape, "classes": classes}


def _takes_anything(function: Callable[..., Any]) -> bool:
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def parameter_count(model: nn.Module) -> int:
    """The number P of trainable numbers in the model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
