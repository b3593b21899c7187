"""A request: what to measure of a finished trial."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raydist.adversary.attack import pgd
from raydist.adversary.threat import Norm, ThreatModel
from raydist.config.fields import check_budget
from raydist.errors import InputError
from raydist.evaluation.names import PARTS
from raydist.measure import attacks

BLOCK = 32  # images that are judged together: a function of the request alone, whoever does it


@dataclass(frozen=True)
class Request:
    """A request, the same for every trial and every model.

    Attributes:
        parts: members of `PARTS`.
        attacks: names of attacks (`raydist.measure.attacks`) or "autoattack"; "val_" before a name:
            on validation images.
        models: names of models (`raydist.evaluation.subject`), "agents" for all agents.
        images: the number of test (and validation) images, drawn evenly over the labels.
        norm: the norm of the budget; None is the trial's own.
        eps: the budget; None is the trial's own.
        delta: the W₂ budget; None is eps.
        batch: images per forward pass.
        subset: training images for curvature and landscapes.
        probes: probes of the Hessian's trace.
        top: eigenvalues.
        directions: directions of the perturbation curves.
        grid: points along each axis of a landscape.
        reach: half the length of each axis, in units of the direction.
    """

    parts: tuple[str, ...] = ("robustness", "masking")
    attacks: tuple[str, ...] = ("pgd10", "autoattack")
    models: tuple[str, ...] = ("centroid",)
    images: int | Literal["all"] = "all"
    norm: Norm | None = None
    eps: float | None = None
    delta: float | None = None
    batch: int = 256
    subset: int = 512
    probes: int = 50
    top: int = 20
    directions: int = 5
    grid: int = 21
    reach: float = 1.0

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise InputError(f"--parts is {list(self.parts)}, expected some of {', '.join(PARTS)}")
        for name in self.attacks:
            bare = name.removeprefix("val_")
            if bare not in ("clean", "autoattack"):
                try:
                    attacks.parse(bare)
                except ValueError as error:
                    raise InputError(f"--attacks: {error}") from error
        counts = {"--images": self.images, "--batch": self.batch, "--subset": self.subset}
        counts |= {"--probes": self.probes, "--top": self.top, "--grid": self.grid}
        for flag, count in (counts | {"--directions": self.directions}).items():
            if count != "all" and count < 1:
                raise InputError(f"{flag} is {count}, expected a whole number, 1 or more")
        if self.delta is not None and not self.delta > 0:
            raise InputError(f'--delta is {self.delta}, expected a budget above 0: write "8/255"')
        if not self.reach > 0:
            raise InputError(f"--reach is {self.reach}, expected a number above 0: write 1")

    def threat(self, own: ThreatModel) -> ThreatModel:
        """The budget for a trial.

        Args:
            own: the budget of the trial itself.

        Returns:
            The asked budget, or the trial's own.

        Raises:
            InputError: if the budget is not possible, or a norm is asked without a budget.
        """
        norm, eps = self.norm or own.norm, self.eps
        if eps is None:
            if norm != own.norm:
                raise InputError(
                    f'--norm is "{norm}", but the trial has "{own.norm}": write --eps too'
                )
            eps = own.eps
        try:
            check_budget("--eps", eps, norm)
            return ThreatModel(norm, eps)
        except ValueError as error:
            raise InputError(str(error)) from error

    def attack(self, own: ThreatModel) -> Callable[..., Tensor]:
        """The attack of curvature and scans: PGD-10 with steps of eps / 4 from a uniform start.

        Args:
            own: the budget of the trial itself.

        Returns:
            (model, x, y, generator) -> points.
        """
        threat = self.threat(own)

        def pgd10(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            return pgd(model, x, y, threat, steps=10, alpha=threat.eps / 4, generator=generator)

        return pgd10
