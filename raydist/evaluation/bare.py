"""Judge a model that no trial has trained: any module or callable, on images in memory."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.errors import InputError
from raydist.evaluation import door
from raydist.evaluation.door import Images
from raydist.evaluation.ledger import Ledger
from raydist.evaluation.request import Request
from raydist.evaluation.run import locally, shown
from raydist.evaluation.subject import Subject
from raydist.evaluation.table import known_numbers
from raydist.evaluation.units import Ask, missing
from raydist.evaluation.work import perform
from raydist.learning.data import Data, to_tensor
from raydist.measure.cascade import fraction
from raydist.measure.columns import CLEAN, ENSEMBLE, Numbers
from raydist.seeding import Purpose, drawing
from raydist.vector import frozen

Model = Callable[[Tensor], Tensor]  # a module is one


@dataclass(frozen=True, eq=False)
class Robustness:
    """Accuracies, verdicts and checks of one model.

    Attributes:
        accuracies: an attack's name as it was asked for -> the share of images that stay right.
        verdicts: one row for each image; columns "clean" and the attacks: True if it stays right.
        masking: "trusted", or the signs that gradients are masked; "unchecked" if too few images
            were judged to tell.
        numbers: everything that was measured, by the names of `python -m raydist.evaluate`.
    """

    accuracies: dict[str, float]
    verdicts: pd.DataFrame = field(repr=False)
    masking: str
    numbers: Numbers = field(repr=False)

    @property
    def accuracy(self) -> float:
        """The accuracy under the strongest of the attacks."""
        return min(self.accuracies.values())


def robustness(
    model: Model,
    x: Images,
    y: Images,
    threat: ThreatModel,
    attacks: Sequence[str] | str = ("autoattack",),
    batch: int = 256,
    device: torch.device | str | None = None,
    seed: int = 0,
    *,
    quiet: bool = False,
) -> Robustness:
    """Judge a model by attacks, and check whether its gradients can be trusted.

    The numbers are those of `evaluate_runs` for the same model, images and seed. The model is
    judged in eval mode; mode, parameters, device and global randomness are left as found. Images
    are attacked in blocks of 32. The mode of a callable is its owner's affair.

    Args:
        model: a module, or another callable, that gives logits (N, classes).
        x: images (N, C, H, W), floats in [0, 1] or uint8.
        y: labels (N,), integers in 0..classes − 1.
        threat: the ball around each image.
        attacks: names as in `raydist.measure.attacks`, "autoattack", "clean".
        batch: images per forward pass.
        device: the device to compute on; None: the model's own.
        seed: the seed of the attacks.
        quiet: whether to show no progress bar.

    Returns:
        Accuracies, verdicts on each image, and what the masking checks say.

    Raises:
        InputError: if an argument is not as above, in one line.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        >>> x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
        >>> robustness(net, x, y, ThreatModel("linf", 0.4), attacks=["pgd10"]).accuracy
        1.0
    """
    if not callable(model):
        raise InputError(f"model is a {type(model).__name__}, expected a module or a callable")
    names = door.attack_names(attacks)
    door.check_threat(threat)
    for key, value, least in (("batch", batch, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise InputError(f"{key} is {value!r}, expected a whole number, {least} or more")
    split, scale = door.arrays(x, y)
    module = Called(model)
    at = door.device_of(module, x, device)
    with ExitStack() as stack:
        stack.enter_context(_moved(module, at))
        classes = door.count_classes(module, split[0], scale, at, batch, seed)
        stack.enter_context(_still(module, to_tensor(split[0][:1], scale, device=at), seed))
        subject = Bare(module, door.data_of(split, classes, scale), threat, seed, at)
        request = Request(attacks=names, batch=batch)
        door.check_attacks(subject, request)
        ledger = Ledger(None)
        units = list(missing(subject, subject.main, request, ledger))
        do = partial(perform, request=request, subject=subject)
        for _, found in shown(units, locally(do, units), quiet):
            if isinstance(found, BaseException):
                raise found
            ledger.learn(found)
    return _summary(subject, names, ledger)


class Called(nn.Module):
    """A model as a module whose inputs have the type of its weights."""

    def __init__(self, model: Model) -> None:
        """Hold a module, a method of one, or any callable.

        Args:
            model: the function that gives logits.
        """
        super().__init__()
        owner = getattr(model, "__self__", None)
        self.model, self.owner = model, owner if isinstance(owner, nn.Module) else None
        kinds = (p.dtype for p in self.parameters() if p.is_floating_point())
        self.dtype = next(kinds, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of images (N, C, H, W)."""
        return self.model(x.to(self.dtype))


