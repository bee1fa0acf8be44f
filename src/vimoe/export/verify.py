"""Does an exported file answer as the model that it was made from, with every expert?"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vimoe.errors import UserError, first_line
from vimoe.export.graph_model import GraphModel
from vimoe.export.probe_images import noise_images, probe_images
from vimoe.export.write_graph import Exported, require_onnx
from vimoe.vit.blocks import moe_layers

# Largest difference of the logits to eager's over the size of the largest logit.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
# Choices between experts whose probabilities are this close may turn with the order of additions.
TIE = {"fp32": 1e-5, "fp16": 1e-2}
Run = Callable[[Tensor], list[np.ndarray[Any, Any]]]


class Verification(NamedTuple):
    """What a comparison with the eager model found.

    Attributes:
        difference: Largest difference of a logit over the largest logit of the eager model in the same precision;
            infinite where one is no finite number.
        tolerance: What is allowed.
        other_choices: Choices of experts that differ, ties left out.
        experts: Experts of all MoE layers together.
        unreached: By block number, experts that the file chose for no image, because none could be made to reach them.
        missing: Names of expert weights that the file does not hold.
    """

    images: int
    difference: float
    tolerance: float
    other_choices: int
    experts: int
    unreached: dict[int, list[int]]
    missing: list[str]

    @property
    def agrees(self) -> bool:
        """Whether the file may be used in the model's place."""
        return self.difference <= self.tolerance and not self.other_choices and not self.missing


def verify(exported: Exported, batch_sizes: tuple[int, ...] = (1, 7)) -> Verification:
    """Run the file and the eager model on images that reach every expert of every layer.

    Each of the batch sizes is tried on all images; a file made for one image is tried with one.

    Raises UserError if ONNX is not installed, or the file does not run.
    """
    model = exported.model
    layers = moe_layers(model)
    images = _images(model, exported.image_shape)
    run, any_batch = open_graph(exported.path)
    idle = {block: set(range(layer.experts.num_experts)) for block, layer in layers.items()}
    difference, others = 0.0, 0
    for size in batch_sizes if any_batch else (1,):
        for batch in images.split(size):
            if batch.shape[0] != size:
                continue
            with torch.no_grad():
                want = model(batch)
            try:
                got = run(batch)
            except Exception as error:  # onnxruntime raises its own
                raise UserError(f"{exported.path} does not run: {first_line(error)}") from error
            difference = max(difference, _difference(got[0], want[0].numpy()))
            if layers:
                others += int((_turned(model, got[1], want[1].numpy())).sum())
                for i, experts in enumerate(idle.values()):
                    experts -= set(got[1][:, i].flatten().tolist())
    return Verification(
        images=len(images),
        difference=difference,
        tolerance=TOLERANCE[exported.facts.precision],
        other_choices=others,
        experts=sum(layer.experts.num_experts for layer in layers.values()),
        unreached={block: sorted(experts) for block, experts in idle.items() if experts},
        missing=_missing_weights(model, exported.path),
    )


def _difference(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """Largest difference over the largest of the wanted numbers; infinite where one is none, on either side."""
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return math.inf
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-6))


def open_graph(path: Path, threads: int = 0) -> tuple[Run, bool]:
    """A function that runs an exported file on the CPU, and whether it takes any number of images.

    onnxruntime takes as many `threads` as there are cores where 0 are given.
    Raises UserError if ONNX is not installed, or the file cannot be read.
    """
    try:
        if path.suffix == ".onnx":
            require_onnx()
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            any_batch = not isinstance(session.get_inputs()[0].shape[0], int)
            return lambda images: session.run(None, {"images": images.numpy()}), any_batch
        program = torch.export.load(path)
        module = program.module()
        fixed = isinstance(program.example_inputs[0][0].shape[0], int) and not program.range_constraints
        return lambda images: [output.detach().numpy() for output in module(images)], not fixed
    except UserError:
        raise
    except Exception as error:  # both raise what they like on a foreign file
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def _images(model: GraphModel, image_shape: tuple[int, int, int]) -> Tensor:
    return probe_images(model, image_shape) if moe_layers(model) else noise_images(image_shape, 14)


def _turned(model: GraphModel, got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`[B, L, (T,) k]` where another expert was chosen that was not as good as the eager model's."""
    tie = TIE["fp16" if model.dtype == torch.float16 else "fp32"]
    turned = got != want
    if not turned.any():
        return turned
    for i, layer in enumerate(moe_layers(model).values()):
        assert layer.last_selection is not None
        probs = layer.last_selection.probs.numpy()
        mine, theirs = want[:, i].reshape(len(probs), -1), got[:, i].reshape(len(probs), -1)
        gap = np.take_along_axis(probs, mine, 1) - np.take_along_axis(probs, theirs, 1)
        turned[:, i] &= (np.abs(gap) > tie).reshape(turned[:, i].shape)
    return turned


def _missing_weights(model: nn.Module, path: Path) -> list[str]:
    """Weights of single experts that none of the file's tensors holds, as they are or transposed."""
    held = {_fingerprint(part) for tensor in _tensors(path) for part in (tensor, *(tensor if tensor.ndim == 3 else ()))}
    missing = []
    for block, layer in moe_layers(model).items():
        for name, stacked in layer.experts.named_parameters():
            if stacked.ndim != 3 or _fingerprint(stacked.detach().numpy()) in held:
                continue
            missing += [
                f"blocks.{block} {name}[{e}]"
                for e, weight in enumerate(stacked.detach().numpy())
                if _fingerprint(weight) not in held
            ]
    return missing


def _fingerprint(array: np.ndarray[Any, Any]) -> bytes:
    """The same for a matrix and its transpose: its sorted values."""
    return np.sort(array, axis=None).tobytes()


def _tensors(path: Path) -> Iterator[np.ndarray[Any, Any]]:
    if path.suffix == ".onnx":
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(path)).graph
        for tensor in graph.initializer:
            yield numpy_helper.to_array(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    yield numpy_helper.to_array(attribute.t)
        return
    for tensor in torch.export.load(path).state_dict.values():
        yield tensor.detach().numpy()
