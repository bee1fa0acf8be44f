"""A small folder of images, one colour a class."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue sky": (40, 60, 220), "grass": (40, 200, 60), "<script>": (220, 60, 40)}


def write_folder(root: Path, splits: dict[str, int], size: int = 20) -> Path:
    """Write so many images of every class into each split ('' for no split)."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-30, 30, (size, size + i % 5, 3))
                image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(image).save(folder / f"{i:03}.jpg")
    return root
