from pathlib import Path

import pytest
import torch

from tests.training.tiny import recipe
from vimoe.data.digits import digits
from vimoe.training.build import build_model
from vimoe.training.fit import train
from vimoe.training.optimizer import base_rate, build_optimisation, freeze
from vimoe.vit.checkpoint import load


def test_the_schedule_warms_up_from_0_peaks_at_lr_and_ends_low(tmp_path: Path) -> None:
    settings = recipe(tmp_path, epochs=10, warmup_epochs=2.0, layer_decay=1.0)
    optimizer, schedule = build_optimisation(build_model(settings, digits()), settings, steps=5)
    rates = []
    for step in range(50):
        schedule.step_update(step)
        rates.append(max(group["lr"] for group in optimizer.param_groups))
    assert rates[0] == 0.0
    assert max(rates) == pytest.approx(settings.lr, rel=0.02)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.05 * settings.lr


@pytest.mark.parametrize(("opt", "fused"), [("adamw", True), ("sgd", True), ("lamb", None), ("lion", None)])
def test_an_optimiser_updates_in_one_pass_where_it_can(tmp_path: Path, opt: str, fused: bool | None) -> None:
    settings = recipe(tmp_path, opt=opt)
    optimizer, _ = build_optimisation(build_model(settings, digits()), settings, steps=5)
    assert optimizer.defaults.get("fused") is fused


def test_layer_decay_slows_the_early_blocks_and_routers_have_no_weight_decay(tmp_path: Path) -> None:
    settings = recipe(tmp_path, layer_decay=0.5, last=1, num_experts=3)
    model = build_model(settings, digits())
    optimizer, schedule = build_optimisation(model, settings, steps=5)
    schedule.step_update(5)
    names = {id(p): name for name, p in model.named_parameters()}
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            rates[names[id(p)]], decays[names[id(p)]] = group["lr"], group["weight_decay"]
    assert rates["blocks.1.mlp.fc1.weight"] == pytest.approx(0.5 * rates["blocks.2.mlp.experts.fc1.weight"])
    assert decays["blocks.2.mlp.experts.fc1.weight"] == 0.05
    assert decays["blocks.2.mlp.experts.fc1.bias"] == decays["blocks.2.mlp.router.weight"] == 0.0
    assert len(rates) == len(list(model.parameters()))


@pytest.mark.parametrize(("layer_decay", "scale"), [(1.0, 1.0), (0.5, 0.25)])
def test_routed_experts_learn_at_their_own_rate(tmp_path: Path, layer_decay: float, scale: float) -> None:
    settings = recipe(
        tmp_path, last=2, num_experts=3, expert_lr=0.2, lr=0.1, layer_decay=layer_decay, epochs=4, warmup_epochs=2.0
    )
    model = build_model(settings, digits())
    optimizer, schedule = build_optimisation(model, settings, steps=5)
    schedule.step_update(5)  # half-way through the warm-up: 0.05
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(name for name, _ in groups) == sorted(names.values())
    rates = {name: group["lr"] for name, group in groups}
    # Block 1 of 3 lies two layers below the norm and the head, which have the full rate.
    assert rates["head.weight"] == pytest.approx(0.05)
    for name in ("blocks.1.mlp.router.weight", "blocks.1.mlp.shared_expert.fc1.weight", "blocks.1.norm1.bias"):
        assert rates[name] == pytest.approx(0.05 * scale), name
    for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
        assert rates[f"blocks.1.mlp.experts.{name}"] == pytest.approx(0.2 * 0.05 * scale), name
    decays = {name: group["weight_decay"] for name, group in groups}
    assert decays["blocks.1.mlp.experts.fc1.weight"] == 0.05
    assert decays["blocks.1.mlp.experts.fc1.bias"] == decays["blocks.1.mlp.router.weight"] == 0.0
    assert base_rate(optimizer) == pytest.approx(0.05)


def test_a_frozen_model_learns_in_its_moe_layers_and_head_alone(tmp_path: Path) -> None:
    model = build_model(recipe(tmp_path, last=1, num_experts=3), digits())
    freeze(model, "experts", 2)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith(("blocks.2.mlp.", "head."))}
    run = train(recipe(tmp_path / "run", last=1, num_experts=3, epochs=1, freeze="experts"))
    fresh = build_model(recipe(tmp_path, last=1, num_experts=3), digits()).state_dict()
    trained = load(run.model).state_dict()
    assert {name for name in trained if not torch.equal(trained[name], fresh[name])} == learning


def test_routers_learn_at_their_own_rate(tmp_path: Path) -> None:
    settings = recipe(
        tmp_path, last=1, num_experts=3, router_lr=0.1, expert_lr=0.5, lr=0.1, epochs=4, warmup_epochs=2.0
    )
    model = build_model(settings, digits())
    optimizer, schedule = build_optimisation(model, settings, steps=5)
    schedule.step_update(5)  # half-way through the warm-up: 0.05
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["blocks.2.mlp.router.weight"] == pytest.approx(0.005)
    assert rates["blocks.2.mlp.experts.fc1.weight"] == pytest.approx(0.025)
    assert rates["blocks.2.mlp.shared_expert.fc1.weight"] == rates["head.weight"] == pytest.approx(0.05)
    assert len(rates) == len(names)


def test_a_frozen_trunk_ends_before_the_first_block_that_is_to_learn(tmp_path: Path) -> None:
    model = build_model(recipe(tmp_path), digits())
    freeze(model, "trunk", 2)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {n for n, _ in model.named_parameters() if n.startswith(("blocks.2.", "norm.", "head."))}
