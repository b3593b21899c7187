"""Per-image verdicts on a trained model, in parts that agents share out, and their summary.

Each agent judges a part of the test images; `merge` puts the parts together, so that the numbers do
not depend on who judged what.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raydist.adversary.attack import pgd
from raydist.adversary.threat import ThreatModel
from raydist.config import Experiment
from raydist.measure import accuracy, attacks, masking
from raydist.measure.autoattack import autoattack
from raydist.measure.trained import FOSC_STEPS, Part, stationarity
from raydist.measure.verdict import Verdict, concatenate, fraction
from raydist.seeding import Purpose, seed_for, torch_generator

PROBES = 50  # of the Hessian's trace
T = TypeVar("T")


@dataclass(frozen=True)
class Masks:
    """Per-image verdicts on some test images.

    Attributes:
        index: their positions in the test split.
        clean: right without attack.
        pgd: number of steps -> right under PGD.
        fosc: FOSC at the last PGD-10 point.
        fosc_relative: the same, free of the scale of the loss and with the pixel box.
        others: name of a further attack -> right under it.
        attacked: positions of the images that AutoAttack was given.
        verdict: what it did to them; None if it was switched off.
        curved: number of training images whose loss' curvature was measured.
        traces: vᵀ H v of that loss for each probe v, (probes,), at frozen adversarial points.
        failed: name of a measurement that raised -> what it said; its numbers are left out.
    """

    index: NDArray[np.int64]
    clean: NDArray[np.bool_]
    pgd: dict[int, NDArray[np.bool_]]
    fosc: NDArray[np.float64]
    fosc_relative: NDArray[np.float64]
    others: dict[str, NDArray[np.bool_]]
    attacked: NDArray[np.int64]
    verdict: Verdict | None
    curved: int
    traces: NDArray[np.float64]
    failed: dict[str, str] = field(default_factory=dict)


def judge(
    model: nn.Module,
    part: Part,
    attacked: Part,
    threat: ThreatModel,
    curved: Part,
    config: Experiment,
    classes: int,
) -> Masks:
    """Per-image verdicts on some test images: clean, PGD, AutoAttack, further attacks, FOSC.

    Args:
        model: gives logits.
        part: the images for clean and PGD accuracy and FOSC.
        attacked: the images for AutoAttack.
        threat: the set of allowed points.
        curved: the training images for the Hessian's trace; empty if it is not asked for.
        config: the experiment; its `evaluate` says what is run.
        classes: number of classes.

    Returns:
        The verdicts.
    """
    wanted, dtype = config.evaluate, next(model.parameters()).dtype
    x, y = part.tensors(part.index, dtype)
    seed = seed_for(Purpose.EVALUATE, config.seed, int(part.index[0]) if len(y) else 0)
    common = {"batch": wanted.batch, "seed": seed}
    failed: dict[str, str] = {}
    cascade, package = None, {"classes": classes, "batch": wanted.batch, "seed": seed % 2**31}
    if wanted.autoattack != 0:
        images = attacked.tensors(attacked.index, dtype)
        cascade = _attempt(failed, "autoattack", autoattack, model, *images, threat, **package)
    pgds = {
        n: _attempt(failed, f"pgd{n}", accuracy.pgd_correct, model, x, y, threat, steps=n, **common)
        for n in wanted.pgd
    }
    broken = {
        name: _attempt(failed, name, attacks.breaks, name, model, x, y, threat, **package)
        for name in wanted.attacks
    }
    nowhere = (np.full(len(y), np.nan),) * 2
    fosc, relative = _attempt(failed, "fosc", _gaps, model, part, threat, **common) or nowhere
    traces = _attempt(failed, "hessian", _traces, model, curved, threat, config)
    return Masks(
        index=part.index,
        clean=accuracy.correct(model, x, y, wanted.batch),
        pgd={steps: right for steps, right in pgds.items() if right is not None},
        fosc=fosc,
        fosc_relative=relative,
        others={name: ~wrong for name, wrong in broken.items() if wrong is not None},
        attacked=attacked.index,
        verdict=cascade,
        curved=len(curved.index),
        traces=np.zeros(PROBES) if traces is None else traces,
        failed=failed,
    )


def _attempt(
    failed: dict[str, str], name: str, measure: Callable[..., T], *args: Any, **kwargs: Any
) -> T | None:
    """What a measurement finds; None if it raises, which is noted and loses no other one."""
    try:
        return measure(*args, **kwargs)
    except Exception as error:
        said = " ".join(str(error).split())
        failed[name] = f"{type(error).__name__}: {said}".removesuffix(": ")[:200]
        return None


def _gaps(
    model: nn.Module, part: Part, threat: ThreatModel, *, batch: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """FOSC of every image, as published and relative."""
    x, y = part.tensors(part.index, next(model.parameters()).dtype)
    gaps = []
    for first in range(0, len(y), batch):
        draw = torch_generator(Purpose.EVALUATE, seed, round=first, device=part.device)
        here = slice(first, first + batch)
        gaps.append(stationarity(model, x[here], y[here], threat, draw)[1])
    fosc, relative = ([gap[name] for gap in gaps] for name in ("fosc", "fosc_relative"))
    return _joined(x, fosc), _joined(x, relative)


def _joined(x: Tensor, parts: Sequence[Tensor]) -> NDArray[np.float64]:
    """Values of the images of all batches; empty if there is none."""
    values: NDArray[np.float64] = torch.cat([*parts, x.new_zeros(0)]).double().cpu().numpy()
    return values


def _traces(
    model: nn.Module, part: Part, threat: ThreatModel, config: Experiment
) -> NDArray[np.float64]:
    """As `Masks.traces`: the same probes for every part, so weighted means are the whole's."""
    if len(part.index) == 0:
        return np.zeros(PROBES)
    from raydist.measure import curvature  # what it needs takes time and memory in every agent

    dtype, size = next(model.parameters()).dtype, config.evaluate.batch
    batches = [
        part.tensors(part.index[first : first + size], dtype)
        for first in range(0, len(part.index), size)
    ]
    attack = partial(pgd, threat=threat, steps=FOSC_STEPS, alpha=threat.eps / 4)
    points = curvature.attacked(model, batches, attack, config.seed)
    return curvature.trace_samples(model, cross_entropy, points, PROBES, config.seed)


