"""Per-image verdicts on a trained model, in parts that agents share, and their summary.

Each agent judges a part of the test images; `merge` puts the parts together, so that the numbers do
not depend on the division of work.
"""

import math
from collections.abc import Callable, Mapping, Sequence
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
from raydist.config.experiment import Experiment
from raydist.engine.agent.validation import Part
from raydist.measure import accuracy, attacks, masking
from raydist.measure.autoattack import autoattack
from raydist.measure.cascade import FEW_CLASSES, STANDARD, Cascade
from raydist.measure.columns import CLEAN, ENSEMBLE, Known, Numbers, alone, columns
from raydist.measure.stationarity import FOSC_STEPS, stationarity
from raydist.seeding import Purpose, seed_for, torch_generator

PROBES = 50  # random vectors for the Hessian's trace
Right = dict[str, dict[int, bool]]
T = TypeVar("T")


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on some test images.

    Attributes:
        known: the verdicts on each image, by its position in the test split.
        curved: number of training images in the measured curvature.
        traces: vᵀ H v of that loss for each probe v, (probes,), at frozen adversarial points.
        failed: name of a measurement that raised -> its error; its numbers are left out.
    """

    known: Known
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
) -> Verdicts:
    """Per-image verdicts on some test images: clean, PGD, AutoAttack, further attacks, FOSC.

    Args:
        model: the model, which returns logits.
        part: the images for clean and PGD accuracy, further attacks and FOSC.
        attacked: the images for AutoAttack.
        threat: the set of allowed points.
        curved: the training images for the Hessian's trace; empty if it is not asked for.
        config: the experiment; its `evaluate` selects the measurements.
        classes: number of classes.

    Returns:
        The verdicts.
    """
    wanted, dtype, flags = config.evaluate, next(model.parameters()).dtype, set[str]()
    images = part.tensors(part.index, dtype)
    seed = seed_for(Purpose.EVALUATE, config.seed, int(part.index[0]) if len(part.index) else 0)
    options: dict[str, Any] = {"batch": wanted.batch, "seed": seed % 2**31}
    failed: dict[str, str] = {}
    found: dict[str, Any] = {CLEAN: accuracy.correct(model, *images, wanted.batch)}
    for steps in wanted.pgd:
        pgds = {"steps": steps, "batch": wanted.batch, "seed": seed}
        found[f"pgd{steps}"] = _attempt(
            failed, f"pgd{steps}", accuracy.pgd_correct, model, *images, threat, **pgds
        )
    package = options | {"classes": classes}
    for name in wanted.attacks:
        run = partial(attacks.breaks, flags=flags)
        broken = _attempt(failed, name, run, name, model, *images, threat, **package)
        found[alone(name)] = None if broken is None else ~broken
    right = {name: _by_image(part.index, kept) for name, kept in found.items() if kept is not None}
    if wanted.autoattack != 0:
        given = attacked.tensors(attacked.index, dtype)
        verdict = _attempt(failed, "autoattack", autoattack, model, *given, threat, **package)
        if verdict is not None:
            flags |= verdict.observed
            for name, of in of_ensemble(verdict, attacked.index).items():
                right[name] = right.get(name, {}) | of  # APGD-CE may have seen more by itself
    values = _attempt(failed, "fosc", _values, model, part, images, threat, wanted.batch, seed)
    traces = _attempt(failed, "hessian", _traces, model, curved, threat, config)
    members = STANDARD if classes >= 4 else FEW_CLASSES
    return Verdicts(
        Known(right, values or {}, frozenset(flags), members),
        0 if traces is None else len(curved.index),
        np.zeros(PROBES) if traces is None else traces,
        failed,
    )


def _attempt(
    failed: dict[str, str], name: str, measure: Callable[..., T], *args: Any, **kwargs: Any
) -> T | None:
    """Return a measurement's result, or None if it raises; note the error, lose no other."""
    try:
        return measure(*args, **kwargs)
    except Exception as error:
        said = " ".join(str(error).split())
        failed[name] = f"{type(error).__name__}: {said}".removesuffix(": ")[:200]
        return None


