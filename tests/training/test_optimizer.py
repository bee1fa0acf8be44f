from pathlib import Path

import pytest
import torch

from tests.training.tiny import recipe
from vimoe.data.digits import digits
from vimoe.training.build import build_model
from vimoe.training.fit import train
from vimoe.training.optimizer import build_optimisation, freeze_all_but_experts
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


def test_a_frozen_model_learns_in_its_moe_layers_and_head_alone(tmp_path: Path) -> None:
    model = build_model(recipe(tmp_path, last=1, num_experts=3), digits())
    freeze_all_but_experts(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith(("blocks.2.mlp.", "head."))}
    run = train(recipe(tmp_path / "run", last=1, num_experts=3, epochs=1, freeze=True))
    fresh = build_model(recipe(tmp_path, last=1, num_experts=3), digits()).state_dict()
    trained = load(run.model).state_dict()
    assert {name for name in trained if not torch.equal(trained[name], fresh[name])} == learning
