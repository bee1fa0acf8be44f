import copy
import errno
import inspect
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import vimoe
from tests.vit.families import (
    Holder,
    assert_same_state,
    every_family,
    make,
    make_images,
    randomise,
    refused,
    run,
)
from vimoe.moe.layer import MoELayer
from vimoe.vit.model_config import read_config
from vimoe.vit.upcycle import get_config

# Models that differ from their architecture's defaults in all that create_model can be told.
SHAPES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {
        "img_size": (32, 48),
        "in_chans": 1,
        "num_classes": 3,
        "class_token": False,
        "global_pool": "avg",
        "mlp_ratio": 2,
        "qkv_bias": False,
        "init_values": 0.1,
    },
    "vit_small_patch14_reg4_dinov2": {"num_classes": 0, "dynamic_img_size": True},
    "vit_giant_patch14_dinov2": {"patch_size": 7},
    "vit_small_plus_patch16_dinov3": {"img_size": 48},
    "eva02_base_patch14_224": {"num_classes": 7, "embed_dim": 64, "depth": 2, "num_heads": 4},
    "beit_base_patch16_224": {"global_pool": "token"},
    "deit_tiny_distilled_patch16_224": {},
    "vit_base_patch16_siglip_224": {"in_chans": 2},
}
every_shape = pytest.mark.parametrize("name", SHAPES)

STAGES = ["dense", "upcycled", "partly pruned", "fully pruned"]
every_stage = pytest.mark.parametrize("stage", STAGES)


def make_stage(stage: str, name: str = "vit_tiny_patch16_224", **args: Any) -> nn.Module:
    model = make(name, **args)
    last = len(model.blocks) - 1
    if stage != "dense":
        vimoe.upcycle(model, last=2, num_experts=4, top_k=2, shared_expert=False, routing="token", router_noise=True)
        randomise(model)
    if stage == "partly pruned":
        vimoe.prune(model, {last: [3, 0]})
        vimoe.prune(model, {last - 1: []})
    if stage == "fully pruned":
        vimoe.prune(model, {last: [], last - 1: []})
    return model


def assert_same_model(one: nn.Module, other: nn.Module) -> None:
    """The same structure, weights and outputs, to the bit."""
    assert type(one) is type(other)
    assert get_config(one) == get_config(other)
    assert [(n, type(m)) for n, m in one.named_modules()] == [(n, type(m)) for n, m in other.named_modules()]
    assert_same_state(one.state_dict(), other.state_dict())
    images = make_images(one).to(next(one.parameters()).dtype)
    assert torch.equal(run(one.eval(), images), run(other.eval(), images))


# The round trip


@every_shape
@every_stage
def test_a_model_comes_back_to_the_bit(name: str, stage: str, tmp_path: Path) -> None:
    model = make_stage(stage, name, **SHAPES[name])
    vimoe.save(model, tmp_path / "model")
    loaded = vimoe.load(tmp_path / "model")
    assert_same_model(loaded, model)
    assert vimoe.cost(loaded) == vimoe.cost(model)
    assert loaded.no_weight_decay() == model.no_weight_decay()


@every_family
def test_every_family_comes_back_upcycled(family, tmp_path: Path) -> None:
    model = vimoe.upcycle(family.make(), num_experts=2)
    vimoe.save(model, str(tmp_path))
    assert_same_model(vimoe.load(str(tmp_path)), model)


@every_stage
def test_a_model_comes_back_after_its_classifier_was_reset(stage: str, tmp_path: Path) -> None:
    model = make_stage(stage)
    model.reset_classifier(9, global_pool="avg")
    randomise(model)
    vimoe.save(model, tmp_path)
    loaded = vimoe.load(tmp_path)
    assert loaded.num_classes == 9
    assert_same_model(loaded, model)


@every_stage
def test_a_model_comes_back_after_it_was_resized(stage: str, tmp_path: Path) -> None:
    model = make_stage(stage)
    model.set_input_size(img_size=(48, 64))
    vimoe.save(model, tmp_path)
    assert_same_model(vimoe.load(tmp_path), model)


