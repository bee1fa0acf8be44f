import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.archives import image_bytes, spoil, write_tar
from tests.data.image_files import COLOURS, write_folder
from vimoe.data.archive import members, read_member
from vimoe.data.decode import BrokenImageError
from vimoe.data.images import ImageFiles
from vimoe.data.loaders import batches, training_batches
from vimoe.data.registry import open_dataset
from vimoe.data.splits import RunSplits, Splits
from vimoe.data.streams import expand, find_torchvision, find_webdataset
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)


def shard(path: Path, labels: list[int], first: int = 0, kind: str = "cls") -> Path:
    files = {}
    for i, label in enumerate(labels, first):
        files[f"s{i:03}.png"] = image_bytes(10 * i)
        files[f"s{i:03}.{kind}"] = str(label).encode() if kind == "cls" else json.dumps({"label": label}).encode()
    return write_tar(path, files)


def greys(splits: Splits, part: str = "train") -> list[tuple[int, int]]:
    """Every image's grey value and label."""
    images = getattr(splits, part)
    assert isinstance(images, ImageFiles)
    return [(images.read(*sample)[0].getpixel((0, 0))[0], sample[1]) for sample in images.samples]  # type: ignore[index]


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_webdataset_shards_are_read_by_position_with_their_labels(tmp_path: Path, kind: str) -> None:
    shard(tmp_path / "pets-train-000000.tar", [0, 1], 0, kind)
    shard(tmp_path / "pets-train-000001.tar", [1, 0], 2, kind)
    shard(tmp_path / "pets-val-000000.tar", [1], 4, kind)
    splits = open_dataset("wds/pets", str(tmp_path), FORM)
    assert greys(splits) == [(0, 0), (10, 1), (20, 1), (30, 0)]
    assert greys(splits, "val") == [(40, 1)]
    assert splits.class_names == ("0", "1")
    seen = [labels for _, labels in training_batches(splits.train, 2, 0, 0, workers=2)]
    assert torch.equal(torch.stack(seen), torch.stack([y for _, y in training_batches(splits.train, 2, 0, 0)]))


def test_shards_as_webdatasets_own_writer_makes_them_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as sink:
        for i in range(3):
            grey = np.full((4, 4, 3), 50 * i, dtype=np.uint8)
            sink.write({"__key__": f"a/b{i}", "png": grey, "cls": i, "txt": "words"})
    samples = find_webdataset(tmp_path).parts["train"]
    values = [np.asarray(read_member(where))[0, 0, 0] for where, _ in samples]
    assert (values, [label for _, label in samples]) == ([0, 50, 100], [0, 1, 2])


def test_splits_of_shards_are_told_by_braces_by_info_or_by_folder(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / "a" / f"x{i:02}.tar", [0, 1], 2 * i)
    splits = open_dataset("wds/", str(tmp_path / "a"), FORM, splits=("x{00..01}.tar|4", "x02.tar", ""))
    assert (len(splits.train), len(splits.val), greys(splits, "val")) == (4, 2, [(40, 0), (50, 1)])
    info = {"splits": {"train": {"filenames": ["x02.tar"]}, "validation": {"filenames": ["x00.tar", "x01.tar"]}}}
    (tmp_path / "a" / "_info.json").write_text(json.dumps(info))
    splits = open_dataset("wds/", str(tmp_path / "a"), FORM)
    assert (len(splits.train), len(splits.val)) == (2, 4)
    for split in ("train", "val"):
        shard(tmp_path / "b" / split / "000.tar", [0, 1])
    assert find_webdataset(tmp_path / "b").parts.keys() == {"train", "val"}


def test_braces_stand_for_numbers_of_as_many_digits_and_for_words() -> None:
    assert expand("t-{008..011}.tar|100") == ["t-008.tar", "t-009.tar", "t-010.tar", "t-011.tar"]
    assert expand("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert expand("x.tar::y-{0..1}.tar") == ["x.tar", "y-0.tar", "y-1.tar"]


@pytest.mark.parametrize(
    "pattern", ["t-{0..99999999999}.tar", "{0..999}{0..999}", "{a}" * 3000, "{1..2}" * 20, f"{{0..{'9' * 5000}}}"]
)
def test_braces_that_stand_for_more_shards_than_there_can_be_are_one_line(pattern: str) -> None:
    with pytest.raises(UserError, match="stands for more than 100,000 shards"):
        expand(pattern)
    assert len(expand("{00000..99999}")) == 100_000


def test_classes_of_shards_have_the_names_in_classes_txt(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", [0, 1, 0, 1])
    (tmp_path / "classes.txt").write_text("cat\ndog\nhorse\n")
    assert find_webdataset(tmp_path).class_names == ("cat", "dog", "horse")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"label 1 of image .*train-0.tar: s001.png is out of range: .* 1 classes"):
        open_dataset("wds/", str(tmp_path), FORM, val_share=0.5)


def test_a_sample_that_lacks_a_part_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    path = shard(tmp_path / "train-0.tar", [0, 1, 0, 1, 0, 1])
    by_name = {member.name: member for member in members(path)}
    spoil(path, by_name["s001.png"].offset - 512, b"\xff" * 200)
    spoil(path, by_name["s004.cls"].offset - 512, b"\xff" * 200)
    shard(tmp_path / "val-0.tar", [0, 1])
    splits, told = open_dataset("wds/", str(tmp_path), FORM), list[str]()
    assert sum(len(labels) for _, labels in batches(splits.train, 4, 0, told.append)) == 4
    assert [line.partition(": ")[2] for line in told] == [
        "s001 has no image",
        "s004 has no label in .cls, or as 'label' in .json",
    ]


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["0", "one"], "the label of .*train-0.tar: s001.cls is 'one', and no whole number"),
        (["0", "-1"], "label -1 of image .*train-0.tar: s001.png is out of range"),
        (["0", "7"], "label 7 of image .*train-0.tar: s001.png is out of range: there are 2 images"),
    ],
)
def test_labels_that_cannot_be_are_one_line(tmp_path: Path, labels: list[str], line: str) -> None:
    files = {}
    for i, label in enumerate(labels):
        files |= {f"s{i:03}.png": image_bytes(i), f"s{i:03}.cls": label.encode()}
    write_tar(tmp_path / "train-0.tar", files)
    shard(tmp_path / "val-0.tar", [0])
    with pytest.raises(UserError, match=line):
        open_dataset("wds/", str(tmp_path), FORM)


