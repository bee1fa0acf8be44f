"""What a user of an exported file has to know, embedded in it as JSON: images, classes, MoE layers, versions."""

from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from vimoe.data.transforms import image_form
from vimoe.export.graph_model import Precision
from vimoe.tasks.segmenter_folder import KEY as SEGMENTATION
from vimoe.vit.model_config import MOE_KEY, read_config


class Facts(NamedTuple):
    """What an exported file says of itself.

    Attributes:
        task: `classification`, `multilabel` (outputs are logits of each label by itself) or `segmentation`.
        architecture: timm's name of the ViT.
        image: `size` (height, width), `channels`, `mean`, `std` (of values 0 to 1), `interpolation`, `crop_pct`,
            `crop_mode`.
        class_names: By class; empty where the model does not know them.
        moe: The `MoEConfig`, None for a dense model.
        moe_blocks: Block numbers of the MoE layers, in the order of the output `expert_ids`.
        precision: `fp32` or `fp16`.
        versions: Of vimoe, torch and timm.
    """

    task: str
    architecture: str
    image: dict[str, Any]
    class_names: list[str]
    moe: dict[str, Any] | None
    moe_blocks: list[int]
    precision: Precision
    versions: dict[str, str]


def read_facts(folder: Path, moe_blocks: tuple[int, ...], precision: Precision) -> Facts:
    """The facts of a model folder. Raises UserError if it is no model folder."""
    config = read_config(folder)
    form = image_form(config["pretrained_cfg"])
    segmentation = config.get(SEGMENTATION, {})
    names = segmentation.get("class_names") or config.get("label_names") or []
    return Facts(
        task="segmentation" if segmentation else config.get("task", "classification"),
        architecture=config["architecture"],
        image={
            "size": list(form.input_size[1:]),
            "channels": form.input_size[0],
            "mean": list(form.mean),
            "std": list(form.std),
            "interpolation": form.interpolation,
            "crop_pct": form.crop_pct,
            "crop_mode": form.crop_mode,
        },
        class_names=[str(name) for name in names],
        moe=config.get(MOE_KEY),
        moe_blocks=list(moe_blocks),
        precision=precision,
        versions={name: version(name) for name in ("vimoe", "torch", "timm")},
    )
