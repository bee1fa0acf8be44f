"""Checkpoints of others in their own formats: names, shapes and layouts as published, narrow and shallow."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vimoe
from tests.vit.families import (
    DEPTH,
    assert_same_state,
    every_routing,
    make,
    make_images,
    refused,
    run,
    shared_or_not,
)
from vimoe.vit.weights_file import model_from_file

DIM = 48
ARGS: dict[str, Any] = {"embed_dim": DIM, "depth": DEPTH, "num_heads": 2, "img_size": 56}
TINY: dict[str, Any] = {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "img_size": 32}  # of `make()`


def dinov2(registers: int = 0, giant: bool = False) -> dict[str, Tensor]:
    """The published DINOv2 backbones: 518 px, no head."""
    shapes = {
        "cls_token": [1, 1, DIM],
        "pos_embed": [1, 1370, DIM],
        **({"register_tokens": [1, registers, DIM]} if registers else {}),
        "mask_token": [1, DIM],
        "patch_embed.proj.weight": [DIM, 3, 14, 14],
        "patch_embed.proj.bias": [DIM],
        "norm.weight": [DIM],
        "norm.bias": [DIM],
    }
    gated = (int(4 * DIM * 2 / 3) + 7) // 8 * 8  # DINOv2's SwiGLUFFNFused
    mlp = (
        {"mlp.w12": [2 * gated, DIM], "mlp.w3": [DIM, gated]}
        if giant
        else {"mlp.fc1": [4 * DIM, DIM], "mlp.fc2": [DIM, 4 * DIM]}
    )
    for i in range(DEPTH):
        linears = {"attn.qkv": [3 * DIM, DIM], "attn.proj": [DIM, DIM], **mlp}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": [DIM], f"blocks.{i}.{name}.bias": [DIM]}
        for name, shape in linears.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blocks.{i}.ls1.gamma": [DIM], f"blocks.{i}.ls2.gamma": [DIM]}
    return {name: torch.randn(shape) / shape[-1] ** (0.5 * (len(shape) > 1)) for name, shape in shapes.items()}


def augreg(classes: int | None = 7) -> dict[str, np.ndarray]:
    """The JAX ViTs of "How to train your ViT?" (AugReg): Flax's names and layouts, 32 px in patches of 16."""
    heads, rng = 2, np.random.default_rng(0)
    block = {
        "LayerNorm_0/scale": (DIM,),
        "LayerNorm_0/bias": (DIM,),
        "LayerNorm_2/scale": (DIM,),
        "LayerNorm_2/bias": (DIM,),
        **{f"MultiHeadDotProductAttention_1/{n}/kernel": (DIM, heads, DIM // heads) for n in ("query", "key", "value")},
        **{f"MultiHeadDotProductAttention_1/{n}/bias": (heads, DIM // heads) for n in ("query", "key", "value")},
        "MultiHeadDotProductAttention_1/out/kernel": (heads, DIM // heads, DIM),
        "MultiHeadDotProductAttention_1/out/bias": (DIM,),
        "MlpBlock_3/Dense_0/kernel": (DIM, 4 * DIM),
        "MlpBlock_3/Dense_0/bias": (4 * DIM,),
        "MlpBlock_3/Dense_1/kernel": (4 * DIM, DIM),
        "MlpBlock_3/Dense_1/bias": (DIM,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, DIM),
        "embedding/kernel": (16, 16, 3, DIM),
        "embedding/bias": (DIM,),
        "Transformer/posembed_input/pos_embedding": (1, 5, DIM),
        "Transformer/encoder_norm/scale": (DIM,),
        "Transformer/encoder_norm/bias": (DIM,),
        **({"head/kernel": (DIM, classes), "head/bias": (classes,)} if classes else {}),
        **{f"Transformer/encoderblock_{i}/{name}": shape for i in range(DEPTH) for name, shape in block.items()},
    }
    return {name: rng.standard_normal(shape).astype(np.float32) / DIM**0.5 for name, shape in shapes.items()}


SUFFIXES = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


def write(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "registers", "giant"),
    [
        ("vit_small_patch14_dinov2", 0, False),
        ("vit_base_patch14_dinov2.lvd142m", 0, False),
        ("vit_large_patch14_reg4_dinov2", 4, False),
        ("vit_giant_patch14_dinov2", 0, True),
        ("vit_giant_patch14_reg4_dinov2", 4, True),
    ],
)
@SUFFIXES
def test_a_published_dinov2_checkpoint_is_read_as_it_is(
    name: str, registers: int, giant: bool, suffix: str, tmp_path: Path
) -> None:
    state = dinov2(registers, giant)
    model = model_from_file(name, write(state, tmp_path / f"dinov2{suffix}"), 5, **ARGS)
    expected = {key: value for key, value in state.items() if key not in ("pos_embed", "mask_token")}
    if registers:  # timm adds the class token's position to the token itself
        expected["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    for key, value in expected.items():
        name_in_timm = key.replace("register_tokens", "reg_token").replace(".w12.", ".fc1.").replace(".w3.", ".fc2.")
        assert torch.equal(model.state_dict()[name_in_timm], value), key
    assert model.pos_embed.shape == (1, 16 if registers else 17, DIM)
    if not registers:
        assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert model.head.weight.shape == (5, DIM)


@every_routing
@shared_or_not
@pytest.mark.parametrize(("registers", "giant"), [(0, False), (4, False), (0, True)])
def test_a_published_dinov2_checkpoint_upcycles_is_saved_and_still_agrees(
    registers: int, giant: bool, routing: Any, shared_expert: bool, tmp_path: Path
) -> None:
    name = f"vit_{'giant' if giant else 'small'}_patch14_{'reg4_' if registers else ''}dinov2"
    model = model_from_file(name, write(dinov2(registers, giant), tmp_path / "dinov2.pth"), 5, **ARGS).eval()
    images = make_images(model)
    dense = run(model, images)
    vimoe.upcycle(model, routing=routing, shared_expert=shared_expert)
    torch.testing.assert_close(run(model, images), dense, rtol=0, atol=1e-5)
    vimoe.save(model, tmp_path / "model")
    assert torch.equal(run(vimoe.load(tmp_path / "model"), images), run(model, images))
    assert not {"state_dict", "file", "custom_load"} & set(model.pretrained_cfg)


@pytest.mark.parametrize("classes", [7, 3, 0])
def test_a_jax_vit_is_read_with_its_head_where_it_fits(classes: int, tmp_path: Path) -> None:
    arrays = augreg()
    np.savez(tmp_path / "augreg.npz", **arrays)
    model = model_from_file("vit_tiny_patch16_224", tmp_path / "augreg.npz", classes, **{**ARGS, "img_size": 32})
    found = model.state_dict()
    assert np.array_equal(found["patch_embed.proj.weight"], arrays["embedding/kernel"].transpose(3, 2, 0, 1))
    for i in range(DEPTH):
        of = f"Transformer/encoderblock_{i}"
        keys = arrays[f"{of}/MultiHeadDotProductAttention_1/key/kernel"].reshape(DIM, DIM).T
        assert np.array_equal(found[f"blocks.{i}.attn.qkv.weight"][DIM : 2 * DIM], keys)
        assert np.array_equal(found[f"blocks.{i}.mlp.fc2.weight"], arrays[f"{of}/MlpBlock_3/Dense_1/kernel"].T)
    assert model.num_classes == classes
    if classes == 7:
        assert np.array_equal(found["head.weight"], arrays["head/kernel"].T)


def test_a_jax_vit_without_a_head_gets_a_new_one_and_other_positions_are_resampled(tmp_path: Path) -> None:
    np.savez(tmp_path / "augreg.npz", **augreg(None))
    model = model_from_file("vit_tiny_patch16_224", tmp_path / "augreg.npz", 3, **{**ARGS, "img_size": 48})
    assert model.num_classes == 3
    assert model.pos_embed.shape == (1, 10, DIM)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("classes", [5, 3])
def test_a_timm_checkpoint_is_read_from_a_training_script_s_file(wrap: Any, classes: int, tmp_path: Path) -> None:
    trained = make()
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}  # as DDP names them
    torch.save(wrap(state), tmp_path / "last.pth.tar")
    model = model_from_file("vit_tiny_patch16_224", tmp_path / "last.pth.tar", classes, **TINY)
    kept = {n: v for n, v in trained.state_dict().items() if classes == 5 or not n.startswith("head.")}
    assert_same_state({name: model.state_dict()[name] for name in kept}, kept)
    assert model.num_classes == classes


def test_fewer_channels_are_folded_as_timm_does(tmp_path: Path) -> None:
    state = make().state_dict()
    path = write(state, tmp_path / "vit.pth")
    model = model_from_file("vit_tiny_patch16_224", path, 5, in_chans=1, **TINY)
    expected = state["patch_embed.proj.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj.weight.detach(), expected)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_of_code_gets_one_line_and_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": make().state_dict(), "args": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    np.savez(tmp_path / "trap.npz", **{"embedding/kernel": np.array([Trap(tmp_path / "sprung")], dtype=object)})
    for name in ("trap.pth", "trap.npz"):
        with refused(f"{tmp_path / name} does not hold weights of vit_tiny_patch16_224: …"):
            model_from_file("vit_tiny_patch16_224", tmp_path / name, 5, **ARGS)
    assert not (tmp_path / "sprung").exists()


def deeper(arrays: dict[str, Any]) -> dict[str, Any]:
    more = {n.replace("encoderblock_0", f"encoderblock_{DEPTH}"): v for n, v in arrays.items() if "block_0" in n}
    return {**arrays, **more}


def without(state: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize("change", [deeper, lambda a: without(a, "encoderblock_1"), lambda a: without(a, "cls")])
def test_a_jax_vit_of_another_shape_gets_one_line(change: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **change(augreg()))
    with refused(f"{tmp_path}/other.npz does not hold weights of vit_tiny_patch16_224: …"):
        model_from_file("vit_tiny_patch16_224", tmp_path / "other.npz", 7, **{**ARGS, "img_size": 32})


@SUFFIXES
@pytest.mark.parametrize(
    "change",
    [
        lambda state: without(state, "blocks.1.norm1"),
        lambda state: {**state, **{n.replace("ks.0", "ks.3"): v.clone() for n, v in state.items() if "blocks.0" in n}},
        lambda state: {name: value[..., :32].contiguous() for name, value in state.items()},
        lambda _: {"weight": torch.zeros(3)},
        lambda _: {},
    ],
    ids=["a weight short", "deeper", "narrower", "something else", "empty"],
)
def test_weights_of_another_model_get_one_line(change: Any, suffix: str, tmp_path: Path) -> None:
    path = write(change(dinov2()), tmp_path / f"other{suffix}")
    with refused(f"{path} does not hold weights of vit_small_patch14_dinov2: …"):
        model_from_file("vit_small_patch14_dinov2", path, 5, **ARGS)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".txt"])
@pytest.mark.parametrize("content", [b"", b"no weights", bytes(1000)])
def test_a_file_of_other_bytes_gets_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with refused(f"{path} does not hold weights of vit_tiny_patch16_224: …"):
        model_from_file("vit_tiny_patch16_224", path, 5)


def test_an_architecture_that_timm_does_not_know_gets_one_line(tmp_path: Path) -> None:
    path = write(dinov2(), tmp_path / "dinov2.pth")
    with refused(f"{path} does not hold weights of vit_of_next_year: …"):
        model_from_file("vit_of_next_year", path, 5)


def test_weights_of_an_upcycled_model_are_no_dense_model_s(tmp_path: Path) -> None:
    path = write(copy.deepcopy(vimoe.upcycle(make()).state_dict()), tmp_path / "moe.safetensors")
    with refused(f"{path} does not hold weights of vit_tiny_patch16_224: …"):
        model_from_file("vit_tiny_patch16_224", path, 5, **TINY)
