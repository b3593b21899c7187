"""The work that a request still needs, in units that do not depend on one another.

A unit is about one model and, if it is about single images, about one block of them. The blocks
follow from the request alone, and what is drawn at random follows from the block: who does a unit,
and whether it is done at once or after an interruption, changes nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from raydist.adversary.threat import ThreatModel
from raydist.evaluation.ledger import Ledger
from raydist.evaluation.request import BLOCK, Request
from raydist.evaluation.subject import START, Subject
from raydist.measure import attacks
from raydist.measure.columns import CLEAN, ENSEMBLE, alone

# What the masking checks compare, besides what is asked (raydist.measure.masking).
MASKING = ("fgsm", "pgd10", "pgd100", "apgd-ce", "apgd-dlr", "square1000")
TRAINING = "shares"  # of the agents, as each sees its own
GAPS = ("fosc", "fosc_relative", "zero_gradient")


@dataclass(frozen=True)
class Ask:
    """One attack at one budget.

    Attributes:
        split: "test" or "validation".
        attack: its name, "clean" or "ensemble".
        threat: the budget.
        cascade: whether it is a member of the ensemble, or that itself: it only sees what the
            members before it left.
    """

    split: str
    attack: str
    threat: ThreatModel
    cascade: bool = False

    @property
    def measure(self) -> str:
        """The name of its result in the ledger: of a member, the result on what was left to it."""
        return self._called(self.attack if self.cascade else alone(self.attack))

    @property
    def other(self) -> str:
        """The name of the same attack's verdicts if it was run alone, or the other way round."""
        return self._called(alone(self.attack) if self.cascade else member(self.attack))

    def _called(self, name: str) -> str:
        where = self.split if name == CLEAN else budget(self.split, self.threat)
        return f"{where}/{name}"


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        folder: the trial's folder.
        model: name of the model.
        weights: `Subject.digest` of it.
        task: name of a function in `raydist.evaluation.work.TASKS`.
        args: its arguments.
    """

    folder: Path
    model: str
    weights: str
    task: str
    args: Mapping[str, Any] = field(default_factory=dict)


def member(attack: str) -> str:
    """The name of an attack as a member of the ensemble."""
    return "square" if attack == "square5000" else attack


def model_of(subject: Subject, unit: Unit) -> nn.Module:
    """The model that a unit is about."""
    return subject.loaded(unit.model, unit.weights)


def budget(split: str, threat: ThreatModel) -> str:
    """The first part of a measure: images and budget."""
    return f"{split}/{threat.norm}/{threat.eps:.6g}"


def limit(subject: Subject, request: Request, split: str) -> int:
    """The number of images of a split that are asked for."""
    there = len(subject.split(split)[1])
    return there if request.images == "all" else min(there, request.images)


def large(subject: Subject, threat: ThreatModel) -> ThreatModel:
    """A budget that contains the whole box: nothing can be robust under it."""
    size = math.prod(subject.data.shape)
    radius = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[threat.norm]
    return ThreatModel(threat.norm, radius)


def asks(subject: Subject, request: Request) -> list[Ask]:
    """The attacks that a request means, in order; those that few classes do not allow are left out.

    Args:
        subject: the trial.
        request: the request.

    Returns:
        The asks, the members of AutoAttack and the ensemble at the end.
    """
    threat, classes = request.threat(subject.threat), subject.data.classes
    if threat.eps == 0:
        return []
    wanted, ensembles = [], []
    for name in request.attacks if "robustness" in request.parts else ():
        split = "validation" if name.startswith("val_") else "test"
        bare = name.removeprefix("val_")
        if bare == "autoattack":
            ensembles.append(split)
        elif bare != CLEAN:
            wanted.append(Ask(split, bare, threat))
    if "masking" in request.parts:
        wanted += [Ask("test", name, threat) for name in MASKING]
        wanted.append(Ask("test", "pgd10", ThreatModel(threat.norm, 2 * threat.eps)))
        wanted.append(Ask("test", "pgd10", large(subject, threat)))
    shape = subject.data.shape
    skipped = attacks.skipped([ask.attack for ask in wanted], classes, shape, threat.norm)
    wanted = [ask for ask in wanted if ask.attack not in skipped]
    wanted = list({ask.measure: ask for ask in wanted}.values())
    names = (*subject.members, ENSEMBLE)
    return wanted + [Ask(split, name, threat, True) for split in ensembles for name in names]


def left_out(subject: Subject, request: Request) -> dict[str, str]:
    """The attacks that were asked for and cannot run on these images or classes, and why.

    Args:
        subject: the trial.
        request: the request.

    Returns:
        Name -> reason, in words.
    """
    classes = subject.data.classes
    names = [name.removeprefix("val_") for name in request.attacks]
    asked = [name for name in names if name not in (CLEAN, "autoattack")]
    norm = request.threat(subject.threat).norm
    reasons = attacks.skipped(asked, classes, subject.data.shape, norm)
    if "autoattack" in names and classes < 4:
        why = attacks.skipped(["apgd-t"], classes)["apgd-t"]
        run = ", ".join(subject.members)
        reasons["autoattack"] = f"of apgd-t {why}; {run} are run instead"
    return reasons


def missing(subject: Subject, model: str, request: Request, ledger: Ledger) -> Iterator[Unit]:
    """The units that a request still needs of one model.

    Args:
        subject: the trial.
        model: the model's name.
        request: the request.
        ledger: the measurements known so far.

    Yields:
        Units.
    """
    weights = subject.digest(model)

    def unit(task: str, **args: Any) -> Unit:
        return Unit(subject.folder, model, weights, task, args)

    wanted = asks(subject, request)
    splits = {"validation" for ask in wanted if ask.split == "validation"}
    if {"robustness", "masking", "w2"} & set(request.parts):
        splits.add("test")
    for split in sorted(splits):
        here = [Ask(split, CLEAN, request.threat(subject.threat))]
        here += [ask for ask in wanted if ask.split == split]
        names = dict.fromkeys(name for ask in here for name in (ask.measure, ask.other))
        for images in blocks(subject.chosen_images(split, request.images)):
            known = {name: _of(ledger.images(weights, name), images) for name in names}
            if not complete(here, images, known):
                yield unit("judge", split=split, images=images, asks=here, known=known)
    for task, measures in per_image(subject, request).items():
        for images in blocks(subject.chosen_images("test", request.images)):
            if any(len(_of(ledger.images(weights, m), images)) < len(images) for m in measures):
                yield unit(task, images=images)
    for measure, task, args in single(subject, model, request):
        if ledger.value(weights, measure) is None:
            yield unit(task, measure=measure, **args)


def blocks(images: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """Images in blocks; more of them leave the full blocks as they are."""
    return [tuple(images[at : at + BLOCK].tolist()) for at in range(0, len(images), BLOCK)]


def complete(
    asks: list[Ask], images: tuple[int, ...], known: Mapping[str, Mapping[int, Any]]
) -> bool:
    """Tell whether every verdict on some images is known.

    Args:
        asks: the clean one, and then the attacks in order.
        images: positions.
        known: measure -> image -> whether it stayed right.

    Returns:
        True if nothing is left to do.
    """
    return not any(settled or todo for _, settled, todo in outstanding(asks, images, known))


def outstanding(
    asks: list[Ask], images: tuple[int, ...], known: Mapping[str, Mapping[int, Any]]
) -> Iterator[tuple[Ask, dict[int, bool], list[int]]]:
    """Each ask with the images that it has still to judge; `known` may grow meanwhile.

    Args:
        asks: the clean one, and then the attacks in order.
        images: positions.
        known: measure -> image -> whether it stayed right.

    Yields:
        The ask; the verdicts that follow without it: what is wrong without attack stays wrong, and
        the same attack has already been run, by itself or in the ensemble; the other images.
    """
    right: dict[int, bool] = {}
    left = list(images)  # to the next member of the ensemble
    for ask in asks:
        given = left if ask.cascade and ask.attack != ENSEMBLE else images
        missing = [i for i in given if i not in known.get(ask.measure, {})]
        if ask.attack == ENSEMBLE:
            yield ask, {i: i in left for i in missing}, []
            continue
        settled: dict[int, bool] = {}
        if ask.attack != CLEAN:
            before = known.get(ask.other, {})
            settled = {i: False for i in missing if not right[i]}
            settled |= {i: bool(before[i]) for i in missing if right[i] and i in before}
        yield ask, settled, [i for i in missing if i not in settled]
        verdicts = known.get(ask.measure, {})
        if ask.attack == CLEAN:
            right = {i: bool(verdicts.get(i)) for i in images}
        elif ask.cascade:
            left = [i for i in left if verdicts.get(i)]


def per_image(subject: Subject, request: Request) -> dict[str, list[str]]:
    """Tasks that give numbers for each test image, and what they measure."""
    threat = request.threat(subject.threat)
    found: dict[str, list[str]] = {}
    if "masking" in request.parts and threat.eps > 0:
        found["stationarity"] = [f"{budget('test', threat)}/{name}" for name in GAPS]
    if "w2" in request.parts:
        found["radius"] = [f"test/{threat.norm}/radius"]
    return found


def single(
    subject: Subject, model: str, request: Request
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Measurements of a model that are one result each.

    Args:
        subject: the trial.
        model: the model's name.
        request: the request.

    Yields:
        The measure, the task, its arguments.
    """
    threat, n = request.threat(subject.threat), request.subset
    where = budget(TRAINING, threat)
    losses = (CLEAN, "adversarial") if threat.eps > 0 else (CLEAN,)
    if "w2" in request.parts:
        images, delta = limit(subject, request, "test"), request.delta or threat.eps
        yield (
            f"test/{threat.norm}/{delta:.6g}/w2/{images}",
            "w2",
            {"delta": delta, "images": images},
        )
    if "hessian" in request.parts and model != "ensemble":
        for loss in losses:
            head, args = f"{where}/{loss}/{n}", {"loss": loss, "images": n}
            yield f"{head}/trace/{request.probes}", "trace", args | {"probes": request.probes}
            yield f"{head}/top/{request.top}", "top", args | {"top": request.top}
            yield f"{head}/density", "density", args
        yield f"{where}/geometry/{n}", "geometry", {"images": n}
    if "landscape" in request.parts and model != "ensemble":
        yield from landscapes(subject, model, request, where)
    if "similarity" in request.parts and model == "centroid":
        names = [*subject.agents, *subject.snapshots, "centroid"]
        names += [START] * (START in subject.models)
        yield f"{where}/similarity/{n}", "similarity", {"images": n, "names": names}


