"""What a recipe starts from: folders of ours, timm's folders, other people's files, other sizes and classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.data.image_files import write_folder
from tests.training.tiny import ARGS, recipe
from tests.vit.families import make
from tests.vit.test_weights_file import augreg
from vimoe.data.digits import digits
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError
from vimoe.training.build import build_model, model_width
from vimoe.training.fit import train
from vimoe.training.recipe import Recipe
from vimoe.training.source import open_recipe_data
from vimoe.vit.blocks import moe_layers
from vimoe.vit.checkpoint import load, save
from vimoe.vit.upcycle import get_config, upcycle


def small(**args: Any) -> nn.Module:
    shape = {"img_size": 8, "in_chans": 1, "num_classes": 10, **ARGS, **args}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **shape)
    return model


def sized(side: int) -> Splits:
    """The digits' splits, said to be of another size."""
    splits = digits()
    return replace(splits, form=splits.form._replace(input_size=(1, side, side)))


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "upcycled"])
def test_a_start_made_for_another_size_is_resampled_as_timm_does(moe: bool, tmp_path: Path) -> None:
    model = upcycle(small(), 1, num_experts=2) if moe else small()
    save(model, tmp_path / "model")
    start = recipe(tmp_path / "run", initial_checkpoint=str(tmp_path / "model"), img_size=16)
    built = build_model(start, sized(16))
    model.set_input_size(img_size=(16, 16))  # type: ignore[operator]
    assert torch.equal(built.get_parameter("pos_embed"), model.get_parameter("pos_embed"))
    assert bool(moe_layers(built)) == moe


@pytest.mark.parametrize("key", ["initial_checkpoint", "model"])
def test_timm_s_own_folder_is_a_start(key: str, tmp_path: Path) -> None:
    model = small()
    timm.models.save_for_hf(model, str(tmp_path / "folder"), safe_serialization=True)
    where = str(tmp_path / "folder")
    built = build_model(recipe(tmp_path / "run", **{key: where if key != "model" else f"local-dir:{where}"}), digits())
    assert torch.equal(built.get_parameter("head.weight"), model.get_parameter("head.weight"))


def test_a_local_dir_says_how_images_are_seen(tmp_path: Path) -> None:
    save(make(), tmp_path / "model")
    (tmp_path / "images" / "train" / "a").mkdir(parents=True)
    settings = recipe(tmp_path / "run", model=f"local-dir:{tmp_path / 'model'}", data_dir=str(tmp_path / "images"))
    with pytest.raises(UserError, match="image"):  # there are none, but the model was found
        open_recipe_data(settings)
    with pytest.raises(UserError, match="is not a model folder"):
        open_recipe_data(replace(settings, model="local-dir:/nowhere"))


def test_a_file_of_other_people_s_weights_is_a_start(tmp_path: Path) -> None:
    model = small(img_size=12, in_chans=3, num_classes=7)
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    built = build_model(recipe(tmp_path / "run", initial_checkpoint=str(tmp_path / "vit.pth"), last=1), digits())
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(built.get_parameter(name), model.get_parameter(name))
    assert built.get_parameter("head.weight").shape == (10, 16)
    assert built.get_parameter("patch_embed.proj.weight").shape[1] == 1
    assert list(moe_layers(built)) == [2]


def test_a_jax_file_trains_to_the_end(tmp_path: Path) -> None:
    np.savez(tmp_path / "augreg.npz", **augreg(None))
    args = {"embed_dim": 48, "depth": 3, "num_heads": 2, "patch_size": 4, "img_size": 8}
    run = train(
        recipe(tmp_path / "run", initial_checkpoint=str(tmp_path / "augreg.npz"), model_args=args, epochs=1, last=1)
    )
    assert get_config(load(run.path)) is not None


def test_a_file_of_another_model_gets_one_line(tmp_path: Path) -> None:
    torch.save(small(depth=2).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"vit\.pth does not hold weights of vit_tiny_patch16_224: "):
        build_model(recipe(tmp_path / "run", initial_checkpoint=str(tmp_path / "vit.pth")), digits())


def test_images_of_other_channels_than_the_start_get_one_line(tmp_path: Path) -> None:
    save(small(in_chans=3), tmp_path / "model")
    with pytest.raises(UserError, match="the model takes images of 3 channels, and these have 1"):
        build_model(recipe(tmp_path / "run", initial_checkpoint=str(tmp_path / "model")), digits())


def test_a_recipe_can_start_the_routed_experts_at_0(tmp_path: Path) -> None:
    model = build_model(recipe(tmp_path / "run", last=1, init="residual"), digits())
    config = get_config(model)
    assert config is not None
    assert (config.init, config.gate) == ("residual", "straight_through")
    assert not moe_layers(model)[2].experts.fc2.weight.any()


def test_without_a_word_of_init_the_preset_decides(tmp_path: Path) -> None:
    for preset, init in (("preserve", "preserve"), ("paper", "copy")):
        config = get_config(build_model(recipe(tmp_path / "run", last=1, preset=preset), digits()))
        assert config is not None
        assert config.init == init


@pytest.mark.parametrize("key", ["importance_weight", "z_weight"])
def test_the_other_losses_of_the_routing_reach_the_routers(key: str, tmp_path: Path) -> None:
    base = recipe(tmp_path / "free", last=1, num_experts=4, epochs=1, balance_weight=0.0)
    free = load(train(base).path)
    weighed = load(train(replace(base, output=str(tmp_path / key), **{key: 1.0})).path)
    router = "blocks.2.mlp.router.weight"
    assert not torch.equal(free.get_parameter(router), weighed.get_parameter(router))


def test_a_classifiers_images_are_whole_patches(tmp_path: Path) -> None:
    settings = {"dataset": "folder", "data_dir": str(write_folder(tmp_path, {"train": 2, "val": 1})), "img_size": 18}
    wanted = recipe(tmp_path / "run", **settings)
    with pytest.raises(UserError, match=r"images of 18 pixels are no whole patches of 4: take img_size 16 or 20"):
        build_model(wanted, open_recipe_data(wanted))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("vit_tiny_patch16_224", 192),
        ("eva02_tiny_patch14_224", 192),
        ("hiera_tiny_224", 768),
        ("xcit_nano_12_p8_224", 128),
    ],
)
def test_the_width_that_the_rate_follows_is_the_models(name: str, width: int) -> None:
    nothing: Any = []
    splits = Splits(nothing, nothing, nothing, ("a", "b"), ImageForm((3, 224, 224), (0.5,) * 3, (0.5,) * 3))
    assert model_width(Recipe(model=name, pretrained=True, last=2), splits) == width


def test_the_width_of_a_start_is_read_from_it(tmp_path: Path) -> None:
    save(timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_classes=2), tmp_path)
    nothing: Any = []
    splits = Splits(nothing, nothing, nothing, ("a", "b"), ImageForm((3, 32, 32), (0.5,) * 3, (0.5,) * 3))
    assert model_width(Recipe(initial_checkpoint=str(tmp_path)), splits) == 48
