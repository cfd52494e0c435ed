"""The sections of params.yaml as typed, frozen classes: one section is one stage.

No value has a default here, so params.yaml is the whole truth about a run. Nothing is
coerced: a run uses the value that dvc.lock records, and a text is no number.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints, model_validator

IMAGE_SIZE = 32
CLASSES = 10
# A 2x2 patch of three channels has 12 principal directions; each is looked at from both sides.
WHITENING_FILTERS = 24

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Odd = Annotated[int, Field(gt=0, le=15)]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Https = Annotated[str, StringConstraints(pattern=r"^https://[^\s/]+/\S+$")]
Unit = Annotated[float, Field(gt=0, le=1)]
# YAML has lists where a frozen section has tuples: only the container may convert, never an item.
Loose = Strict(False)
# Far above what can be trained, and low enough that counting what a model has takes no time.
PerLayer = Annotated[tuple[Annotated[int, Field(gt=0, le=2**14)], ...], Loose]
BlocksPerLayer = Annotated[tuple[Annotated[int, Field(ge=0, le=2**10)], ...], Loose]
Channels3 = Annotated[tuple[Unit, Unit, Unit], Loose]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Download(Section):
    dataset: Literal["cifar10", "digits"]
    size: Positive
    md5: Hex32
    sha256: Hex64
    mirrors: Annotated[tuple[Https, ...], Field(min_length=1), Loose]


class Split(Section):
    validation: Positive
    training: Positive | None
    seed: Seed


class Model(Section):
    """The family of models/resnet.py: the paper's N, B_i, C_i, F_i, K_i and P, and how a map is made and halved."""

    layers: Annotated[int, Field(ge=1, le=6)]
    blocks: BlocksPerLayer
    channels: PerLayer
    kernels: Annotated[tuple[Odd, ...], Loose]
    skip_kernels: Annotated[tuple[Odd, ...], Loose]
    pool: Positive
    pool_kind: Literal["average", "max"]
    stem: Literal["conv", "whitening"]
    downsample: Literal["stride", "pool"]
    activation: Literal["relu", "gelu"]
    block: Literal["basic", "preactivation"]
    squeeze_excite: Count

    def maps(self, image: int = IMAGE_SIZE) -> list[int]:
        """Side, in pixels, of the map that enters the first layer, and of the one that leaves each layer.

        The 2x2 whitening stem is not padded. A layer halves its map, rounding down where it
        pools and up where it strides; the first one of a strided network does not.
        """
        sides = [image - 1 if self.stem == "whitening" else image]
        for n in range(self.layers):
            if self.downsample == "pool":
                sides.append(sides[-1] // 2)
            else:
                sides.append(sides[-1] if n == 0 else (sides[-1] + 1) // 2)
        return sides

    @property
    def last_map(self) -> int:
        """Side of the map that the last pool sees, for images of 32x32."""
        return self.maps()[-1]

    @model_validator(mode="after")
    def _fits_together(self) -> "Model":
        for key in ("blocks", "channels", "kernels", "skip_kernels"):
            values = getattr(self, key)
            if len(values) != self.layers:
                raise ValueError(
                    f"{key} = {list(values)} has {len(values)} entries, accepted: layers = {self.layers} entries"
                )
        for key in ("kernels", "skip_kernels"):
            even = [size for size in getattr(self, key) if size % 2 == 0]
            if even:
                sizes = list(getattr(self, key))
                raise ValueError(f"{key} = {sizes}: {even[0]} is even and cannot keep the size of a map, accepted: odd")
        if self.downsample == "stride" and 0 in self.blocks:
            raise ValueError(f"blocks = {list(self.blocks)} with downsample = stride, accepted: >= 1 in each layer")
        if self.block == "preactivation" and (self.stem, self.downsample) != ("conv", "stride"):
            raise ValueError("block = preactivation, accepted: with stem = conv and downsample = stride")
        if self.squeeze_excite > min(self.channels):
            raise ValueError(
                f"squeeze_excite = {self.squeeze_excite} leaves nothing of {min(self.channels)} channels, "
                f"accepted: 0 to {min(self.channels)}"
            )
        if self.last_map == 0:
            raise ValueError(f"layers = {self.layers} leave no map to pool, accepted: fewer layers")
        if self.last_map % self.pool:
            divisors = [p for p in range(1, self.last_map + 1) if self.last_map % p == 0]
            side = f"{self.last_map}x{self.last_map}"
            raise ValueError(f"pool = {self.pool} does not divide the last feature map of {side}, accepted: {divisors}")
        return self


class Optimizer(Section):
    name: Literal["sgd", "adagrad", "adadelta", "adam", "radam", "adamw", "muon"]
    lr: Rate
    weight_decay: Decay
    decay_norm_and_bias: bool
    momentum: Fraction
    nesterov: bool
    betas: Annotated[tuple[Fraction, Fraction], Loose]
    rho: Fraction

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Optimizer":
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = True with momentum = 0, accepted: momentum > 0 or nesterov: false")
        return self


class Schedule(Section):
    name: Literal["constant", "step", "multistep", "plateau", "cosine", "cosine_restarts", "onecycle", "linear"]
    warmup_epochs: Decay
    final_ratio: Share
    factor: Annotated[float, Field(gt=0, lt=1)]
    step_epochs: Positive
    milestones: Annotated[tuple[Positive, ...], Loose]
    patience: Count
    restart_epochs: Positive
    restart_mult: Positive

    @model_validator(mode="after")
    def _reachable(self) -> "Schedule":
        if self.name == "onecycle" and self.final_ratio == 0:
            raise ValueError("final_ratio = 0 with name = onecycle, accepted: > 0, e.g. 0.001")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)}, accepted: epochs in increasing order")
        return self


