"""Model folders to ONNX and `torch.export` files, written whole or not at all."""

import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vimoe.errors import UserError, first_line
from vimoe.export.facts import Facts, read_facts
from vimoe.export.graph_model import GraphModel, Precision
from vimoe.tasks.model import load_model

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
# Protocol buffers, which ONNX files are, end at 2 GiB: larger weights lie in a second file.
LARGEST_FILE = 2**31 - 2**24
OPSET = 20


class Exported(NamedTuple):
    """An exported file, what it says of itself, and the eager model that it was made from, for images `[C, H, W]`."""

    path: Path
    facts: Facts
    model: GraphModel
    image_shape: tuple[int, int, int]


def export_model(
    folder: Path, path: Path, kind: str = "onnx", precision: Precision = "fp32", dynamic_batch: bool = True
) -> Exported:
    """Export the model of a folder, as `onnx` or `torch`; for `precision` see `GraphModel`.

    With `dynamic_batch` the graph takes any number of images, else one at a time.

    Raises UserError if the folder cannot be read, the model cannot be exported, ONNX is not installed, or the file
    cannot be written.
    """
    if kind not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if kind == "onnx":
        require_onnx()
    return export_module(load_model(folder), read_facts(folder, (), precision), path, kind, dynamic_batch)


def export_module(
    module: nn.Module, facts: Facts, path: Path, kind: str = "onnx", dynamic_batch: bool = True
) -> Exported:
    """Export a classifier or `Segmenter` in memory, which is changed by it, with the `facts` of its folder."""
    size = (facts.image["size"][0], facts.image["size"][1])
    model = GraphModel(module, size, facts.precision)
    facts = facts._replace(moe_blocks=list(model.moe_blocks))
    shape = (facts.image["channels"], *size)
    traced = partial(trace, model, shape, dynamic_batch)
    save = (
        partial(_save_onnx, *_to_onnx(model, traced, facts))
        if kind == "onnx"
        else partial(_save_torch, traced(), facts)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-") as scratch:
            save(Path(scratch) / path.name)
            for file in sorted(Path(scratch).iterdir(), key=lambda file: file.name == path.name):  # the graph last
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return Exported(path, facts, model, shape)


def trace(
    model: GraphModel, image_shape: tuple[int, int, int], dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """The graph of a model. Raises UserError if torch cannot trace it."""
    images = torch.zeros(2 if dynamic_batch else 1, *image_shape)
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=2**16)}} if dynamic_batch else None
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises whatever the model's code does under it
        raise UserError(f"torch.export cannot trace this model: {first_line(error)}") from error


def has_onnx() -> bool:
    """Whether what writes and runs ONNX files is there."""
    try:
        require_onnx()
    except UserError:
        return False
    return True


def require_onnx() -> None:
    """Make sure that what writes and runs ONNX files is there. Raises UserError if it is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs packages that are not installed ({error.name}): pip install 'vimoe[onnx]'"
        ) from error


def _to_onnx(
    model: GraphModel, traced: Callable[[], torch.export.ExportedProgram], facts: Facts
) -> tuple[torch.onnx.ONNXProgram, int]:
    """The ONNX graph, and how many bytes its weights take.

    torch.onnx does not take fused attention with a bias (BEiT, SAM): attention is then taken apart. Not in fp16, where
    onnxruntime's logits of attention in parts are not the model's.
    """
    program = traced()
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    try:
        return _converted(program, facts), size
    except UserError:
        fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
        if facts.precision != "fp32" or not fused:
            raise
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    return _converted(traced(), facts), size


def _converted(program: torch.export.ExportedProgram, facts: Facts) -> torch.onnx.ONNXProgram:
    outputs = ["logits", *(["expert_ids"] if facts.moe_blocks else [])]
    try:
        with _quiet():
            onnx_program: Any = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=outputs, verbose=False
            )
    except Exception as error:  # the exporter raises whatever its passes do
        cause = error
        while isinstance(cause.__cause__, Exception):  # what stands around the first cause is advice to developers
            cause = cause.__cause__
        raise UserError(f"torch.onnx cannot export this model: {first_line(cause)}") from error
    onnx_program.model.metadata_props["vimoe"] = json.dumps({**facts._asdict(), "opset": OPSET})
    return onnx_program


def _save_onnx(onnx_program: torch.onnx.ONNXProgram, size: int, path: Path) -> None:
    onnx_program.save(str(path), external_data=size > LARGEST_FILE)


def _save_torch(program: torch.export.ExportedProgram, facts: Facts, path: Path) -> None:
    buffer = io.BytesIO()  # torch's own writer ends the process when the disk is full
    with _quiet():
        torch.export.save(program, buffer, extra_files={"vimoe.json": json.dumps(facts._asdict())})
    path.write_bytes(buffer.getbuffer())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' own notes are for their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
