"""A small folder in ADE20K's layout: two halves of an image, each of one class, under a line without a label."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("sky", "grass", "water", "sand")


def write_ade20k(
    root: Path, splits: dict[str, int], classes: tuple[str, ...] = CLASSES, size: tuple[int, int] = (20, 28)
) -> Path:
    """Write so many images of this height and width into each split; masks say 0 for unlabelled, 1 to K else.

    The red of a pixel is 40 times its class, so that image and mask can be held against each other.
    """
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{i}\t{name}\n" for i, name in enumerate(classes, 1)))
    for split, count in splits.items():
        images, masks = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(count):
            mask = np.full(size, 1 + i % len(classes), dtype=np.uint8)
            mask[:, size[1] // 2 :] = 1 + (i + 1) % len(classes)
            mask[0] = 0
            image = np.stack([40 * (mask % 7), np.full_like(mask, 90), np.full_like(mask, 30 + i)], -1)
            Image.fromarray(mask).save(masks / f"{i:03}.png")
            Image.fromarray(image).save(images / f"{i:03}.jpg", quality=95, subsampling=0)
    return root
