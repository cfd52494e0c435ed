"""The sections of params.yaml as typed, frozen classes: one section is one stage.

No value has a default here, so params.yaml determines a run completely, except for one that extends another
(`--extend`). Types are not converted, so that a run uses the value that dvc.lock records; a number in quotes is
refused.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    Strict,
    StringConstraints,
    ValidationError,
    model_validator,
)

# The models of a pipeline, in the order of training.
MODELS = ("baseline", "teacher", "student")
IMAGE_SIZE = 32
# The number of classes of CIFAR-10 and the digits, and so of the study's network.
CLASSES = 10
# A 2x2 patch of three channels has 12 principal directions, and there is a filter of each sign for each of them.
WHITENING_FILTERS = 24

Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
KernelSize = Annotated[int, Field(gt=0, le=15)]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Https = Annotated[str, StringConstraints(pattern=r"^https://[^\s/]+/\S+$")]
Unit = Annotated[float, Field(gt=0, le=1)]
# Lists of YAML are converted to the tuples of a frozen section; their items are not converted.
Loose = Strict(False)
# The limits are far above what can be trained, and so low that counting the parameters of a model is fast.
PerLayer = Annotated[tuple[Annotated[int, Field(gt=0, le=2**14)], ...], Loose]
BlocksPerLayer = Annotated[tuple[Annotated[int, Field(ge=0, le=2**10)], ...], Loose]
Channels3 = Annotated[tuple[Unit, Unit, Unit], Loose]


class Section(BaseModel):
    """The base class of sections: frozen, without conversion of types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Download(Section):
    dataset: Literal["cifar10", "cifar100", "digits", "folder"] = Field(
        description="Data set; digits come with scikit-learn, and folder is your own images, a folder for each class."
    )
    size: PositiveInt = Field(description="Size of the archive of cifar10 or cifar100 in bytes.")
    md5: Hex32 = Field(description="MD5 of the archive.")
    sha256: Hex64 = Field(
        description="SHA-256 of the archive; of a folder, what `(LC_ALL=C; sha256sum */* | sha256sum)` prints in it."
    )
    mirrors: Annotated[tuple[Https, ...], Field(min_length=1), Loose] = Field(
        description="Addresses that are tried in turn; the checksums decide which copy is taken."
    )


class SplitSettings(Section):
    validation: PositiveInt = Field(
        description="Number of training images held out for validation, each class in proportion."
    )
    training: PositiveInt | None = Field(
        description="Number of the other training images that are kept, each class in proportion; null keeps all."
    )
    seed: Seed = Field(description="Seed that chooses the validation images and the training images that are kept.")

    def training_images(self, images: int, classes: int) -> int:
        """Return the number of training images that are left of `images`.

        Raises:
            ValueError: if there are too few.
        """
        check_part("split.validation", self.validation, images, classes)
        rest = images - self.validation
        if self.training not in (None, rest):
            check_part("split.training", self.training, rest, classes)
        return self.training or rest


def check_part(key: str, count: int, images: int, classes: int) -> None:
    """Raise ValueError unless `count` of `images`, and the others, can have one image of each class at least."""
    if not classes <= count <= images - classes:
        raise ValueError(
            f"{key} = {count}: expected: {classes} to {images - classes} of the {images:,} training images"
        )