def of_ensemble(verdict: Cascade, index: NDArray[np.int64]) -> Right:
    """Convert an ensemble's verdict to the form of `Known.right`.

    Args:
        verdict: the verdict on M images.
        index: positions of the images, (M,).

    Returns:
        Per member, the images that it saw; the first member and the ensemble see all images.
    """
    found: Right = {}
    for position, name in enumerate(verdict.attacks, start=1):
        seen = verdict.robust | (verdict.broken_by >= (position if position > 1 else 0))
        kept = verdict.robust | (verdict.broken_by > position)
        found[name] = _by_image(index[seen], kept[seen])
    return found | {ENSEMBLE: _by_image(index, verdict.robust)}


def _by_image(index: NDArray[np.int64], values: NDArray[Any]) -> dict[int, Any]:
    return dict(zip(index.tolist(), values.tolist(), strict=True))


def _values(
    model: nn.Module,
    part: Part,
    images: tuple[Tensor, Tensor],
    threat: ThreatModel,
    batch: int,
    seed: int,
) -> Mapping[str, Mapping[int, float]]:
    """FOSC at the last PGD-10 point, and a flag for a zero input gradient."""
    x, y = images
    gaps = []
    for first in range(0, len(y), batch):
        draw = torch_generator(Purpose.EVALUATE, seed, round=first, device=part.device)
        here = slice(first, first + batch)
        gaps.append(stationarity(model, x[here], y[here], threat, draw)[1])
    zero = masking.zero_gradients(model, x, y, batch) if len(y) else np.zeros(0)
    return {
        name: _by_image(part.index, torch.cat([gap[name] for gap in gaps]).double().cpu().numpy())
        for name in ("fosc", "fosc_relative")
        if gaps
    } | {"zero_gradient": _by_image(part.index, zero.astype(np.float64))}


def _traces(
    model: nn.Module, part: Part, threat: ThreatModel, config: Experiment
) -> NDArray[np.float64]:
    """Return `Verdicts.traces`; all parts use the same probes, so weighted means are exact."""
    if len(part.index) == 0:
        return np.zeros(PROBES)
    from raydist.measure import curvature  # imported late: it takes time and memory in every agent

    dtype, size = next(model.parameters()).dtype, config.evaluate.batch
    batches = [
        part.tensors(part.index[first : first + size], dtype)
        for first in range(0, len(part.index), size)
    ]
    attack = partial(pgd, threat=threat, steps=FOSC_STEPS, alpha=threat.eps / 4)
    points = curvature.attacked(model, batches, attack, config.seed)
    return curvature.trace_samples(model, cross_entropy, points, PROBES, config.seed)


def merge(parts: Sequence[Verdicts]) -> Verdicts:
    """The verdicts on all images."""

    def joined(tables: Sequence[Mapping[str, Mapping[int, Any]]]) -> dict[str, dict[int, Any]]:
        names = dict.fromkeys(name for table in tables for name in table)
        return {
            name: {i: value for table in tables for i, value in table.get(name, {}).items()}
            for name in names
        }

    failed = {name: why for part in parts for name, why in part.failed.items()}
    known = [part.known for part in parts]
    curved = [0 if "hessian" in failed else part.curved for part in parts]
    right = joined([each.right for each in known])
    for name in ("ensemble" if name == "autoattack" else alone(name) for name in failed):
        right.pop(name, None)  # whole or not at all
    values = {} if "fosc" in failed else joined([each.values for each in known])
    flags = frozenset[str]().union(*(each.flags for each in known))
    return Verdicts(
        Known(right, values, flags, known[0].members),
        sum(curved),
        np.array(curved) @ np.stack([part.traces for part in parts]) / max(sum(curved), 1),
        failed,
    )


def summary(masks: Verdicts) -> Numbers:
    """The named numbers of a model.

    Args:
        masks: the verdicts on all images.

    Returns:
        The numbers of `columns`; the Hessian's trace with its standard error, images and probes.
    """
    named = columns(masks.known)
    if masks.curved:
        named["hessian_trace"] = float(masks.traces.mean())
        named["hessian_trace_error"] = float(masks.traces.std(ddof=1) / math.sqrt(PROBES))
        named["hessian_trace_images"] = float(masks.curved)
        named["hessian_trace_probes"] = float(PROBES)
    return named
