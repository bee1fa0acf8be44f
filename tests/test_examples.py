"""The notebooks run, and the explorer sees what the model does."""

import gc
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vimoe
from tests.export.models import write_classifier, write_segmenter
from vimoe import UserError

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_notebook(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """Run a notebook's code as one program in an empty folder; its names."""
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells), "commit it without outputs"
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "notebook"}
    with matplotlib.rc_context({"backend": "Agg"}):
        for cell in cells:
            exec("".join(cell["source"]), names)
    return names


def test_the_notebook_of_an_own_loop_runs_and_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run_notebook("own_loop", monkeypatch, tmp_path)
    assert names["score"](names["model"]) > 0.85
    assert (names["before"] - names["after"]).abs().max() < 1e-5
    assert names["counts"].sum() == len(names["test"])
    assert names["score"](names["again"]) == names["score"](names["model"])
    assert (tmp_path / "experts.png").stat().st_size > 5_000


@pytest.mark.slow
def test_the_notebook_of_a_study_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run_notebook("study", monkeypatch, tmp_path)
    assert names["code"] == 0
    assert "N4-L2-shared" in names["settings"]
    assert names["comparisons"].count("dense") >= 1
    names["figure"].savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_notebook_of_heatmaps_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = run_notebook("heatmaps", monkeypatch, tmp_path)
    assert names["counts"].counts.sum() == 2 * len(names["labels"])
    assert (tmp_path / "heatmaps.png").stat().st_size > 10_000


def explorer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("explorer", EXAMPLES / "explorer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["explorer"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Twelve images of two classes, and one that is none."""
    paths = []
    for n in range(12):
        path = tmp_path / "images" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 20 + 10 * n).convert("RGB").save(path)
        paths.append(path)
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"no image")
    return [*paths, tmp_path / "images" / "a" / "broken.png"]


def save_model(folder: Path, routing: str, extra: dict[str, str] | None = None, **settings: Any) -> Any:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=3, num_classes=2)
    vimoe.upcycle(model, last=2, num_experts=4, routing=routing, **settings)
    vimoe.save(model, folder, extra={"label_names": ["a", "b"], **(extra or {})})
    return model.eval()


@pytest.mark.parametrize("routing", ["image", "token"])
def test_the_explorer_tells_labels_experts_and_neighbours(routing: str, tmp_path: Path, photos: list[Path]) -> None:
    model = save_model(tmp_path / "model", routing)
    found = explorer().Explorer(tmp_path / "model", photos, batch_size=5)
    assert found.paths == photos[:-1]
    image = Image.open(photos[4])
    seen = found.look(image, nearest=3)
    inputs = found.transform(image, 0)[0][None]
    with torch.no_grad(), vimoe.record_routing(model) as record:
        probs = model(inputs).softmax(-1)[0]
    assert seen.labels == pytest.approx({"a": probs[0].item(), "b": probs[1].item()}, abs=1e-5)
    assert seen.nearest[0] == (photos[4], pytest.approx(1.0, abs=1e-4))
    assert [near[1] for near in seen.nearest] == sorted((near[1] for near in seen.nearest), reverse=True)
    assert [block for block, *_ in seen.experts] == [1, 2]
    for block, words, _ in seen.experts:
        most = record.expert_ids[block].flatten().bincount().argmax().item()
        assert words.startswith(f"{most} (")
    assert len(seen.maps) == (2 if routing == "token" else 0)


def test_a_map_has_a_colour_for_each_patch_of_its_expert(tmp_path: Path, photos: list[Path]) -> None:
    module, model = explorer(), save_model(tmp_path / "model", "token")
    found = module.Explorer(tmp_path / "model", photos[:2])
    inputs = found.transform(Image.open(photos[0]), 0)[0]
    with torch.no_grad(), vimoe.record_routing(model) as record:
        model(inputs[None])
    (pixels, title), _ = found.look(Image.open(photos[0])).maps
    chosen = record.expert_ids[1][1:, 0].view(4, 4)  # without the class token
    colours = module.expert_colours(4)
    original = module.to_pixels(inputs, found.form)
    for row in range(4):
        for column in range(4):
            place = (8 * row + 3, 8 * column + 5)
            assert (pixels[place] == original[place] // 2 + colours[chosen[row, column]] // 2).all()
    assert title == "block 1"


def test_tokens_that_no_expert_serves_are_grey(tmp_path: Path, photos: list[Path]) -> None:
    save_model(tmp_path / "model", "token", router="prioritised", capacity=0.2)
    module = explorer()
    found = module.Explorer(tmp_path / "model", photos[:1])
    pixels = found.look(Image.open(photos[0])).maps[0][0]
    original = module.to_pixels(found.transform(Image.open(photos[0]), 0)[0], found.form)
    assert (pixels == original // 2 + 64).all(-1).any()


def test_the_legend_has_the_maps_colours() -> None:
    module = explorer()
    colours, swatches = module.expert_colours(11), module.legend(11, side=20)
    assert swatches.shape == (40, 160, 3)
    assert all((swatches[20 * (e // 8) + 1, 20 * (e % 8) + 1] == colours[e]).all() for e in range(11))
    assert (swatches[30, 70] == 255).all()  # there is no twelfth


def test_small_maps_are_enlarged_by_whole_pixels() -> None:
    pixels = np.arange(32 * 16 * 3, dtype=np.uint8).reshape(32, 16, 3)
    large = explorer().enlarged(pixels, side=100)
    assert large.shape == (128, 64, 3)
    assert (large[::4, ::4] == pixels).all()
    assert (large[3::4, 3::4] == pixels).all()


def test_several_labels_have_probabilities_of_their_own(tmp_path: Path, photos: list[Path]) -> None:
    model = save_model(tmp_path / "model", "image", extra={"task": "multilabel"})
    found = explorer().Explorer(tmp_path / "model", photos[:1])
    with torch.no_grad():
        probs = model(found.transform(Image.open(photos[0]), 0)[0][None]).sigmoid()[0]
    seen = found.look(Image.open(photos[0]))
    assert seen.labels == pytest.approx({"a": probs[0].item(), "b": probs[1].item()}, abs=1e-5)


def test_what_the_explorer_cannot_show_is_one_line(tmp_path: Path, photos: list[Path]) -> None:
    module = explorer()
    with pytest.raises(UserError, match="segments: `vimoe predict` shows"):
        module.Explorer(write_segmenter(tmp_path / "segmenter"), photos)
    with pytest.raises(UserError, match="has no MoE layer"):
        module.Explorer(write_classifier(tmp_path / "dense"), photos)


@pytest.mark.filterwarnings("ignore")  # of Gradio's event loops
def test_the_page_is_made_of_what_the_explorer_sees(tmp_path: Path, photos: list[Path]) -> None:
    pytest.importorskip("gradio")
    save_model(tmp_path / "model", "token")
    module = explorer()
    app = module.make_app(module.Explorer(tmp_path / "model", photos))
    labels, experts, maps, near = app.fn(Image.open(photos[0]))
    assert set(labels) == {"a", "b"}
    assert len(experts) == 2
    assert [title for _, title in maps] == ["block 1", "block 2", "experts"]
    assert near[0][0] == str(photos[0])
    assert app.fn(None) == ({}, [], [], [])
    del app
    gc.collect()
