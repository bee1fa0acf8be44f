"""Pushing and loading again, through the Hub's own client against a stand-in for its HTTP API."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard

import vimoe
from tests.export.hub_server import Repos, hub
from tests.export.models import SIZE, write_classifier, write_segmenter
from vimoe.cli import main
from vimoe.export.upload import push
from vimoe.tasks.model import load_model
from vimoe.vit.hub_folder import fetch


@pytest.fixture
def repos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repos]:
    fetch.cache_clear()
    with hub(monkeypatch, tmp_path / "cache") as found:
        yield found
    fetch.cache_clear()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        return torch.equal(a(images), b(images))


def test_a_pushed_model_loads_by_its_name_with_its_card(repos: Repos, tmp_path: Path, capsys) -> None:
    folder = write_classifier(tmp_path / "run" / "model", routing="image")
    (folder / "secret.txt").write_text("mine")
    assert main(["push", str(tmp_path / "run"), "me/mine"]) == 0
    assert capsys.readouterr().out.strip().endswith("/me/mine")
    assert set(repos["me/mine"]) == {"model.safetensors", "config.json", "README.md"}
    assert same(vimoe.load("hf-hub:me/mine"), vimoe.load(folder))
    card = ModelCard(repos["me/mine"]["README.md"].decode())
    assert card.data.library_name == "vimoe"
    assert 'vimoe.load("hf-hub:me/mine")' in card.text
    assert main(["info", "hf-hub:me/mine"]) == 0
    assert "for each image, with a shared expert" in capsys.readouterr().out


def test_a_pruned_model_is_plain_timms_on_the_hub_too(repos: Repos, tmp_path: Path) -> None:
    model = vimoe.prune(vimoe.load(write_classifier(tmp_path / "moe", routing="image")), {1: [], 2: []})
    vimoe.save(model, tmp_path / "m", model_args={"img_size": SIZE, "depth": 3})
    push(tmp_path / "m", "me/plain", "---\nlibrary_name: timm\n---\n")
    assert same(timm.create_model("hf-hub:me/plain", pretrained=True).eval(), model)


def test_a_segmentation_model_comes_back_with_its_decoder(repos: Repos, tmp_path: Path) -> None:
    folder = write_segmenter(tmp_path / "m")
    push(folder, "me/masks", "card")
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(load_model(Path("hf-hub:me/masks"))(images), load_model(folder)(images))


def test_without_a_network_the_last_copy_is_taken(
    repos: Repos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(write_classifier(tmp_path / "m"), "me/mine", "card")
    assert same(vimoe.load("hf-hub:me/mine"), vimoe.load(tmp_path / "m"))
    fetch.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(vimoe.load("hf-hub:me/mine"), vimoe.load(tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("me/none", "the Hub has no model 'me/none'"),
        ("me/mine@v9", "me/mine on the Hub has no revision 'v9'"),
        ("me/mi/ne", "a model on the Hub is named user/name, got 'me/mi/ne'"),
        ("me/foreign", "does not describe a timm model"),
        ("me/torn", "is damaged or no safetensors file"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(repos: Repos, tmp_path: Path, capsys, name: str, line: str) -> None:
    push(write_classifier(tmp_path / "m"), "me/mine", "card")
    repos["me/foreign"] = {"config.json": b"{}", "model.safetensors": b""}
    repos["me/torn"] = {**repos["me/mine"], "model.safetensors": repos["me/mine"]["model.safetensors"][:99]}
    assert main(["info", f"hf-hub:{name}"]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_nothing_but_weights_and_configuration_is_downloaded(repos: Repos, tmp_path: Path) -> None:
    push(write_classifier(tmp_path / "m"), "me/mine", "card")
    repos["me/mine"] |= {"pytorch_model.bin": b"evil", "model.py": b"evil"}
    assert {path.name for path in fetch("hf-hub:me/mine").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("broken", ["card", "model", "token", "network"])
def test_what_cannot_be_pushed_is_one_line_and_makes_nothing(
    repos: Repos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, broken: str
) -> None:
    folder = write_classifier(tmp_path / "m")
    if broken == "card":
        (folder / "README.md").write_text("---\nlicense: [\n---\n")
    elif broken == "model":
        (folder / "model.safetensors").write_bytes(b"torn")
    elif broken == "token":
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lines = {
        "card": "is no model card",
        "model": "is damaged",
        "token": "hf auth login",
        "network": "cannot reach the Hugging Face Hub",
    }
    assert main(["push", str(folder), "me/mine"]) == 2
    error = capsys.readouterr().err
    assert lines[broken] in error
    assert error.count("\n") == 1
    assert repos == {}


def test_a_dense_models_card_loads_it_with_timm(repos: Repos, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m")
    assert main(["push", str(folder), "me/mine"]) == 0
    code = repos["me/mine"]["README.md"].decode().split("```python\n")[1].split("```")[0]
    names = {"images": torch.randn(2, 3, SIZE, SIZE)}
    exec(code, names)
    with torch.no_grad():
        torch.testing.assert_close(names["logits"].detach(), vimoe.load(folder)(names["images"]))
