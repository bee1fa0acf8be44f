"""`vimoe export`: a finished model as an ONNX or torch.export file, and whether the file agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimoe.cli.arguments import Parser
from vimoe.errors import UserError

if TYPE_CHECKING:
    from vimoe.export.verify import Verification
    from vimoe.export.write_graph import Exported


def run(arguments: Sequence[str]) -> None:
    """Write the file; with --verify, compare it with the model."""
    parser = Parser("export", "Image routing stays sparse; token routing computes every expert.")
    parser.value("model", "a run folder or a model folder", type=Path)
    parser.group("file")
    parser.flag("--format", "onnx, or torch for a .pt2 file", "onnx", choices=("onnx", "torch"))
    parser.flag("--output", "the file (default: model.onnx or model.pt2, in the model if it is a folder)", type=Path)
    parser.flag("--precision", "of weights and arithmetic", "fp32", choices=("fp32", "fp16"))
    parser.flag("--dynamic-batch", "take any number of images at once", True)
    parser.flag("--verify", "compare the file with the model, through every expert", False)
    args = parser.parse(arguments)
    from vimoe.export.verify import verify
    from vimoe.export.write_graph import FORMATS, export_model
    from vimoe.vit.model_config import model_folder

    folder = model_folder(args.model)
    path = args.output or (args.model if args.model.is_dir() else Path()) / f"model{FORMATS[args.format]}"
    if path.suffix != FORMATS[args.format]:
        raise UserError(f"--output of format {args.format} must end in {FORMATS[args.format]}, got {path.name}")
    exported = export_model(folder, path, args.format, args.precision, args.dynamic_batch)
    print(describe(exported))
    if args.verify:
        found = verify(exported)
        print(verdict(found))
        if not found.agrees:
            raise UserError(f"{path} does not agree with the model: do not use it")


def describe(exported: Exported) -> str:
    """What was written, and what its experts cost."""
    facts, megabytes = exported.facts, exported.path.stat().st_size / 1e6
    height, width = facts.image["size"]
    line = f"{exported.path}: {megabytes:.1f} MB, {facts.precision}, images of {height}x{width}"
    if facts.moe is None:
        return f"{line}; a plain ViT"
    layers, top_k, experts = len(facts.moe_blocks), facts.moe["top_k"], max(facts.moe["num_experts"])
    if facts.moe["routing"] == "image":
        return f"{line}\n{layers} MoE layers stay sparse: an image is multiplied with {top_k} of {experts} experts"
    return (
        f"{line}\n{layers} MoE layers with token routing compute all {experts} experts for every token, of which "
        f"{top_k} count: a graph of fixed shapes cannot skip the others"
    )


def verdict(found: Verification) -> str:
    """What the comparison found, a fact a line."""
    lines = [
        f"verified on {found.images} images: logits differ by at most {found.difference:.1e} of the largest one "
        f"({found.tolerance:.0e} is allowed)"
    ]
    if found.experts:
        lines.append(f"choices of other experts: {found.other_choices}; experts reached: {_reached(found)}")
        lines += [f"the file does not hold {name}" for name in found.missing[:3]]
    return "\n".join(lines)


def _reached(found: Verification) -> str:
    unreached = [f"block {block} expert {e}" for block, experts in found.unreached.items() for e in experts]
    count = f"{found.experts - len(unreached)} of {found.experts}"
    return f"{count} (no image was found for {', '.join(unreached)})" if unreached else count
