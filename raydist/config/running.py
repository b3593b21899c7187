"""The tables of a run: what is evaluated, when it stops, its snapshots, an agent's share."""

import os
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raydist.config.fields import Count, NonNegative, Span, Table


class Telemetry(Table):
    """A closer look at gradients and accuracies in training (arXiv:2410.07675)."""

    every: int = Field(default=0, ge=0)  # rounds; 0: never


class FoscRule(Table):
    """When training counts as unstable: FOSC too high for `patience` measurements in a row."""

    threshold: PositiveFloat | None = None  # absolute
    relative: Annotated[float, Field(gt=1)] | None = (
        None  # multiple of the median of what was calm before
    )
    patience: PositiveInt = 3
    warmup: Annotated[int, Field(ge=0)] = 0  # measurements that count as calm
    on: Literal["validation", "train"] = "validation"
    form: Literal["published", "box", "relative"] = "published"
    adv_above_clean: bool = False  # a sign too: adversarial above clean training accuracy

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.threshold is None and self.relative is None:
            raise ValueError("stop.fosc has no threshold and no relative: write threshold = 0.5")
        if self.on == "train" and self.form != "published":
            raise ValueError(
                f'stop.fosc.form is "{self.form}", expected "published" with on = "train": '
                'write on = "validation"'
            )
        return self


class Remedy(Table):
    """Gaussian noise on the inputs, before the attack, at the start of an epoch (2410.07675)."""

    amount: NonNegative = 0.1  # of the paper's N(0, 0.1)
    how: Literal["std", "variance"] = "std"  # what the 0.1 is: the paper does not say
    batches: PositiveInt = 10  # rounds of the next epoch that get it


class Stop(Table):
    """When training counts as unstable, and whether it then stops, is healed, or only watched."""

    fosc: FoscRule | None = None
    on_instability: Literal["stop", "heal", "watch"] = "stop"
    remedy: Remedy = Remedy()

    @model_validator(mode="after")
    def _rule(self) -> Self:
        if self.fosc is None and self.on_instability != "stop":
            raise ValueError(
                f'stop.on_instability is "{self.on_instability}", but nothing tells instability: '
                "write stop.fosc = { threshold = 0.5 }"
            )
        return self


class Evaluate(Table):
    """What is measured during training (on validation images) and at its end (on test images)."""

    every: Span = 0.1  # between validations; of the quadratic task every round
    validation_images: PositiveInt = 512  # at most
    test_images: Count = "all"  # for clean and PGD accuracy, evenly over labels
    pgd: list[PositiveInt] = Field(default=[10, 20])  # numbers of PGD steps
    autoattack: Count = "all"  # test images; 0 switches AutoAttack off
    # further attacks on the test images, by name: ["apgd-dlr", "square1000"]
    attacks: list[str] = Field(default_factory=list)
    hessian: int = Field(default=0, ge=0)  # training images for its trace; 0: not measured
    agents: bool = False  # every agent too, not only the centroid
    excess_risk: int = Field(default=0, ge=0)  # training images for J(w) − J(start)
    subspace: int = Field(default=0, ge=0)  # dimensions of its prediction; 0: not predicted
    batch: PositiveInt = 256


class Snapshot(Table):
    """How often the state of all agents is kept on disk, where, and how often it may be needed."""

    # rounds between two snapshots; 0 switches them off; None: they are so many seconds apart
    every: Annotated[int, Field(ge=0)] | None = None
    seconds: PositiveFloat = 30.0
    keep: PositiveInt = 2  # the last ones
    path: str | None = None  # any fsspec URL; default: snapshots/ in the trial's folder
    recoveries: Annotated[int, Field(ge=0)] = 3  # deaths of agents that a trial survives

    @model_validator(mode="after")
    def _sound(self) -> Self:
        usual = type(self).model_fields["seconds"].default
        if self.every is not None and self.seconds != usual:
            raise ValueError("snapshot.every and snapshot.seconds are both given: remove one")
        if self.path is not None and "://" not in self.path and not os.path.isabs(self.path):
            raise ValueError(
                f'snapshot.path is "{self.path}", expected an absolute path or a URL that every '
                'node sees: write path = "/shared/snapshots" or "s3://bucket/snapshots"'
            )
        return self


class AgentResources(Table):
    """What one agent reserves; the default divides the machine that is found."""

    cpus: PositiveFloat | None = None
    gpus: NonNegative | None = None
    per_actor: PositiveInt = 1  # agents of one process, which take turns on their common share
