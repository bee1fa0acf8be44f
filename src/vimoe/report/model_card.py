"""The model card of a run: Hub metadata, how to load it, results with intervals, plan, cost, data and recipe."""

import io
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.errors import UserError, first_line
from vimoe.export.facts import Facts, read_facts
from vimoe.export.upload import CARD
from vimoe.files import write_bytes, write_text
from vimoe.report.comparison import Evidence, pruning_table
from vimoe.report.heatmap import routing_heatmaps
from vimoe.report.results import decision_table, plan_sentence, plan_table
from vimoe.report.saving import png
from vimoe.report.tables import METRICS, Table, cost_rows
from vimoe.tasks.model import load_model
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.run_folder import Row, RunFolder, kept_row
from vimoe.vit.cost import cost
from vimoe.vit.hub_folder import ANYWHERE
from vimoe.vit.model_config import model_folder
from vimoe.vit.plan import Plan
from vimoe.vit.pruning import prune

HEATMAPS = "heatmaps.png"
# Of a recipe: what says something of the machine and its owner, and nothing of the model.
_PRIVATE = {"output", "data_dir", "initial_checkpoint", "device", "workers", "log_interval", "checkpoint_minutes"}
_HUB_METRICS = {"top1": "accuracy", "miou": "mean_iou"}
_MOST_NAMES = 50


def write_card(path: Path, license_name: str | None = None, overwrite: bool = False) -> Path:
    """Write `README.md`, and `heatmaps.png` where the run was analyzed, into the model folder of a run.

    A model folder alone gives a shorter card. Raises UserError if there is no model, a part of the run is damaged, or
    there is a card already.
    """
    folder = model_folder(path)
    card = folder / CARD
    if card.exists() and not overwrite:
        raise UserError(f"{card} exists: --overwrite replaces it")
    text, heatmaps = make_card(path, license_name)
    if heatmaps:
        write_bytes(folder / HEATMAPS, heatmaps)
    write_text(card, text)
    return card


def make_card(path: Path, license_name: str | None = None) -> tuple[str, bytes | None]:
    """The text of the card, and the heatmaps as PNG where the run was analyzed. Raises UserError, see `write_card`."""
    run, folder = RunFolder(path), model_folder(path)
    facts, model = read_facts(folder, (), "fp32"), load_model(folder)
    recipe = load_recipe(path / "recipe.yaml") if (path / "recipe.yaml").exists() else None
    rows = run.read_rows() if recipe else []
    row = kept_row(rows) if rows else {}
    name = path.resolve().name if path.resolve() != folder.resolve() or path.name != "model" else facts.architecture
    lines = [f"# {_plain(name)}", _summary(facts, recipe), "## Load", _loading(facts)]
    if pruned := Evidence.load(path / "pruning.json") if (path / "pruning.json").exists() else None:
        lines += ["## What pruning did", pruning_table(pruned).markdown()]
    if row:
        lines += [f"## Metrics of epoch {row['epoch']}", _metrics(row)]
    heatmaps = None
    if (path / "analysis.json").exists():
        analysis, plan = Analysis.load(path / "analysis.json"), Plan.load(path / "plan.json")
        before, after = cost(model), cost(prune(load_model(folder), plan))
        counts = RoutingCounts.load(path / "routing" / f"{analysis.split}.npz")
        lines += ["## Which MoE layers matter", plan_sentence(analysis, plan, before, after)]
        lines += [plan_table(analysis, plan, before, after).markdown(), decision_table(analysis, plan).markdown()]
        units = "patches" if analysis.unit == "patch" else "images"
        lines += ["## Routing", f"![Class × expert heatmaps]({HEATMAPS})"]
        lines += [f"Share of each class's {units} that each expert gets, on {analysis.images} {analysis.split} images."]
        measures = {layer.layer: layer.specialisation for layer in analysis.layers}
        heatmaps = png(routing_heatmaps(counts, measures, plan, unit=analysis.unit))
    lines += ["## Cost", cost_rows({facts.architecture: cost(model)}).markdown()]
    lines += ["## Images and classes", _images(facts)]
    if recipe:
        lines += ["## Recipe", "What differs from the defaults.", f"```yaml\n{_recipe(recipe)}```"]
    metadata = _metadata(name, facts, recipe, row, pruned, license_name)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(line.strip() for line in lines) + "\n", heatmaps


def check_card(path: Path) -> str:
    """The text of a card. Raises UserError if it cannot be read, or the Hub's client cannot parse its metadata."""
    from huggingface_hub import ModelCard

    try:
        text = path.read_text(encoding="utf-8")
        if not ModelCard(text).data.to_dict():
            raise ValueError("it has no metadata")
    except Exception as error:  # YAML's, the client's and the disk's own
        raise UserError(
            f"{path} is no model card: {first_line(error)}; `vimoe card --overwrite` writes it anew"
        ) from error
    return text


