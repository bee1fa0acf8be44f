import subprocess
import sys
from pathlib import Path

import pytest

import vimoe


def test_every_public_name_is_there_and_documented() -> None:
    for name in vimoe.__all__:
        assert getattr(vimoe, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'upcylce'"):
        _ = vimoe.upcylce


def test_the_public_names_are_listed_before_they_are_used() -> None:
    code = "import sys, vimoe; sys.exit(not set(vimoe.__all__) <= set(dir(vimoe)) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, vimoe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_library_needs_nothing_of_the_toolbox() -> None:
    code = """
import sys
for name in ("matplotlib", "scipy", "sklearn", "jinja2", "yaml"):
    sys.modules[name] = None  # an import of it fails
import tempfile, timm, torch, vimoe
args = {"img_size": 32, "depth": 2}
model = vimoe.upcycle(timm.create_model("vit_tiny_patch16_224", num_classes=4, **args), last=2, num_experts=3)
with vimoe.record_routing(model) as record:
    loss = model(torch.randn(2, 3, 32, 32)).sum() + vimoe.balance_loss(model)
loss.backward()
assert vimoe.cost(model).stored_params > vimoe.cost(vimoe.prune(model, {0: []})).stored_params
with tempfile.TemporaryDirectory() as folder:
    vimoe.save(model, folder, model_args=args)
    assert set(vimoe.load(folder).state_dict()) == set(model.state_dict())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_two_modules_share_a_name() -> None:
    names = [path.stem for path in Path(vimoe.__file__).parent.rglob("*.py") if path.stem != "__init__"]
    assert sorted(set(names)) == sorted(names)
