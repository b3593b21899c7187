"""A model that a builder and a checkpoint name, and named images: no trial trained it."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import Experiment
from raydist.config.fields import check_budget
from raydist.config.study import from_tree, parse_overrides
from raydist.engine.checks import checked
from raydist.engine.source import load_data
from raydist.errors import InputError
from raydist.evaluation.door import count_classes
from raydist.evaluation.trial import Trial
from raydist.lock import hold
from raydist.lookup import resolve
from raydist.results.folder import digest_of, pack_json
from raydist.results.identity import checkpoint_of
from raydist.storage import Storage

FILE = "model.json"
ABOUT = ("data", "model", "seed")  # the settings of an experiment that say what is judged


@dataclass(frozen=True)
class NamedModel(Trial):
    """A model by its name.

    Attributes:
        folder: the folder of the results.
        config: an experiment that begins with this model and does not train it.
        data: its images.
        budget: the threat within which it is judged.
    """

    budget: ThreatModel
    main: ClassVar[str] = "model"

    @property
    def threat(self) -> ThreatModel:
        """The budget."""
        return self.budget

    @property
    def models(self) -> list[str]:
        """The one there is."""
        return [self.main]

    def model(self, name: str) -> nn.Module:
        """Return the model of this name."""
        return self._load(None)

    def digest(self, name: str) -> str:
        """A hash of weights, the builder's file, seed and images."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        table = self.config.model
        parts = [table.model_dump_json(exclude={"checkpoint"}).encode(), self._source()]
        for name, value in sorted(checked("model", self.model, self.main).state_dict().items()):
            if isinstance(value, torch.Tensor):
                parts += [name.encode(), value.cpu().contiguous().numpy().tobytes()]
        return digest_of(*parts, str(self.seed).encode(), self.data.digest.encode())

    def _source(self) -> bytes:
        """The file of a builder that is not ours."""
        if ":" not in self.config.model.name:
            return b""
        try:
            file = inspect.getsourcefile(resolve(self.config.model.name))
        except TypeError:  # of what has none
            return b""
        return Path(file).read_bytes() if file else b""


def name_model(
    model: str,
    data: str,
    checkpoint: str | None,
    threat: ThreatModel,
    settings: Sequence[str] = (),
    out: str | None = None,
) -> Path:
    """Leave what names a model in a folder, which `evaluate_runs` then takes as it takes a trial.

    Args:
        model: one of ours, or "module:function".
        data: a set of images, likewise.
        checkpoint: a file of weights; None: the model is as it is built.
        threat: the budget.
        settings: settings of further tables, such as "model.width=0.5".
        out: the folder; None: runs/ and a name made of model, weights and images.

    Returns:
        The folder.

    Raises:
        InputError: if the model cannot be built or its logits do not fit the images.
    """
    config = _experiment(model, data, checkpoint, settings)
    stem = [] if checkpoint is None else [Path(checkpoint).stem]
    name = "-".join(re.sub(r"[^\w.]+", "-", part) for part in [model, *stem, data])
    folder = Path(out or f"runs/{name}").expanduser().absolute()
    if (folder / "experiment.json").exists():
        raise InputError(f"{folder} holds a trial, expected a folder of its own: write --out")
    subject = NamedModel(folder, config, checked("data", load_data, config), threat)
    built = checked("model", subject.model, subject.main)
    images = subject.chosen_images("test", 32)
    x, scale = subject.split("test")[0][images], subject.data.scale
    classes = count_classes(built, x, scale, subject.device, 32, config.seed)
    if classes != subject.data.classes:
        raise InputError(
            f"model gives {classes} logits, but {data} has {subject.data.classes} classes"
        )
    begun = checkpoint_of(config)
    if begun is not None:  # wherever the folder is evaluated again
        table = config.model.model_copy(update={"checkpoint": str(Path(begun).absolute())})
        config = config.model_copy(update={"model": table})
    store = Storage(folder)
    with hold(store):
        budget = {"norm": threat.norm, "eps": threat.eps}
        store.write(FILE, pack_json({"config": config.model_dump(mode="json"), "threat": budget}))
    return folder


def budget_of(norm: str | None, eps: float | None) -> ThreatModel:
    """The budget within which a model on its own is judged.

    Args:
        norm: None is "linf".
        eps: the radius.

    Returns:
        The budget.

    Raises:
        InputError: if it is missing or out of its range.
    """
    if eps is None:
        raise InputError("--eps is missing, a model on its own has no budget: write --eps 8/255")
    try:
        check_budget("--eps", eps, norm or "linf")
        return ThreatModel(norm or "linf", eps)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(str(error)) from error


def _experiment(
    model: str, data: str, checkpoint: str | None, settings: Sequence[str]
) -> Experiment:
    if data == "quadratic":
        raise InputError('--data is "quadratic", which has no images: write --data digits')
    overrides = parse_overrides(settings)
    for key in overrides:
        if key.partition(".")[0] not in ABOUT:
            raise InputError(f"{key} says nothing about a model on its own: write model.width=0.5")
    start: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint}
    tree: Mapping[str, Any] = {
        "topology": {"kind": "complete", "agents": 1},
        "rounds": 1,
        "data": {"set": data},
        "model": {"name": model} | start,
        "threat": {"eps": 0.0},
        "loss": "standard",
    }
    return from_tree(tree, overrides).only()