def _metadata(
    name: str, facts: Facts, recipe: Recipe | None, row: Row, pruned: Evidence | None, license_name: str | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = "image-segmentation" if facts.task == "segmentation" else "image-classification"
    hub_dataset = recipe.dataset.partition("/")[2] if recipe and recipe.dataset.startswith("hf") else None
    results = []
    if recipe and (found := _score(row, pruned)):
        metric, split, value = found
        results = [
            EvalResult(
                task_type=task,
                dataset_type=hub_dataset or recipe.dataset or "folder",
                dataset_name=hub_dataset or recipe.dataset or "folder",
                dataset_split=split,
                metric_type=_HUB_METRICS.get(metric, metric),
                metric_name=METRICS.get(metric, metric),
                metric_value=round(value, 2),
            )
        ]
    data = ModelCardData(
        library_name="vimoe" if facts.moe or facts.task == "segmentation" else "timm",
        license=license_name,
        pipeline_tag=task,
        tags=["vimoe", "timm", task, *(["mixture-of-experts"] if facts.moe else [])],
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=f"timm/{recipe.model}" if recipe and recipe.pretrained and "." in recipe.model else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _score(row: Row, pruned: Evidence | None) -> tuple[str, str, float] | None:
    if pruned:
        return pruned.metric, pruned.split, pruned.states[-1].score.value
    return next(((m, "val", float(row[f"val_{m}"])) for m in METRICS if f"val_{m}" in row), None)


def _summary(facts: Facts, recipe: Recipe | None) -> str:
    words = {"multilabel": "classification with any number of labels", "segmentation": "semantic segmentation"}
    what = words.get(facts.task, facts.task)
    data = f", trained on `{_plain(recipe.dataset or 'folder')}`" if recipe else ""
    vit = f"A Vision Transformer (`{facts.architecture}`) for {what}{data}"
    moe = facts.moe
    if moe is None:
        return f"{vit}. It has no MoE layer and is an ordinary timm model."
    blocks = ", ".join(map(str, moe["layers"]))
    experts = ", ".join(map(str, sorted(set(moe["num_experts"]))))
    shared = "with" if moe.get("shared_expert", True) else "without"
    routing = f"{moe.get('top_k', 1)} of {experts} experts for each {moe.get('routing', 'image')}"
    if moe.get("guide"):
        routing += ", as training guided them to super-classes"
    return f"{vit}. Blocks {blocks} (from 0) are sparse Mixture-of-Experts layers: {routing}, {shared} a shared expert."


def _loading(facts: Facts) -> str:
    form = facts.image
    size = ", ".join(map(str, [form["channels"], *form["size"]]))
    if facts.task == "segmentation":
        load = f'from vimoe.tasks.segmenter_folder import load_segmenter\nmodel = load_segmenter("{ANYWHERE}")'
    elif facts.moe:
        load = f'import vimoe\nmodel = vimoe.load("{ANYWHERE}")'
    else:
        load = f'import timm\nmodel = timm.create_model("{ANYWHERE}", pretrained=True).eval()'
    return (
        f"```python\n{load}\nlogits = model(images)  # [B, {size}]\n```\n\n"
        f"`images` have values 0 to 1 less the mean {form['mean']}, over the standard deviation {form['std']}."
    )


def _metrics(row: Row) -> str:
    """Numbers of the validation split, as `vimoe train` prints them."""
    found = {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
    names = [METRICS.get(key, key.replace("_", " ")) for key in found]
    numbers = [f"{value:.2f}".removesuffix(".00") for value in found.values()]
    return Table(("validation", ""), list(zip(names, numbers, strict=True))).markdown()


def _images(facts: Facts) -> str:
    form, names = facts.image, facts.class_names
    text = f"Images of {form['size'][0]}×{form['size'][1]} pixels, `{form['interpolation']}`, crop {form['crop_pct']}."
    if not names:
        return text
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:_MOST_NAMES])
    return f"{text} {len(names)} classes: {shown}{', …' if len(names) > _MOST_NAMES else ''}."


def _recipe(recipe: Recipe) -> str:
    usual = asdict(Recipe())
    values: dict[str, Any] = {k: v for k, v in asdict(recipe).items() if v != usual[k] and k not in _PRIVATE}
    if values.get("guide_classes") not in (None, "data", "confusion"):
        values["guide_classes"] = "a file"
    if values.get("model", "").startswith("local-dir:"):
        values["model"] = "local-dir"
    text = io.StringIO()
    yaml.safe_dump(values, text, sort_keys=False, allow_unicode=True)
    return text.getvalue()


def _plain(name: str) -> str:
    """A name from elsewhere that ends no table, code or line."""
    return re.sub(r"[`|<>\s]+", " ", name).strip() or "?"
