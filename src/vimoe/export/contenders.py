"""A finished model beside what it competes with: dense, dense of equal activated size, pruned, exported."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.export.facts import Facts, read_facts
from vimoe.export.latency import Latency, take_turns
from vimoe.export.probe_images import noise_images
from vimoe.export.verify import open_graph
from vimoe.export.write_graph import export_module, has_onnx
from vimoe.tasks.model import load_model
from vimoe.vit.blocks import moe_layers
from vimoe.vit.model_config import model_folder
from vimoe.vit.plan import Plan
from vimoe.vit.pruning import prune
from vimoe.vit.recording import record_routing
from vimoe.vit.upcycle import get_config
from vimoe.vit.widen import activated_factor, widen

EXPORTED = ", onnxruntime"


class Touched(NamedTuple):
    """How many of the stored experts of all MoE layers a batch chooses, and the bytes of their weights."""

    experts: int
    stored: int
    bytes: int
    stored_bytes: int


class Measured(NamedTuple):
    """Latencies of every contender with `batch` images at once; names that end in `EXPORTED` ran in onnxruntime."""

    batch: int
    latencies: dict[str, Latency]
    touched: Touched | None


def measure_folder(
    folder: Path,
    batches: Sequence[int],
    device: str = "cpu",
    rounds: int = 20,
    exported: bool = True,
    note: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Measure the model of a folder and its competitors on noise, in interleaved rounds.

    A run's plan makes the pruned model. onnxruntime takes part where it is installed, on the CPU alone, with torch's
    number of threads. `note` is called with a line on each competitor that is left out. Raises UserError if the folder
    cannot be read, or the plan does not fit.
    """
    facts = read_facts(model_folder(folder), (), "fp32")
    plan = Plan.load(folder / "plan.json") if (folder / "plan.json").exists() else None
    models = competitors(load_model(model_folder(folder)), plan, note)
    with tempfile.TemporaryDirectory() as scratch:
        graphs = {}
        if exported and torch.device(device).type == "cpu":
            graphs = _exported(models, facts, Path(scratch), note)
        for model in models.values():
            model.to(device)
        return [_measure(models, graphs, _images(facts, batch), device, rounds) for batch in batches]


def competitors(
    model: nn.Module, plan: Plan | None = None, note: Callable[[str], None] = lambda _: None
) -> dict[str, nn.Module]:
    """Models of the same backbone by name: `dense`, `wide`, `ViMoE`, `pruned`; a dense model has none but itself.

    `wide` is the dense model with FFNs as large as the activated experts together (see `activated_factor`). Raises
    UserError if the plan does not fit.
    """
    config = get_config(model)
    if config is None:
        return {"dense": model}
    models = {}
    try:
        models["dense"] = prune(copy.deepcopy(model), {layer: [] for layer in config.layers})
        if (factor := activated_factor(models["dense"], model)) > 1:
            models["wide"] = widen(copy.deepcopy(models["dense"]), config.layers, factor).eval()
    except UserError as error:
        note(f"no dense model of equal {'activated size' if models else 'blocks'}: {error}")
    models["ViMoE"] = model
    if plan is not None:
        models["pruned"] = prune(copy.deepcopy(model), plan)
    return models


def touched(model: nn.Module, images: Tensor) -> Touched | None:
    """Which experts a batch reads; None for a dense model."""
    if not (layers := moe_layers(model)):
        return None
    stored = {block: layer.experts.num_experts for block, layer in layers.items()}
    chosen = stored  # where experts choose, or mix, none is left out
    if (config := get_config(model)) is not None and config.router == "top_k":
        with torch.no_grad(), record_routing(model) as record:
            model(images)
        chosen = {block: len(ids.unique()) for block, ids in record.expert_ids.items()}
    sizes = {
        block: sum(p.numel() * p.element_size() for p in layer.experts.parameters()) // layer.experts.num_experts
        for block, layer in layers.items()
    }
    return Touched(
        sum(chosen.values()),
        sum(stored.values()),
        sum(chosen[block] * sizes[block] for block in layers),
        sum(stored[block] * sizes[block] for block in layers),
    )


def _exported(
    models: dict[str, nn.Module], facts: Facts, scratch: Path, note: Callable[[str], None]
) -> dict[str, Callable[[Tensor], object]]:
    if not has_onnx():
        note("onnxruntime is not installed and is left out: pip install 'vimoe[onnx]'")
        return {}
    graphs: dict[str, Callable[[Tensor], object]] = {}
    for name, model in models.items():
        try:
            path = export_module(copy.deepcopy(model), facts, scratch / f"{name}.onnx").path
            graphs[name], _ = open_graph(path, threads=torch.get_num_threads())
        except UserError as error:
            note(f"no exported {name}: {error}")
    return graphs


def _images(facts: Facts, batch: int) -> Tensor:
    height, width = facts.image["size"]
    return noise_images((facts.image["channels"], height, width), batch)


def _measure(
    models: dict[str, nn.Module],
    graphs: dict[str, Callable[[Tensor], object]],
    images: Tensor,
    device: str,
    rounds: int,
) -> Measured:
    there = images.to(device)
    runs: dict[str, Callable[[], object]] = {name: partial(model, there) for name, model in models.items()}
    runs |= {f"{name}{EXPORTED}": partial(graph, images) for name, graph in graphs.items()}
    with torch.inference_mode():
        latencies = take_turns(runs, rounds, device)
    return Measured(len(images), latencies, touched(models["ViMoE"], there) if "ViMoE" in models else None)
