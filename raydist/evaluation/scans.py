"""The scans of the loss around and between a trial's models, as units of an evaluation.

All are of the loss at points that the attack finds anew wherever the weights are.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from raydist import vector
from raydist.evaluation.ledger import Entry
from raydist.evaluation.request import Request
from raydist.evaluation.subject import Subject
from raydist.evaluation.units import Unit, model_of
from raydist.measure import connectivity, curvature, landscape

PATH = np.linspace(0, 1, 11)  # where the loss between two models is looked at
# the curve is trained on other images than it is judged on, and on so many times more
BEZIER_IMAGES, BEZIER_STEPS, BEZIER_BATCH, BEZIER_LR = 8, 200, 64, 0.02


def curve(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    measure: str,
    images: int,
    at: list[float],
    direction: int,
) -> Iterator[Entry]:
    """The loss along one random direction, each filter as long as that of the weights."""
    model, seed = model_of(subject, unit), subject.seed
    along = landscape.filter_normalised(model, seed, direction)[None]
    found = landscape.scan(
        model,
        along,
        np.array(at)[:, None],
        subject.batches("train", images, request.batch),
        cross_entropy,
        request.attack(subject.threat),
        seed,
    )
    yield Entry(unit.weights, measure, {"t": at, "loss": found.tolist()})


def plane(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    measure: str,
    images: int,
    at: list[float],
    t: float,
    kind: str,
) -> Iterator[Entry]:
    """The loss along one row of a plane: of two random directions, or two eigenvectors."""
    model, seed = model_of(subject, unit), subject.seed
    if kind == "random":
        pair = [landscape.filter_normalised(model, seed, index) for index in (0, 1)]
        along = landscape.plane(*pair)
    else:
        file = eigenvectors_file(subject, unit, request, images)
        found = load_file(file)
        along = landscape.unit_rise(found["values"], found["vectors"]).to(subject.device)
    risks = landscape.scan(
        model,
        along,
        np.array([[t, s] for s in at]),
        subject.batches("train", images, request.batch),
        cross_entropy,
        request.attack(subject.threat),
        seed,
    )
    yield Entry(unit.weights, measure, {"t": t, "s": at, "loss": risks.tolist()})


def eigenvectors(
    subject: Subject, unit: Unit, request: Request, *, measure: str, images: int
) -> Iterator[Entry]:
    """The Hessian's top two eigenvectors, left in a file; the perturbations are frozen."""
    model = model_of(subject, unit)
    batches = subject.batches("train", images, request.batch)
    attack = request.attack(subject.threat)
    attacked = curvature.attacked(model, batches, attack, subject.seed)
    values, vectors = curvature.hessian_pairs(model, cross_entropy, attacked, 2)
    file = eigenvectors_file(subject, unit, request, images)
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    tensors = {
        "values": torch.tensor(values.copy()),
        "vectors": torch.tensor(vectors, dtype=subject.dtype).contiguous(),
    }
    save_file(tensors, part)
    os.replace(part, file)
    yield Entry(unit.weights, measure, np.asarray(values).tolist())


def eigenvectors_file(subject: Subject, unit: Unit, request: Request, images: int) -> Path:
    """The file of the eigenvectors."""
    threat = request.threat(subject.threat)
    name = f"eigenvectors-{unit.weights}-{threat.norm}-{threat.eps:.6g}-{images}.safetensors"
    return subject.folder / "evaluation" / name


def path(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    measure: str,
    images: int,
    first: str,
    last: str,
) -> Iterator[Entry]:
    """The loss on the line between two models, and its barrier."""
    risks = connectivity.path_risk(
        model_of(subject, unit),
        vector.state(subject.model(first)),
        vector.state(subject.model(last)),
        PATH,
        subject.batches("train", images, request.batch),
        cross_entropy,
        request.attack(subject.threat),
        subject.seed,
    )
    value = {"t": PATH.tolist(), "loss": risks.tolist()}
    yield Entry(unit.weights, measure, value | {"barrier": connectivity.barrier(risks, PATH)})


def bezier(
    subject: Subject,
    unit: Unit,
    request: Request,
    *,
    measure: str,
    images: int,
    first: str,
    last: str,
) -> Iterator[Entry]:
    """The loss on a curve between two models that was trained, on other images, to be low."""
    model, seed, attack = model_of(subject, unit), subject.seed, request.attack(subject.threat)
    batches = subject.batches("train", images, request.batch)
    bends = connectivity.connect(
        model,
        vector.state(subject.model(first)),
        vector.state(subject.model(last)),
        subject.batches("train", BEZIER_IMAGES * images, min(BEZIER_BATCH, request.batch), images),
        attack=attack,
        steps=BEZIER_STEPS,
        lr=BEZIER_LR,
        seed=seed,
    )
    found = {
        name: connectivity.curve_risk(model, points, PATH, batches, attack=attack, seed=seed)
        for name, points in {"curve": bends, "line": bends[[0, -1]]}.items()
    }
    value = {name: risks.tolist() for name, risks in found.items()}
    barriers = {f"{name}_barrier": connectivity.barrier(r, PATH) for name, r in found.items()}
    yield Entry(unit.weights, measure, {"t": PATH.tolist(), **value, **barriers})
