"""An image, and the experts that a ViMoE chooses for it: by layer, by patch, with the training images nearest to it.

    python examples/explorer.py runs/mine IMAGES

runs/mine is a classifier's run or model folder, IMAGES a folder of images that it was trained on. Needs
`pip install 'vimoe[app]'`. The page is served on this machine alone.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import normalize

import vimoe
from vimoe.cli.arguments import at_least
from vimoe.data.contact_sheet import to_pixels
from vimoe.data.decode import read_image
from vimoe.data.images import ImageFiles, labelled
from vimoe.data.loaders import batches
from vimoe.data.transforms import evaluation_transform
from vimoe.tasks.label_inference import find_images
from vimoe.tasks.model import is_multilabel, model_classes, model_form
from vimoe.tasks.palette import expert_colours
from vimoe.tasks.segmenter_folder import holds_segmenter
from vimoe.vit.blocks import moe_layers
from vimoe.vit.model_config import model_folder


class Seen(NamedTuple):
    """What the model makes of an image."""

    labels: dict[str, float]  # probabilities by name
    experts: list[tuple[int, str, float]]  # block, experts with their share of the choices, gate of the first one
    maps: list[tuple[NDArray[np.uint8], str]]  # under token routing: patches in their experts' colours, and a title
    nearest: list[tuple[Path, float]]  # training images with the cosine of their features to the image's


class Explorer:
    """A model, and the features of the images that it was trained on.

    Args:
        folder: A classifier's run or model folder.
        images: Files of training images; those that cannot be read are left out.

    Raises UserError if there is no such model, it does not classify, or it has no experts that are chosen.
    """

    def __init__(self, folder: Path, images: Sequence[Path], batch_size: int = 32) -> None:
        folder = model_folder(folder)
        if holds_segmenter(folder):
            raise vimoe.UserError(f"the model in {folder} segments: `vimoe predict` shows its masks")
        self.model: Any = vimoe.load(folder)
        with vimoe.record_routing(self.model):
            pass  # refuses a model without choices before all images are read
        self.several = is_multilabel(folder)
        self.form, self.names = model_form(folder), model_classes(folder)
        self.transform = evaluation_transform(self.form)
        files = ImageFiles([(path, n) for n, path in enumerate(images)], partial(labelled, read_image), self.transform)
        found, features = list[Path](), list[Tensor]()
        for seen, places in batches(files, batch_size, on_broken=print):
            found += [images[place] for place in places.tolist()]
            features.append(self._features(seen))
        self.paths, self.features = found, torch.cat(features) if features else torch.empty(0, 0)

    @torch.inference_mode()
    def _features(self, images: Tensor) -> Tensor:
        """`[B, D]` of length 1: what the head sees."""
        pooled: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return normalize(pooled, dim=-1)

    @torch.inference_mode()
    def look(self, image: Image.Image, nearest: int = 6) -> Seen:
        """Classify an image, and say which experts it reached and which training images are like it."""
        seen, _ = self.transform(image.convert("RGB"), 0)
        with vimoe.record_routing(self.model) as record:
            logits = self.model(seen[None])[0]
        probs, order = (logits.sigmoid() if self.several else logits.softmax(-1)).topk(min(5, len(logits)))
        labels = {self.names[n] if self.names else str(n): p for n, p in zip(order.tolist(), probs.tolist())}
        experts, maps = [], []
        for block, layer in moe_layers(self.model).items():
            ids, gates = record.expert_ids[block], record.gates[block]
            counts = torch.bincount(ids.flatten(), minlength=layer.experts.num_experts)[: layer.experts.num_experts]
            shares = counts / counts.sum().clamp(min=1)
            busy = [e for e in shares.argsort(descending=True).tolist() if shares[e]]
            experts.append((block, ", ".join(f"{e} ({shares[e]:.0%})" for e in busy), gates[:, 0].mean().item()))
            if layer.routing == "token":
                first = ids[layer.num_prefix_tokens :, 0]
                maps.append((self._map(seen, first, layer.experts.num_experts), f"block {block}"))
        return Seen(labels, experts, maps, self._nearest(seen, nearest))

    def _map(self, image: Tensor, ids: Tensor, num_experts: int) -> NDArray[np.uint8]:
        """The image half covered by the colours of its patches' first experts; grey where no expert served a patch."""
        grey = np.full((1, 3), 128, dtype=np.uint8)
        colours = np.concatenate([expert_colours(num_experts), grey])[ids.numpy()]
        tiles = colours.reshape(*self.model.patch_embed.grid_size, 3)
        pixels = to_pixels(image, self.form)
        cover = np.asarray(Image.fromarray(tiles).resize(pixels.shape[1::-1], Image.Resampling.NEAREST))
        return pixels // 2 + cover // 2

    def _nearest(self, image: Tensor, number: int) -> list[tuple[Path, float]]:
        if not len(self.paths):
            return []
        cosines, places = (self.features @ self._features(image[None])[0]).topk(min(number, len(self.paths)))
        return [(self.paths[place], cosine) for place, cosine in zip(places.tolist(), cosines.tolist())]


