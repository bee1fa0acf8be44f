"""Super-class guidance: which expert the images of each class shall go to (Mobile V-MoE, Daxberger et al. 2023)."""

from collections import Counter
from dataclasses import replace
from os.path import isfile
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from vimoe.data.loaders import NOBODY
from vimoe.data.splits import Splits
from vimoe.distributed import all_reduce_sum
from vimoe.errors import UserError
from vimoe.tasks.model import model_classes
from vimoe.tasks.task import Task
from vimoe.training.class_groups import group_classes
from vimoe.training.parallel import pick_device
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.source import open_recipe_data
from vimoe.vit.checkpoint import load
from vimoe.vit.upcycle import get_config, set_config
from vimoe.yaml_files import read_yaml

# By super-class, the names of its classes; the first super-class belongs to the first expert.
SuperClasses = dict[str, list[str]]


def guide_routers(model: nn.Module, recipe: Recipe, splits: Splits, task: Task, run: RunFolder) -> SuperClasses:
    """Note in an upcycled model's configuration to which expert each class belongs, and give the super-classes.

    A run that goes on takes those that it began with. A dense model stays as it is. All processes call this together.

    Raises UserError if routing is not by image, the super-classes cannot be found, or are not one for each expert.
    """
    config = get_config(model)
    if config is None:
        return {}
    config = replace(config, guide=(0,) * len(splits.class_names))  # refused before anything is computed
    experts = set(config.num_experts)
    groups = _find(recipe, splits, task, run.super_classes, max(experts))
    if {len(groups)} != experts:
        found = " and ".join(map(str, sorted(experts)))
        raise UserError(f"guide_classes needs a super-class for each expert: {len(groups)} for {found} experts")
    expert_of = {name: expert for expert, names in enumerate(groups.values()) for name in names}
    set_config(model, replace(config, guide=tuple(expert_of[name] for name in splits.class_names)))
    return groups


def read_super_classes(path: Path, class_names: tuple[str, ...]) -> SuperClasses:
    """The super-classes of a YAML file such as `round: [0, 6, 8, 9]`.

    Raises UserError if it cannot be read, has another form, or does not name every class once.
    """
    groups = {
        str(name): [str(one) for one in names] if isinstance(names, list) else []
        for name, names in read_yaml(path).items()
    }
    if not all(groups.values()):
        raise UserError(f"{path} must hold super-classes with a list of their classes each")
    named = Counter(name for names in groups.values() for name in names)
    for name in (*class_names, *named):
        if name not in class_names or named[name] != 1:
            what = f"names class {name!r} {named[name]} times" if name in class_names else f"{name!r} is no class"
            raise UserError(f"each class belongs to one super-class: {path}: {what}")
    return groups


def dump_super_classes(groups: SuperClasses) -> str:
    """The super-classes as YAML, the inverse of `read_super_classes`."""
    return yaml.safe_dump(groups, sort_keys=False, allow_unicode=True)


def _find(recipe: Recipe, splits: Splits, task: Task, kept: Path, experts: int) -> SuperClasses:
    names = splits.class_names
    if kept.exists():
        return read_super_classes(kept, names)
    if recipe.guide_classes == "data":
        if not splits.super_classes:
            raise UserError("guide_classes 'data': this data set has no super-classes")
        of = list(zip(names, splits.super_classes, strict=True))
        return {group: [name for name, its in of if its == group] for group in dict.fromkeys(splits.super_classes)}
    if recipe.guide_classes != "confusion":
        return read_super_classes(Path(recipe.guide_classes), names)
    if len(names) < experts:
        raise UserError(f"guide_classes 'confusion': {len(names)} classes cannot be grouped for {experts} experts")
    parts = group_classes(_confusion(recipe, splits, task).numpy(), experts)
    return {f"group {number}": [names[label] for label in part] for number, part in enumerate(parts)}


def _confusion(recipe: Recipe, splits: Splits, task: Task) -> Tensor:
    """`[C, C]` fp64: by class, the sum of the probabilities that the starting model gives its training images.

    A model that knows its training images by heart still says by them what is alike. Over all processes.
    """
    start, classes = recipe.start, len(splits.class_names)
    if start is None or isfile(start) or model_classes(start) != splits.class_names:
        raise UserError(
            "guide_classes 'confusion' asks the model that the run starts from: initial_checkpoint must be the folder "
            "of a model that was trained on these classes"
        )
    device = pick_device(recipe.device)
    model = load(start, device, img_size=splits.form.input_size[1:])
    sums = torch.zeros(classes, classes, dtype=torch.float64)

    def add(logits: Tensor, labels: Tensor) -> None:
        counted = labels != NOBODY
        sums.index_add_(0, labels[counted], logits[counted].double().softmax(-1))

    images = open_recipe_data(replace(recipe, augment=False, in_memory=False)).train
    task.evaluate(model, images, device, recipe.workers, max_broken=recipe.max_broken, watch=add)
    all_reduce_sum(sums)
    return sums
