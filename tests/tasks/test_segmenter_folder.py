import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vimoe
from tests.tasks.scenery import NAMES, small_segmenter, small_vit
from vimoe import UserError
from vimoe.tasks.segmenter_folder import load_segmenter, read_segmentation, save_segmenter


@pytest.mark.parametrize("decoder", ["linear", "upernet"])
@pytest.mark.parametrize("state", ["dense", "upcycled", "pruned"])
@torch.no_grad()
def test_a_folder_gives_the_model_back_to_the_bit(decoder: str, state: str, tmp_path: Path) -> None:
    model = small_segmenter(decoder, last=0 if state == "dense" else 2)
    if state == "pruned":
        vimoe.prune(model, {2: [], 3: [0, 2]})
    save_segmenter(model, tmp_path, NAMES, reduce_zero_label=True, short_side=32)
    back = load_segmenter(tmp_path)
    assert list(back.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))
    images = torch.randn(2, 3, 29, 40)
    assert torch.equal(back(images), model(images))
    assert not back.training
    entry = read_segmentation(tmp_path)
    assert (entry.class_names, entry.reduce_zero_label, entry.short_side) == (NAMES, True, 32)


@torch.no_grad()
def test_the_backbone_alone_is_an_ordinary_model_folder(tmp_path: Path) -> None:
    model, images = small_segmenter(), torch.randn(1, 3, 32, 48)
    save_segmenter(model, tmp_path, NAMES)
    assert torch.equal(vimoe.load(tmp_path).forward_features(images), model.backbone.forward_features(images))


def test_a_half_precision_decoder_stays_so(tmp_path: Path) -> None:
    model = small_segmenter().to(torch.bfloat16)
    save_segmenter(model, tmp_path, NAMES)
    assert load_segmenter(tmp_path).decoder.classify.weight.dtype == torch.bfloat16


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    entries = json.loads(path.read_text())
    entries["segmentation"].update(values)
    path.write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"decoder": "fpn"}, "decoder must be one of"),
        ({"blocks": [9]}, "takes 1 of the blocks 0 to 3"),
        ({"blocks": 3}, "does not describe a segmentation model"),
        ({"blocks": ["3"]}, "does not describe a segmentation model"),
        ({"short_side": -1}, "does not describe a segmentation model"),
        ({"class_names": [1, 2, 3]}, "does not describe a segmentation model"),
        ({"surprise": 1}, "does not describe a segmentation model"),
        ({"class_names": ["a", "b"]}, "decoder.safetensors does not fit config.json"),
        ({"decoder": "upernet", "blocks": [0, 1, 2, 3], "dim": 8}, "decoder.safetensors does not fit config.json"),
    ],
)
def test_a_changed_entry_gets_one_line(values: dict[str, Any], line: str, tmp_path: Path) -> None:
    save_segmenter(small_segmenter(), tmp_path, NAMES)
    change(tmp_path, **values)
    with pytest.raises(UserError, match=line) as caught:
        load_segmenter(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_missing_or_strange_decoder_gets_one_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save_segmenter(small_segmenter(), one, NAMES)
    save_segmenter(small_segmenter(), two, NAMES)
    file = one / "decoder.safetensors"
    file.write_bytes((two / "decoder.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"not the decoder that config\.json beside it was written with"):
        load_segmenter(one)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        load_segmenter(one)
    file.unlink()
    with pytest.raises(UserError, match="cannot read the decoder"):
        load_segmenter(one)


def test_a_classifiers_folder_is_no_segmentation_model(tmp_path: Path) -> None:
    vimoe.save(small_vit(), tmp_path)
    with pytest.raises(UserError, match="holds no segmentation model"):
        load_segmenter(tmp_path)


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 class names for the model's 3 classes"):
        save_segmenter(small_segmenter(), tmp_path / "new", NAMES[:2])
    with pytest.raises(UserError, match="no segmentation model"):
        save_segmenter(small_vit(), tmp_path / "new", NAMES)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_segmenter(small_segmenter(), tmp_path / "file", NAMES)
