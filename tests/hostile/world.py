"""What the hostile cases start from: a small finished run, a folder of images, masks, tars; made once."""

import gc
import os
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

import vimoe as package
from tests.data.archives import image_bytes, write_tar
from tests.data.image_files import write_folder
from tests.data.scenes_on_disk import write_ade20k
from vimoe.cli import main

MODEL = '{"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}'
TRAIN = [
    "train",
    "--defaults",
    "scratch",
    "--model-args",
    MODEL,
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--workers",
    "0",
]
MOE = ["--last", "1", "--num-experts", "2"]


class World:
    """Paths of what the cases copy and spoil.

    Attributes:
        images: Images in `train`, `val` and `test`, a folder a class.
        scenes: Images and masks in ADE20K's layout.
        tars: The same kind of images in tars.
        run: A finished and analysed run on `images`.
        started: A run that was begun and has a resume state only.
    """

    def __init__(self, root: Path) -> None:
        self.images = write_folder(root / "images", {"train": 6, "val": 4, "test": 3})
        self.scenes = write_ade20k(root / "scenes", {"training": 8, "validation": 4})
        self.tars = root / "tars"
        for split in ("train", "val"):
            write_tar(
                self.tars / f"{split}.tar",
                {f"{name}/{i}.png": image_bytes(40 * i + n) for n, name in enumerate("abc") for i in range(5)},
            )
        self.run, self.started = root / "run", root / "started"
        self.train = [*TRAIN, *MOE, "--img-size", "8", "--data-dir", str(self.images), "--max-broken", "0.5"]
        assert main([*self.train, "--output", str(self.run)]) == 0
        assert main(["analyze", str(self.run), "--workers", "0", "--device", "cpu"]) == 0
        assert main([*self.train, "--output", str(self.started), "--epochs", "2"]) == 0
        shutil.rmtree(self.started / "model")
        # Whatever is loaded and warm by now no case has to load again.
        for module in pkgutil.walk_packages(package.__path__, "vimoe."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
        gc.freeze()

    def copy(self, source: Path, target: Path) -> Path:
        """A copy to spoil; large files are linked, and must be replaced rather than written over."""
        return Path(shutil.copytree(source, target, copy_function=_link))


def _link(source: str, target: str) -> None:
    if os.path.getsize(source) > 2**16:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def dump(path: Path, content: Any) -> Path:
    """Write YAML."""
    path.write_text(yaml.safe_dump(content))
    return path