class Augmentation(Section):
    flip: Share
    flip_mode: Literal["random", "alternating"]
    crop_padding: Annotated[int, Field(ge=0, le=IMAGE_SIZE // 2)]
    crop_mode: Literal["constant", "reflect"]
    policy: Literal["none", "trivial_augment", "rand_augment"]
    cutout: Annotated[int, Field(ge=0, le=IMAGE_SIZE)]
    mix: Literal["none", "mixup", "cutmix"]
    mix_alpha: Rate
    mix_share: Share

    @model_validator(mode="after")
    def _alternates_something(self) -> "Augmentation":
        if self.flip_mode == "alternating" and self.flip in (0, 1):
            raise ValueError(f"flip = {self.flip:g} with flip_mode = alternating, accepted: between 0 and 1, e.g. 0.5")
        return self


class Progressive(Section):
    """The first `epochs` epochs see images scaled down to `size`; 0 epochs: none do."""

    epochs: Count
    size: Annotated[int, Field(ge=8, le=IMAGE_SIZE)]


class Sharpness(Section):
    """Sharpness-aware minimisation; a radius of 0 is none."""

    rho: Decay
    adaptive: bool


class Normalization(Section):
    """Channel means and deviations of images in [0, 1]; both null: measured on the training split."""

    mean: Channels3 | None
    std: Channels3 | None

    @model_validator(mode="after")
    def _together(self) -> "Normalization":
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together, accepted: three numbers each, or null for both")
        return self


class Recipe(Section):
    """One model and all that its training depends on."""

    model: Model
    budget: Positive | None
    seed: Seed
    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    precision: Literal["auto", "fp32", "bf16"]
    label_smoothing: Fraction
    clip_norm: Rate | None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    bn_momentum: Unit
    sync_batch_norm: bool
    initialization: Literal["kaiming", "dirac"]
    stochastic_depth: Fraction
    compile: bool
    deterministic: bool
    optimizer: Optimizer
    schedule: Schedule
    augmentation: Augmentation
    progressive: Progressive
    sharpness: Sharpness
    normalization: Normalization

    @model_validator(mode="after")
    def _small_images_fit(self) -> "Recipe":
        if self.progressive.epochs > self.epochs:
            raise ValueError(f"progressive.epochs = {self.progressive.epochs}, accepted: 0 to epochs = {self.epochs}")
        if self.progressive.epochs and self.model.pool != self.model.last_map:
            raise ValueError(
                f"progressive.epochs = {self.progressive.epochs} with model.pool = {self.model.pool}, accepted: "
                f"0, or a pool of the whole last map, {self.model.last_map}"
            )
        if self.progressive.epochs and self.model.maps(self.progressive.size)[-1] == 0:
            raise ValueError(
                f"progressive.size = {self.progressive.size} leaves no map to pool, accepted: larger, up to 32"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Recipe":
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs = {self.schedule.warmup_epochs:g}, accepted: less than epochs = {self.epochs}"
            )
        return self


class Train(Section):
    baseline: Recipe
    teacher: Recipe


class Distill(Section):
    teacher: Literal["baseline", "teacher", "previous"]
    alpha: Share
    temperature: Rate
    beta: Rate | None
    attention: Decay
    student: Recipe


class Evaluate(Section):
    batch_size: Positive
    calibration_bins: Annotated[int, Field(ge=2)]
    mistakes: Annotated[int, Field(ge=1, le=100)]
    timing_repeats: Annotated[int, Field(ge=3)]


def same_side(student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
    """Which layers' maps are compared, by number: each of the student's with the teacher's of the same side.

    Of a teacher's layers with one side the last counts.
    """
    by_side = {side: layer for layer, side in enumerate(teacher)}
    return [(layer, by_side[side]) for layer, side in enumerate(student) if side in by_side]


def check_teacher(key: str, settings: Distill, teacher: Model, name: str) -> None:
    """Raises ValueError where what the student asks of a teacher, this one cannot give."""
    small = settings.student.progressive
    if small.epochs and (teacher.pool != teacher.last_map or teacher.maps(small.size)[-1] == 0):
        raise ValueError(
            f"{key}.student.progressive.epochs = {small.epochs} with a {name} that pools {teacher.pool} of "
            f"{teacher.last_map} pixels, accepted: 0, or a teacher that takes smaller images"
        )
    if settings.attention:
        _check_maps(key, settings, teacher, name)


def _check_maps(key: str, settings: Distill, teacher: Model, name: str) -> None:
    student, small = settings.student.model, settings.student.progressive
    whole = same_side(student.maps()[1:], teacher.maps()[1:])
    for image in (IMAGE_SIZE, small.size if small.epochs else IMAGE_SIZE):
        sides, taught = student.maps(image)[1:], teacher.maps(image)[1:]
        if whole and same_side(sides, taught) == whole:
            continue
        wrong = f"{key}.attention = {settings.attention:g} with layers of {sides} pixels and a {name}'s of {taught}"
        if whole:
            wrong += f" where progressive.size is {image}"
        accepted = "that pair as those of whole images do" if whole else "of the same side"
        raise ValueError(f"{wrong}, accepted: 0, or layers {accepted}")


class Params(Section):
    download: Download
    split: Split
    train: Train
    distill: Distill
    evaluate: Evaluate

    @model_validator(mode="after")
    def _teacher_suits(self) -> "Params":
        recipe = self.recipes().get(self.distill.teacher)
        if recipe is not None:
            check_teacher("distill", self.distill, recipe.model, self.distill.teacher)
        return self

    def recipes(self) -> dict[str, Recipe]:
        """Recipes by model name, in the order of training."""
        return {"baseline": self.train.baseline, "teacher": self.train.teacher, "student": self.distill.student}


def flatten(section: Section, prefix: str = "") -> dict[str, str | int | float | bool]:
    """A section as dotted keys to scalars; lists become text such as "3,3,2,3", null becomes "none"."""
    flat: dict[str, str | int | float | bool] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Section):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, tuple):
            flat[prefix + key] = ",".join(map(str, value))
        else:
            flat[prefix + key] = "none" if value is None else value
    return flat
