"""The frozen trunk computed once: the tokens that it makes of every image, kept on disk or in memory.

    DIR/KEY.npy     tokens [views, images, T, D], read where they lie (memory-mapped); fp16, for a study's results fp32
    DIR/KEY.json    their labels, their check sum, and which images are broken; written last

KEY stands for all that the tokens depend on: the trunk's weights and where it is cut, the images and how they are
augmented, the number of views, the versions of torch and timm. Runs that agree in it share the files.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from vimoe.data.epoch_order import generator
from vimoe.data.images import ImageFiles, Images, InMemory
from vimoe.data.loaders import OnBroken, every_image
from vimoe.data.splits import Augment, Splits
from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.tasks.classification import evaluating
from vimoe.training.recipe import Recipe
from vimoe.vit.trunk import trunk_features, trunk_state

MEMORY = "memory"
Tokens = NDArray[np.float16] | NDArray[np.float32]
# Tokens, labels and broken images, batch by batch.
Made = Iterator[tuple[Tokens, list[int], dict[str, str]]]
# What decides how a training view looks and in what precision it is computed, apart from images and weights.
_PRECISION = ("amp", "amp_dtype")
_KEYS = ("augment", "scale", "hflip", "color_jitter", "aa", "reprob", "in_memory", *_PRECISION)
# By key, the features of this process's last runs; two are of one run.
_held: dict[str, "Features"] = {}


class Features(NamedTuple):
    """What the trunk made of a split."""

    tokens: Tokens  # `[views, images, T, D]`
    labels: list[list[int]]  # `[views, images]`; a broken training image has become the next one, with its label
    # What is wrong with images that could not be read: by number, and by any other key in training.
    broken: dict[str, str]


class FeatureViews(InMemory):
    """Tokens as images; each epoch shows the next view, and after the last one the first again."""

    def __init__(self, found: Features, broken: dict[int, str]) -> None:
        views = [(torch.from_numpy(t), torch.tensor(y)) for t, y in zip(found.tokens, found.labels, strict=True)]
        super().__init__(*views[0], broken=broken)
        self._views = [self, *(InMemory(*view) for view in views[1:])]

    def at_epoch(self, epoch: int) -> Images:
        return self._views[epoch % len(self._views)]


def cached_features(
    splits: Splits, model: nn.Module, cut: int, recipe: Recipe, device: str, on_broken: OnBroken
) -> Splits:
    """The same training and validation images as the trunk of the model sees them, computed unless they are there.

    Args:
        model: The whole model on `device`; blocks from number `cut` on are behind the trunk.
        recipe: Says where features are kept (`cache_features`) and how many views of a training image there are.
        on_broken: Called with a line on every training image that could not be read.

    Raises UserError if there is no room for them, or the trunk's tokens do not fit into fp16.
    """
    trunk = _Trunk(model, cut, recipe, device)
    augment = splits.augment if recipe.augment else None
    train = trunk.features(splits.train, splits, recipe.feature_views, augment)
    for line in train.broken.values():
        on_broken(line)
    return replace(splits, train=FeatureViews(train, {}), val=trunk.held_out(splits.val, splits), augment=None)


def held_out_features(
    splits: Splits, model: nn.Module, cut: int, recipe: Recipe, device: str
) -> Callable[[Images], Images]:
    """What gives the images of a split as the trunk sees them in fp32, whatever precision the training had.

    What comes behind the trunk answers to them as the whole model does. Arguments and errors are those of
    `cached_features`; `cache_features` must be a folder.
    """
    return partial(_Trunk(model, cut, recipe, device, exact=True).held_out, splits=splits)


class _Trunk:
    """The part of a model that is frozen, and where a recipe keeps what it makes of images.

    Tokens are the recipe's and kept in fp16, or `exact`: computed and kept in fp32.
    """

    def __init__(self, model: nn.Module, cut: int, recipe: Recipe, device: str, exact: bool = False) -> None:
        self.model, self.cut, self.recipe, self.device = model, cut, recipe, device
        self.exact, self.amp = exact, recipe.amp and not exact
        digest = hashlib.sha256()
        for name, tensor in sorted(trunk_state(model, cut).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.weights = digest.hexdigest()

    def held_out(self, images: Images, splits: Splits) -> FeatureViews:
        """Of one split, as evaluation sees it; images that could not be read stay broken."""
        found = self.features(images, splits)
        return FeatureViews(found, {int(number): line for number, line in found.broken.items()})

    def features(self, images: Images, splits: Splits, views: int = 0, augment: Augment | None = None) -> Features:
        """Of one split: so many views as in training, or, with 0, one as in evaluation."""
        keys = _KEYS if views else _PRECISION
        said = {"tokens": "fp32"} if self.exact else {key: getattr(self.recipe, key) for key in keys}
        of = [self.weights, self.cut, views, said, splits.form, torch.__version__, timm.__version__, _identity(images)]
        key = hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()[:24]
        with torch.no_grad():
            one = self._compute(torch.zeros(1, *splits.form.input_size, device=self.device))
        like = cast(Tokens, np.broadcast_to(one, (max(1, views), len(images), *one.shape[1:])))  # takes no memory
        made = self._batches(images, views, augment)
        if self.recipe.cache_features == MEMORY:
            if key not in _held:
                found = _gather(made, like)
                while len(_held) > 1:
                    _held.pop(next(iter(_held)))
                _held[key] = found
            return _held[key]
        return _on_disk(Path(self.recipe.cache_features), key, like, made)

    def _compute(self, images: Tensor) -> Tokens:
        kind, dtype = self.device.split(":")[0], getattr(torch, self.recipe.amp_dtype)
        with torch.autocast(kind, dtype, enabled=self.amp), evaluating(self.model):
            tokens = trunk_features(self.model, images.to(self.device), self.cut)
        tokens = (tokens.float() if self.exact else tokens.half()).cpu()
        if not tokens.isfinite().all():
            raise UserError("the trunk's tokens do not fit into fp16: leave cache_features out for this model")
        return tokens.numpy()

    def _batches(self, images: Images, views: int, augment: Augment | None) -> Made:
        """Tokens, labels and broken images, batch by batch and view by view, in the images' own order."""
        for view in range(max(1, views)):
            progress = tqdm(total=len(images), desc=f"features, view {view + 1}", unit="images", disable=None)
            first, lines = 0, list[str]()
            source = every_image(images, view if views else None, workers=self.recipe.workers, on_broken=lines.append)
            for pixels, labels, missing in source:
                if augment is not None:
                    pixels = augment(pixels, generator("feature view", view, first))
                tokens = self._compute(pixels)
                odd: Any = {f"view {view}: {line}": line for line in lines} if views else missing
                broken = {str(where): line for where, line in odd.items()}
                lines.clear()
                yield tokens, labels.tolist(), broken
                first += len(labels)
                progress.update(len(labels))
            progress.close()