@every_stage
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_a_model_comes_back_in_its_own_dtype(stage: str, dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    model = make_stage(stage, name).to(dtype)
    vimoe.save(model, tmp_path)
    loaded = vimoe.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert_same_model(loaded, model)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3", "eva02_base_patch14_224"])
def test_a_bf16_model_with_fp32_routers_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = make_stage("upcycled", name).to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.router.float()
            randomise(module.router)
    vimoe.save(model, tmp_path)
    loaded = vimoe.load(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16, torch.float32}
    assert_same_model(loaded, model)


def test_a_channels_last_model_comes_back(tmp_path: Path) -> None:
    model = make_stage("upcycled")
    vimoe.save(copy.deepcopy(model).to(memory_format=torch.channels_last), tmp_path)
    assert_same_model(vimoe.load(tmp_path), model)


@contextmanager
def process_group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def compiled_ddp(model: nn.Module) -> nn.Module:
    return torch.compile(DistributedDataParallel(model))


WRAPPERS: list[Any] = [torch.compile, nn.DataParallel, DistributedDataParallel, AveragedModel, ModelEmaV3, compiled_ddp]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
def test_a_wrapped_model_comes_back_plain(wrap: Any, tmp_path: Path) -> None:
    model = make_stage("upcycled")
    with process_group_of_one():
        vimoe.save(wrap(model), tmp_path)
    assert_same_model(vimoe.load(tmp_path), model)


def test_a_model_with_batch_norm_comes_back_upcycled(tmp_path: Path) -> None:
    args = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = vimoe.upcycle(timm.create_model("xcit_nano_12_p16_224", **args), last=1, num_experts=3).eval()
    vimoe.save(model, tmp_path)
    again, images = vimoe.load(tmp_path), make_images(model)
    assert torch.equal(run(again, images), run(model, images))
    assert again.state_dict()["blocks.0.local_mp.bn.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("stage", ["dense", "upcycled"])
def test_a_model_whose_weights_are_shared_out_comes_back_whole(stage: str, tmp_path: Path) -> None:
    model = make_stage(stage)
    expected = copy.deepcopy(model)
    with process_group_of_one():
        mesh = init_device_mesh("cpu", (1,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        vimoe.save(model, tmp_path)
    assert_same_model(vimoe.load(tmp_path), expected)


def test_a_module_that_holds_more_than_the_model_is_not_taken_for_a_wrapper(tmp_path: Path) -> None:
    holder = Holder(make())
    holder.head = nn.Linear(5, 2)
    with refused("only models made by timm.create_model can be saved: this one does not know its own name", holder):
        vimoe.save(holder, tmp_path)


def test_a_features_only_model_gets_one_line_that_names_the_cure(tmp_path: Path) -> None:
    model = make(features_only=True, out_indices=(0, 2))
    for features in (model, vimoe.upcycle(model, last=1)):
        with refused("a features_only model is cut to what its features need: save a whole model, …", features):
            vimoe.save(features, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_cut_by_timm_gets_one_line_and_can_still_be_pruned(tmp_path: Path) -> None:
    model = vimoe.upcycle(make(), last=3, num_experts=4)
    model.prune_intermediate_layers([1], prune_norm=True, prune_head=True)
    assert get_config(model).layers == (0, 1)
    line = "timm would make another model of this one's arguments: … the first is …; save it before blocks are cut …"
    with refused(line, model):
        vimoe.save(model, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []
    with refused("plan for block 2: the model's MoE layers are blocks 0, 1", model):
        vimoe.prune(model, {2: []})
    vimoe.prune(model, {0: [], 1: [0, 3]})
    assert get_config(model) == model.moe_config
    assert (model.moe_config.layers, model.moe_config.num_experts) == ((1,), (2,))


def test_a_model_whose_moe_blocks_were_all_cut_away_is_dense() -> None:
    model = vimoe.upcycle(make(), last=1)
    model.prune_intermediate_layers([0])
    assert get_config(model) is None
    with refused("this model has no MoE layer to prune", model):
        vimoe.prune(model, {2: []})


# Another size, another head


@pytest.mark.parametrize("stage", ["dense", "upcycled"])
@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224", "eva02_tiny_patch14_224"],
)
def test_a_model_is_loaded_for_another_image_size_as_timm_resizes_it(name: str, stage: str, tmp_path: Path) -> None:
    model = make_stage(stage, name)
    vimoe.save(model, tmp_path)
    size = (56, 84) if "patch14" in name else (48, 64)
    model.set_input_size(img_size=size)
    loaded = vimoe.load(tmp_path, img_size=size)
    assert_same_model(loaded, model)
    assert vimoe.cost(loaded) == vimoe.cost(model)
    vimoe.save(loaded, tmp_path / "larger")
    assert_same_model(vimoe.load(tmp_path / "larger"), model)


def test_the_size_that_a_model_has_already_changes_nothing(tmp_path: Path) -> None:
    model = make_stage("upcycled")
    vimoe.save(model, tmp_path)
    assert_same_model(vimoe.load(tmp_path, img_size=32), model)
    assert_same_model(vimoe.load(tmp_path, img_size=(32, 32)), model)


@pytest.mark.parametrize("size", [0, -5, 1.5, True, "96", (32, 0), (1, 2, 3), None])
def test_an_image_size_that_is_none_gets_one_line(size: Any, tmp_path: Path) -> None:
    vimoe.save(make(), tmp_path)
    if size is not None:
        with refused(f"img_size must be one or two positive whole numbers, got {size!r}"):
            vimoe.load(tmp_path, img_size=size)


@pytest.mark.parametrize("size", [10**7, 10**30])
def test_an_image_size_beyond_all_memory_gets_one_line(size: int, tmp_path: Path) -> None:
    vimoe.save(make(), tmp_path)
    with refused(f"VisionTransformer cannot be given images of {size}x{size} pixels: …"):
        vimoe.load(tmp_path, img_size=size)


def test_a_model_whose_size_is_fixed_gets_one_line(tmp_path: Path) -> None:
    vimoe.save(make("samvit_base_patch16"), tmp_path)
    with refused("VisionTransformerSAM cannot be given images of 96x96 pixels: …"):
        vimoe.load(tmp_path, img_size=96)


@pytest.mark.parametrize("stage", ["dense", "upcycled"])
def test_another_number_of_classes_gives_a_new_head_and_keeps_the_rest(stage: str, tmp_path: Path) -> None:
    model = make_stage(stage)
    vimoe.save(model, tmp_path, extra={"label_names": list("abcde")})
    loaded = vimoe.load(tmp_path, num_classes=3)
    assert loaded.head.weight.shape == (3, 32)
    assert "label_names" not in loaded.pretrained_cfg
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    assert_same_state({name: loaded.state_dict()[name] for name in kept}, kept)
    vimoe.save(loaded, tmp_path / "new")
    assert_same_model(vimoe.load(tmp_path / "new"), loaded)
    assert vimoe.load(tmp_path, num_classes=0).num_classes == 0


def test_the_number_of_classes_that_a_model_has_already_keeps_its_head(tmp_path: Path) -> None:
    model = make_stage("upcycled")
    vimoe.save(model, tmp_path, extra={"label_names": list("abcde")})
    loaded = vimoe.load(tmp_path, num_classes=5)
    assert_same_model(loaded, model)
    assert loaded.pretrained_cfg["label_names"] == list("abcde")


@pytest.mark.parametrize(("classes", "reason"), [(True, "num_classes must be a whole …"), ("5", "num_classes must …")])
def test_a_number_of_classes_that_is_none_gets_one_line(classes: Any, reason: str, tmp_path: Path) -> None:
    vimoe.save(make(), tmp_path)
    with refused(reason):
        vimoe.load(tmp_path, num_classes=classes)


def test_a_run_folder_is_loaded_by_its_model(tmp_path: Path) -> None:
    model = make_stage("upcycled")
    vimoe.save(model, tmp_path / "run" / "model")
    assert_same_model(vimoe.load(tmp_path / "run"), model)
    assert read_config(tmp_path / "run") == read_config(tmp_path / "run" / "model")


@pytest.mark.parametrize("path", [5000 * "x", "a\0b"])
def test_a_name_that_no_file_can_have_gets_one_line(path: str) -> None:
    with refused("cannot read …"):
        vimoe.load(path)


@pytest.mark.parametrize("path", [None, 5, b"model"])
def test_what_is_no_path_gets_one_line(path: Any) -> None:
    with refused(f"a model folder is named by its path, got {path!r}"):
        vimoe.load(path)
    with refused(f"a model folder is named by its path, got {path!r}"):
        vimoe.save(make(), path)


def test_what_timm_s_private_function_takes_and_writes_is_what_save_counts_on() -> None:
    wanted = ["model", "config_path", "model_config", "model_args", "data_config"]
    found = list(inspect.signature(save_config_for_hf).parameters)
    assert found == wanted, f"timm {timm.__version__} has changed save_config_for_hf: see vimoe/vit/checkpoint.py"


@pytest.mark.parametrize("preset", ["preserve", "paper"])
@pytest.mark.parametrize("gate_input", ["cls", "mean"])
def test_all_moe_settings_come_back(preset: Any, gate_input: Any, tmp_path: Path) -> None:
    model = vimoe.upcycle(make(), layers=[0, 2], num_experts=3, preset=preset, gate_input=gate_input)
    vimoe.prune(model, {2: [1, 0]})
    vimoe.save(model, tmp_path)
    loaded = vimoe.load(tmp_path)
    assert loaded.moe_config == model.moe_config
    assert loaded.moe_config.num_experts == (3, 2)
    assert_same_model(loaded, model)
    # and its shared experts still know what they carry
    assert_same_model(vimoe.prune(loaded, {0: []}), vimoe.prune(model, {0: []}))


def test_a_loaded_model_is_ready_to_answer_and_to_be_trained(tmp_path: Path) -> None:
    model = make_stage("upcycled").train()
    vimoe.save(model, tmp_path)
    assert all(module.training for module in model.modules())
    loaded = vimoe.load(tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert all(p.requires_grad for p in loaded.parameters())
    (loaded.train()(make_images(loaded)).sum() + vimoe.balance_loss(loaded)).backward()
    assert all(p.grad is not None for p in loaded.parameters())


def test_a_model_can_be_saved_after_a_forward_and_a_backward(tmp_path: Path) -> None:
    model = make_stage("upcycled")
    model(make_images(model)).sum().backward()
    vimoe.save(model, tmp_path)
    assert_same_model(vimoe.load(tmp_path), model)


def test_a_saved_model_does_not_hold_on_to_its_file(tmp_path: Path) -> None:
    model = make_stage("upcycled")
    vimoe.save(model, tmp_path)
    loaded = vimoe.load(tmp_path)
    vimoe.save(make_stage("dense"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_same_model(loaded, model)


def test_what_training_needs_beside_the_weights_can_be_given_to_load(tmp_path: Path) -> None:
    model = make_stage("upcycled", drop_path_rate=0.2)
    vimoe.save(model, tmp_path)
    loaded = vimoe.load(tmp_path, drop_path_rate=0.2)
    assert loaded.blocks[2].drop_path2.drop_prob == pytest.approx(0.2)
    assert_same_model(loaded, model)
    with refused(f"{tmp_path}/config.json does not describe a model: … unexpected keyword argument 'drop_pat_rate'"):
        vimoe.load(tmp_path, drop_pat_rate=0.2)


# The form of the folder


@every_stage
def test_a_folder_holds_two_files_and_only_an_moe_model_s_speaks_of_moe(stage: str, tmp_path: Path) -> None:
    model = make_stage(stage)
    vimoe.save(model, tmp_path / "deep" / "model")
    assert sorted(path.name for path in (tmp_path / "deep" / "model").iterdir()) == ["config.json", "model.safetensors"]
    entries = read_config(tmp_path / "deep" / "model")
    assert entries["architecture"] == "vit_tiny_patch16_224"
    config = get_config(model)
    assert entries.get("vimoe") == (config.to_dict() if config else None)
    assert ("vimoe" in entries) == (stage in ("upcycled", "partly pruned"))
    state = load_file(tmp_path / "deep" / "model" / "model.safetensors")
    assert state.keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_giant_patch14_dinov2", "eva02_base_patch14_224"])
@pytest.mark.parametrize("stage", ["dense", "fully pruned"])
def test_timm_alone_can_read_a_dense_model_s_folder(name: str, stage: str, tmp_path: Path) -> None:
    model = make_stage(stage, name, **SHAPES[name])
    vimoe.save(model, tmp_path)
    by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert_same_model(by_timm.eval(), model)


def test_more_entries_can_be_kept_beside_the_model(tmp_path: Path) -> None:
    labels = ["ant", "bee", "cat", "dog", "eel"]
    vimoe.save(make_stage("upcycled"), tmp_path, extra={"label_names": labels, "recipe": {"lr": 0.1}})
    assert read_config(tmp_path)["label_names"] == labels
    assert read_config(tmp_path)["recipe"] == {"lr": 0.1}
    assert vimoe.load(tmp_path).pretrained_cfg["label_names"] == labels


def test_arguments_that_timm_cannot_note_down_can_be_given_in_words(tmp_path: Path) -> None:
    model = make(act_layer=nn.ReLU)
    line = (
        "cannot describe this model: Model argument 'act_layer' is not serializable; provide a model_args replacement."
    )
    with refused(line, model):
        vimoe.save(model, tmp_path / "model")
    vimoe.save(model, tmp_path / "model", model_args={"act_layer": "relu"})
    assert_same_model(vimoe.load(tmp_path / "model"), model)


# Saving over what is there


def test_saving_again_replaces_the_model_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    vimoe.save(make_stage("upcycled"), tmp_path)
    model = make_stage("fully pruned", embed_dim=48)
    vimoe.save(model, tmp_path)
    assert_same_model(vimoe.load(tmp_path), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_gets_one_line_and_the_old_model_still_loads(tmp_path: Path, monkeypatch) -> None:
    old, new = make_stage("upcycled"), make_stage("dense")
    vimoe.save(old, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with refused(f"cannot write the model to {tmp_path}: [Errno 28] No space left on device", new):
            vimoe.save(new, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_same_model(vimoe.load(tmp_path), old)


def test_a_place_that_cannot_be_a_folder_gets_one_line(tmp_path: Path) -> None:
    model = make()
    (tmp_path / "file").write_text("")
    with refused(f"cannot write the model to {tmp_path}/file: …", model):
        vimoe.save(model, tmp_path / "file")
    with refused(f"cannot write the model to {tmp_path}/file/model: …", model):
        vimoe.save(model, tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1),
        Holder(timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_that_create_model_did_not_make_gets_one_line(model: nn.Module, tmp_path: Path) -> None:
    line = "only models made by timm.create_model can be saved: this one does not know its own name"
    with refused(line, model):
        vimoe.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_two_layers_share_get_one_line(tmp_path: Path) -> None:
    model = make()
    model.blocks[0].mlp.fc1.weight = model.blocks[1].mlp.fc1.weight
    with refused(f"cannot write the model to {tmp_path}/model: Some tensors share memory, …", model):
        vimoe.save(model, tmp_path / "model")


def test_entries_that_json_cannot_hold_get_one_line_and_the_old_model_still_loads(tmp_path: Path) -> None:
    model = make()
    vimoe.save(model, tmp_path)
    with refused("cannot describe this model: Object of type object is not JSON serializable"):
        vimoe.save(make_stage("upcycled"), tmp_path, extra={"recipe": object()})
    with refused("cannot describe this model: AssertionError"):
        vimoe.save(make_stage("upcycled"), tmp_path, extra={"label_names": "ant"})
    assert_same_model(vimoe.load(tmp_path), model)


# Damaged and foreign folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vimoe.save(make_stage("upcycled"), tmp_path)
    return tmp_path


@pytest.fixture
def edit(folder: Path) -> Any:
    """Change entries of the folder's config.json."""

    def change(**entries: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **entries}))

    return change


def test_a_folder_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    with refused(f"{tmp_path}/none is not a model folder: it holds no config.json"):
        vimoe.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_gets_one_line(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with refused(f"{folder} is not a model folder: it holds no {name}"):
        vimoe.load(folder)


def test_a_file_in_the_place_of_the_folder_gets_one_line(folder: Path) -> None:
    with refused(f"cannot read {folder}/model.safetensors/config.json: [Errno 20] Not a directory: …"):
        vimoe.load(folder / "model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_weights_file_gets_one_line(share: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refused(f"{path} is damaged or no safetensors file: …"):
        vimoe.load(folder)


@pytest.mark.parametrize("content", [bytes(range(256)) * 40, bytes(1000), b"{}", b"\x02" + bytes(7) + b"{}" * 9])
def test_a_weights_file_of_other_bytes_gets_one_line(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with refused(f"{folder}/model.safetensors is damaged or no safetensors file: …"):
        vimoe.load(folder)


def test_a_folder_in_the_place_of_the_weights_gets_one_line(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with refused(f"{folder}/model.safetensors is damaged or no safetensors file: …"):
        vimoe.load(folder)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_in_the_place_of_the_weights_gets_one_line_and_is_not_opened(folder: Path) -> None:
    torch.save({"weights": Trap(folder / "sprung")}, folder / "model.safetensors")
    with refused(f"{folder}/model.safetensors is damaged or no safetensors file: …"):
        vimoe.load(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "pretrained_cfg_overlay"])
def test_a_configuration_cannot_make_timm_read_another_file(key: str, folder: Path, edit) -> None:
    torch.save(Trap(folder / "sprung"), folder / "trap.pth")
    config = json.loads((folder / "config.json").read_text())
    value = {
        "checkpoint_path": str(folder / "trap.pth"),
        "pretrained": True,
        "pretrained_cfg_overlay": {"file": str(folder / "trap.pth")},
    }[key]
    edit(
        model_args={**config["model_args"], key: value},
        pretrained_cfg={**config["pretrained_cfg"], "file": str(folder / "trap.pth")},
    )
    with refused(f"{folder}/config.json does not describe a model: … multiple values for keyword argument '{key}'"):
        vimoe.load(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("content", ["", "{", '{"architecture": ', "[1, 2", "\x00"])
def test_broken_json_gets_one_line(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with refused(f"cannot read {folder}/config.json: …"):
        vimoe.load(folder)


def test_a_configuration_that_is_no_text_gets_one_line(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x80")
    with refused(f"cannot read {folder}/config.json: 'utf-8' codec can't decode byte 0xff in position 0: …"):
        vimoe.load(folder)


@pytest.mark.parametrize(
    "content",
    [[], 3, "vit", None, {}, {"architectures": ["ViTForImageClassification"], "hidden_size": 384}, {"architecture": 1}],
)
def test_json_of_something_else_gets_one_line(content: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(content))
    with refused(f"{folder}/config.json does not describe a timm model: it names no architecture"):
        vimoe.load(folder)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"architecture": "vit_of_next_year"}, "timm knows no architecture 'vit_of_next_year'"),
        ({"architecture": "hf-hub:somebody/something"}, "timm knows no architecture 'hf-hub:somebody/something'"),
        ({"architecture": "local-dir:/"}, "timm knows no architecture 'local-dir:/'"),
        ({"architecture": 5}, "timm knows no architecture 5"),
        ({"architecture": None}, "timm knows no architecture None"),
        ({"architecture": "resnet18"}, "ResNet.__init__() got an unexpected keyword argument …"),
        ({"pretrained_cfg": None}, "…"),
        ({"pretrained_cfg": [1]}, "…"),
        ({"pretrained_cfg": {"colour": "red"}}, "PretrainedCfg.__init__() got an unexpected keyword argument 'colour'"),
        ({"model_args": None}, "…"),
        ({"model_args": [1]}, "…"),
        ({"model_args": {"colour": "red"}}, "… got an unexpected keyword argument 'colour'"),
        ({"model_args": {"embed_dim": 32, "num_heads": 7}}, "dim should be divisible by num_heads"),
        ({"model_args": {"embed_dim": "wide"}}, "…"),
        ({"model_args": {"embed_dim": 10**9}}, "…"),
        ({"model_args": {"act_layer": "magic"}}, "…"),
        ({"num_classes": "many", "model_args": {}}, "…"),
        ({"vimoe": None}, "MoE settings must be a dictionary, got None"),
        ({"vimoe": [1]}, "MoE settings must be a dictionary, got [1]"),
        ({"vimoe": {}}, "incomplete MoE settings: 'layers' is missing"),
        ({"vimoe": {"layers": [0], "num_experts": [2], "colour": "red"}}, "unknown MoE setting 'colour': …"),
        ({"vimoe": {"layers": [0], "num_experts": [2, 2]}}, "1 MoE layers need as many num_experts, got [2, 2]"),
        ({"vimoe": {"layers": [0], "num_experts": ["2"]}}, "… must be a list of whole numbers, got ['2']"),
        ({"vimoe": {"layers": [0], "num_experts": [2], "routing": "pixel"}}, "routing must be one of image, token, …"),
        ({"vimoe": {"layers": [7], "num_experts": [2]}}, "block 7 does not exist: the model has 3 blocks"),
    ],
)
def test_a_configuration_that_makes_no_model_gets_one_line(entries: Any, reason: str, folder: Path, edit) -> None:
    edit(**entries)
    with refused(f"{folder}/config.json does not describe a model: {reason}"):
        vimoe.load(folder)


@pytest.mark.parametrize(
    ("entries", "first"),
    [
        ({"vimoe": {"layers": [1, 2], "num_experts": [4, 8], "shared_expert": False}}, "blocks.2.mlp.experts.fc1.bias"),
        ({"vimoe": {"layers": [2], "num_experts": [4], "shared_expert": False}}, "blocks.1.mlp.experts.fc1.bias"),
        ({"vimoe": {"layers": [1, 2], "num_experts": [4, 4]}}, "blocks.1.mlp.shared_expert.fc1.bias"),
        ({"model_args": {"embed_dim": 64, "depth": 3, "num_heads": 2, "img_size": 32}}, "blocks.0.attn.proj.bias"),
        ({"model_args": {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32}}, "blocks.3.attn.proj.bias"),
    ],
)
def test_a_configuration_of_another_shape_than_the_weights_gets_one_line(
    entries: Any, first: str, folder: Path, edit
) -> None:
    edit(**entries)
    line = f"{folder}/model.safetensors does not fit config.json: … weights differ, the first is {first}"
    with refused(line):
        vimoe.load(folder)


def test_a_dense_configuration_beside_moe_weights_gets_one_line(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["vimoe"]
    (folder / "config.json").write_text(json.dumps(config))
    with refused(f"{folder}/model.safetensors does not fit config.json: 18 weights differ, the first is …"):
        vimoe.load(folder)


def test_weights_that_are_no_floating_point_numbers_get_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: value.long() for name, value in load_file(path).items()}, path)
    with refused(f"{path} does not fit config.json: … is of torch.int64, not of a type to compute in"):
        vimoe.load(folder)


def test_weights_too_coarse_to_compute_in_get_one_line(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}, path)
    with refused(f"{path} does not fit config.json: … is of torch.float8_e4m3fn, not of a type to compute in"):
        vimoe.load(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_get_one_line(number: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state["blocks.1.norm1.bias"][3] = number
    save_file(state, path)
    with refused(f"{path} holds weights that are no finite numbers, the first in blocks.1.norm1.bias"):
        vimoe.load(folder)


def test_no_weights_at_all_get_one_line(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")
    with refused(f"{folder}/model.safetensors does not fit config.json: … weights differ, the first is …"):
        vimoe.load(folder)


def test_a_device_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    vimoe.save(make("vit_tiny_patch16_224"), tmp_path)
    with refused("device 'tpu9' cannot be used here: …"):
        vimoe.load(tmp_path, device="tpu9")
