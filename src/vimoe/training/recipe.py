"""The recipe: everything that decides a training run, in one flat, frozen record. Imports no torch."""

import math
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from vimoe.errors import UserError, suggest
from vimoe.yaml_files import read_yaml

MOST_PIXELS = 16384  # of an image's side
MOST_WORKERS = 1024
# Baselines of which only a part learns.
FREEZING = ("linear", "lora", "vpt")


def _key(default: Any, about: str, least: float | None = None, most: float | None = None) -> Any:
    """A recipe key: its default, what `vimoe train --help` says of it, and its limits."""
    start: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    return field(**start, metadata={"about": about, "least": least, "most": most})


@dataclass(frozen=True)
class Recipe:
    """One training run, a key a field. The names are timm's where timm has them.

    >>> recipe = vimoe.Recipe(data_dir="flowers", pretrained=True, last=2)
    >>> recipe.dataset, recipe.upcycles
    ('folder', True)
    """

    task: Literal["classification", "multilabel", "segmentation"] = _key(
        "classification",
        "`classification` (a label for each image), `multilabel` (any number of labels) or `segmentation` (a label for "
        "each pixel)",
    )
    dataset: str = _key(
        "",
        "`digits`, `glyphs` or `digit_scenes` (embedded), `folder` (a folder for each class, or a table of labels), "
        "`csv` (that table alone), `ade20k` (images and masks in ADE20K's layout), `coco` (its JSON), `tar`, or one of "
        "timm's names: `torch/NAME`, `wds/NAME`, `hfds/NAME`, `hfids/NAME`. When empty, `folder` or `ade20k` if there "
        "is a `data_dir`, else `digits` or `digit_scenes`",
    )
    dataset_args: dict[str, Any] = _key(  # noqa: RUF009
        {}, "Arguments of `glyphs`, such as `classes` and `scripts` (see `vimoe.data.glyphs.glyphs`)"
    )
    data_dir: str | None = _key(None, "The folder of images, or the table of their labels")
    train_split: str = _key("", "Name of the training split; the usual names are tried when empty")
    val_split: str = _key("", "Name of the validation split; the usual names are tried when empty")
    test_split: str = _key("", "Name of the test split; the usual names are tried when empty")
    super_classes: bool | None = _key(
        None, "Classes lie in folders of larger classes (SUPER/CLASS); where empty, such folders are refused"
    )
    reduce_zero_label: bool = _key(
        True,
        "Masks hold 0 for unlabelled and 1 to K for the classes; otherwise 0 to K - 1 for the classes and 255 for "
        "unlabelled",
    )
    short_side: int | None = _key(
        None,
        "Resize a segmentation image's shorter side to this many pixels before it is cropped; its own size when empty",
    )
    in_memory: bool = _key(
        False, "Decode all images once, keep them in memory, and augment whole batches on the device; for small images"
    )
    val_share: float = _key(0.1, "Share of each class used for validation where there is no validation split", 0, 1)
    per_class: int | None = _key(
        None, "Use this many training images of each class, drawn with the seed; all of them when empty"
    )
    img_size: int | None = _key(None, "Side of the images in pixels; the model's own when empty")
    workers: int = _key(2, "Processes that decode images", 0, MOST_WORKERS)
    max_broken: float = _key(0.01, "Stop when more than this share of the images is broken", 0, 1)
    model: str = _key(
        "vit_tiny_patch16_224", "Name of a timm model, or `local-dir:FOLDER` for a model folder of timm's or ours"
    )
    model_args: dict[str, Any] = _key({}, "More arguments of `timm.create_model`")  # noqa: RUF009
    pretrained: bool = _key(False, "Start from timm's pretrained weights")
    initial_checkpoint: str | None = _key(
        None,
        "Start from this model or run folder, dense or upcycled, which replaces `model`, `model_args` and "
        "`pretrained`; or from a file of weights of `model` (`.safetensors`, `.pth`, `.npz`) in any format that timm "
        "reads, such as DINOv2's",
    )
    decoder: Literal["linear", "upernet"] = _key(
        "linear", "Decoder of a segmentation model: `linear`, or `upernet` on the features of four blocks"
    )
    last: int = _key(0, "Turn the FFNs of this many last blocks into MoE layers; 0 trains a dense model", 0)
    num_experts: int = _key(8, "Routed experts of each MoE layer", 1)
    top_k: int = _key(1, "Experts chosen for each image or token", 1)
    shared_expert: bool = _key(True, "Add an expert that is always on")
    routing: Literal["image", "token"] = _key("image", "Choose experts for each `image` or for each `token`")
    preset: Literal["preserve", "paper"] = _key(
        "preserve", "`preserve` keeps the dense model's outputs; `paper` has softmax gates and unscaled copies"
    )
    gate: Literal["", "straight_through", "softmax", "renormalised"] = _key(
        "",
        "Weight of a chosen expert: `straight_through` (1 in all, learns with one choice too), `softmax` (the raw "
        "probability), `renormalised` (Mixtral's, from two choices on); the preset's when empty",
    )
    init: Literal["", "preserve", "copy", "residual", "drop", "split"] = _key(
        "",
        "How experts start: `preserve` halves the copies, `copy` does not, `residual` leaves the FFN to the shared "
        "expert and lets the others begin at 0, `drop` draws a share of each copy anew, `split` cuts the FFN into "
        "num_experts slices; the preset's when empty",
    )
    drop_share: float = _key(0.5, "Share of each expert's hidden units that `drop` draws anew")
    granularity: int = _key(1, "Make experts so many times narrower, and take so many times as many", 1)
    expert_rank: int = _key(
        0, "Make experts low-rank differences of this rank from the shared expert; 0 for whole FFNs", 0
    )
    expert_dropout: float = _key(0.0, "Dropout in the experts in place of the model's own; 0 keeps that")
    router: Literal["top_k", "prioritised", "expert_choice", "soft"] = _key(
        "top_k",
        "`top_k`: each image or token chooses; `prioritised`: so it does, and experts serve the most decided tokens "
        "up to `capacity`; `expert_choice`: experts choose tokens; `soft`: experts get mixtures of all tokens",
    )
    router_scope: Literal["layer", "model"] = _key(
        "layer", "A router for each `layer`, or one for the `model`: the first MoE layer's decides for all of them"
    )
    capacity: float = _key(1.0, "Tokens of an image that an expert serves, as a factor on its even share")
    slots: int | None = _key(
        None, "Slots of each expert under `soft`; as many as make a slot for each token when empty"
    )
    router_noise: bool = _key(False, "Add noise to the router's logits in training")
    router_jitter: float = _key(
        0.0, "Multiply the router's input in training by random numbers within 1 plus or minus this"
    )
    router_temperature: float = _key(1.0, "Divides the router's logits")
    balance: Literal["loss", "bias"] = _key(
        "loss", "Balance the load by a `loss`, or without one by a `bias` on the choice"
    )
    balance_rate: float = _key(0.001, "Step of that bias", 0)
    balance_weight: float = _key(0.01, "Weight of the balance loss", 0)
    importance_weight: float = _key(0.0, "Weight of the importance loss (equal total probability of the experts)", 0)
    load_weight: float = _key(0.0, "Weight of V-MoE's load loss, which needs `router_noise`", 0)
    z_weight: float = _key(0.0, "Weight of the router's z-loss (small logits)", 0)
    guide_classes: str = _key(
        "",
        "Guide image routing to super-classes, one for each expert (Mobile V-MoE): a YAML file of super-classes and "
        "their classes, `data` for those of the data set, or `confusion` for groups of classes that the model of "
        "`initial_checkpoint` confuses on the training images",
    )
    guide_weight: float = _key(0.3, "Weight of that guidance, a cross-entropy of each router", 0)
    router_start: Literal["random", "centroids"] = _key(
        "random", "`random`, or `centroids` of what the routers see in the first training images"
    )
    expert_lr: float = _key(1.0, "Factor on the learning rate of the routed experts", 0)
    router_lr: float = _key(1.0, "Factor on the learning rate of the routers", 0)
    baseline: Literal["", "dense", "wide", "deeper", "linear", "lora", "vpt", "ensemble"] = _key(
        "",
        "Train a control instead of the MoE: `dense`; `wide` or `deeper`, with wider FFNs or more blocks to the same "
        "activated parameters; `linear` (the classifier and the norm before it); `lora` (low-rank differences in a "
        "frozen model); `vpt` (learned tokens for every block of one); an `ensemble` of dense models of the same "
        "stored size",
    )
    lora_rank: int = _key(
        0, "Rank of `lora`; 0 for the one that trains as many parameters as the MoE would add to the stored ones", 0
    )
    prompt_tokens: int = _key(10, "Tokens that `vpt` adds to every block", 1, 1024)
    members: int = _key(
        0, "Models of an `ensemble`; 0 for as many as are stored in the MoE's size, rounded, and 2 at least", 0, 64
    )
    freeze: Literal["", "experts", "trunk"] = _key(
        "",
        "Train only a part: `experts` (the MoE layers and the head), or the blocks after the `trunk`, which ends "
        "before the first MoE layer, or `last` blocks before the head. All is trained when empty",
    )
    cache_features: str = _key(
        "", "With a frozen trunk, compute its tokens once and keep them in this folder, or in `memory`"
    )
    feature_views: int = _key(1, "Augmented views of each training image in that cache; epochs take them in turn", 1)
    epochs: int = _key(20, "Passes over the training data", 1)
    batch_size: int = _key(64, "Images a step, over all processes", 1)
    lr: float = _key(1e-3, "Peak learning rate", 0)
    weight_decay: float = _key(
        0.05, "Weight decay of matrices; biases, norms, class token, positions and routers have none", 0
    )
    layer_decay: float = _key(1.0, "Factor on the learning rate from each block to the one before it; 1 for none", 0, 1)
    opt: str = _key("adamw", "Name of a timm optimiser")
    sched: str = _key("cosine", "Name of a timm schedule")
    warmup_epochs: float = _key(0.5, "Epochs of linear warm-up", 0)
    min_lr: float = _key(0.0, "Learning rate at the end", 0)
    clip_grad: float = _key(1.0, "Largest norm of the gradient; 0 for no clipping", 0)
    smoothing: float = _key(0.1, "Label smoothing", 0, 1)
    balance_classes: Literal["", "loss", "sampler"] = _key(
        "",
        "Give all classes the same weight where they are uneven: in the `loss`, or in how often the `sampler` shows "
        "their images",
    )
    keep: Literal["last", "best"] = _key(
        "last",
        "The model of the `last` epoch, or of the `best` one on the validation split: by the task's metric, or by the "
        "mean of the classes where these are uneven",
    )
    drop_path: float = _key(0.0, "Highest rate of stochastic depth", 0, 1)
    pos_embed_std: float = _key(
        0.02,
        "Standard deviation of a new model's position embedding; 1 instead of timm's 0.02 lets tiny models learn "
        "several times faster",
        0,
    )
    augment: bool = _key(True, "Augment the training images")
    scale: float = _key(0.08, "Smallest share of an image's area in a random crop", 0, 1)
    hflip: float = _key(0.5, "Probability of a horizontal flip", 0, 1)
    color_jitter: float = _key(0.4, "Strength of random brightness, contrast and saturation", 0)
    aa: str = _key("", "A timm auto-augment policy such as `rand-m9-mstd0.5-inc1`")
    reprob: float = _key(0.0, "Probability of random erasing", 0, 1)
    mixup: float = _key(0.0, "Alpha of mixup; 0 for none", 0)
    cutmix: float = _key(0.0, "Alpha of CutMix; 0 for none", 0)
    aug_repeats: int = _key(
        1, "Augmentations of each image in an epoch, which then shows as many times fewer images", 1
    )
    amp: bool = _key(False, "Use mixed precision")
    amp_dtype: Literal["bfloat16", "float16"] = _key(
        "bfloat16", "Type of mixed precision; `float16` comes with loss scaling"
    )
    accumulate: int = _key(1, "Batches whose gradients add up to one step", 1)
    model_ema: bool = _key(False, "Evaluate and save an exponential moving average of the weights")
    model_ema_decay: float = _key(0.9998, "Decay of that average in each step", 0, 1)
    grad_checkpointing: bool = _key(False, "Recompute activations in the backward pass to save memory")
    compile: bool = _key(False, "Use torch.compile")
    fsdp: bool = _key(
        False,
        "Under torchrun, shard weights and optimiser state over the processes (FSDP2); otherwise each process holds a "
        "copy (DDP)",
    )
    log_interval: float = _key(60.0, "Seconds between two lines of progress where there is no terminal", 0)
    log_tensorboard: bool = _key(False, "Also log to TensorBoard files in the run folder")
    log_wandb: bool = _key(False, "Also log to Weights & Biases")
    checkpoint_minutes: float = _key(
        10.0, "Minutes between two resume states within an epoch; one is always written after it", 0
    )
    keep_states: bool = _key(False, "Keep the resume states of a run that has come to its end")
    seed: int = _key(0, "Seed of everything random", 0)
    device: str = _key("auto", "`auto`, or a torch device")
    output: str = _key("runs/train", "The run folder")

    def __post_init__(self) -> None:
        if not self.dataset:
            images, masks = ("folder", "ade20k") if self.data_dir else ("digits", "digit_scenes")
            object.__setattr__(self, "dataset", masks if self.task == "segmentation" else images)
        for key in fields(self):
            value, least, most = getattr(self, key.name), key.metadata["least"], key.metadata["most"]
            if least is not None and value < least:
                raise UserError(f"{key.name} must be at least {least}, got {value}")
            if most is not None and value > most:
                raise UserError(f"{key.name} must be at most {most}, got {value}")
        for name in ("img_size", "short_side"):
            if (pixels := getattr(self, name)) is not None and not 1 <= pixels <= MOST_PIXELS:
                raise UserError(f"{name} must be between 1 and {MOST_PIXELS} pixels, got {pixels}")
        if self.baseline in FREEZING and self.freeze:
            raise UserError(f"baseline {self.baseline} says itself what learns: leave freeze empty")
        if self.baseline == "ensemble" and self.task != "classification":
            raise UserError(
                "baseline ensemble averages the probabilities of classifiers: take another for segmentation"
            )
        if self.cache_features:
            self._check_cache()
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs must be less than the {self.epochs} epochs, got {self.warmup_epochs}")

    def _check_cache(self) -> None:
        if not self.freezes_trunk or self.task != "classification":
            raise UserError(
                "cache_features is for classification with a frozen trunk: add freeze: trunk, or leave it out"
            )
        for key in ("drop_path", "mixup", "cutmix", "fsdp"):  # what would reach into the trunk, or cut it elsewhere
            if getattr(self, key):
                raise UserError(f"cache_features keeps what a frozen trunk saw: it cannot go with {key}")

    @property
    def upcycles(self) -> bool:
        """Whether FFNs become MoE layers."""
        return self.last > 0 and not self.baseline

    @property
    def guides(self) -> bool:
        """Whether routers learn to which expert a class belongs."""
        return bool(self.guide_classes and self.guide_weight)

    @property
    def freezes_trunk(self) -> bool:
        """Whether what comes before the last blocks, or before the classifier, learns nothing."""
        return self.freeze == "trunk" or self.baseline == "linear"

    @property
    def pretrained_start(self) -> bool:
        """Whether the weights are somebody's, and not drawn at random."""
        return self.pretrained or self.start is not None

    @property
    def start(self) -> Path | None:
        """The model folder or the file of weights that the run starts from; None for a model of timm's own."""
        local = self.model.removeprefix("local-dir:")
        start = self.initial_checkpoint or (local if local != self.model else None)
        return None if start is None else Path(start)