class Bare(Subject):
    """A model and images in memory."""

    def __init__(
        self, module: nn.Module, data: Data, threat: ThreatModel, seed: int, device: torch.device
    ) -> None:
        """Hold them, to be judged within `threat`."""
        self.folder, self.data = Path("robustness"), data
        self._module, self._threat, self._seed, self._device = module, threat, seed, device

    @property
    def threat(self) -> ThreatModel:
        """The budget."""
        return self._threat

    @property
    def seed(self) -> int:
        """The seed of the attacks."""
        return self._seed

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._device

    def model(self, name: str) -> nn.Module:
        """The one there is."""
        return self._module

    def digest(self, name: str) -> str:
        """Always the same: nothing else is in its ledger."""
        return name


@contextmanager
def _moved(module: nn.Module, at: torch.device) -> Generator[None]:
    """Meanwhile the weights are on a device."""
    homes = {tensor.device for tensor in chain(module.parameters(), module.buffers())}
    if homes <= {at}:
        yield
        return
    if len(homes) > 1:
        raise InputError(f"device is {at}, but the model is on {len(homes)} devices: leave it out")
    try:
        module.to(at)
        yield
    finally:
        module.to(homes.pop())


@contextmanager
def _still(module: nn.Module, image: Tensor, seed: int) -> Generator[None]:
    """Meanwhile the model is in eval mode and nothing that it uses collects gradients.

    A callable may use tensors that are no parameters of `module`: they are leaves of its graph.
    """
    with frozen(module):
        with drawing(Purpose.IN_MEASUREMENT, seed, device=image.device), torch.enable_grad():
            leaves = _leaves(module(image))
        for leaf in leaves:
            leaf.requires_grad_(False)
        try:
            yield
        finally:
            for leaf in leaves:
                leaf.requires_grad_(True)


def _leaves(out: Tensor) -> list[Tensor]:
    """The tensors that require gradients and from which another was computed."""
    seen, to_see, leaves = set[Any](), [out.grad_fn], list[Tensor]()
    while to_see:
        node = to_see.pop()
        if node is not None and node not in seen:
            seen.add(node)
            variable = getattr(node, "variable", None)
            leaves += [] if variable is None else [variable]
            to_see += [before for before, _ in node.next_functions]
    return leaves


def _summary(subject: Subject, names: Sequence[str], ledger: Ledger) -> Robustness:
    def right(name: str) -> list[bool]:
        ensemble = name == "autoattack"
        ask = Ask("test", ENSEMBLE if ensemble else name, subject.threat, cascade=ensemble)
        if subject.threat.eps == 0:  # every attack is none
            ask = Ask("test", CLEAN, subject.threat)
        known = ledger.images(subject.digest(subject.main), ask.measure)
        return [bool(known[image]) for image in range(len(subject.data.test[1]))]

    verdicts = pd.DataFrame({name: right(name) for name in dict.fromkeys((CLEAN, *names))})
    verdicts.index.name = "image"
    numbers = known_numbers(subject, subject.main, subject.threat, ledger)
    accuracies = {name: fraction(verdicts[name].to_numpy()) for name in names}
    return Robustness(accuracies, verdicts, str(numbers.get("masking", "unchecked")), numbers)
