"""COCO's annotations as masks; run lengths and their values are pycocotools' own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image

from tests.data.test_layouts import FORM
from vimoe.cli import main
from vimoe.data.coco import Shapes, decoded_runs, drawn, find_coco, inside, uncompressed
from vimoe.data.decode import BrokenImageError
from vimoe.data.masks import IGNORE
from vimoe.data.registry import open_masks, open_one_split
from vimoe.errors import UserError
from vimoe.training.recipe import load_recipe

# 7 rows of 5 pixels, as `pycocotools.mask.encode` compresses them.
TEXT, BITS = "4141NOO024NM23", "00010001100101101001100110011101101"
SQUARE = {"category_id": 7, "segmentation": [[2, 3, 10, 3, 10, 9, 2, 9]]}  # 8 x 6 pixels
CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}]


def content(*annotations: dict[str, Any], count: int = 2, size: tuple[int, int] = (16, 20)) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": size[0], "width": size[1]} for i in range(count)]
    return {"images": images, "categories": CATEGORIES, "annotations": [{"image_id": 0, **one} for one in annotations]}


def write(root: Path, found: Any, split: str = "train2017", size: tuple[int, int] = (20, 16), count: int = 2) -> Path:
    """A file of annotations, with images of width and height `size` in a folder of the split's name."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    text = found if isinstance(found, str) else json.dumps(found)
    (root / "annotations" / f"instances_{split}.json").write_text(text)
    (root / split).mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (i, 90, 30)).save(root / split / f"{i}.jpg")
    return root


def test_compressed_run_lengths_are_pycocotools() -> None:
    expected = np.array(list(BITS), dtype=int).reshape(7, 5) == 1
    assert (decoded_runs(TEXT, 7, 5) == expected).all()
    assert (decoded_runs(uncompressed(TEXT), 7, 5) == expected).all()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_plain_run_lengths_go_down_the_columns_and_begin_outside(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    runs, inside_now = [0], False
    for column in range(width):
        for row in range(height):
            if mask[row, column] != inside_now:
                inside_now = not inside_now
                runs.append(0)
            runs[-1] += 1
    assert (decoded_runs(runs, height, width) == mask).all()


def test_compressed_numbers_may_be_long_and_differences_negative() -> None:
    def text(numbers: list[int]) -> str:
        """COCO's own way, one character after the other."""
        letters = ""
        for place, number in enumerate(numbers):
            rest, more = number - (numbers[place - 2] if place > 2 else 0), True
            while more:
                bits, rest = rest & 31, rest >> 5
                more = rest != (-1 if bits & 16 else 0)
                letters += chr((bits | 32 * more) + 48)
        return letters

    runs = [0, 1, 40000, 3, 5, 70000, 31, 32, 15, 16, 17]
    assert uncompressed(text(runs)) == runs


@given(st.integers(3, 9), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_polygon_holds_the_pixels_whose_middle_is_inside(corners: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.random(corners)) * 2 * np.pi  # a star around its middle, also beyond the image
    points = 10 + rng.uniform(2, 13, (corners, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    middles = np.stack(np.meshgrid(np.arange(19) + 0.5, np.arange(15) + 0.5), -1).reshape(-1, 2)
    expected = Outline(np.concatenate([points, points[:1]]), closed=True).contains_points(middles).reshape(15, 19)
    assert (inside(points.ravel().tolist(), 15, 19) == expected).mean() > 0.997  # rounding at a middle


def test_the_later_annotation_lies_on_top_and_crowds_below_all() -> None:
    crowd = {"counts": [0, 16 * 20], "size": [16, 20]}
    layers = [(1, SQUARE["segmentation"]), (2, [[4, 3, 20, 3, 20, 9, 4, 9]]), (IGNORE, crowd)]
    mask = drawn(Shapes(16, 20, layers))
    assert mask[0, 0] == IGNORE
    assert (mask[3:9, 2:4] == 1).all()
    assert (mask[3:9, 4:] == 2).all()
    assert (mask == 1).sum() + (mask == 2).sum() == 6 * 18
    assert (drawn(Shapes(16, 20, [])) == 0).all()


def test_two_polygons_are_one_annotation_and_empty_ones_nothing() -> None:
    mask = drawn(Shapes(16, 20, [(1, [[0, 0, 2, 0, 2, 2, 0, 2], [5, 5, 7, 5, 7, 7, 5, 7]]), (2, [])]))
    assert (mask == 1).sum() == 8


def test_a_folder_of_cocos_is_read_with_background_first_and_categories_by_their_number(tmp_path: Path) -> None:
    write(tmp_path, content(SQUARE))
    write(tmp_path, content({**SQUARE, "category_id": 9}), "val2017")
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    (tmp_path / "annotations" / "image_info_test2017.json").write_text(json.dumps({**content(), "annotations": []}))
    splits = open_masks("coco", str(tmp_path), FORM)
    assert splits.class_names == ("background", "cat", "dog")
    image, mask = splits.val[0]
    assert image.shape[1:] == mask.shape == (16, 20)
    assert (mask[3:9, 2:10] == 2).all()
    assert (mask == 2).sum() == 48
    assert (mask == 0).sum() == 16 * 20 - 48
    assert splits.notes == (f"{tmp_path}/annotations/image_info_test2017.json holds no annotations and is not used",)


def test_a_test_split_without_annotations_is_passed_over_unless_it_is_named(tmp_path: Path) -> None:
    write(tmp_path, content(SQUARE))
    write(tmp_path, content(SQUARE), "val2017")
    (tmp_path / "annotations" / "image_info_test2017.json").write_text(json.dumps({**content(), "annotations": []}))
    assert open_one_split("coco", str(tmp_path), FORM)[2] == "val"
    assert open_one_split("coco", str(tmp_path), FORM, "train")[2] == "train"
    with pytest.raises(UserError, match=r"image_info_test2017.json holds no annotations: name another split"):
        open_one_split("coco", str(tmp_path), FORM, "test")
    with pytest.raises(UserError, match=r"image_info_test2017.json holds no annotations: name another split"):
        open_masks("coco", str(tmp_path), FORM, splits=("", "", "test"))


WRONG: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "cannot read .*instances_train2017.json: Expecting"),
    "too deep": ("[" * 200_000, "cannot read .*instances_train2017.json"),
    "a list": ([], "not in COCO's form: it holds no images and categories"),
    "no name": ({**content(), "categories": [{"id": 1}]}, "not in COCO's form: KeyError: 'name'"),
    "one name twice": ({**content(), "categories": [{"id": i, "name": "a"} for i in (1, 2)]}, "no names of their own"),
    "an unknown category": (content({**SQUARE, "category_id": 3}), "not in COCO's form: KeyError: 3"),
    "an unknown image": (content({**SQUARE, "image_id": 5}), "not in COCO's form: KeyError: 5"),
    "no segmentation": (content({"category_id": 7, "bbox": [1, 2, 3, 4]}), "KeyError: 'segmentation'"),
    "images that are a number": ({**content(), "images": 3}, "not in COCO's form: TypeError"),
    "images elsewhere": (json.dumps(content()).replace(".jpg", ".gif"), "none of the 2 images of .* is there, in "),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_json_ends_in_one_line(what: str, tmp_path: Path) -> None:
    found, line = WRONG[what]
    with pytest.raises(UserError, match=line) as caught:
        find_coco(write(tmp_path, found))
    assert "\n" not in str(caught.value)


def test_other_categories_and_two_files_for_a_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path, content())
    write(tmp_path, {**content(), "categories": CATEGORIES[:1]}, "val2017")
    with pytest.raises(UserError, match="has other categories than the files before it"):
        find_coco(tmp_path)
    for name in ("a_test.json", "b_test.json"):
        (tmp_path / "annotations" / name).write_text("{}")
    with pytest.raises(UserError, match=r"a_test.json and b_test.json are both of 'test'"):
        find_coco(tmp_path)
    with pytest.raises(UserError, match="holds JSON: --dataset coco reads it"):
        open_masks("ade20k", str(tmp_path), FORM)
    with pytest.raises(UserError, match=r"holds no annotations/\*.json"):
        find_coco(tmp_path / "train2017")


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3]],
        [[1, 2, 3, 4]],
        [["a"] * 6],
        [[float("nan")] * 6],
        5,
        {"counts": [3]},
        {"counts": [-1, 321]},
        {"counts": "zz~"},
        {"size": [16, 20]},
        {"counts": 10**9},
    ],
)
def test_an_annotation_that_is_none_makes_a_broken_image(segmentation: Any, tmp_path: Path) -> None:
    found = find_coco(write(tmp_path, content({**SQUARE, "segmentation": segmentation})))
    with pytest.raises(BrokenImageError, match=r"0.jpg has an annotation that is none") as caught:
        found.read(*found.parts["train"][0])
    assert "\n" not in str(caught.value)


