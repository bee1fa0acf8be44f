"""A finished model of any task, from its folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vimoe.tasks.segmenter_folder import holds_segmenter, load_segmenter
from vimoe.vit.checkpoint import load


def load_model(folder: Path, device: str = "cpu") -> nn.Module:
    """A classifier or a `Segmenter`, as the folder says; in eval mode.

    Raises:
        UserError: See `vimoe.load` and `load_segmenter`.
    """
    return load_segmenter(folder, device) if holds_segmenter(folder) else load(folder, device)
