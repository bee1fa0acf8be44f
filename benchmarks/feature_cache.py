"""What a cache of the frozen trunk's features saves: seconds of an epoch without and with it, and of the first pass.

Random JPEG images; ViT-Ti/16 at 112 px with random weights, the last 2 blocks as MoE layers of 8 experts.

    python benchmarks/feature_cache.py --images 512 --rounds 3
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vimoe.training.fit import train
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder


def write_images(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 8)):
        for number in range(images):
            path = root / split / f"class {number % 4}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (192, 192, 3), dtype=np.uint8)).save(path)


def second_epoch(run: RunFolder) -> float:
    first, second = (row["seconds"] for row in run.read_rows())
    return second - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain, cached, passes = list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "images", args.images)
        for number in range(args.rounds):
            settings = {"dataset": "folder", "data_dir": str(root / "images"), "img_size": 112, "last": 2, "epochs": 2}
            settings |= {"batch_size": 64, "freeze": "trunk", "augment": False, "workers": 0, "device": "cpu"}
            plain.append(second_epoch(train(Recipe(**settings, output=str(root / f"plain {number}")))))
            features = str(root / f"features {number}")
            start = time.perf_counter()
            run = train(Recipe(**settings, cache_features=features, output=str(root / f"cached {number}")))
            whole = time.perf_counter() - start
            cached.append(second_epoch(run))
            passes.append(whole - run.read_rows()[-1]["seconds"])
    ratios = [a / b for a, b in zip(plain, cached, strict=True)]
    print(f"epoch of {args.images} images: {statistics.median(plain):.2f} s, cached {statistics.median(cached):.2f} s")
    print(f"ratio of an epoch {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"first pass, with making the model: {statistics.median(passes):.2f} s")


if __name__ == "__main__":
    main()
