"""From the ledger of a trial to numbers with names, and to one row for each image."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from raydist.adversary.threat import Norm, ThreatModel
from raydist.evaluation.ledger import Ledger
from raydist.evaluation.request import Request
from raydist.evaluation.subject import Subject
from raydist.evaluation.units import (
    GAPS,
    TRAINING,
    asks,
    budget,
    large,
    left_out,
    limit,
    single,
)
from raydist.measure import accuracy
from raydist.measure.columns import CLEAN, SPLITS, Known, Numbers, columns
from raydist.metrics import base, counted


def asked_numbers(subject: Subject, model: str, request: Request, ledger: Ledger) -> Numbers:
    """The numbers that were asked of a model, by name, on the images that were asked for.

    Args:
        subject: the trial.
        model: the model's name.
        request: the request.
        ledger: the measurements known so far.

    Returns:
        Accuracies in [0, 1], W₂ numbers, curvature, scans. The masking verdict is of all that is
        known of the model at this budget.
    """
    weights, threat = subject.digest(model), request.threat(subject.threat)
    found: Numbers = {"evaluation_images": float(limit(subject, request, "test"))}
    for split, prefix in SPLITS.items():
        asked = {CLEAN} | {
            a.measure.split("/", 3)[-1] for a in asks(subject, request) if a.split == split
        }
        known = known_of(subject, ledger, weights, split, threat, request.images)
        right = {name: of for name, of in known.right.items() if name in asked}
        if split == "test" or len(asked) > 1:
            found |= _prefixed(prefix, columns(replace(known, right=right)))
    everything = columns(known_of(subject, ledger, weights, "test", threat))
    found = {name: value for name, value in found.items() if base(name) != "masking"}
    if "masking" in request.parts and threat.eps > 0:
        found |= {name: of for name, of in everything.items() if base(name) == "masking"}
    reasons = left_out(subject, request)
    if reasons:
        found["left_out"] = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    measured = {measure for measure, _, _ in single(subject, model, request)}
    values = {m: v for m, v in ledger.all_values(weights).items() if m in measured}
    found |= scan_numbers(subject, values, threat)
    if "w2" in request.parts and threat.eps > 0:
        delta = request.delta or threat.eps
        found |= w2_numbers(subject, ledger, weights, threat.norm, delta, request.images)
    return found


def known_numbers(subject: Subject, model: str, threat: ThreatModel, ledger: Ledger) -> Numbers:
    """Everything that is known of a model at one budget, whoever asked for it.

    Args:
        subject: the trial.
        model: the model's name.
        threat: the budget.
        ledger: the measurements known so far.

    Returns:
        As `asked_numbers`, each number of as many images as it can be.
    """
    weights, found = subject.digest(model), Numbers()
    for split, prefix in SPLITS.items():
        found |= _prefixed(prefix, columns(known_of(subject, ledger, weights, split, threat)))
    found |= scan_numbers(subject, ledger.all_values(weights), threat)
    return found | w2_numbers(subject, ledger, weights, threat.norm, threat.eps)


def known_of(
    subject: Subject,
    ledger: Ledger,
    weights: str,
    split: str,
    threat: ThreatModel,
    images: int | str = "all",
) -> Known:
    """The verdicts and values that the ledger has of some weights at one budget.

    Args:
        subject: the trial.
        ledger: the measurements known so far.
        weights: their digest.
        split: "test" or "validation".
        threat: the budget.
        images: the number of images of the split, drawn evenly.

    Returns:
        The verdicts.
    """
    chosen = set(subject.chosen_images(split, images).tolist())

    def of(measure: str) -> dict[int, Any]:
        known = ledger.images(weights, measure)
        return {i: value for i, value in known.items() if i in chosen}

    where = budget(split, threat) + "/"
    names = [m.removeprefix(where) for m in ledger.all_images(weights) if m.startswith(where)]
    right = {CLEAN: of(f"{split}/{CLEAN}")}
    right |= {name: of(where + name) for name in names if name not in GAPS}
    wider = {"2eps": replace(threat, eps=2 * threat.eps), "large-eps": large(subject, threat)}
    for name, other in wider.items():
        right[f"pgd10-{name}"] = of(f"{budget(split, other)}/pgd10")
    values = {name: of(where + name) for name in GAPS if name in names}
    flags = ledger.flags(weights) if split == "test" else ()
    return Known({n: r for n, r in right.items() if r}, values, frozenset(flags), subject.members)


def _prefixed(prefix: str, found: Numbers) -> Numbers:
    """Prefix numbers of validation images, and keep the accuracies: checks are of test images."""
    if not prefix:
        return found
    rates = {base(name) for name in found if name.endswith("_acc")}
    return {prefix + name: value for name, value in found.items() if base(name) in rates}


def scan_numbers(subject: Subject, values: Mapping[str, Any], threat: ThreatModel) -> Numbers:
    """Curvature and scans: the numbers among their results.

    Args:
        subject: the trial.
        values: results by measure; of other budgets too.
        threat: the budget.

    Returns:
        Each number with its `..._images`; of several, the one of most images (and then probes).
    """
    where, there = budget(TRAINING, threat) + "/", len(subject.split("train")[1])
    rows = [
        row
        for measure, value in values.items()
        if measure.startswith(where)
        for row in _numbers_of(measure.removeprefix(where).split("/"), value, threat)
    ]
    found: Numbers = {}
    for images, _, name, value in sorted(rows, key=lambda row: row[:2]):
        of = float(min(images, there))
        if name == "barrier" and found.get("barrier_images") == of:
            value = max(value, float(found["barrier"]))
        found |= {name: value, counted(name): of}
    return found


def _numbers_of(
    parts: list[str], value: Any, threat: ThreatModel
) -> Iterator[tuple[int, int, str, float]]:
    """Images, probes (0 if there are none), name, number."""
    if parts[0] in ("geometry", "path"):
        kind, images = parts[0], int(parts[1])
        if kind == "path":
            yield images, 0, "barrier", value["barrier"]
        for name in ("grad_norm", "grad_norm_clean") if kind == "geometry" else ():
            yield images, 0, name, value[name]
        if "distance" in value:
            yield images, 0, "distance_from_start", value["distance"]
    elif len(parts) > 2 and parts[2] in ("trace", "top"):
        prefix = "clean_" if parts[0] == CLEAN and threat.eps > 0 else ""
        if parts[2] == "top":
            yield int(parts[1]), 0, f"{prefix}hessian_top", value[0]
        else:
            images, probes = int(parts[1]), int(parts[3])
            numbers = {"": value["mean"], "_error": value["error"], "_probes": float(probes)}
            for suffix, number in numbers.items():
                yield images, probes, f"{prefix}hessian_trace{suffix}", number


def w2_numbers(
    subject: Subject,
    ledger: Ledger,
    weights: str,
    norm: Norm,
    delta: float,
    images: int | str = "all",
) -> Numbers:
    """W₂ accuracies and losses under one budget, which all images of a number share.

    Args:
        subject: the trial.
        ledger: the measurements known so far.
        weights: their digest.
        norm: the norm of the budget.
        delta: the budget.
        images: the largest number of images.

    Returns:
        Each number with its `..._images`.
    """
    most = len(subject.chosen_images("test", images))
    where = f"test/{norm}/{delta:.6g}/w2/"
    done = {
        int(measure.removeprefix(where)): value
        for measure, value in ledger.all_values(weights).items()
        if measure.startswith(where)
    }
    found: Numbers = {}
    radii = _only(ledger.images(weights, f"test/{norm}/radius"), subject, images)
    if radii:
        values = np.array(list(radii.values()), dtype=np.float64)
        found |= {"w2_acc": accuracy.w2_accuracy(values, delta), "w2_images": float(len(radii))}
        found |= {
            "radius_median": float(np.median(values)),
            "radius_median_images": float(len(radii)),
        }
    shared = max((n for n in done if n <= most), default=0)
    if not shared:
        return found
    for name, value in done[shared].items():
        found |= {name: value, counted(name): float(shared)}
    clean = _only(ledger.images(weights, f"test/{CLEAN}"), subject, shared)
    radii = _only(radii, subject, shared)
    if len(radii) == len(clean) == shared and any(clean.values()):
        kept = accuracy.w2_accuracy(list(radii.values()), delta)
        kept = min(kept, float(done[shared]["w_pgd_acc"]))
        found |= {
            "w2_ratio": kept / (sum(clean.values()) / shared),
            "w2_ratio_images": float(shared),
        }
    return found


def _only(known: Mapping[int, Any], subject: Subject, images: int | str) -> dict[int, Any]:
    return {i: known[i] for i in subject.chosen_images("test", images).tolist() if i in known}


def images_frame(subject: Subject, models: Iterable[str], ledger: Ledger) -> pd.DataFrame:
    """One row for each model and test image of which something is known.

    Args:
        subject: the trial.
        models: names of models.
        ledger: the measurements known so far.

    Returns:
        Columns `model`, `image`, `label`, and one for each measure: "clean", the attacks with
        their budget (True: still right; missing: not tried), FOSC, radius.
    """
    labels = subject.split("test")[1]
    there = range(len(labels))
    frames = []
    for model in models:
        columns = {
            measure.removeprefix("test/"): pd.Series(
                {i: v for i, v in known.items() if i in there}, dtype=object
            )
            for measure, known in ledger.all_images(subject.digest(model)).items()
            if measure.startswith("test/")
        }
        frame = pd.DataFrame(columns).sort_index().convert_dtypes()
        frame.insert(0, "model", model)
        frame.insert(1, "image", frame.index)
        frame.insert(2, "label", labels[frame.index])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
