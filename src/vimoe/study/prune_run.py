"""Carrying out a plan on a finished run: surgery, recovery, and the evidence of what it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from vimoe.analysis.ablation_scores import image_scores
from vimoe.analysis.analyze_run import finished_run, read_plan, run_images, write_plan
from vimoe.analysis.held_out import HeldOut, held_out
from vimoe.analysis.paired import mean_loss, mean_score
from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.report.comparison import Variant
from vimoe.study.recovery import RECOVERY, recovery, recovery_epochs
from vimoe.study.speed import compare_speed
from vimoe.tasks.model import load_model
from vimoe.training.fit import recipe_task, train
from vimoe.training.parallel import pick_device
from vimoe.vit.cost import cost
from vimoe.vit.plan import Plan
from vimoe.vit.pruning import prune


@dataclass(frozen=True)
class Evidence:
    """What pruning did.

    Attributes:
        states: The model before, right after the surgery, and recovered where there was a recovery.
        metric: What the score is: `top1`, or `pixels`.
        images: Test images.
        epochs: Epochs of recovery.
        output: The folder of the pruned model.
    """

    states: tuple[Variant, ...]
    metric: str
    images: int
    epochs: int
    output: Path

    def save(self, path: Path) -> None:
        """Write the numbers as JSON."""
        states = [{**asdict(s), "cost": s.cost._asdict(), "speed": s.speed and s.speed._asdict()} for s in self.states]
        told = {"metric": self.metric, "images": self.images, "epochs": self.epochs, "states": states}
        write_text(path, json.dumps(told, indent=2))


def prune_run(
    path: Path,
    plan_path: Path | None = None,
    recover: float = RECOVERY,
    output: Path | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Evidence:
    """Prune a finished run into a folder of its own; the run itself is not touched.

    The folder becomes a run folder: `start/` is the model right after the surgery, `model/` the finished one,
    `plan.json` what was carried out, `pruning.json` the evidence. The same command goes on where it was stopped.

    Args:
        path: The run folder.
        plan_path: The plan; by default the run's own `plan.json`.
        recover: Epochs of recovery training with the run's own recipe; below 1 a share of the run's epochs, 0 for
            none.
        output: The new folder; by default beside the run, its name with `-pruned`.
        data_dir: Where the images lie now, if they were moved.
        device: `auto`, or a torch device.
        say: Told what is being done.

    Raises:
        UserError: The run is not finished, the plan does not fit it, or the folder holds something else.
    """
    run, recipe = finished_run(path)
    plan = read_plan(plan_path or path / "plan.json")
    output = output or path.resolve().with_name(f"{path.resolve().name}-pruned")
    if output.resolve() == path.resolve():
        raise UserError(f"{output} is the run itself: choose another --output")
    device = pick_device(device)
    before = load_model(run.model, device)
    after = prune(load_model(run.model, device), plan)
    recipe = replace(recipe, data_dir=data_dir or recipe.data_dir)
    splits = run_images(run, recipe)
    if (output / "plan.json").exists() and read_plan(output / "plan.json") != plan:
        raise UserError(f"{output} holds the result of another plan: choose another --output")
    epochs = recovery_epochs(recipe, recover)
    say(_what(plan))
    start = output / ("start" if epochs else "model")
    if not (start / "config.json").exists():  # else a run that was stopped goes on from its own start
        recipe_task(recipe, splits).save(after, start, splits)
    write_plan(plan, output / "plan.json")
    models = {"before": before, "right after": after}
    if epochs:
        say(f"recovery: {epochs} of the recipe's {recipe.epochs} epochs")
        models["recovered"] = load_model(train(recovery(recipe, start, epochs, output, device)).model, device)
    seen = held_out(before, splits.test, len(splits.class_names), short_side=recipe.short_side)
    states = _states(models, seen, splits.form.input_size, device)
    evidence = Evidence(states, seen.metric, len(splits.test), epochs, output)
    evidence.save(output / "pruning.json")
    return evidence


def _states(
    models: dict[str, nn.Module], seen: HeldOut, image_shape: tuple[int, int, int], device: str
) -> tuple[Variant, ...]:
    scores: dict[str, Tensor] = {
        name: image_scores(model, seen.batches(), seen.score, device) for name, model in models.items()
    }
    speeds = compare_speed(list(models.values()), image_shape, device)
    return tuple(
        Variant(
            name=name,
            score=mean_score(scores[name]),
            cost=cost(model),
            lost=None if name == "before" else mean_loss(scores["before"], scores[name]),
            speed=speed,
        )
        for (name, model), speed in zip(models.items(), speeds, strict=True)
    )


def _what(plan: Plan) -> str:
    gone = [str(part.layer) for part in plan.layers if part.pruned]
    kept = [f"{part.layer} ({len(part.experts)} experts)" for part in plan.layers if not part.pruned]
    return (
        f"surgery: blocks {', '.join(gone) or 'none'} become plain FFNs; MoE layers stay in {', '.join(kept) or 'none'}"
    )