def landscapes(
    subject: Subject, model: str, request: Request, where: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Scans of the loss around a model and between models.

    Args:
        subject: the trial.
        model: the model's name.
        request: the request.
        where: the first part of the measures.

    Yields:
        As `single`.
    """
    n, grid = request.subset, np.linspace(-request.reach, request.reach, request.grid).tolist()
    size = f"{n}/{request.grid}x{request.reach:g}"
    for d in range(request.directions):
        yield f"{where}/curve/{size}/{d}", "curve", {"images": n, "at": grid, "direction": d}
    yield f"{where}/eigenvectors/{n}", "eigenvectors", {"images": n}
    for kind in ("random", "hessian"):
        for row, t in enumerate(grid):
            args = {"images": n, "at": grid, "t": t, "kind": kind}
            yield f"{where}/plane-{kind}/{size}/{row}", "plane", args
    if model == "centroid":
        agents = subject.agents
        pairs = [(k, "centroid") for k in agents]
        pairs += [(k, agents[(i + 1) % len(agents)]) for i, k in enumerate(agents)]
        for first, last in dict.fromkeys(pairs):
            if first != last:
                args = {"images": n, "first": first, "last": last}
                yield f"{where}/path/{n}/{first}/{last}", "path", args
        if len(agents) > 1:
            args = {"images": n, "first": agents[0], "last": agents[len(agents) // 2]}
            yield f"{where}/bezier/{n}/{args['first']}/{args['last']}", "bezier", args


def _of(known: Mapping[int, Any], images: tuple[int, ...]) -> dict[int, Any]:
    return {i: known[i] for i in images if i in known}