def merge(parts: Sequence[Masks]) -> Masks:
    """The verdicts on all images, in the order of the images."""
    index = np.concatenate([part.index for part in parts])
    attacked = np.concatenate([part.attacked for part in parts])
    order, order_attacked = np.argsort(index), np.argsort(attacked)
    failed = {name: why for part in parts for name, why in part.failed.items()}
    verdicts = [part.verdict for part in parts if part.verdict is not None]
    verdict = concatenate(verdicts) if verdicts and "autoattack" not in failed else None
    if verdict is not None:
        verdict = Verdict(
            verdict.attacks, verdict.broken_by[order_attacked], verdict.seconds, verdict.observed
        )

    def joined(values: Iterable[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(list(values))[order]

    curved = [0 if "hessian" in failed else part.curved for part in parts]
    return Masks(
        index=index[order],
        clean=joined(part.clean for part in parts),
        pgd={
            n: joined(part.pgd[n] for part in parts)
            for n in parts[0].pgd
            if f"pgd{n}" not in failed
        },
        fosc=joined(part.fosc for part in parts),
        fosc_relative=joined(part.fosc_relative for part in parts),
        others={
            name: joined(part.others[name] for part in parts)
            for name in parts[0].others
            if name not in failed
        },
        attacked=attacked[order_attacked],
        verdict=verdict,
        curved=sum(curved),
        traces=np.array(curved) @ np.stack([part.traces for part in parts]) / max(sum(curved), 1),
        failed=failed,
    )


def summary(masks: Masks) -> dict[str, float | str]:
    """The named numbers of a model.

    Args:
        masks: verdicts on all images.

    Returns:
        Those of `accuracy.summary`, a column for each further attack, `fosc`, AutoAttack's flags in
        words, the masking checks' verdict, and the trace of the Hessian with its standard error.
    """
    at = np.searchsorted(masks.index, masks.attacked)
    named: dict[str, float | str] = dict(
        accuracy.summary(masks.clean, masks.pgd, masks.verdict, at)
    )
    named["test_images"] = float(len(masks.index))
    if masks.verdict is not None:
        named["autoattack_images"] = float(len(masks.attacked))
        named["autoattack_flags"] = ", ".join(masks.verdict.flags)
    named |= {attacks.column(name): fraction(right) for name, right in masks.others.items()}
    named |= {"fosc": float(masks.fosc.mean()), "fosc_relative": float(masks.fosc_relative.mean())}
    measured = {name: value for name, value in named.items() if isinstance(value, float)}
    images = min(len(masks.index), len(masks.attacked) or len(masks.index))
    named["masking"] = masking.verdict(measured, images).word
    if masks.curved:
        named["hessian_trace"] = float(masks.traces.mean())
        named["hessian_trace_error"] = float(masks.traces.std(ddof=1) / math.sqrt(PROBES))
    return named