class Model(Section):
    """A network of models/resnet.py: the study's sizes N, B_i, C_i, F_i, K_i and P, and the kinds of its layers."""

    layers: Annotated[int, Field(ge=1, le=6)] = Field(
        description="Number of residual layers N. Each halves the feature map, but with downsample = stride, "
        "the first one does not."
    )
    blocks: BlocksPerLayer = Field(
        description="Number of residual blocks in each layer, B_i; 0 needs downsample = pool."
    )
    channels: PerLayer = Field(description="Number of channels of each layer, C_i.")
    kernels: Annotated[tuple[KernelSize, ...], Loose] = Field(
        description="Kernel size of each layer's convolutions, F_i, in pixels; odd."
    )
    skip_kernels: Annotated[tuple[KernelSize, ...], Loose] = Field(
        description="Kernel size of each layer's shortcut convolution, K_i, in pixels; odd."
    )
    pool: PositiveInt = Field(
        description="Size of the last pool P in pixels; it divides the side of the last feature map."
    )
    pool_kind: Literal["average", "max"] = Field(description="Kind of the last pool.")
    stem: Literal["conv", "whitening"] = Field(
        description="First layer: a learned 3x3 convolution, or 2x2 filters that whiten the training images."
    )
    downsample: Literal["stride", "pool"] = Field(
        description="How a layer halves its map: by a stride, or by a convolution and a 2x2 max pool."
    )
    activation: Literal["relu", "gelu"] = Field(description="Activation function.")
    block: Literal["basic", "preactivation"] = Field(
        description="Order within a block; preactivation needs stem = conv and downsample = stride."
    )
    squeeze_excite: NonNegativeInt = Field(
        description="Reduction ratio of squeeze-and-excitation (arXiv:1709.01507); 0 leaves it out."
    )

    def feature_map_sizes(self, image: int = IMAGE_SIZE) -> list[int]:
        """Return the sides, in pixels, of the map that enters the first layer and of the output of each layer.

        The 2x2 whitening stem is not padded. A layer halves its map, rounded down with downsample = pool and rounded up
        with downsample = stride, where the first layer keeps the size.

        Args:
            image: side of the images in pixels.
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
        """Side of the input of the last pool, for images of 32x32."""
        return self.feature_map_sizes()[-1]

    @model_validator(mode="after")
    def _fits_together(self) -> "Model":
        for key in ("blocks", "channels", "kernels", "skip_kernels"):
            values = getattr(self, key)
            if len(values) != self.layers:
                raise ValueError(
                    f"{key} = {list(values)} has {len(values)} entries, expected: layers = {self.layers} entries"
                )
        for key in ("kernels", "skip_kernels"):
            even = [size for size in getattr(self, key) if size % 2 == 0]
            if even:
                sizes = list(getattr(self, key))
                raise ValueError(f"{key} = {sizes}: {even[0]} is even and cannot keep the size of a map, expected: odd")
        if self.downsample == "stride" and 0 in self.blocks:
            raise ValueError(f"blocks = {list(self.blocks)} with downsample = stride, expected: >= 1 in each layer")
        if self.block == "preactivation" and (self.stem, self.downsample) != ("conv", "stride"):
            raise ValueError("block = preactivation, expected: with stem = conv and downsample = stride")
        if self.squeeze_excite > min(self.channels):
            raise ValueError(
                f"squeeze_excite = {self.squeeze_excite} leaves nothing of {min(self.channels)} channels, "
                f"expected: 0 to {min(self.channels)}"
            )
        if self.last_map == 0:
            raise ValueError(f"layers = {self.layers} leave no map to pool, expected: fewer layers")
        if self.last_map % self.pool:
            divisors = [p for p in range(1, self.last_map + 1) if self.last_map % p == 0]
            side = f"{self.last_map}x{self.last_map}"
            raise ValueError(f"pool = {self.pool} does not divide the last feature map of {side}, expected: {divisors}")
        return self


class Optimizer(Section):
    name: Literal["sgd", "adagrad", "adadelta", "adam", "radam", "adamw", "muon"] = Field(
        description="Optimizer; muon moves the filters before a batch norm, and AdamW all else."
    )
    lr: PositiveFloat = Field(
        description="Peak learning rate. With muon, it is the length of a step relative to the norm of the filters, "
        "and AdamW's learning rate is a tenth of it."
    )
    weight_decay: NonNegativeFloat = Field(
        description="L2 penalty; adamw decouples it from the gradient, and muon applies it to what AdamW moves."
    )
    decay_norm_and_bias: bool = Field(description="Whether weight decay also applies to batch norm and biases.")
    momentum: Fraction = Field(description="Momentum of sgd and muon.")
    nesterov: bool = Field(description="Whether sgd and muon use Nesterov's momentum.")
    betas: Annotated[tuple[Fraction, Fraction], Loose] = Field(
        description="Decay of the two running averages of adam, radam and adamw, and of muon's AdamW."
    )
    bias_lr_ratio: PositiveFloat = Field(
        description="Learning rate of batch norm's biases over that of all else; their weight decay is divided by it."
    )
    rho: Fraction = Field(description="Decay of adadelta's running average of squared gradients.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Optimizer":
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = True with momentum = 0, expected: momentum > 0 or nesterov: false")
        return self


class Schedule(Section):
    name: Literal["constant", "step", "multistep", "plateau", "cosine", "cosine_restarts", "onecycle", "linear"] = (
        Field(description="Learning rate schedule.")
    )
    warmup_epochs: NonNegativeFloat = Field(
        description="Length of the linear warm-up in epochs, which may be a fraction; with onecycle, that of the "
        "rising part."
    )
    final_ratio: Share = Field(
        description="Last learning rate over the peak; step, multistep and constant ignore it, and onecycle needs more "
        "than 0."
    )
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="What step, multistep and plateau multiply the learning rate by."
    )
    step_epochs: PositiveInt = Field(
        description="step: number of epochs between two reductions, counted after the warm-up."
    )
    milestones: Annotated[tuple[PositiveInt, ...], Loose] = Field(
        description="multistep: epochs of the reductions, in increasing order."
    )
    patience: NonNegativeInt = Field(
        description="plateau: epochs without a lower validation loss before another one reduces the learning rate."
    )
    restart_epochs: PositiveInt = Field(
        description="cosine_restarts: number of epochs before the first restart, counted after the warm-up."
    )
    restart_mult: PositiveInt = Field(description="cosine_restarts: length of each period over that of the one before.")

    @model_validator(mode="after")
    def _reachable(self) -> "Schedule":
        if self.name == "onecycle" and self.final_ratio == 0:
            raise ValueError("final_ratio = 0 with name = onecycle, expected: > 0, e.g. 0.001")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones = {list(self.milestones)}, expected: epochs in increasing order")
        return self


class Augmentation(Section):
    flip: Share = Field(
        description="Probability of a horizontal flip; with alternating, the share of images flipped in odd epochs."
    )
    flip_mode: Literal["random", "alternating"] = Field(
        description="random, or alternating: each image is flipped every other epoch (arXiv:2404.00498)."
    )
    crop_padding: Annotated[int, Field(ge=0, le=IMAGE_SIZE // 2)] = Field(
        description="Padding in pixels on each side before a random crop of 32x32; 0 leaves out the crop."
    )
    padding_mode: Literal["constant", "reflect"] = Field(
        description="Content of the padding: black, or the reflected image."
    )
    auto_augment: Literal["none", "trivial_augment", "rand_augment"] = Field(
        description="torchvision's policy of image operations, drawn anew each epoch."
    )
    cutout: Annotated[int, Field(ge=0, le=IMAGE_SIZE)] = Field(
        description="Side in pixels of a square filled with the mean colour (arXiv:1708.04552); 0 leaves it out."
    )
    mix: Literal["none", "mixup", "cutmix"] = Field(
        description="Mixing of images and labels in pairs (arXiv:1710.09412, arXiv:1905.04899)."
    )
    mix_alpha: PositiveFloat = Field(
        description="Both parameters of the Beta distribution from which the mixing shares are drawn."
    )
    mix_share: Share = Field(description="Share of the batches that are mixed.")

    @model_validator(mode="after")
    def _alternates_something(self) -> "Augmentation":
        if self.flip_mode == "alternating" and self.flip in (0, 1):
            raise ValueError(f"flip = {self.flip:g} with flip_mode = alternating, expected: between 0 and 1, e.g. 0.5")
        return self


class ProgressiveResizing(Section):
    """Progressive resizing: images are scaled down to `size` in the first `epochs` epochs."""

    epochs: NonNegativeInt = Field(description="Number of epochs, from the first, that see smaller images.")
    size: Annotated[int, Field(ge=8, le=IMAGE_SIZE)] = Field(description="Side of those images in pixels.")


class Sam(Section):
    """Sharpness-aware minimisation; a radius of 0 turns it off."""

    rho: NonNegativeFloat = Field(
        description="Radius of sharpness-aware minimization (arXiv:2010.01412), two passes a step; 0 leaves it out."
    )
    adaptive: bool = Field(description="Whether the radius is relative to each weight (ASAM, arXiv:2102.11600).")


class Selection(Section):
    """Data selection by a proxy: a small network sees each batch first, and the network learns from a part of it."""

    keep: Unit = Field(
        description="Share of each batch that the model learns from: the images with the greatest loss of a proxy "
        "network. 1 turns the selection off."
    )
    width: Unit = Field(
        description="Channels of the proxy (arXiv:1906.11829) as a share of the model's, rounded to multiples of 8."
    )
    blocks: NonNegativeInt = Field(
        description="Most blocks in a layer of the proxy, which is otherwise like the model; 0 needs downsample = pool."
    )

    def count(self, images: int) -> int:
        """Return the number of images that are learned from in a batch of `images`, at least 2."""
        return max(2, round(self.keep * images))

    def proxy(self, model: Model) -> Model:
        """Return the sizes of the proxy for `model`.

        Raises:
            ValueError: if there is no such network.
        """
        sizes = {
            "channels": [max(8, 8 * round(self.width * channels / 8)) for channels in model.channels],
            "blocks": [min(blocks, self.blocks) for blocks in model.blocks],
        }
        return Model.model_validate(model.model_dump() | sizes)


class Normalization(Section):
    """Means and standard deviations of the channels, for images in [0, 1]; null measures them on the training split."""

    mean: Channels3 | None = Field(
        description="Channel means of images in [0, 1]; null measures them on the training images."
    )
    std: Channels3 | None = Field(
        description="Channel standard deviations of images in [0, 1]; null measures them likewise."
    )

    @model_validator(mode="after")
    def _together(self) -> "Normalization":
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together, expected: three numbers each, or null for both")
        return self


class Recipe(Section):
    """A model and everything that its training depends on."""

    model: Model = Field(description="Architecture.")
    max_parameters: PositiveInt | None = Field(
        description="Largest number of parameters, the model's budget; null sets no limit."
    )
    seed: Seed = Field(
        description="Seed of initial weights, order and augmentation; a student's should differ from its teacher's."
    )
    epochs: PositiveInt = Field(description="Number of passes over the training images.")
    batch_size: Annotated[int, Field(ge=2)] = Field(
        description="Number of images drawn for a step, before any selection; an incomplete last batch is dropped."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        description="Precision of the forward pass; auto takes bf16 where the hardware has it."
    )
    label_smoothing: Fraction = Field(description="Label smoothing (arXiv:1512.00567).")
    max_grad_norm: PositiveFloat | None = Field(description="Largest L2 norm of the gradient; null does not clip it.")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="Decay per step of the averaged weights that are evaluated and kept; null keeps no average."
    )
    bn_momentum: Unit = Field(
        description="Weight of a batch in batch norm's running statistics; short runs need a larger one."
    )
    sync_batch_norm: bool = Field(description="Whether several processes take batch norm over their common batch.")
    initialization: Literal["kaiming", "dirac"] = Field(
        description="Initial weights; with dirac, the first filters pass their inputs on (arXiv:2404.00498)."
    )
    stochastic_depth: Fraction = Field(
        description="Probability that an image skips the last block; earlier ones less (arXiv:1603.09382)."
    )
    compile: bool | Literal["reduce-overhead"] = Field(
        description="Whether torch.compile is used, which takes about a minute and gains little on a CPU. "
        "With reduce-overhead, a GPU also replays its kernels as CUDA graphs."
    )
    deterministic: bool = Field(
        description="Whether only kernels are used that give the same bytes again, which is slower on a GPU."
    )
    optimizer: Optimizer = Field(description="Optimizer.")
    schedule: Schedule = Field(description="Learning rate schedule.")
    augmentation: Augmentation = Field(description="Augmentation of the training images.")
    progressive_resizing: ProgressiveResizing = Field(description="Smaller images in the first epochs.")
    sam: Sam = Field(description="Sharpness-aware minimization.")
    selection: Selection = Field(description="Selection of the images of each batch from which the model learns.")
    normalization: Normalization = Field(description="Normalization of the input.")

    @model_validator(mode="after")
    def _small_images_fit(self) -> "Recipe":
        small, key = self.progressive_resizing, "progressive_resizing"
        if small.epochs > self.epochs:
            raise ValueError(f"{key}.epochs = {small.epochs}, expected: 0 to epochs = {self.epochs}")
        if small.epochs and self.model.pool != self.model.last_map:
            raise ValueError(
                f"{key}.epochs = {small.epochs} with model.pool = {self.model.pool}, expected: "
                f"0, or a pool of the whole last map, {self.model.last_map}"
            )
        if small.epochs and self.model.feature_map_sizes(small.size)[-1] == 0:
            raise ValueError(f"{key}.size = {small.size} leaves no map to pool, expected: larger, up to 32")
        return self

    @model_validator(mode="after")
    def _drops_some_block(self) -> "Recipe":
        if self.stochastic_depth and not any(self.model.blocks):
            raise ValueError(f"stochastic_depth = {self.stochastic_depth} with a model without blocks, expected: 0")
        return self

    @model_validator(mode="after")
    def _proxy_exists(self) -> "Recipe":
        if self.selection.keep < 1:
            try:
                self.selection.proxy(self.model)
            except ValidationError as error:
                raise ValueError(f"selection: the proxy's {error.errors()[0]['ctx']['error']}") from None
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "Recipe":
        schedule, warmup = self.schedule, f"schedule.warmup_epochs = {self.schedule.warmup_epochs:g}"
        if schedule.warmup_epochs >= self.epochs:
            raise ValueError(f"{warmup}, expected: less than epochs = {self.epochs}")
        if schedule.name == "step" and schedule.warmup_epochs + schedule.step_epochs >= self.epochs:
            raise ValueError(
                f"schedule.step_epochs = {schedule.step_epochs} after {warmup}, expected: a reduction before epochs = "
                f"{self.epochs}"
            )
        first = min(schedule.milestones, default=self.epochs)
        if schedule.name == "multistep" and not schedule.warmup_epochs <= first < self.epochs:
            raise ValueError(
                f"schedule.milestones = {list(schedule.milestones)} with {warmup}, expected: the first one after the "
                f"warm-up and before epochs = {self.epochs}"
            )
        return self


class Train(Section):
    baseline: Recipe = Field(description="The model within the limit, trained on labels alone.")
    teacher: Recipe = Field(description="The student's teacher, which may be larger.")


class Distill(Section):
    teacher: Literal["baseline", "teacher", "external"] = Field(
        description="The student's teacher; external is a model or an ensemble in models/external."
    )
    alpha: Share = Field(description="Weight of the teacher's predictions; the labels have the rest.")
    temperature: PositiveFloat = Field(
        description="Temperature that softens the predictions of both (arXiv:1503.02531)."
    )
    beta: PositiveFloat | None = Field(
        description="Weight of the wrong classes in decoupled distillation (arXiv:2203.08679); null takes the plain KL."
    )
    attention_transfer: NonNegativeFloat = Field(
        description="Weight of the sum of the layers' attention losses (arXiv:1612.03928), to be tuned for each "
        "architecture; 0 leaves them out."
    )
    student: Recipe = Field(description="The model within the limit that the teacher teaches.")


class Evaluate(Section):
    batch_size: PositiveInt = Field(description="Number of images in a step, also in the measured throughput.")
    calibration_bins: Annotated[int, Field(ge=2)] = Field(
        description="Number of bins of the expected calibration error (arXiv:1706.04599)."
    )
    mistakes: Annotated[int, Field(ge=1, le=100)] = Field(
        description="Number of images in the picture of the most confident mistakes."
    )
    timing_repeats: Annotated[int, Field(ge=3)] = Field(
        description="Number of forward passes whose median is the latency."
    )


def same_side(student: Sequence[int], teacher: Sequence[int]) -> list[tuple[int, int]]:
    """Pair each layer of the student with the last layer of the teacher whose output has the same side.

    Args:
        student, teacher: sides of the outputs of the layers, in pixels.

    Returns:
        Pairs of indices (layer of the student, layer of the teacher); layers without a partner are left out.
    """
    by_side = {side: layer for layer, side in enumerate(teacher)}
    return [(layer, by_side[side]) for layer, side in enumerate(student) if side in by_side]


def check_teacher(key: str, settings: Distill, teacher: Model, name: str) -> None:
    """Check that a teacher fits the student's settings.

    Args:
        key: file and key of the section for the error message.
        teacher: sizes of the teacher's network.
        name: the teacher in the error message, such as "a teacher".

    Raises:
        ValueError: if the teacher does not accept the sizes of the images, or has no layers whose attention maps can be
            compared with those of the student.
    """
    small = settings.student.progressive_resizing
    if small.epochs and (teacher.pool != teacher.last_map or teacher.feature_map_sizes(small.size)[-1] == 0):
        raise ValueError(
            f"{key}.student.progressive_resizing.epochs = {small.epochs} with {name} that pools {teacher.pool} of "
            f"{teacher.last_map} pixels, expected: 0, or a teacher that takes smaller images"
        )
    if settings.attention_transfer:
        _check_maps(key, settings, teacher, name)


def _check_maps(key: str, settings: Distill, teacher: Model, name: str) -> None:
    student, small = settings.student.model, settings.student.progressive_resizing
    whole = same_side(student.feature_map_sizes()[1:], teacher.feature_map_sizes()[1:])
    for image in (IMAGE_SIZE, small.size if small.epochs else IMAGE_SIZE):
        sides, taught = student.feature_map_sizes(image)[1:], teacher.feature_map_sizes(image)[1:]
        if whole and same_side(sides, taught) == whole:
            continue
        wrong = f"{key}.attention_transfer = {settings.attention_transfer:g} with layers of {sides} pixels"
        wrong += f" and {name}'s of {taught}"
        if whole:
            wrong += f" where progressive_resizing.size is {image}"
        expected = "that pair as those of whole images do" if whole else "of the same side"
        raise ValueError(f"{wrong}, expected: 0, or layers {expected}")


class Params(Section):
    download: Download = Field(description="The data set.")
    split: SplitSettings = Field(description="Training, validation and test images.")
    train: Train = Field(description="Models trained on labels alone.")
    distill: Distill = Field(description="The student.")
    evaluate: Evaluate = Field(description="The evaluation on the test images.")

    @model_validator(mode="after")
    def _teacher_suits(self) -> "Params":
        recipe = self.recipes().get(self.distill.teacher)
        if recipe is not None:
            check_teacher("distill", self.distill, recipe.model, f"a {self.distill.teacher}")
        return self

    def recipes(self) -> dict[str, Recipe]:
        """Return the recipes by the name of their model, in the order of training."""
        return dict(zip(MODELS, (self.train.baseline, self.train.teacher, self.distill.student), strict=True))


def flatten(section: Section, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return the values of a section by their dotted keys; a list becomes text such as "3,3,2,3", null "none"."""
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
