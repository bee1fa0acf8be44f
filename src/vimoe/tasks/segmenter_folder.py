"""Folders of segmentation models: the backbone's model folder, `decoder.safetensors`, and what the masks mean.

The backbone alone is an ordinary model folder, which `vimoe.load` reads. The entry `segmentation` of its `config.json`
describes the decoder and holds its check sum, so that a decoder is never used on another run's backbone.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from vimoe.errors import UserError, first_line
from vimoe.files import write_bytes
from vimoe.tasks.decoders import MultiLevelDecoder
from vimoe.tasks.segmenter import Segmenter, build_segmenter
from vimoe.vit import checkpoint
from vimoe.vit.model_config import CONFIG, model_folder, read_config

DECODER, KEY = "decoder.safetensors", "segmentation"


class SegmentationEntry(NamedTuple):
    """What a segmentation model's `config.json` says of the decoder and of the masks."""

    decoder: Any  # `linear` or `upernet`
    blocks: tuple[int, ...]  # numbers of the blocks that the decoder sees
    dim: int  # channels inside the `upernet` decoder; 0 under `linear`
    class_names: tuple[str, ...]
    reduce_zero_label: bool  # whether masks in files say 0 for unlabelled and 1 to K for the classes
    # Pixels that an image's shorter side is brought to before the model sees it; None for its own.
    short_side: int | None
    sha256: str  # of the decoder's file


def save_segmenter(
    model: nn.Module,
    folder: str | Path,
    class_names: Sequence[str],
    reduce_zero_label: bool = False,
    short_side: int | None = None,
) -> None:
    """Write a folder that `load_segmenter` reads back to the bit; `config.json` comes last.

    Args:
        model: A `Segmenter`, dense, upcycled or pruned.
        folder: Where to write; made if it does not exist, other files in it stay.
        reduce_zero_label: See `SegmentationEntry`.
        short_side: See `SegmentationEntry`.

    Raises UserError if it is no segmentation model, the names are not as many as its classes, or the folder cannot be
    written.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(model, Segmenter):
        raise UserError(f"{type(model).__name__} is no segmentation model: make one with build_segmenter")
    if len(class_names) != model.num_classes:
        raise UserError(f"there are {len(class_names)} class names for the model's {model.num_classes} classes")
    decoder = model.decoder
    weights = save({name: value.contiguous() for name, value in decoder.state_dict().items()})
    dim = decoder.dim if isinstance(decoder, MultiLevelDecoder) else 0
    entry = SegmentationEntry(
        decoder="upernet" if dim else "linear",
        blocks=model.blocks,
        dim=dim,
        class_names=tuple(class_names),
        reduce_zero_label=reduce_zero_label,
        short_side=short_side,
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    write_bytes(Path(folder) / DECODER, weights)
    checkpoint.save(model.backbone, folder, extra={KEY: entry._asdict()})


def load_segmenter(folder: str | Path, device: str | torch.device = "cpu", **model_args: Any) -> Segmenter:
    """Read a segmentation model's folder; in eval mode. `model_args` are those of `vimoe.load`.

    Raises UserError if the folder is missing, foreign or damaged, holds a classifier, or its parts do not fit each
    other.
    """
    folder = model_folder(folder)
    entry = read_segmentation(folder)
    backbone = checkpoint.load(folder, device, **model_args)
    try:
        model = build_segmenter(
            backbone, entry.decoder, len(entry.class_names), blocks=entry.blocks, dim=max(1, entry.dim)
        )
    except UserError as error:
        raise UserError(f"{folder / CONFIG} does not describe a segmentation model: {error}") from error
    _load_weights(model.decoder, folder / DECODER, entry.sha256)
    return model.to(device).eval()


def holds_segmenter(folder: Path) -> bool:
    """Whether this model folder is a segmentation model's. Raises UserError if it is no model folder."""
    return KEY in read_config(folder)


def read_segmentation(folder: Path) -> SegmentationEntry:
    """A model folder's entry `segmentation`. Raises UserError if the folder or the entry is none."""
    entries = read_config(folder).get(KEY)
    if entries is None:
        raise UserError(f"{folder} holds no segmentation model: its {CONFIG} has no entry {KEY!r}")
    try:
        entry = SegmentationEntry(**entries)
        entry = entry._replace(blocks=tuple(entry.blocks), class_names=tuple(entry.class_names))
    except TypeError as error:
        raise UserError(f"{folder / CONFIG} does not describe a segmentation model: {first_line(error)}") from error
    whole = [*entry.blocks, entry.dim, 0 if entry.short_side is None else entry.short_side]
    if not all(type(n) is int and n >= 0 for n in whole) or not all(isinstance(n, str) for n in entry.class_names):
        raise UserError(f"{folder / CONFIG} does not describe a segmentation model: {entries!r}")
    return entry


def _load_weights(decoder: nn.Module, path: Path, sha256: str) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the decoder {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path} is damaged, or not the decoder that {CONFIG} beside it was written with")
    try:
        state = load(data)
        for name, tensor in decoder.state_dict(keep_vars=True).items():
            tensor.data = tensor.data.to(state[name].dtype)
        decoder.load_state_dict(state)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} does not fit {CONFIG}: {first_line(error)}") from error