# What changes no bit of the model: a run may go on with another value.
MAY_DIFFER = (
    *("output", "device", "data_dir", "workers", "max_broken", "log_interval", "log_tensorboard", "log_wandb"),
    *("checkpoint_minutes", "keep_states"),
)
# The first field of each group of flags in `vimoe train --help`; fields stand in the order of their groups.
GROUPS = {
    **{"task": "data", "model": "model", "last": "MoE", "freeze": "optimisation", "augment": "augmentation"},
    "amp": "run",
}
_KEYS = [field.name for field in fields(Recipe)]
# What makes a model an MoE model, and how it is trained: a dense one makes nothing of it.
MOE_KEYS = tuple(_KEYS[_KEYS.index("last") : _KEYS.index("freeze")])
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "keys and values"}


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from values by key, as YAML or the command line gives them; the rest are defaults.

    Raises UserError if a key is unknown (the nearest right one is named), or a value has the wrong type.
    """
    kinds = get_type_hints(Recipe)
    for key in values:
        if key not in kinds:
            raise UserError(f"unknown recipe key {key!r}{suggest(str(key), kinds)}")
    return Recipe(**{key: _checked(key, value, kinds[key]) for key, value in values.items()})


def _checked(key: str, value: Any, hint: Any) -> Any:
    """The value in the type of its key; numbers may come as text (YAML takes `1e-3` for text)."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if value in options:
            return value
        raise UserError(f"{key} must be one of {', '.join(map(repr, options))}, got {reprlib.repr(value)}")
    if type(None) in options and value in (None, ""):
        return None
    kind: Any = options[0] if type(None) in options else get_origin(hint) or hint
    if (kind is float and type(value) is int) or (kind in (int, float) and isinstance(value, str)):
        with suppress(ValueError, OverflowError):
            value = kind(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{key} must be {_KINDS[kind]}, got {reprlib.repr(value)}")
    return value


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file. Raises UserError if the file cannot be read, is no YAML, or holds a wrong key or value."""
    values = read_yaml(Path(path))
    try:
        return make_recipe(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, the inverse of `load_recipe`."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False)
