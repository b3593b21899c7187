"""The tables of a run: what is evaluated, when it stops, its snapshots, an agent's share."""

import os
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raydist.config.fields import Count, NonNegative, Span, Table


class Telemetry(Table):
    """A closer look at gradients and accuracies in training (arXiv:2410.07675)."""

    every: int = Field(default=0, ge=0)
    """Rounds between two looks; 0: never."""


class FoscRule(Table):
    """Rule of instability: FOSC is too high for `patience` measurements in a row."""

    threshold: PositiveFloat | None = None
    """FOSC above this is a sign of instability."""
    relative: Annotated[float, Field(gt=1)] | None = None
    """FOSC above so many times the median of what was calm before is a sign."""
    patience: PositiveInt = 3
    """Signs in a row that make an episode."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """First measurements, which count as calm."""
    on: Literal["validation", "train"] = "validation"
    """Images on which FOSC is measured."""
    form: Literal["published", "box", "relative"] = "published"
    """Form of FOSC: as published, with the pixel box, or free of the loss's scale."""
    adv_above_clean: bool = False
    """Take adversarial above clean training accuracy as a sign too."""

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

    amount: NonNegative = 0.1
    """Size of the noise, the 0.1 of the paper's N(0, 0.1)."""
    how: Literal["std", "variance"] = "std"
    """Meaning of that 0.1: the paper does not say."""
    batches: PositiveInt = 10
    """Rounds of the next epoch that get the noise."""


class Stop(Table):
    """Rule of instability, and the response to it: stop, heal, or only watch."""

    fosc: FoscRule | None = None
    """Rule by which training counts as unstable."""
    on_instability: Literal["stop", "heal", "watch"] = "stop"
    """Response: the trial stops, is healed by noise, or is only watched."""
    remedy: Remedy = Remedy()
    """Noise of on_instability = "heal"."""

    @model_validator(mode="after")
    def _rule(self) -> Self:
        if self.fosc is None and self.on_instability != "stop":
            raise ValueError(
                f'stop.on_instability is "{self.on_instability}", but nothing tells instability: '
                "write stop.fosc = { threshold = 0.5 }"
            )
        return self


class Evaluate(Table):
    """Measurements during training (on validation images) and at its end (on test images)."""

    every: Span = 0.1
    """Rounds between two validations, or fraction of the run; of the quadratic task 1."""
    validation_images: PositiveInt = 512
    """Validation images, at most."""
    test_images: Count = "all"
    """Test images for clean and PGD accuracy, drawn evenly over labels."""
    pgd: list[PositiveInt] = Field(default=[10, 20])
    """Numbers of PGD steps."""
    autoattack: Count = "all"
    """Test images for AutoAttack; 0 switches it off."""
    attacks: list[str] = Field(default_factory=list)
    """Further attacks on the test images, by name: ["apgd-dlr", "square1000"]."""
    hessian: int = Field(default=0, ge=0)
    """Training images for the trace of the Hessian; 0: not measured."""
    agents: bool = False
    """Measure every agent too, not only the centroid."""
    excess_risk: int = Field(default=0, ge=0)
    """Training images for J(w) − J(start); 0: not measured."""
    subspace: int = Field(default=0, ge=0)
    """Dimensions in which excess risk is predicted; 0: not predicted."""
    batch: PositiveInt = 256
    """Images of one forward pass."""


class Snapshot(Table):
    """Copies of the state of all agents on disk: how often, where, and how many are needed."""

    every: Annotated[int, Field(ge=0)] | None = None
    """Rounds between two snapshots; 0 switches them off; without it they are `seconds` apart."""
    seconds: PositiveFloat = 30.0
    """Seconds between two snapshots."""
    keep: PositiveInt = 2
    """Number of snapshots that are kept, the last ones."""
    path: str | None = None
    """Folder or fsspec URL; without it snapshots/ in the trial's folder."""
    recoveries: Annotated[int, Field(ge=0)] = 3
    """Deaths of agents that a trial survives."""

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
    """Share of the machine that one agent reserves; the default divides what is found."""

    cpus: PositiveFloat | None = None
    """CPUs that an agent reserves; without it its part of the machine."""
    gpus: NonNegative | None = None
    """GPUs that an agent reserves; without it its part of the machine."""
    per_actor: PositiveInt = 1
    """Agents of one process, which take turns on their common share."""
