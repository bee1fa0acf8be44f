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


@dataclass(frozen=True)
class Recipe:
    """One training run. The names are timm's where timm has them.

    Args:
        task: `classification` (a label for each image) or `segmentation` (a label for each pixel).
        dataset: `digits`, `glyphs` or `digit_scenes` (embedded), `folder` (a folder for each class, or a table of
            labels), `csv` (that table alone), `ade20k` (images and masks in ADE20K's layout), `tar`, or one of timm's
            names: `torch/NAME`, `wds/NAME`, `hfds/NAME`, `hfids/NAME`. When empty, `folder` or `ade20k` if there is a
            `data_dir`, else `digits` or `digit_scenes`.
        dataset_args: Arguments of `glyphs`, such as `classes` and `scripts` (see `vimoe.data.glyphs.glyphs`).
        data_dir: The folder of images, or the table of their labels.
        train_split: Name of the training split; the usual names are tried when empty.
        val_split: Name of the validation split; the usual names are tried when empty.
        test_split: Name of the test split; the usual names are tried when empty.
        super_classes: Classes lie in folders of larger classes (SUPER/CLASS); where empty, such folders are refused.
        reduce_zero_label: Masks hold 0 for unlabelled and 1 to K for the classes; otherwise 0 to K - 1 for the
            classes and 255 for unlabelled.
        short_side: Resize a segmentation image's shorter side to this many pixels before it is cropped; its own size
            when empty.
        in_memory: Decode all images once, keep them in memory, and augment whole batches on the device; for small
            images.
        val_share: Share of each class used for validation where there is no validation split.
        per_class: Use this many training images of each class, drawn with the seed; all of them when empty.
        img_size: Side of the images in pixels; the model's own when empty.
        workers: Processes that decode images.
        max_broken: Stop when more than this share of the images is broken.
        model: Name of a timm model, or `local-dir:FOLDER` for a model folder of timm's or ours.
        model_args: More arguments of `timm.create_model`.
        pretrained: Start from timm's pretrained weights.
        initial_checkpoint: Start from this model or run folder, dense or upcycled, which replaces `model`,
            `model_args` and `pretrained`; or from a file of weights of `model` (`.safetensors`, `.pth`, `.npz`) in any
            format that timm reads, such as DINOv2's.
        decoder: Decoder of a segmentation model: `linear`, or `upernet` on the features of four blocks.
        last: Turn the FFNs of this many last blocks into MoE layers; 0 trains a dense model.
        num_experts: Routed experts of each MoE layer.
        top_k: Experts chosen for each image or token.
        shared_expert: Add an expert that is always on.
        routing: Choose experts for each `image` or for each `token`.
        preset: `preserve` keeps the dense model's outputs; `paper` has softmax gates and unscaled copies.
        init: How experts start: `preserve` halves the copies, `copy` does not, `residual` leaves the FFN to the shared
            expert and lets the others begin at 0, `drop` draws a share of each copy anew, `split` cuts the FFN into
            num_experts slices; the preset's when empty.
        drop_share: Share of each expert's hidden units that `drop` draws anew.
        granularity: Make experts so many times narrower, and take so many times as many.
        expert_rank: Make experts low-rank differences of this rank from the shared expert; 0 for whole FFNs.
        expert_dropout: Dropout in the experts in place of the model's own; 0 keeps that.
        router: `top_k`: each image or token chooses; `prioritised`: so it does, and experts serve the most decided
            tokens up to `capacity`; `expert_choice`: experts choose tokens; `soft`: experts get mixtures of all tokens.
        capacity: Tokens of an image that an expert serves, as a factor on its even share.
        slots: Slots of each expert under `soft`; as many as make a slot for each token when empty.
        router_noise: Add noise to the router's logits in training.
        router_jitter: Multiply the router's input in training by random numbers within 1 plus or minus this.
        router_temperature: Divides the router's logits.
        balance: Balance the load by a `loss`, or without one by a `bias` on the choice.
        balance_rate: Step of that bias.
        balance_weight: Weight of the balance loss.
        importance_weight: Weight of the importance loss (equal total probability of the experts).
        z_weight: Weight of the router's z-loss (small logits).
        router_start: `random`, or `centroids` of what the routers see in the first training images.
        expert_lr: Factor on the learning rate of the routed experts.
        router_lr: Factor on the learning rate of the routers.
        baseline: Train a control instead of the MoE: `dense`, or `wide` with FFNs widened in the same blocks to the
            same activated parameters.
        freeze: Train only a part: `experts` (the MoE layers and the head), or the blocks after the `trunk`, which ends
            before the first MoE layer, or `last` blocks before the head. All is trained when empty.
        cache_features: With a frozen trunk, compute its tokens once and keep them in this folder, or in `memory`.
        feature_views: Augmented views of each training image in that cache; epochs take them in turn.
        epochs: Passes over the training data.
        batch_size: Images a step, over all processes.
        lr: Peak learning rate.
        weight_decay: Weight decay of matrices; biases, norms, tokens and routers have none.
        layer_decay: Factor on the learning rate from each block to the one before it; 1 for none.
        opt: Name of a timm optimiser.
        sched: Name of a timm schedule.
        warmup_epochs: Epochs of linear warm-up.
        min_lr: Learning rate at the end.
        clip_grad: Largest norm of the gradient; 0 for no clipping.
        smoothing: Label smoothing.
        drop_path: Highest rate of stochastic depth.
        pos_embed_std: Standard deviation of a new model's position embedding; 1 instead of timm's 0.02 lets tiny
            models learn several times faster.
        augment: Augment the training images.
        scale: Smallest share of an image's area in a random crop.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of random brightness, contrast and saturation.
        aa: A timm auto-augment policy such as `rand-m9-mstd0.5-inc1`.
        reprob: Probability of random erasing.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        aug_repeats: Augmentations of each image in an epoch, which then shows as many times fewer images.
        amp: Use mixed precision.
        amp_dtype: Type of mixed precision; `float16` comes with loss scaling.
        accumulate: Batches whose gradients add up to one step.
        model_ema: Evaluate and save an exponential moving average of the weights.
        model_ema_decay: Decay of that average in each step.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
        compile: Use torch.compile.
        fsdp: Under torchrun, shard weights and optimiser state over the processes (FSDP2); otherwise each process
            holds a copy (DDP).
        log_interval: Seconds between two lines of progress where there is no terminal.
        log_tensorboard: Also log to TensorBoard files in the run folder.
        log_wandb: Also log to Weights & Biases.
        checkpoint_minutes: Minutes between two resume states within an epoch; one is always written after it.
        keep_states: Keep the resume states of a run that has come to its end.
        seed: Seed of everything random.
        device: `auto`, or a torch device.
        output: The run folder.
    """

    task: Literal["classification", "segmentation"] = "classification"
    dataset: str = ""
    dataset_args: dict[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    train_split: str = ""
    val_split: str = ""
    test_split: str = ""
    super_classes: bool | None = None
    reduce_zero_label: bool = True
    short_side: int | None = None
    in_memory: bool = False
    val_share: float = 0.1
    per_class: int | None = None
    img_size: int | None = None
    workers: int = 2
    max_broken: float = 0.01
    model: str = "vit_tiny_patch16_224"
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    initial_checkpoint: str | None = None
    decoder: Literal["linear", "upernet"] = "linear"
    last: int = 0
    num_experts: int = 8
    top_k: int = 1
    shared_expert: bool = True
    routing: Literal["image", "token"] = "image"
    preset: Literal["preserve", "paper"] = "preserve"
    init: Literal["", "preserve", "copy", "residual", "drop", "split"] = ""
    drop_share: float = 0.5
    granularity: int = 1
    expert_rank: int = 0
    expert_dropout: float = 0.0
    router: Literal["top_k", "prioritised", "expert_choice", "soft"] = "top_k"
    capacity: float = 1.0
    slots: int | None = None
    router_noise: bool = False
    router_jitter: float = 0.0
    router_temperature: float = 1.0
    balance: Literal["loss", "bias"] = "loss"
    balance_rate: float = 0.001
    balance_weight: float = 0.01
    importance_weight: float = 0.0
    z_weight: float = 0.0
    router_start: Literal["random", "centroids"] = "random"
    expert_lr: float = 1.0
    router_lr: float = 1.0
    baseline: Literal["", "dense", "wide"] = ""
    freeze: Literal["", "experts", "trunk"] = ""
    cache_features: str = ""
    feature_views: int = 1
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    opt: str = "adamw"
    sched: str = "cosine"
    warmup_epochs: float = 0.5
    min_lr: float = 0.0
    clip_grad: float = 1.0
    smoothing: float = 0.1
    drop_path: float = 0.0
    pos_embed_std: float = 0.02
    augment: bool = True
    scale: float = 0.08
    hflip: float = 0.5
    color_jitter: float = 0.4
    aa: str = ""
    reprob: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    aug_repeats: int = 1
    amp: bool = False
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    accumulate: int = 1
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    grad_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    log_interval: float = 60.0
    log_tensorboard: bool = False
    log_wandb: bool = False
    checkpoint_minutes: float = 10.0
    keep_states: bool = False
    seed: int = 0
    device: str = "auto"
    output: str = "runs/train"

    def __post_init__(self) -> None:
        if not self.dataset:
            images, masks = ("folder", "ade20k") if self.data_dir else ("digits", "digit_scenes")
            object.__setattr__(self, "dataset", masks if self.task == "segmentation" else images)
        for name, lowest in _LOWEST.items():
            if getattr(self, name) < lowest:
                raise UserError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        for name in _SHARES:
            if getattr(self, name) > 1:
                raise UserError(f"{name} must be at most 1, got {getattr(self, name)}")
        for name in ("img_size", "short_side"):
            if (pixels := getattr(self, name)) is not None and not 1 <= pixels <= MOST_PIXELS:
                raise UserError(f"{name} must be between 1 and {MOST_PIXELS} pixels, got {pixels}")
        if self.workers > MOST_WORKERS:
            raise UserError(f"workers must be at most {MOST_WORKERS}, got {self.workers}")
        if self.cache_features:
            self._check_cache()
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs must be less than the {self.epochs} epochs, got {self.warmup_epochs}")

    def _check_cache(self) -> None:
        if self.freeze != "trunk" or self.task != "classification":
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
    def pretrained_start(self) -> bool:
        """Whether the weights are somebody's, and not drawn at random."""
        return self.pretrained or self.start is not None

    @property
    def start(self) -> Path | None:
        """The model folder or the file of weights that the run starts from; None for a model of timm's own."""
        local = self.model.removeprefix("local-dir:")
        start = self.initial_checkpoint or (local if local != self.model else None)
        return None if start is None else Path(start)


# Shares lie between 0 and 1, counts begin at 1.
_SHARES = (
    *("val_share", "max_broken", "layer_decay", "smoothing", "drop_path", "scale", "hflip", "reprob"),
    "model_ema_decay",
)
_COUNTS = ("num_experts", "top_k", "granularity", "feature_views", "epochs", "batch_size", "accumulate", "aug_repeats")
_NOT_NEGATIVE = (
    *("last", "expert_rank", "balance_rate", "balance_weight", "importance_weight", "z_weight", "lr", "expert_lr"),
    *("router_lr", "weight_decay", "warmup_epochs", "min_lr", "clip_grad", "workers", "pos_embed_std", "color_jitter"),
    *("mixup", "cutmix", "seed", "checkpoint_minutes", "log_interval"),
)
_LOWEST = {**dict.fromkeys(_COUNTS, 1), **dict.fromkeys((*_SHARES, *_NOT_NEGATIVE), 0)}

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
    return make_recipe(read_yaml(Path(path)))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, the inverse of `load_recipe`."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False)
