"""What a run is about to do, in words and as a sheet of its first images."""

import io
from pathlib import Path

from torch import Tensor

from vimoe.data.contact_sheet import contact_sheet, to_pixels
from vimoe.data.epoch_order import generator
from vimoe.data.images import class_counts, is_uneven
from vimoe.data.label_table import SEPARATOR
from vimoe.data.loaders import training_batches
from vimoe.data.splits import Splits
from vimoe.files import write_bytes
from vimoe.tasks.palette import cover
from vimoe.training.recipe import Recipe
from vimoe.training.trainer import Trainer
from vimoe.vit.blocks import moe_layers
from vimoe.vit.cost import cost, giga_macs, millions
from vimoe.vit.plan import blocks

# Images of the first batch that are shown.
_SHOWN = 32


def run_summary(trainer: Trainer, splits: Splits) -> str:
    """Data, model, cost, steps and place of a run, a line each."""
    recipe = trainer.recipe
    height, width = splits.form.input_size[1:]
    found, layers = cost(trainer.unsharded, (height, width)), moe_layers(trainer.unsharded)
    steps, done = trainer.steps * recipe.epochs, trainer.position.epoch * trainer.steps
    start = str(recipe.start or f"{recipe.model} with {'timm' if recipe.pretrained else 'random'} weights")
    if recipe.data_dir and not recipe.pretrained_start:
        start += "; --pretrained learns far more from few images"
    kind = "dense"
    if layers:
        layer = next(iter(layers.values()))
        kind = f"MoE in {blocks(layers)}, {layer.experts.num_experts} experts, {layer.routing} routing"
    batch = f"{recipe.batch_size}{f' x {recipe.accumulate}' if recipe.accumulate > 1 else ''}"
    lines = {
        "data": data_words(splits),
        "size": f"{width} x {height} pixels",
        "start": start,
        "model": f"{kind}; {millions(found.activated_params)} parameters activated, {millions(found.stored_params)} "
        f"stored, {giga_macs(found.macs)} an image",
        "training": f"{recipe.epochs} epochs of {trainer.steps} steps, batches of {batch}, {recipe.opt}, lr "
        f"{recipe.lr:g}: {steps} steps{f', {done} of them done' if done else ''}",
        "device": f"{trainer.device}, {recipe.amp_dtype if recipe.amp else 'float32'}, {recipe.workers} workers",
        "output": recipe.output,
    }
    notes = [f"note: {note}" for note in splits.notes]
    return "\n".join([*(f"{name:10}{words}" for name, words in lines.items()), *notes])


def data_words(splits: Splits) -> str:
    """`3068 train, 341 val, 372 test images of 10 classes, 112 (skirt) to 795 (t-shirt) of a class: uneven`."""
    parts = [("train", splits.train), ("val", splits.val)]
    parts += [] if splits.test is splits.val else [("test", splits.test)]
    words = (
        f"{', '.join(f'{len(images)} {name}' for name, images in parts)} images of {len(splits.class_names)} classes"
    )
    counts = class_counts(splits.train, len(splits.class_names))
    if counts is None:
        return words
    few, many = int(counts.argmin()), int(counts.argmax())
    names = splits.class_names
    if counts[few] == counts[many]:
        return f"{words}, {counts[few]} of each class in training"
    words += f", {counts[few]} ({names[few]}) to {counts[many]} ({names[many]}) of a class in training"
    if splits.train.label_sets:
        return f"{words}, {int(counts.sum()) / len(splits.train):.1f} labels an image"
    if is_uneven(counts):
        words += f": {'very ' if is_uneven(counts, 10) else ''}uneven, look at the mean of the classes"
    return words


def write_first_batch(splits: Splits, recipe: Recipe, path: Path, weights: Tensor | None = None) -> None:
    """Write the first training images as the model sees them, with labels, or half covered by their masks.

    `weights` are those of the sampler, if there is one. Mixup and CutMix come later.
    """
    first = training_batches(
        splits.train, recipe.batch_size, recipe.seed, 0, repeats=recipe.aug_repeats, weights=weights
    )
    images, targets = next(first)
    if splits.augment and recipe.augment:
        images = splits.augment(images, generator("augment", recipe.seed, 0))
    form = splits.form
    tiles = [to_pixels(image, form) for image in images[:_SHOWN]]
    names, captions = splits.class_names, [""] * len(tiles)
    if targets.ndim == 3:
        tiles = [cover(tile, mask.numpy(), len(splits.class_names)) for tile, mask in zip(tiles, targets, strict=False)]
    elif targets.ndim == 2:
        captions = [SEPARATOR.join(names[label] for label in row.nonzero()[:, 0]) for row in targets[:_SHOWN]]
    else:
        captions = [names[label] for label in targets[:_SHOWN].tolist()]
    buffer = io.BytesIO()
    contact_sheet(tiles, captions).save(buffer, "JPEG", quality=90)
    write_bytes(path, buffer.getvalue())
