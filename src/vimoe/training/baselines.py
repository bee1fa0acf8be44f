"""The controls that an MoE model is held against, and how large each must be to be as large as that."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from vimoe.errors import UserError
from vimoe.tasks.segmenter import Segmenter
from vimoe.training.optimizer import learn_only
from vimoe.training.recipe import Recipe
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.cost import cost
from vimoe.vit.deepen import blocks_to_add, deepen
from vimoe.vit.ensemble import repeat
from vimoe.vit.lora import LoRALinear, add_lora, lora_rank
from vimoe.vit.meta import meta_clone
from vimoe.vit.prompts import add_prompts
from vimoe.vit.widen import activated_factor, widen

# A dense model, the recipe, and what gives the MoE that it stands beside, without weights.
Make = Callable[[nn.Module, Recipe, Callable[[], nn.Module]], nn.Module]


def make_baseline(model: nn.Module, recipe: Recipe, upcycle: Callable[[nn.Module, Recipe], nn.Module]) -> nn.Module:
    """The recipe's baseline, from its dense model, which may be changed; `upcycle` makes the MoE of a copy.

    Raises UserError if this model cannot be made into it, or it would be smaller than the dense one.
    """

    def moe() -> nn.Module:
        if not recipe.last:
            raise UserError(f"baseline {recipe.baseline} is as large as an MoE: say which, with last and others")
        return upcycle(meta_clone(model), replace(recipe, baseline=""))

    return _BASELINES[recipe.baseline](model, recipe, moe)


def _as_it_is(model: nn.Module, _recipe: Recipe, _moe: Callable[[], nn.Module]) -> nn.Module:
    return model


def _wide(model: nn.Module, recipe: Recipe, moe: Callable[[], nn.Module]) -> nn.Module:
    if not recipe.last:
        return model
    upcycled = moe()
    return widen(model, list(moe_layers(upcycled)), activated_factor(model, upcycled))


def _deeper(model: nn.Module, recipe: Recipe, moe: Callable[[], nn.Module]) -> nn.Module:
    if not recipe.last:
        return model
    more = (activated_factor(model, moe()) - 1) * recipe.last
    after, hidden = blocks_to_add(model, more, recipe.last)
    if isinstance(model, Segmenter):  # its decoder sees what the new blocks make of what it saw
        model.blocks = tuple(block + sum(number <= block for number in after) for block in model.blocks)
    return deepen(model, after, hidden)


def _lora(model: nn.Module, recipe: Recipe, moe: Callable[[], nn.Module]) -> nn.Module:
    rank = recipe.lora_rank or lora_rank(model, cost(moe()).stored_params - cost(model).stored_params)
    add_lora(model, rank)
    linears = [module for module in model.modules() if isinstance(module, LoRALinear)]
    learn_only(model, [parameter for linear in linears for parameter in (linear.down, linear.up)])
    return model


def _vpt(model: nn.Module, recipe: Recipe, _moe: Callable[[], nn.Module]) -> nn.Module:
    add_prompts(model, recipe.prompt_tokens)
    learn_only(model, [block.get_parameter("prompts") for block in find_backbone(model).blocks])
    return model


def _ensemble(model: nn.Module, recipe: Recipe, moe: Callable[[], nn.Module]) -> nn.Module:
    members = recipe.members or max(2, round(cost(moe()).stored_params / cost(model).stored_params))
    return repeat(model, members)


_BASELINES: dict[str, Make] = {
    "dense": _as_it_is,
    "wide": _wide,
    "deeper": _deeper,
    "linear": _as_it_is,  # the trainer freezes what comes before the classifier
    "lora": _lora,
    "vpt": _vpt,
    "ensemble": _ensemble,
}
