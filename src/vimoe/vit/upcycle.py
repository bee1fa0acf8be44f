"""Dense to MoE: replace the FFNs of some blocks, in place, without changing what the model computes."""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Literal, TypeVar

from timm.models import register_notrace_module
from torch import nn

from vimoe.errors import UserError, suggest
from vimoe.moe.compute import Backend
from vimoe.moe.config import Gate, GateInput, Init, MoEConfig, Routing, one_of, whole_number, whole_numbers
from vimoe.moe.experts import Experts, check_ffn
from vimoe.moe.layer import MoELayer, moe_modules
from vimoe.moe.router import Router
from vimoe.vit.blocks import Backbone, find_backbone, moe_layers
from vimoe.vit.ffn_names import with_timm_names
from vimoe.vit.meta import TokenLayout, read_token_layout

Model = TypeVar("Model", bound=nn.Module)
Preset = Literal["preserve", "paper"]

# timm's feature extraction by FX keeps the layer whole: what it does depends on data.
register_notrace_module(MoELayer)

# Ours keeps the function; the paper's likely has raw softmax gates and plain copies (its text is not public).
PRESETS: dict[str, tuple[Gate, Init]] = {"preserve": ("straight_through", "preserve"), "paper": ("softmax", "copy")}


def upcycle(
    model: Model,
    last: int | None = None,
    *,
    num_experts: int = 8,
    top_k: int = 1,
    shared_expert: bool = True,
    routing: Routing = "image",
    layers: Sequence[int] | None = None,
    preset: Preset = "preserve",
    gate: Gate | None = None,
    init: Init | None = None,
    gate_input: GateInput | None = None,
    granularity: int = 1,
    backend: Backend = "auto",
    **more: Any,
) -> Model:
    """Replace the FFN of the last blocks by an MoE layer, in place.

    Every other parameter keeps its name and value. Right after it, with the default preset and without dropout,
    the model's outputs are those of the dense model within 1e-5 in fp32; `MoEConfig.keeps_function` says for which
    other settings they are.

    Args:
        model: A timm ViT, or a module that holds one.
        last: How many of the last blocks to change (default 2).
        num_experts: Routed experts of each layer, 2 to 256. Without `init="split"` it counts whole FFNs: `granularity`
            makes m times as many of it.
        top_k: Experts chosen for each image or token, counted alike.
        shared_expert: Whether an always-on expert is added to the chosen ones.
        routing: `image` makes one choice an image (classification), `token` one a token (segmentation).
        layers: Block numbers from 0, instead of `last`.
        preset: `preserve` keeps the function (straight-through gates, copies scaled so that the sum is the FFN);
            `paper` has raw softmax gates and plain copies.
        gate: Overrides the preset's gate.
        init: Overrides the preset's init: `preserve`, `copy`, `residual`, `drop` or `split`, see `MoEConfig`; with
            `expert_rank` it is `residual`.
        gate_input: What feeds the router under `image` routing: `cls` or `mean`; by default the class token
            where the model has one, else the mean of the patch tokens.
        granularity: m: experts of 1/m of the FFN's width, m times as many, of which m times as many are chosen.
        backend: How the experts are computed, see `vimoe.moe.compute`.
        more: Other fields of `MoEConfig`, such as `router` and `expert_rank`; `slots` is by default as many as make the
            experts compute a row for each token.

    Returns:
        `model` itself; the ViT's configuration stands in its `moe_config` (see `get_config`).

    Raises UserError if a setting is out of range or does not fit this model. The model is then unchanged.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> images = torch.randn(2, 3, 32, 32)
    >>> before = model.eval()(images)
    >>> model = vimoe.upcycle(model, last=2, num_experts=4)
    >>> model.moe_config.layers
    (10, 11)
    >>> torch.allclose(model(images), before, atol=1e-5)
    True
    """
    if moe_layers(model):
        raise UserError("this model has MoE layers already: upcycle a dense model, or prune this one first")
    one_of("preset", preset, tuple(PRESETS))
    if unknown := set(more) - {field.name for field in fields(MoEConfig)}:
        raise UserError(f"upcycle has no setting {min(unknown)!r}{suggest(min(unknown), MoEConfig.__annotations__)}")
    if init is None:
        init = "residual" if more.get("expert_rank") else PRESETS[preset][1]
    if init == "split":
        granularity = whole_number("num_experts", num_experts)
    else:
        m = whole_number("granularity", granularity)
        num_experts, top_k = m * whole_number("num_experts", num_experts), m * whole_number("top_k", top_k)
    if num_experts < 2:
        raise UserError(f"num_experts must be at least 2 for a choice between experts, got {num_experts}")
    backbone = find_backbone(model)
    chosen = _chosen_layers(len(backbone.blocks), last, layers)
    layout = read_token_layout(backbone, chosen)
    config = MoEConfig(
        layers=chosen,
        num_experts=(num_experts,) * len(chosen),
        top_k=top_k,
        shared_expert=shared_expert,
        routing=routing,
        gate=PRESETS[preset][0] if gate is None else gate,
        init=init,
        gate_input=("cls" if layout.has_class_token else "mean") if gate_input is None else gate_input,
        granularity=granularity,
        **{"slots": max(1, -(-layout.num_tokens // num_experts)), **more} if more.get("router") == "soft" else more,
    )
    install(model, config, backend, backbone, layout)
    return model


def install(
    model: nn.Module,
    config: MoEConfig,
    backend: Backend = "auto",
    backbone: Backbone | None = None,
    layout: TokenLayout | None = None,
) -> None:
    """Put the MoE layers of `config` into a dense model, in place.

    Raises UserError if the configuration does not fit this model. The model is then unchanged.
    """
    backbone = backbone or find_backbone(model)
    if config.layers[-1] >= len(backbone.blocks):
        raise UserError(f"block {config.layers[-1]} does not exist: the model has {len(backbone.blocks)} blocks")
    layout = layout or read_token_layout(backbone, config.layers)
    if config.routing == "image" and not layout.per_image:
        raise UserError("routing 'image' needs whole images, and this model's FFNs see windows: use routing 'token'")
    if config.routing == "image" and config.gate_input == "cls" and not layout.has_class_token:
        raise UserError("gate_input 'cls' needs a class token at the FFN, and this model has none: use 'mean'")
    ffns = [with_timm_names(backbone.blocks[layer].get_submodule("mlp")) for layer in config.layers]
    for ffn in ffns:
        check_ffn(ffn, config.granularity)
    leader: Router | None = None
    for number, num_experts, ffn in zip(config.layers, config.num_experts, ffns, strict=True):
        prefix = layout.num_prefix_tokens
        layer = MoELayer(ffn, config, num_experts=num_experts, num_prefix_tokens=prefix, backend=backend, leader=leader)
        leader = leader or layer.router
        backbone.blocks[number].mlp = layer
        if expert_of := config.expert_of.get(number):
            layer.router.share(expert_of, expert_of)
    set_config(model, config)


def get_config(model: nn.Module) -> MoEConfig | None:
    """The configuration of an upcycled model, None for a dense one; also through modules that hold it, such as DDP.

    Blocks that were cut away since (timm's `prune_intermediate_layers`) are no longer in it.
    """
    layers = moe_layers(model)
    for module in model.modules():
        if isinstance(config := module.__dict__.get("moe_config"), MoEConfig):
            left = {block: n for block, n in config.sizes.items() if block in layers}
            return config if len(left) == len(config.layers) else config.with_layers(left, config.expert_of)
    return None


def set_config(model: nn.Module, config: MoEConfig | None) -> None:
    """Note down what the model's MoE layers are; None makes it a plain dense model again."""
    vit = find_backbone(model).vit  # and nowhere else, so that those who hold it cannot contradict it
    for name in ("moe_config", "no_weight_decay"):
        vit.__dict__.pop(name, None)
    if config is not None:
        vit.__dict__["moe_config"] = config
        # Stacked biases and norms are 2-D, which optimisers take for matrices to decay.
        # (A bound method would lose its name in a pickle.)
        vit.__dict__["no_weight_decay"] = partial(_no_weight_decay, vit)
    if theirs := next((module for module in model.modules() if hasattr(module, "save_pretrained")), None):
        settings: Any = theirs.config  # what transformers' `save_pretrained` writes down
        settings.__dict__.pop("vimoe", None)
        if config is not None:
            settings.vimoe = config.to_dict()


def _no_weight_decay(vit: nn.Module) -> set[str]:
    """What timm's optimisers must not decay: the model's own list, the routers, the experts' biases and norms."""
    own = getattr(type(vit), "no_weight_decay", None)
    names = set(own(vit)) if own else set()
    for path, layer in moe_modules(vit).items():
        names |= {f"{path}.router.{name}" for name, _ in layer.router.named_parameters()}
        matrices = 3 if isinstance(layer.experts, Experts) else 2  # dimensions, stacked or separate
        names |= {f"{path}.experts.{name}" for name, p in layer.experts.named_parameters() if p.ndim < matrices}
    return names


def _chosen_layers(depth: int, last: int | None, layers: Sequence[int] | None) -> tuple[int, ...]:
    if last is not None and layers is not None:
        raise UserError("give either last or layers, not both")
    if layers is None:
        last = 2 if last is None else whole_number("last", last)
        if not 1 <= last <= depth:
            raise UserError(f"last must be 1 to {depth}, the number of blocks of this model, got {last}")
        return tuple(range(depth - last, depth))
    numbers = whole_numbers("layers", layers)
    if not numbers:
        raise UserError(f"layers must name at least one block, 0 to {depth - 1}")
    if wrong := [number for number in numbers if not 0 <= number < depth]:
        raise UserError(f"block {wrong[0]} does not exist: this model's blocks are 0 to {depth - 1}")
    return tuple(sorted(numbers))