def test_an_image_of_another_size_is_broken(tmp_path: Path) -> None:
    found = find_coco(write(tmp_path, content(SQUARE, size=(10**9, 10**9))))
    with pytest.raises(BrokenImageError, match="is 20 x 16 pixels, its annotations say 1000000000 x 1000000000"):
        found.read(*found.parts["train"][0])


def test_train_recognises_the_layout_and_predict_writes_0_for_the_background(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for split, count in {"train2017": 8, "val2017": 4}.items():
        write(root, content({**SQUARE, "segmentation": [[0, 0, 20, 0, 20, 8, 0, 8]]}, count=count), split, count=count)
    model = [
        "--model",
        "vit_tiny_patch16_224",
        "--model-args",
        '{"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}',
    ]
    where = ["--data-dir", str(root), "--output", str(tmp_path / "run"), "--defaults", "scratch", "--workers", "0"]
    assert main(["train", *where, *model, "--img-size", "16", "--epochs", "1", "--batch-size", "4"]) == 0
    shown = capsys.readouterr()
    assert "holds images and masks (coco): the task is segmentation" in shown.err
    assert "mean IoU" in shown.out
    assert load_recipe(tmp_path / "run" / "recipe.yaml").dataset == "coco"
    assert main(["evaluate", str(tmp_path / "run" / "model"), "--data-dir", str(root)]) == 0
    image = str(root / "val2017" / "0.jpg")
    assert main(["predict", str(tmp_path / "run"), image, "--output", str(tmp_path / "masks")]) == 0
    with Image.open(tmp_path / "masks" / "0.png") as mask:
        assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
