"""transformers' ViTs are upcycled as timm's are: found by structure, the function kept."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vimoe
from vimoe.cli import main
from vimoe.errors import UserError
from vimoe.vit.blocks import find_backbone, moe_layers

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WIDE = {**SIZES, "intermediate_size": 64}
DINO = {**SIZES, "mlp_ratio": 2}
# Class, configuration, its arguments, prefix tokens, whether there is a class token.
FAMILIES: dict[str, tuple[str, str, dict[str, Any], int, bool]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", {**WIDE, "num_labels": 5}, 1, True),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", {**DINO, "num_labels": 5}, 1, True),
    "dinov2, SwiGLU": ("Dinov2Model", "Dinov2Config", {**DINO, "use_swiglu_ffn": True}, 1, True),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO, 5, True),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**WIDE, "num_register_tokens": 2}, 3, True),
    "dinov3, gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**WIDE, "use_gated_mlp": True}, 1, True),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", WIDE, 1, True),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", WIDE, 0, False),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def make(family: str) -> nn.Module:
    kind, config, args, *_ = FAMILIES[family]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**args)).eval()
    for parameter in model.parameters():  # norms and biases too, away from what hides a mistake
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def answer(model: nn.Module) -> Tensor:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    output = model(images)
    return output.logits if "logits" in output else output.last_hidden_state


def part_ways(model: nn.Module) -> nn.Module:
    for layer in moe_layers(model).values():
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@every_family
def test_upcycling_keeps_the_function_and_every_other_name(family: str) -> None:
    model = make(family)
    names, want = {name for name, _ in model.named_parameters() if ".mlp." not in name}, answer(model)
    vimoe.upcycle(model, last=2, num_experts=3)
    torch.testing.assert_close(answer(model), want, rtol=1e-5, atol=1e-5)
    assert names <= {name for name, _ in model.named_parameters()}
    layers = moe_layers(model)
    assert list(layers) == [1, 2]
    prefix, has_class_token = FAMILIES[family][3:]
    assert {layer.num_prefix_tokens for layer in layers.values()} == {prefix}
    assert {layer.gate_input for layer in layers.values()} == {"cls" if has_class_token else "mean"}


@every_family
@pytest.mark.parametrize("routing", ["image", "token"])
def test_it_trains_with_the_balance_loss_and_records_its_routing(family: str, routing: str) -> None:
    model = vimoe.upcycle(make(family), last=1, num_experts=3, routing=routing).train()
    with vimoe.record_routing(model) as record:
        (answer(model).square().mean() + vimoe.balance_loss(model)).backward()
    layer = moe_layers(model)[2]
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert layer.router.weight.grad.abs().max() > 0
    tokens = 16 + FAMILIES[family][3]
    assert record.expert_ids[2].shape == (4 if routing == "image" else 4 * tokens, 1)


@every_family
def test_the_cost_is_counted_and_pruning_gives_the_model_its_own_names_back(family: str) -> None:
    model = make(family)
    dense, names = vimoe.cost(model), [name for name, _ in model.named_parameters()]
    vimoe.upcycle(model, last=2, num_experts=3)
    moe = vimoe.cost(model)
    assert dense.stored_params < moe.activated_params < moe.stored_params
    assert dense.macs < moe.macs < 2 * dense.macs
    want = answer(model)
    vimoe.prune(model, {1: [], 2: [0, 2]})
    torch.testing.assert_close(answer(model), want, rtol=1e-5, atol=1e-5)
    vimoe.prune(model, {2: []})
    assert vimoe.cost(model) == dense
    assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
    torch.testing.assert_close(answer(model), want, rtol=1e-5, atol=1e-5)


@every_family
def test_a_saved_model_comes_back_to_the_bit(family: str, tmp_path: Path) -> None:
    model = part_ways(vimoe.upcycle(make(family), last=2, num_experts=3))
    vimoe.save(model, tmp_path)
    again = vimoe.load(tmp_path)
    assert type(again) is type(model)
    assert torch.equal(answer(again), answer(model))
    assert json.loads((tmp_path / "config.json").read_text())["vimoe"]["num_experts"] == [3, 3]
    vimoe.prune(again, {1: [0], 2: []})
    vimoe.save(again, tmp_path)
    assert torch.equal(answer(vimoe.load(tmp_path)), answer(again))


@every_family
def test_what_save_pretrained_writes_comes_back_to_the_bit(family: str, tmp_path: Path) -> None:
    model = part_ways(vimoe.upcycle(make(family), last=2, num_experts=3))
    model.save_pretrained(tmp_path)
    again = vimoe.load(tmp_path)
    assert type(again) is type(model)
    assert torch.equal(answer(again), answer(model))
    vimoe.prune(again, {1: [0], 2: []})
    again.save_pretrained(tmp_path)
    assert torch.equal(answer(vimoe.load(tmp_path)), answer(again))


def test_transformers_says_that_it_misses_the_ffns_of_moe_layers(tmp_path: Path) -> None:
    vimoe.upcycle(make("vit"), last=1, num_experts=3).save_pretrained(tmp_path)
    model, found = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".mlp.")[0] for name in found["missing_keys"]} == {"vit.layers.2"}
    vimoe.save(model, tmp_path)
    assert torch.equal(answer(vimoe.load(tmp_path)), answer(model))


def test_weights_of_save_pretrained_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    vimoe.upcycle(make("vit"), last=1, num_experts=3).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["stray"] = weights.pop("vit.layernorm.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"does not fit config\.json"):
        vimoe.load(tmp_path)


def test_a_verb_says_that_it_takes_no_models_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vimoe.save(vimoe.upcycle(make("vit"), last=1, num_experts=3), tmp_path)
    assert main(["export", str(tmp_path)]) == 2
    assert "holds a model of transformers: vimoe.load reads it" in capsys.readouterr().err


@pytest.mark.parametrize("with_outputs", [False, True])
def test_the_guides_trainer_adds_the_balance_loss_in_training(
    monkeypatch: pytest.MonkeyPatch, with_outputs: bool
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "other-loops.md").read_text()
    names: dict[str, Any] = {"vimoe": vimoe}
    exec(re.search(r"```python\n(from transformers import Trainer.*?)```", guide, re.DOTALL).group(1), names)
    trainer = object.__new__(names["BalancedTrainer"])
    model = vimoe.upcycle(make("vit"), last=1, num_experts=3).train()

    def compute_loss(self: object, model: nn.Module, inputs: Tensor, *_: object) -> object:
        output = model(inputs)
        return (output.logits.mean(), output) if with_outputs else output.logits.mean()

    monkeypatch.setattr(transformers.Trainer, "compute_loss", compute_loss)
    found = trainer.compute_loss(model, torch.randn(2, 3, 32, 32))
    loss = found[0] if with_outputs else found
    loss.backward()
    assert moe_layers(model)[2].router.weight.grad.abs().max() > 0
    model.eval()
    with torch.no_grad():
        trainer.compute_loss(model, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("family", ["vit", "dinov3", "clip"])
def test_a_fully_pruned_model_is_transformers_own(family: str, tmp_path: Path) -> None:
    model = vimoe.prune(part_ways(vimoe.upcycle(make(family), last=2, num_experts=3)), {1: [], 2: []})
    model.save_pretrained(tmp_path)
    assert torch.equal(answer(type(model).from_pretrained(tmp_path).eval()), answer(model))


def test_of_a_model_with_a_text_tower_the_vision_tower_is_found() -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.CLIPConfig(vision_config=WIDE, text_config={**text, "vocab_size": 49408})
    model = transformers.CLIPModel(config)
    assert len(find_backbone(model).blocks) == 3
    vimoe.upcycle(model, last=1, num_experts=2)
    assert [name for name, module in model.named_modules() if type(module).__name__ == "MoELayer"] == [
        "vision_model.encoder.layers.2.mlp"
    ]


def test_a_model_without_patches_is_refused() -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=9
    )
    with pytest.raises(UserError, match="no blocks with an FFN"):
        vimoe.upcycle(transformers.BertModel(config))


@pytest.mark.parametrize(
    ("entry", "value", "line"),
    [
        ("architectures", ["os"], "names no model of transformers"),
        ("architectures", None, "names no model of transformers"),
        ("architectures", ["CLIPVisionModel"], "does not fit config.json"),
        ("hidden_size", "wide", "does not describe a"),
        ("num_hidden_layers", 7, "does not fit config.json"),
        ("vimoe", {"layers": [9], "num_experts": [3]}, "does not exist"),
        ("vimoe", 3, "MoE settings must be a dictionary"),
    ],
)
def test_a_tampered_configuration_is_one_line(tmp_path: Path, entry: str, value: object, line: str) -> None:
    vimoe.save(vimoe.upcycle(make("vit"), last=1, num_experts=3), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    with pytest.raises(UserError, match=line):
        vimoe.load(tmp_path)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "auto_map", "quantization_config"])
def test_a_configuration_fetches_no_code(tmp_path: Path, key: str) -> None:
    model = make("vit")
    vimoe.save(model, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "evil/kernel"}))
    again = vimoe.load(tmp_path)
    assert torch.equal(answer(again), answer(model))
    assert "evil" not in again.config.to_json_string()
    assert again.config._attn_implementation == model.config._attn_implementation


def test_arguments_of_timm_are_refused(tmp_path: Path) -> None:
    vimoe.save(make("vit"), tmp_path)
    with pytest.raises(UserError, match="img_size and others are for timm's"):
        vimoe.load(tmp_path, img_size=64)
