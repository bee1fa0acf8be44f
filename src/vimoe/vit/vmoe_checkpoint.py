"""V-MoE's checkpoints (Riquelme et al. 2021, google-research/vmoe) as timm ViTs with MoE layers."""

import re
from math import isqrt
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from vimoe.errors import UserError, first_line
from vimoe.moe.config import MoEConfig
from vimoe.vit.flax_file import read_flax
from vimoe.vit.upcycle import install

_MARK = "Encoder/encoder_norm/scale"
# In a training state the optimiser's moments have the parameters' names, too.
_PARAMETERS = ("", "params/", "params/params/", "target/", "optimizer/target/")


def load_vmoe(path: Path, top_k: int = 2, capacity: float | None = None) -> nn.Module:
    """The model of a V-MoE checkpoint; see `read_flax` for the files.

    Layers are MoE where the checkpoint's are, with token routing and softmax gates. A head behind a tanh layer
    (`pre_logits`) is left out with it, as V-MoE's own fine-tuning does: the model then gives features.

    Args:
        path: The checkpoint.
        top_k: Experts chosen for each token, which no checkpoint says; 2 in all published ones.
        capacity: None serves every choice, as V-MoE does where no expert's queue overflows; a number is the capacity
            factor of batch-prioritised routing within one image.

    Raises UserError if the file cannot be read, or holds no V-MoE with a class token and learned positions.
    """
    arrays = read_flax(path)
    prefix = next((p for p in _PARAMETERS if p + _MARK in arrays), None)
    if prefix is None:
        raise UserError(f"{path} holds no V-MoE: it has no {_MARK}")
    tree = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    if not prefix:
        tree = {name: value for name, value in tree.items() if re.match("Encoder|embedding|cls|pre_logits|head", name)}
    try:
        return _model(_Arrays(tree), top_k, capacity)
    except UserError as error:
        raise UserError(f"{path} cannot become a ViMoE: {error}") from error
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:  # shapes that do not fit each other
        raise UserError(f"{path} holds no V-MoE: {first_line(error)}") from error


class _Arrays(dict[str, Tensor]):
    """Arrays that are taken out one by one, so that what is left was not understood."""

    def take(self, name: str) -> Tensor:
        if name not in self:
            raise UserError(f"it has no {name}")
        return self.pop(name).float()

    def linear(self, name: str) -> dict[str, Tensor]:
        """`kernel` `[..., in, out]` and `bias` as torch has them."""
        kernel = self.take(f"{name}/kernel")
        return {"weight": kernel.transpose(-1, -2).contiguous(), "bias": self.take(f"{name}/bias")}

    def norm(self, name: str) -> dict[str, Tensor]:
        return {"weight": self.take(f"{name}/scale"), "bias": self.take(f"{name}/bias")}


def _model(arrays: _Arrays, top_k: int, capacity: float | None) -> nn.Module:
    without_head = any(name.startswith("pre_logits/") for name in arrays)
    for name in [name for name in arrays if without_head and name.startswith(("pre_logits/", "head/"))]:
        del arrays[name]
    depth = len({found[0] for name in arrays if (found := re.match(r"Encoder/encoderblock_\d+/", name))})
    kernel = arrays.take("embedding/kernel")
    state = {
        "patch_embed.proj.weight": kernel.permute(3, 2, 0, 1),
        "patch_embed.proj.bias": arrays.take("embedding/bias"),
        "cls_token": arrays.take("cls"),
        "pos_embed": arrays.take("Encoder/posembed_input/pos_embedding"),
        **_named("norm", arrays.norm("Encoder/encoder_norm")),
    }
    if "head/kernel" in arrays:
        state |= _named("head", arrays.linear("head"))
    experts, heads = {}, 0
    for block in range(depth):
        place = f"Encoder/encoderblock_{block}"
        heads = arrays.get(f"{place}/SelfAttention/query/kernel", torch.empty(0, 0)).shape[1]
        values = _block(arrays, place)
        state |= _named(f"blocks.{block}", values)
        if "mlp.router.weight" in values:
            experts[block] = len(values["mlp.router.weight"])
    if arrays:
        raise UserError(f"it also has {min(arrays)}, which V-MoE's ViTs do not")
    side = isqrt(state["pos_embed"].shape[1]) * kernel.shape[0]
    # 224 pixels are cut from images of 256, as V-MoE's evaluation does; images of other sizes are squashed.
    view = {"crop_pct": 0.875, "crop_mode": "center"} if side == 224 else {"crop_pct": 1.0, "crop_mode": "squash"}
    normed = {"mean": (0.5,) * kernel.shape[2], "std": (0.5,) * kernel.shape[2], "interpolation": "bilinear"}
    model: nn.Module = timm.create_model(
        "vit_base_patch16_224",
        img_size=side,
        patch_size=kernel.shape[0],
        in_chans=kernel.shape[2],
        embed_dim=kernel.shape[3],
        depth=depth,
        num_heads=heads,
        mlp_ratio=_hidden(state) / kernel.shape[3],
        act_layer="gelu_tanh",  # flax's GELU is the approximate one
        num_classes=state["head.bias"].shape[0] if "head.bias" in state else 0,
        pretrained_cfg_overlay={**normed, **view},
    )
    if experts:
        config = MoEConfig(
            layers=tuple(experts),
            num_experts=tuple(experts.values()),
            top_k=top_k,
            shared_expert=False,
            routing="token",
            gate="softmax",
            init="copy",
            router_noise=True,
            router="top_k" if capacity is None else "prioritised",
            capacity=1.0 if capacity is None else capacity,
        )
        install(model, config)
    if wrong := [n for n, value in model.state_dict().items() if n not in state or state[n].shape != value.shape]:
        raise UserError(f"its arrays do not fit each other: {wrong[0]} would have another shape")
    model.load_state_dict(state)
    return model.eval()


def _named(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _hidden(state: dict[str, Tensor]) -> int:
    return next(value.shape[-1] for name, value in state.items() if name.endswith("fc1.bias"))


def _block(arrays: _Arrays, place: str) -> dict[str, Tensor]:
    qkv = [arrays.take(f"{place}/SelfAttention/{name}/kernel") for name in ("query", "key", "value")]
    biases = [arrays.take(f"{place}/SelfAttention/{name}/bias") for name in ("query", "key", "value")]
    out = arrays.take(f"{place}/SelfAttention/out/kernel")
    values = {
        **_named("norm1", arrays.norm(f"{place}/LayerNorm_0")),
        **_named("norm2", arrays.norm(f"{place}/LayerNorm_1")),
        "attn.qkv.weight": torch.cat([kernel.flatten(1).T for kernel in qkv]),
        "attn.qkv.bias": torch.cat([bias.flatten() for bias in biases]),
        "attn.proj.weight": out.flatten(0, 1).T,
        "attn.proj.bias": arrays.take(f"{place}/SelfAttention/out/bias"),
    }
    is_moe = f"{place}/Moe/Router/dense/kernel" in arrays
    ffn, inner = (f"{place}/Moe/Mlp", "mlp.experts") if is_moe else (f"{place}/Mlp", "mlp")
    values |= _named(f"{inner}.fc1", arrays.linear(f"{ffn}/Dense_0"))
    values |= _named(f"{inner}.fc2", arrays.linear(f"{ffn}/Dense_1"))
    if is_moe:
        values["mlp.router.weight"] = arrays.take(f"{place}/Moe/Router/dense/kernel").T
    return values
