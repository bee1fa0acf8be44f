"""Other people's checkpoints: a file of weights in any form that timm's filters know, for an architecture by name.

PyTorch files are read with `weights_only=True`, JAX's `.npz` without pickles: nothing in a file is ever run.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import timm
from timm.models import load_state_dict
from torch import nn

from vimoe.errors import UserError, first_line
from vimoe.vit.blocks import find_backbone


def model_from_file(architecture: str, path: Path, num_classes: int, **model_args: Any) -> nn.Module:
    """A timm model with the weights of a checkpoint file, DINOv2's, CLIP's and JAX's own formats among them.

    Args:
        architecture: timm's name of the model; a tag after a dot is allowed.
        path: The file: `.safetensors`, `.npz`, or what `torch.save` wrote. Averaged weights win where it holds both.
        num_classes: Classes of the head; the file's own head is kept where it has as many, else it is new.
        model_args: More arguments for `timm.create_model`; position embeddings are resampled to its `img_size`.

    Raises UserError if the file is missing, damaged, not weights alone, or not of this architecture.
    """
    try:
        classes, depth, overlay = _jax(path) if path.suffix == ".npz" else _torch(path, architecture)
        # With the head that the file has, timm insists on every weight; the new head comes afterwards.
        overlay |= {"num_classes": classes, "label_offset": 0}
        model: nn.Module = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **model_args
        )
        blocks = len(find_backbone(model).blocks)
        if depth not in (None, blocks):
            raise UserError(f"it has {depth} blocks, and the model {blocks}")
        if classes != num_classes:
            model.reset_classifier(num_classes)  # type: ignore[operator]
    except Exception as error:  # what a foreign file makes timm raise knows no bounds
        raise UserError(f"{path} does not hold weights of {architecture}: {first_line(error)}") from error
    for key in ("state_dict", "file", "custom_load"):
        model.pretrained_cfg.pop(key, None)  # type: ignore[union-attr,operator]
    return model


# The number of classes of the file's head, its number of blocks where timm does not check it, and where timm finds it.
Source = tuple[int, int | None, dict[str, Any]]


def _torch(path: Path, architecture: str) -> Source:
    state = load_state_dict(str(path))
    if not state:  # timm would look for weights elsewhere
        raise UserError("it holds no weights")
    cfg = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    heads = cfg.classifier if cfg else "head"
    heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
    # The last two are CLIP's, as OpenAI and OpenCLIP name them.
    axes = {**{f"{head}.weight": 0 for head in heads}, "visual.proj": 1, "visual.head.proj.weight": 0}
    return (
        next((state[name].shape[axis] for name, axis in axes.items() if name in state), 0),
        None,
        {"state_dict": state},
    )


def _jax(path: Path) -> Source:
    with np.load(path, allow_pickle=False) as arrays:
        classes = next((len(arrays[name]) for name in arrays.files if name.endswith("head/bias")), 0)
        depth = len({found[0] for name in arrays.files if (found := re.search(r"encoderblock_\d+", name))})
    return classes, depth or None, {"file": str(path), "custom_load": True}
