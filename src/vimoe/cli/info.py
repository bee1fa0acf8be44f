"""`vimoe info`: what a model costs, made already or not."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vimoe.cli.arguments import Parser, at_least
from vimoe.errors import UserError

LATENCY = ("measure", "batch", "rounds", "threads", "exported", "device")


def run(arguments: Sequence[str]) -> None:
    """Print the cost of a timm model, dense and upcycled, or of a model in a folder."""
    about = "Only hf-hub:user/name is downloaded. A folder's model is counted as it is, with its plan if it has one."
    parser = Parser("info", about)
    parser.value("model", "a run or model folder, hf-hub:user/name, or a timm name such as vit_small_patch14_dinov2")
    parser.group("model")
    parser.flag("--image-size", "pixels of an image's side (default: the model's own)", type=at_least(1))
    parser.flag("--num-classes", "classes of the head (default: the model's own)", type=at_least(0))
    parser.group("MoE")
    parser.flag("--num-experts", "routed experts of each MoE layer", 8, type=int)
    parser.flag("--last", "how many of the last blocks become MoE layers (default: 2)", type=int)
    parser.flag("--layers", "block numbers from 0, instead of --last", type=int, nargs="+")
    parser.flag("--top-k", "experts chosen for each image or token", 1, type=int)
    parser.flag("--shared-expert", "add an always-on expert", True)
    parser.flag("--routing", "one choice for each image or for each token", "image", choices=("image", "token"))
    parser.flag("--init", "how experts start", choices=("preserve", "copy", "residual", "drop", "split"))
    parser.flag("--granularity", "experts so many times narrower, so many times as many", 1, type=int)
    parser.flag("--expert-rank", "experts as low-rank differences from the shared expert", 0, type=int)
    parser.flag("--router", "what chooses", "top_k", choices=("top_k", "prioritised", "expert_choice", "soft"))
    parser.flag("--capacity", "tokens that an expert serves, as a factor on its even share", 1.0, type=float)
    parser.group("latency of a folder's model")
    parser.flag(
        "--measure",
        "run it in turns with dense models of its size, pruned and exported; a run keeps it for its report",
        False,
    )
    parser.flag("--batch", "images at once, one or more numbers", [1], type=at_least(1), nargs="+")
    parser.flag("--rounds", "measured runs of each", 20, type=at_least(1))
    parser.flag("--threads", "of torch and onnxruntime (default: torch's own)", type=at_least(1))
    parser.flag("--exported", "with onnxruntime, if it is installed", True)
    parser.shared("--device")
    given, args = parser.given(arguments), vars(parser.parse(arguments))
    name, how = args.pop("model"), {key: args.pop(key) for key in LATENCY}
    if not how["measure"] and (needless := given.keys() & set(LATENCY[1:])):
        raise UserError(f"--{min(needless)} needs --measure")
    if Path(name).is_dir() or name.startswith("hf-hub:"):
        for other in given.keys() - {"model", "image_size", *LATENCY}:
            raise UserError(f"--{other.replace('_', '-')} is for timm names: the model in {name} is counted as it is")
        print(describe_folder(Path(name), args["image_size"]))
        if how["measure"]:
            print(f"\n{measure(Path(name), parser.note, how)}")
        return
    if "/" in name:
        raise UserError(f"there is no folder {name}")
    if how["measure"]:
        raise UserError(f"--measure runs the model of a folder, and there is no folder {name}")
    from vimoe.report.tables import cost_table
    from vimoe.vit.inspection import compare_costs

    print(cost_table(compare_costs(name, **args)))


def measure(path: Path, note: Callable[[str], None], how: dict[str, Any]) -> str:
    """The latencies of a folder's model and its competitors; `how` are the flags of the group."""
    import torch

    from vimoe.export.contenders import measure_folder
    from vimoe.report.latency_table import keep_latencies, latency_table
    from vimoe.training.parallel import pick_device

    device, threads = pick_device(how["device"]), torch.get_num_threads()
    torch.set_num_threads(how["threads"] or threads)
    try:
        measured = measure_folder(path, how["batch"], device, how["rounds"], how["exported"], note)
        table = latency_table(measured, device, torch.get_num_threads())
        if (path / "recipe.yaml").exists():  # a run's folder, whose report shows it
            keep_latencies(table, path)
        return table.text()
    finally:
        torch.set_num_threads(threads)


def describe_folder(path: Path, image_size: int | None = None) -> str:
    """A folder's model, its cost and MoE layers, and the run's plan. Raises UserError if one of them cannot be read."""
    from vimoe.report.tables import Table, cost_rows, routing_words
    from vimoe.tasks.model import load_model
    from vimoe.vit.cost import cost
    from vimoe.vit.model_config import read_config
    from vimoe.vit.plan import Plan
    from vimoe.vit.upcycle import get_config

    model, name = load_model(path), read_config(path)["architecture"]
    config, lines = get_config(model), [cost_rows({name: cost(model, image_size)}).text(), ""]
    if config is None:
        return "\n".join([*lines, "no MoE layers"])
    plan = Plan.load(path / "plan.json").layers if (path / "plan.json").exists() else ()
    planned = {part.layer: "prune" if part.pruned else f"keep {len(part.experts)}" for part in plan}
    rows = [[str(at), str(n), planned.get(at, "-")] for at, n in zip(config.layers, config.num_experts, strict=True)]
    shared = "with" if config.shared_expert else "without"
    words = routing_words(config)
    routing = f"{words[0].upper()}{words[1:]}, {shared} a shared expert."
    return "\n".join([*lines, Table(("MoE layer in block", "experts", "plan"), rows, [routing]).text()])