def _identity(images: Images) -> Any:
    """What tells whether images are still the same: of files their names, sizes and times, of tensors their bytes."""
    digest = hashlib.sha256()
    if isinstance(images, ImageFiles):
        for where, label in images.samples:
            stat = os.stat(where) if isinstance(where, str | Path) else None
            digest.update(f"{where!r} {label!r} {stat and (stat.st_size, stat.st_mtime_ns)}\n".encode(errors="replace"))
    elif isinstance(images, InMemory):
        for tensor in (images.images, images.targets):
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    else:
        raise UserError(f"features of {type(images).__name__} cannot be kept: leave cache_features out")
    return len(images), digest.hexdigest()


def _gather(made: Made, like: Tokens) -> Features:
    tokens, labels, broken, place = np.empty(like.shape, like.dtype), list[int](), dict[str, str](), 0
    rows = tokens.reshape(-1, *like.shape[2:])
    _say_size(like, "memory")
    for batch, targets, odd in made:
        rows[place : place + len(batch)] = batch
        place += len(batch)
        labels += targets
        broken |= odd
    return Features(tokens, np.array(labels).reshape(like.shape[:2]).tolist(), broken)


def _on_disk(folder: Path, key: str, like: Tokens, made: Made) -> Features:
    """Features from their files, which are written first where they are missing or damaged."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock"):
            if (found := _read(folder, key, like)) is None:
                _say_size(like, str(folder))
                _write(folder, key, like, made)
                found = _read(folder, key, like)
    except OSError as error:
        raise UserError(f"cannot keep features in {folder}: {error.strerror or error}") from error
    if found is None:
        raise UserError(f"the features in {folder} do not read back as they were written")
    return found


def _write(folder: Path, key: str, like: Tokens, made: Made) -> None:
    wanted, free = like.nbytes, shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(f"features of {wanted / 1e9:.2f} GB do not fit into {folder}: {free / 1e9:.2f} GB are free")
    scratch, digest = folder / f".{key}.npy.writing", hashlib.sha256()
    labels, broken = list[int](), dict[str, str]()
    try:
        with scratch.open("wb") as file:
            descr = like.dtype.newbyteorder("<").str
            np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": like.shape})
            for batch, targets, odd in made:
                data = np.ascontiguousarray(batch, descr).tobytes()
                file.write(data)
                digest.update(data)
                labels += targets
                broken |= odd
        os.replace(scratch, folder / f"{key}.npy")
    finally:
        scratch.unlink(missing_ok=True)
    facts = {
        "sha256": digest.hexdigest(),
        "labels": np.array(labels).reshape(like.shape[:2]).tolist(),
        "broken": broken,
    }
    write_text(folder / f"{key}.json", json.dumps(facts))


def _read(folder: Path, key: str, like: Tokens) -> Features | None:
    """What was written, None where it is missing or damaged."""
    try:
        facts = json.loads((folder / f"{key}.json").read_text())
        tokens = np.load(folder / f"{key}.npy", mmap_mode="c", allow_pickle=False)
        whole = tokens.shape == like.shape and tokens.dtype == like.dtype
        if whole and hashlib.sha256(np.asarray(tokens).data).hexdigest() == facts["sha256"]:
            return Features(tokens, facts["labels"], facts["broken"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    print(f"vimoe: the features {key} in {folder} are damaged and are computed again", file=sys.stderr)
    return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process computes the same features; where nothing can be locked, several may."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            print(f"vimoe: {path.parent} cannot be locked: features may be computed twice", file=sys.stderr)
        yield


def _say_size(like: Tokens, where: str) -> None:
    views, images, tokens, width = like.shape
    print(
        f"features of {images:,} images in {views} views of {tokens} tokens of {width}: {like.nbytes / 1e9:.2f} GB in "
        f"{where}",
        file=sys.stderr,
    )
