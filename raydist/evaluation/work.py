"""The work of each unit: the functions of `raydist.measure` on a trial's models.

A task takes the trial, its unit and the unit's arguments, and yields entries for the ledger.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raydist.evaluation import scans
from raydist.evaluation.folders import open_subject
from raydist.evaluation.ledger import Entry
from raydist.evaluation.request import Request
from raydist.evaluation.subject import START, Subject
from raydist.evaluation.units import GAPS, Ask, Unit, budget, model_of, outstanding
from raydist.measure import accuracy, attacks, curvature, masking, similarity, wasserstein
from raydist.measure import stationarity as measure_stationarity
from raydist.measure.cascade import Mask
from raydist.measure.columns import CLEAN
from raydist.measure.guard import guarded
from raydist.seeding import Purpose, seed_for, torch_generator

Task = Callable[..., Iterator[Entry]]
DENSITY = (3, 40)  # probes and Lanczos steps of the spectral density: 120 products


def perform(unit: Unit, request: Request, subject: Subject | None = None) -> Iterator[Entry]:
    """Do a unit.

    Args:
        unit: the work to be done.
        request: the request with the settings that all units share.
        subject: the subject that has the model; None: the one of the unit's folder.

    Yields:
        Entries, each as soon as it is known.
    """
    began, subject = time.perf_counter(), subject or open_subject(unit.folder)
    entries = TASKS[unit.task](subject, unit, request, **unit.args)
    first = unit.args.get("images", 0)
    first = first[0] if isinstance(first, tuple) else 0
    while True:  # each entry begins with the same draws, whatever was known before
        with subject.drawn(first):
            entry = next(entries, None)
        if entry is None:
            return
        now = time.perf_counter()
        yield replace(entry, seconds=now - began)
        began = now


def judge(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    split: str,
    images: tuple[int, ...],
    asks: list[Ask],
    known: Mapping[str, dict[int, bool]],
) -> Iterator[Entry]:
    """Judge which attack changes the label of which image."""
    seed = _seed(subject, images[0])
    known = dict(known)  # a unit is not changed by being done
    for ask, settled, todo in outstanding(asks, images, known):
        flags = set[str]()
        found = dict(settled)
        if todo:
            kept = _kept(subject, model_of(subject, unit), request, ask, todo, seed, flags)
            found |= dict(zip(todo, kept.tolist(), strict=True))
        if found:
            known[ask.measure] = known.get(ask.measure, {}) | found
            values = list(found.values())
            yield Entry(unit.weights, ask.measure, values, list(found), flags=sorted(flags))


def _kept(
    subject: Subject,
    model: nn.Module,
    request: Request,
    ask: Ask,
    images: Sequence[int],
    seed: int,
    flags: set[str],
) -> Mask:
    """Tell which images stay right under an attack."""
    x, y = subject.tensors(ask.split, np.array(images))
    if ask.attack == CLEAN:
        return accuracy.correct(model, x, y, request.batch)
    return ~attacks.breaks(
        ask.attack,
        model,
        x,
        y,
        ask.threat,
        classes=subject.data.classes,
        batch=request.batch,
        seed=seed,
        flags=flags,
    )


def stationarity(
    subject: Subject, unit: Unit, request: Request, *, images: tuple[int, ...]
) -> Iterator[Entry]:
    """FOSC at the last point of PGD-10, and whether the input gradient is zero."""
    threat, seed = request.threat(subject.threat), _seed(subject, images[0])
    x, y = subject.tensors("test", np.array(images))
    draw = torch_generator(Purpose.EVALUATE, seed, device=subject.device)
    classes, flags = subject.data.classes, set[str]()
    with guarded(
        model_of(subject, unit), x, y, threat, (), classes, request.batch, seed, flags
    ) as model:
        gaps = measure_stationarity.stationarity(model, x, y, threat, draw)[1]
    zero = masking.zero_gradients(model_of(subject, unit), x, y, request.batch)
    found = {name: gaps[name].double().tolist() for name in ("fosc", "fosc_relative")}
    found["zero_gradient"] = zero.astype(float).tolist()
    for name in GAPS:
        values = found[name]
        yield Entry(unit.weights, f"{budget('test', threat)}/{name}", values, images)


def radius(
    subject: Subject, unit: Unit, request: Request, *, images: tuple[int, ...]
) -> Iterator[Entry]:
    """The distance of each image to the nearest other label that attacks find."""
    model, threat = model_of(subject, unit), request.threat(subject.threat)
    x, y = subject.tensors("test", np.array(images))
    found = attacks.radii(
        model,
        x,
        y,
        threat.norm,
        classes=subject.data.classes,
        batch=request.batch,
        seed=_seed(subject, images[0]),
    )
    yield Entry(unit.weights, f"test/{threat.norm}/radius", found.tolist(), images)


def w2(
    subject: Subject, unit: Unit, request: Request, *, measure: str, delta: float, images: int
) -> Iterator[Entry]:
    """The W-PGD accuracy, the sensitivity and the loss under a W₂ budget."""
    x, y = subject.tensors("test", subject.chosen_images("test", images))
    value = wasserstein.w2_summary(
        model_of(subject, unit),
        x,
        y,
        delta,
        norm=request.threat(subject.threat).norm,
        loss="redlr" if subject.data.classes >= 3 else "ce",
        batch=request.batch,
    )
    yield Entry(unit.weights, measure, value)


def trace(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    measure: str,
    loss: str,
    images: int,
    probes: int,
) -> Iterator[Entry]:
    """The trace of the Hessian and its standard error."""
    batches = frozen_batches(subject, unit, request, loss, images)
    mean, error = curvature.hessian_trace(
        model_of(subject, unit), cross_entropy, batches, probes, subject.seed
    )
    yield Entry(unit.weights, measure, {"mean": mean, "error": error})


def top(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    measure: str,
    loss: str,
    images: int,
    top: int,
) -> Iterator[Entry]:
    """The largest eigenvalues of the Hessian, descending."""
    batches = frozen_batches(subject, unit, request, loss, images)
    values = curvature.hessian_top(model_of(subject, unit), cross_entropy, batches, top)
    yield Entry(unit.weights, measure, np.asarray(values).tolist())


def density(
    subject: Subject, unit: Unit, request: Request, *, measure: str, loss: str, images: int
) -> Iterator[Entry]:
    """The spectral density of the Hessian."""
    batches = frozen_batches(subject, unit, request, loss, images)
    grid, values = curvature.spectral_density(
        model_of(subject, unit),
        cross_entropy,
        batches,
        probes=DENSITY[0],
        steps=DENSITY[1],
        seed=subject.seed,
    )
    found = {"eigenvalue": np.asarray(grid).tolist(), "density": np.asarray(values).tolist()}
    yield Entry(unit.weights, measure, found)


def geometry(
    subject: Subject, unit: Unit, request: Request, *, measure: str, images: int
) -> Iterator[Entry]:
    """The norm of the gradient, clean and under attack, and the distance from the start."""
    model, seed = model_of(subject, unit), subject.seed
    batches = subject.batches("train", images, request.batch)
    attack = request.attack(subject.threat)
    value = {
        "grad_norm": similarity.gradient_norm(model, batches, cross_entropy, attack, seed),
        "grad_norm_clean": similarity.gradient_norm(model, batches, cross_entropy, None, seed),
    }
    if START in subject.models:
        value["distance"] = similarity.distance(model, subject.model(START))
    yield Entry(unit.weights, measure, value)


def similarities(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    measure: str,
    images: int,
    names: Sequence[str],
) -> Iterator[Entry]:
    """Mean cosine of the perturbations of every two models, on the same images."""
    batches = subject.batches("train", images, request.batch)
    attack, seed = request.attack(subject.threat), subject.seed
    found = [similarity.perturbations(subject.model(name), batches, attack, seed) for name in names]
    cosine = [[similarity.perturbation_similarity(a, b)[0] for b in found] for a in found]
    yield Entry(unit.weights, measure, {"models": list(names), "cosine": cosine})


def frozen_batches(
    subject: Subject, unit: Unit, request: Request, loss: str, images: int
) -> Sequence[tuple[Tensor, Tensor]]:
    """Training images: clean, or the adversarial points of these weights, found once and kept."""
    batches = subject.batches("train", images, request.batch)
    if loss == CLEAN:
        return batches
    return curvature.attacked(
        model_of(subject, unit), batches, request.attack(subject.threat), subject.seed
    )


def _seed(subject: Subject, first: int) -> int:
    """The seed of a block of images."""
    return seed_for(Purpose.EVALUATE, subject.seed, first) % 2**31


TASKS: Mapping[str, Task] = {
    "judge": judge,
    "stationarity": stationarity,
    "radius": radius,
    "w2": w2,
    "trace": trace,
    "top": top,
    "density": density,
    "geometry": geometry,
    "similarity": similarities,
    "curve": scans.curve,
    "eigenvectors": scans.eigenvectors,
    "plane": scans.plane,
    "path": scans.path,
    "bezier": scans.bezier,
}
