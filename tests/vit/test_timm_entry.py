import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

import vimoe
import vimoe.vit.timm_entry
from tests.export.models import SIZE, vit, write_classifier
from vimoe.errors import UserError

TINY = {"base": "vit_tiny_patch16_224", "img_size": SIZE, "depth": 2, "num_classes": 5, "num_experts": 3}


def images() -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE)


def test_a_folder_is_a_model_by_name(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, routing="image")
    model = timm.create_model("vimoe", pretrained=True, folder=str(folder), num_classes=5, drop_rate=0.0).eval()
    x = images()
    with torch.no_grad():
        assert torch.equal(model(x), vimoe.load(folder)(x))


# What the scripts give `create_model` beside their --model-kwargs, when no flag says more.
SCRIPTS = {
    "train.py": {"drop_rate": 0.0, "drop_path_rate": None, "drop_block_rate": None, "global_pool": None}
    | {"bn_momentum": None, "bn_eps": None, "checkpoint_path": ""},
    "validate.py": {"pretrained": True, "num_classes": None, "global_pool": None},
    "benchmark.py": {"num_classes": None, "global_pool": None, "drop_rate": 0.0}
    | {"drop_path_rate": None, "drop_block_rate": None},
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_is_made_as_each_script_asks_for_it(tmp_path: Path, script: str) -> None:
    folder = write_classifier(tmp_path, routing="image")
    model = timm.create_model("vimoe", in_chans=3, scriptable=False, folder=str(folder), **SCRIPTS[script])
    size = resolve_data_config({}, model=model, use_test_size=True)["input_size"]
    assert model(torch.randn((2,) + size)).shape == (2, 5)  # noqa: RUF005  (as benchmark.py does)


def test_timms_training_task_trains_it_with_the_balance_loss_and_averages_it() -> None:
    model = timm.create_model("vimoe", last=1, balance_weight=0.3, in_chans=3, drop_rate=0.0, **TINY)
    plain = copy.deepcopy(model)
    plain._forward_hooks.clear()
    task = ClassificationTask(model, criterion_kwargs={"smoothing": 0.1}, verbose=False)
    task.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=1e-3, layer_decay=0.75)
    task.get_trainable_module().train()
    x, labels = images(), torch.tensor([0, 1, 2, 3])
    task(x, labels)["loss"].backward()
    (task.criterion(plain.train()(x), labels) + 0.3 * vimoe.balance_loss(plain)).backward()
    for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7, msg=name)
    before = model.blocks[1].mlp.router.weight.detach().clone()
    optimizer.step()
    task.update_ema(step=9)  # the first ones copy
    averaged = task.get_trainable_module(ema=True).module.blocks[1].mlp.router.weight
    assert not torch.equal(averaged, before)
    assert not torch.equal(averaged, model.blocks[1].mlp.router.weight)
    with torch.no_grad():
        assert task.get_eval_model(ema=True)(x).shape == (4, 5)


def test_backward_through_the_output_adds_the_gradient_of_the_balance_loss() -> None:
    model = timm.create_model("vimoe", balance_weight=0.3, last=1, **TINY)
    plain = copy.deepcopy(model)
    plain._forward_hooks.clear()
    x = images()
    model(x).square().sum().backward()
    (plain(x).square().sum() + 0.3 * vimoe.balance_loss(plain)).backward()
    for (name, one), two in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7, msg=name)
    router = model.blocks[1].mlp.router.weight
    model.zero_grad()
    (0 * model(x)).sum().backward()
    assert router.grad.abs().max() > 0


def test_evaluation_and_a_weight_of_0_leave_the_output_alone() -> None:
    model = timm.create_model("vimoe", last=1, **TINY)
    assert "_Carry" in type(model(images()).grad_fn).__name__
    assert "_Carry" not in type(model.eval()(images()).grad_fn).__name__
    none = timm.create_model("vimoe", last=1, balance_weight=0, **TINY)
    assert "_Carry" not in type(none(images()).grad_fn).__name__


def test_what_a_timm_script_trained_is_saved_as_a_model_folder(tmp_path: Path) -> None:
    """The code of the example, with a small model."""
    torch.manual_seed(1)
    trained = timm.create_model("vimoe", last=1, **TINY)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "model_best.pth.tar")
    page = (Path(__file__).parents[2] / "examples" / "timm_train.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    for old, new in {
        "vit_small_patch14_dinov2": TINY["base"],
        "last=2": "last=1, depth=2",
        "num_experts=8": "num_experts=3",
        "=224": f"={SIZE}",
        "num_classes=10": "num_classes=5",
        '"m': f'"{tmp_path}/m',
    }.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, {})
    x = images()
    with torch.no_grad():
        assert torch.equal(vimoe.load(tmp_path / "mine")(x), trained.eval()(x))


def test_a_script_runs_where_the_name_is_known(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, timm\nif __name__ == '__main__':\n"
        "    print(sys.argv[1:], timm.is_model('vimoe'), timm.models.model_entrypoint('vimoe').__module__)\n"
    )
    command = [sys.executable, "-m", "vimoe.vit.timm_script", str(script), "IMAGES", "--model", "vimoe"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "['IMAGES', '--model', 'vimoe'] True vimoe.vit.timm_entry\n"
    assert "Overwriting" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "needs base=NAME of a timm model, or folder=FOLDER"),
        ({"base": "vit_tiny_patch16_224", "folder": "x"}, "and not both"),
        ({"folder": "nowhere"}, "is not a model folder"),
        ({"folder": "nowhere", "num_experts": 4}, "num_experts belongs to base=NAME"),
        ({"base": "resnet18"}, "no blocks with an FFN"),
    ],
)
def test_a_mistake_is_said(arguments: dict[str, str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        timm.create_model("vimoe", **arguments)


def test_a_dense_folder_is_a_model_by_name_too(tmp_path: Path) -> None:
    vimoe.save(vit(), tmp_path, model_args={"img_size": SIZE, "depth": 3})
    assert timm.create_model("vimoe", folder=str(tmp_path))(images()).shape == (4, 5)


def test_a_model_that_chooses_nothing_trains_without_a_balance_loss(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, routing="token", router="soft", shared_expert=False)
    model = timm.create_model("vimoe", folder=str(folder)).train()
    model(images()).sum().backward()
    assert model.head.weight.grad is not None
