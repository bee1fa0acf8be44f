"""Train on a folder, evaluate, predict: as a practitioner would, from the command line."""

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.data.image_files import write_folder
from vimoe.cli import main
from vimoe.data.transforms import image_form
from vimoe.training.recipe import load_recipe
from vimoe.training.source import _recipe_form
from vimoe.vit.model_config import read_config

MODEL = ["--model", "vit_tiny_patch16_224", "--img-size", "16", "--workers", "0"]
ARGS = ["--model-args", '{"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "weight_init": "jax"}']


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three colours, upcycled in its last block."""
    root = tmp_path_factory.mktemp("use")
    write_folder(root / "data", {"train": 16, "val": 4, "test": 4})
    (root / "data" / "train" / "grass" / "000.jpg").write_text("no image")
    flags = ["--dataset", "folder", "--data-dir", str(root / "data"), "--output", str(root / "run"), "--device", "cpu"]
    rates = ["--epochs", "6", "--batch-size", "12", "--lr", "0.01", "--max-broken", "0.1", "--color-jitter", "0"]
    assert main(["train", *flags, *MODEL, *ARGS, *rates, "--last", "1", "--num-experts", "3"]) == 0
    return root


def test_a_broken_training_image_is_listed_and_the_run_goes_on(trained: Path) -> None:
    lines = (trained / "run" / "skipped.csv").read_text().splitlines()
    assert lines[0] == "reason"
    assert "000.jpg is no image that can be read" in lines[1]
    assert len(lines) == 2


def test_a_finished_model_sees_images_as_its_training_did(trained: Path) -> None:
    settings = read_config(trained / "run" / "model")["pretrained_cfg"]
    recipe = load_recipe(trained / "run" / "recipe.yaml")
    assert image_form(settings) == _recipe_form(recipe)


def test_evaluate_needs_the_model_folder_and_the_images_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data-dir", str(trained / "data"), "--json", str(tmp_path / "e.json"), "--csv", str(tmp_path / "e.csv")]
    assert main(["evaluate", str(trained / "run" / "model"), *where, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["images"] == 12
    assert figures["top1"] >= 90  # three colours are easy
    assert figures["top5"] == 100
    assert f"top-1 {figures['top1']:23.2f} %" in shown
    rows = list(csv.DictReader(io.StringIO((tmp_path / "e.csv").read_text())))
    assert [row["class"] for row in rows] == ["<script>", "blue sky", "grass"]
    assert shown.startswith(f"test of {trained / 'data'}: top-1 {figures['top1']:.1f} % (95 %: ")
    assert not (trained / "run" / "model" / "evaluation").exists()
    assert main(["evaluate", str(trained / "run"), *where[:2], "--device", "cpu"]) == 0
    own = capsys.readouterr().out
    assert own.startswith("test of the run's own data: top-1 ")
    assert own.splitlines()[1:-2] == shown.splitlines()[1:]
    written = {path.name for path in (trained / "run" / "evaluation").iterdir()} - {"mistakes.jpg"}
    assert written == {"metrics.json", "confusion.png", "confusion.svg", "confusion.pdf"}
    assert json.loads((trained / "run" / "evaluation" / "metrics.json").read_text())["top1"] == figures["top1"]


def test_a_folder_with_some_of_the_models_classes_is_scored_by_their_labels(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "data" / "test" / "grass", tmp_path / "grass")
    assert main(["evaluate", str(trained / "run" / "model"), "--data-dir", str(tmp_path), "--device", "cpu"]) == 0
    table = capsys.readouterr().out.split("\n\n")[2].splitlines()
    assert len(table) == 3
    assert table[2].split()[:2] == ["grass", "4"]
    assert float(table[2].split()[2]) >= 75


def test_predict_says_labels_and_experts_and_leaves_broken_images_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    folder = trained / "data" / "test" / "grass"
    wanted = ["predict", str(trained / "run"), str(folder), str(tmp_path / "bad.jpg"), "--device", "cpu"]
    assert main([*wanted, "--top-k", "2", "--batch-size", "3"]) == 0
    shown = capsys.readouterr()
    answers = [json.loads(line) for line in shown.out.splitlines()]
    assert [Path(answer["path"]).name for answer in answers] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
    assert sum(answer["labels"][0]["label"] == "grass" for answer in answers) >= 3
    for answer in answers:
        assert len(answer["labels"]) == 2
        assert answer["labels"][0]["probability"] >= answer["labels"][1]["probability"]
        assert set(answer["experts"]) == {"2"}
        assert answer["experts"]["2"][0] in range(3)
    assert shown.err == f"vimoe predict: {tmp_path / 'bad.jpg'} is no image that can be read\n"

    assert main([*wanted, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4 * 3
    assert rows[0]["experts"].startswith("2:")


def test_predict_shows_how_far_it_is_where_the_answers_go_elsewhere(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    images = [str(trained / "data" / "test"), str(tmp_path / "bad.jpg")]
    assert main(["predict", str(trained / "run"), *images, "--batch-size", "4", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    answers = [json.loads(line)["path"] for line in shown.out.splitlines()]
    assert answers == sorted(answers)
    assert len(answers) == 12
    assert "| 0/13 [00:00<?, ?image/s]" in shown.err
    assert f"vimoe predict: {tmp_path / 'bad.jpg'} is no image that can be read" in shown.err


def test_a_glob_is_expanded_and_each_image_answered_once(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = trained / "data" / "test"
    assert main(["predict", str(trained / "run"), f"{test}/*/000.jpg", str(test / "grass" / "000.jpg")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["evaluate", "nowhere"], "nowhere is not a model folder: it holds no config.json"),
        (["evaluate", "RUN/model"], "dataset 'folder' needs data_dir, the folder of images"),
        (["evaluate", "RUN", "--split", "fold3"], "DATA has no split 'fold3'; there is test, train, val"),
        (["predict", "RUN", ""], "there is no image at ''"),
        (["evaluate", "RUN", "--data-dir", "nowhere"], "data_dir nowhere is not a folder"),
        (["evaluate", "RUN", "--dataset", "digits"], "the images have other classes than the model: 10 against 3"),
        (["evaluate", "RUN", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["predict", "RUN", "nowhere.jpg"], "there is no image at nowhere.jpg"),
        (["predict", "RUN", "RUN/recipe.yaml"], "none of the images can be read"),
        (["predict", "nowhere", "RUN/recipe.yaml"], "nowhere is not a model folder"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    trained: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.replace("RUN", str(trained / "run")) for argument in arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"vimoe: error: {line.replace('DATA', str(trained / 'data'))}")


def test_too_many_broken_images_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "data", {"train": 4, "val": 1})
    for name in ("000.jpg", "001.jpg"):
        (root / "train" / "grass" / name).write_text("no image")
    flags = ["--dataset", "folder", "--data-dir", str(root), "--output", str(tmp_path / "run"), "--batch-size", "4"]
    assert main(["train", *flags, *MODEL, *ARGS, "--epochs", "1", "--max-broken", "0.1"]) == 2
    assert "2 of 12 training images are broken, more than max_broken 0.1 allows" in capsys.readouterr().err


def train_on(root: Path, output: Path, *more: str) -> list[dict[str, Any]]:
    """One epoch; gives the rows of its metrics."""
    flags = ["--dataset", "folder", "--data-dir", str(root), "--output", str(output), "--device", "cpu"]
    assert main(["train", *flags, *MODEL, *ARGS, "--epochs", "1", "--batch-size", "4", *more]) == 0
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def evaluated(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    assert main(["evaluate", *arguments, "--json", str(tmp_path / "e.json"), "--device", "cpu"]) == 0
    return json.loads((tmp_path / "e.json").read_text())


def test_a_run_on_an_unsplit_folder_is_evaluated_on_what_it_set_aside_and_other_data_on_all_of_it(
    tmp_path: Path,
) -> None:
    root, run = write_folder(tmp_path / "data", {"": 10}), str(tmp_path / "run")
    (row,) = train_on(root, tmp_path / "run", "--seed", "1", "--val-share", "0.2")
    own = evaluated(tmp_path, run)
    assert (own["images"], own["data"]) == (6, "val (there is no test) of the run's own data")
    assert own["nll"] == pytest.approx(row["val_nll"], rel=1e-5)  # of these very images
    assert evaluated(tmp_path, run, "--data-dir", f"{root}/") == own
    moved = shutil.copytree(root, tmp_path / "moved")
    assert evaluated(tmp_path, run, "--data-dir", str(moved)) == own, "the run's own images at another place"
    assert evaluated(tmp_path, run, "--split", "train")["images"] == 24
    for model in (run, f"{run}/model"):
        other = evaluated(tmp_path, model, "--data-dir", str(write_folder(tmp_path / model[-5:], {"": 7})))
        assert (other["images"], other["data"]) == (21, f"{tmp_path / model[-5:]}, all of it")


def test_a_model_without_names_is_measured_on_as_many_classes_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained / "run" / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["label_names"]
    (folder / "config.json").write_text(json.dumps(config))
    data = write_folder(tmp_path / "data", {"": 2})
    assert evaluated(tmp_path, str(folder), "--data-dir", str(data))["images"] == 6
    shutil.copytree(next(path for path in data.iterdir()), data / "zebra")
    assert main(["evaluate", str(folder), "--data-dir", str(data)]) == 2
    assert "the images are of 4 classes, and the model tells 3 apart" in capsys.readouterr().err


def test_other_data_may_hold_one_split_alone_and_several_are_chosen_from(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained / "run")
    alone = evaluated(tmp_path, run, "--data-dir", str(write_folder(tmp_path / "a", {"test": 2})))
    assert (alone["images"], alone["data"]) == (6, f"test of {tmp_path / 'a'}")
    several = ["--data-dir", str(write_folder(tmp_path / "b", {"train": 1, "validation": 2, "night": 3}))]
    assert evaluated(tmp_path, run, *several)["data"] == f"validation of {tmp_path / 'b'}"
    assert evaluated(tmp_path, run, *several, "--split", "night")["images"] == 9
    (tmp_path / "b" / "validation").rename(tmp_path / "b" / "dusk")
    assert main(["evaluate", run, *several]) == 2
    assert "has several splits; name one with --split: there is dusk, night, train" in capsys.readouterr().err


def test_evaluation_sees_images_as_training_did_whatever_it_began_from(trained: Path, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", {"train": 4, "val": 3}, size=30)
    start = tmp_path / "start"
    shutil.copytree(trained / "run" / "model", start)
    config = read_config(start)
    config["pretrained_cfg"]["crop_pct"] = 0.5
    (start / "config.json").write_text(json.dumps(config))
    flags = ["--initial-checkpoint", str(start), "--last", "0", "--img-size", "16"]
    for name, more, share in (("files", [], 0.5), ("memory", ["--in-memory"], 1.0)):
        (row,) = train_on(data, tmp_path / name, *flags, *more)
        found = evaluated(tmp_path, str(tmp_path / name / "model"), "--data-dir", str(data))
        assert found["nll"] == pytest.approx(row["val_nll"], rel=1e-5)
        assert read_config(tmp_path / name / "model")["pretrained_cfg"]["crop_pct"] == share


def test_broken_validation_images_are_listed_and_too_many_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "data", {"train": 4, "val": 2})
    broken = root / "val" / "grass" / "001.jpg"
    broken.write_bytes(b"")
    (row,) = train_on(root, tmp_path / "run", "--max-broken", "0.2")
    assert row["val_images"] == 5
    assert f"{broken} is no image that can be read" in (tmp_path / "run" / "skipped.csv").read_text()
    for path in (root / "val").glob("*/*"):
        path.write_bytes(b"")
    flags = ["--dataset", "folder", "--data-dir", str(root), "--output", str(tmp_path / "other"), "--batch-size", "4"]
    assert main(["train", *flags, *MODEL, *ARGS, "--epochs", "1", "--max-broken", "1"]) == 2
    assert "6 of the 6 images to evaluate on are broken" in capsys.readouterr().err
    assert not (tmp_path / "other" / "model").exists()


def test_names_of_any_bytes_are_answered_in_ascii_and_open_the_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [b"caf\xe9.jpg", "ü.jpg".encode()]
    for name in names:
        shutil.copy(trained / "data" / "test" / "grass" / "000.jpg", tmp_path / os.fsdecode(name))
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"")
    assert main(["predict", str(trained / "run"), str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.isascii()
    answered = [os.fsencode(Path(json.loads(line)["path"]).name) for line in shown.out.splitlines()]
    assert answered == sorted(names, key=os.fsdecode)
    assert "bad\\udcff.jpg is no image that can be read" in shown.err


def test_a_model_whose_weights_are_no_numbers_predicts_and_evaluates_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run" / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["head.weight"][:] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors")
    for verb, what in (
        ("predict", [str(trained / "data" / "test")]),
        ("evaluate", ["--data-dir", str(trained / "data")]),
    ):
        assert main([verb, str(tmp_path / "model"), *what, "--device", "cpu"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert len(shown.err.splitlines()) == 1