def legend(num_experts: int, side: int = 40) -> NDArray[np.uint8]:
    """Each expert's number on its colour, eight in a row."""
    columns, rows = min(8, num_experts), -(-num_experts // 8)
    image = Image.new("RGB", (columns * side, rows * side), "white")
    draw = ImageDraw.Draw(image)
    for e, colour in enumerate(expert_colours(num_experts).tolist()):
        x, y = e % 8 * side, e // 8 * side
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=tuple(colour))
        ink = "black" if sum(colour) > 384 else "white"
        draw.text((x + side / 2, y + side / 2), str(e), ink, ImageFont.load_default(side / 2), anchor="mm")
    return np.asarray(image)


def enlarged(pixels: NDArray[np.uint8], side: int = 224) -> NDArray[np.uint8]:
    """Small images with visible pixels, at least `side` high."""
    times = max(1, -(-side // len(pixels)))
    return pixels.repeat(times, 0).repeat(times, 1)


def make_app(explorer: Explorer) -> Any:
    """The page, as Gradio's `Interface`."""
    import gradio

    by_patch = [n.experts.num_experts for n in moe_layers(explorer.model).values() if n.routing == "token"]

    def show(image: Image.Image | None) -> tuple[Any, ...]:
        if image is None:
            return {}, [], [], []
        seen = explorer.look(image)
        maps = [(enlarged(pixels), title) for pixels, title in seen.maps]
        near = [(str(path), f"{path.parent.name}, {cosine:.3f}") for path, cosine in seen.nearest]
        rows = [[block, experts, round(gate, 3)] for block, experts, gate in seen.experts]
        return seen.labels, rows, [*maps, *([(legend(max(by_patch)), "experts")] if maps else [])], near

    return gradio.Interface(
        show,
        gradio.Image(type="pil", label="image", height=320),
        [
            gradio.Label(label="the model's answer"),
            gradio.Dataframe(headers=["block", "experts (share of choices)", "mean gate"], label="experts by layer"),
            gradio.Gallery(
                label="experts by patch",
                visible=bool(by_patch),
                columns=3,
                height="auto",
                object_fit="contain",
                format="png",
            ),
            gradio.Gallery(label="nearest training images", columns=3, height="auto", object_fit="contain"),
        ],
        title="Which experts see this image?",
        flagging_mode="never",
    )


def main() -> None:
    """Read the arguments, and serve the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", help="a folder, a file, or a glob")
    parser.add_argument("--most", type=at_least(1), default=2000, help="training images whose features are computed")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    paths = find_images([args.images])
    step = -(-len(paths) // args.most)
    explorer = Explorer(args.model, paths[::step])
    make_app(explorer).launch(server_port=args.port, allowed_paths=sorted({str(path.parent) for path in paths}))


if __name__ == "__main__":
    try:
        main()
    except vimoe.UserError as error:
        raise SystemExit(f"explorer: {error}") from error
