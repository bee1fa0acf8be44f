"""A finished model of any task, from its folder, and what the folder says of images and classes."""

from pathlib import Path

from torch import nn

from vimoe.data.transforms import ImageForm, image_form
from vimoe.tasks.segmenter_folder import KEY, holds_segmenter, load_segmenter
from vimoe.vit.checkpoint import load
from vimoe.vit.model_config import read_config


def load_model(folder: Path, device: str = "cpu") -> nn.Module:
    """A classifier or a `Segmenter`, as the folder says, in eval mode; raises as `vimoe.load` and `load_segmenter`."""
    return load_segmenter(folder, device) if holds_segmenter(folder) else load(folder, device)


def model_form(folder: Path) -> ImageForm:
    """How the model of a folder wants its images. Raises UserError if it is no model folder."""
    return image_form(read_config(folder)["pretrained_cfg"])


def is_multilabel(folder: Path) -> bool:
    """Whether a model of a folder gives an image any number of labels. Raises UserError if it is no model folder."""
    return read_config(folder).get("task") == "multilabel"


def model_classes(folder: Path) -> tuple[str, ...] | None:
    """The names of the classes by label, None where a model folder has none. Raises UserError if it is none."""
    config = read_config(folder)
    names = config.get("label_names") or config.get(KEY, {}).get("class_names")
    return tuple(names) if names else None
