"""Settings by rule: of a fine-tuning from the number of images and the width, and the paper's. Imports no torch.

The rule of `finetune`, in the order in which one setting follows from another:

- `batch_size`: 64, and less where an epoch would have fewer than 16 steps, but 8 at least: few images need steps.
- `epochs`: as many as show 60,000 images, between 5 and 60. BiT's rule also counts steps rather than epochs, by the
  size of the data (Kolesnikov et al. 2020).
- `lr`: 6e-3 for 256 images a step and tokens of 192 channels; with the root of the number of images for others, as timm
  scales it for Adam (Malladi et al. 2022 say why), and inversely with the width (Yang et al. 2022). For a ViT-B and
  1,024 images that is 3e-3, where MAE takes 2e-3 and BEiT 4e-3.
- `layer_decay`: 0.75, as BEiT (Bao et al. 2021), MAE (He et al. 2021) and timm fine-tune a ViT: early blocks hold what
  is general.
- `warmup_epochs`: a tenth of the epochs. `smoothing` and `weight_decay` stay 0.1 and 0.05, as in DeiT.
- Augmentation by how often an image is seen: crops of a third of the image or more and little colour, since early
  blocks need not learn invariances anew; from 30 epochs on RandAugment too (Steiner et al. 2021: small data gains).
"""

import math
from collections.abc import Mapping
from typing import Any

# By second hand from the ViMoE paper: what it trains with.
PAPER = {"preset": "paper", "last": 2, "num_experts": 8, "lr": 1e-4, "weight_decay": 0.05, "balance_weight": 0.01}
KINDS = ("finetune", "scratch", "paper")

_SHOWN, _EPOCHS = 60_000, (5, 60)
_BATCHES, _STEPS = (8, 64), 16
_LR, _LR_BATCH, _LR_WIDTH = 6e-3, 256, 192
_OFTEN = 30


def finetune(images: int, width: int, given: Mapping[str, Any], masks: bool = False) -> dict[str, Any]:
    """Settings for so many training images and a model whose tokens have so many channels.

    They leave out those that are given, and follow from them. With `masks`, they are for segmentation.
    """
    largest = 2 ** int(math.log2(max(1, images // _STEPS)))
    batch = given.get("batch_size", min(_BATCHES[1], max(_BATCHES[0], largest)))
    epochs = given.get("epochs", min(_EPOCHS[1], max(_EPOCHS[0], round(_SHOWN / max(1, images)))))
    step = batch * given.get("accumulate", 1)
    rule: dict[str, Any] = {
        "batch_size": batch,
        "epochs": epochs,
        "lr": float(f"{_LR * _LR_WIDTH / width * math.sqrt(step / _LR_BATCH):.2g}"),
        "layer_decay": 0.75,
        "warmup_epochs": round(epochs / 10, 2),
        "color_jitter": 0.2,
    }
    if not masks:
        rule["scale"] = 0.35
        if epochs >= _OFTEN and not given.get("in_memory"):
            rule["aa"] = "rand-m7-mstd0.5-inc1"
    return {key: value for key, value in rule.items() if key not in given}