def test_shards_without_labels_or_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.png": image_bytes(0)})
    with pytest.raises(UserError, match="holds no train images with a label"):
        find_webdataset(tmp_path)
    with pytest.raises(UserError, match=r"train-1.tar cannot be read: No such file"):
        find_webdataset(tmp_path, RunSplits("train-{0..1}.tar"))


def write_mnist(root: Path, labels: dict[str, list[int]]) -> None:
    """MNIST's own format: a header of big-endian numbers, then bytes."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, values in labels.items():
        images = np.stack([np.full((28, 28), 20 * i, dtype=np.uint8) for i in range(len(values))])
        head = np.array([0x803, len(values), 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = np.array([0x801, len(values)], dtype=">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + np.array(values, dtype=np.uint8).tobytes())


def test_torchvisions_sets_have_their_class_names_and_test_never_decides(tmp_path: Path) -> None:
    write_mnist(tmp_path, {"train": [3, 1, 3, 1], "t10k": [2, 5]})
    splits = open_dataset("torch/mnist", str(tmp_path), FORM)
    assert splits.class_names[:2] == ("0 - zero", "1 - one")
    assert sorted(greys(splits) + greys(splits, "val")) == [(0, 3), (20, 1), (40, 3), (60, 1)]
    assert greys(splits, "test") == [(0, 2), (20, 5)]
    assert len(pickle.loads(pickle.dumps(splits.train))) == 2  # for workers that are not forked


def test_torchvisions_files_are_read_like_any_others(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 2, "val": 1})
    classes = {name: (name,) for name in COLOURS}
    torch.save((classes, None), tmp_path / "meta.bin")
    found = find_torchvision("imagenet", tmp_path)
    assert found.class_names == tuple(sorted(COLOURS))
    assert {where.suffix for where, _ in found.parts["train"]} == {".jpg"}
    (tmp_path / "val" / "grass" / "000.jpg").write_text("no image")
    with pytest.raises(BrokenImageError, match="is no image that can be read"):
        [found.read(*sample) for sample in found.parts["val"]]


def test_a_torchvision_set_that_is_unknown_or_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown torchvision data set 'mnits'; there is cifar10"):
        open_dataset("torch/mnits", str(tmp_path), FORM)
    with pytest.raises(
        UserError, match=r"torchvision cannot open mnist in .* and nothing is downloaded: Dataset not found"
    ):
        open_dataset("torch/mnist", str(tmp_path), FORM)


@pytest.fixture
def hugging_face_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set that Hugging Face's library has saved: images in its tables, the second of `test` damaged."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"id": datasets.Value("string"), "img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def table(greys: list[int]) -> object:
        rows = [{"bytes": image_bytes(grey) if grey < 255 else b"no image", "path": None} for grey in greys]
        kinds = [i % 2 for i in range(len(greys))]
        columns = {"id": [str(grey) for grey in greys], "img": rows, "kind": kinds}
        return datasets.Dataset.from_dict(columns, features=features)

    datasets.DatasetDict({"train": table([10, 20, 30, 40]), "test": table([50, 255])}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("kind", ["hfds", "hfids"])
def test_hugging_faces_tables_are_read_by_position(hugging_face_folder: Path, kind: str) -> None:
    splits, told = open_dataset(f"{kind}/{hugging_face_folder}", None, FORM), list[str]()
    assert splits.class_names == ("cat", "dog")
    assert sorted(greys(splits) + greys(splits, "val")) == [(10, 0), (20, 1), (30, 0), (40, 1)]
    assert [len(labels) for _, labels in batches(splits.test, 4, 2, told.append)] == [1]
    assert told == [f"row 1 of test in {hugging_face_folder} is no image that can be read"]


def test_a_folder_of_images_is_read_by_hugging_faces_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    root = write_folder(tmp_path / "images", {"train": 3, "validation": 1})
    splits = open_dataset(f"hfds/{root}", str(tmp_path / "cache"), FORM)
    assert splits.class_names == tuple(sorted(COLOURS))
    assert (len(splits.train), len(splits.val)) == (9, 3)
    assert splits.train[4][0].shape == (3, 8, 8)


def test_what_hugging_faces_library_cannot_give_is_one_line(
    hugging_face_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="has no split 'dev'; there is train, test"):
        open_dataset(f"hfds/{hugging_face_folder}", None, FORM, splits=("", "dev", ""))
    with pytest.raises(UserError, match=r"hfids/some/name would be streamed, .*: hfds/some/name is prepared on disk"):
        open_dataset("hfids/some/name", None, FORM)
    (hugging_face_folder / "train" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"the data set .*saved cannot be opened"):
        open_dataset(f"hfds/{hugging_face_folder}", None, FORM)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs Hugging Face's library: pip install datasets"):
        open_dataset(f"hfds/{hugging_face_folder}", None, FORM)
