"""Any number of labels an image, from a table to a pruned model, as a user would: a label is a bright corner."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_use import ARGS, MODEL
from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.cli import main
from vimoe.training.recipe import load_recipe

CORNERS = {"north": (0, 0), "east": (0, 8), "south|west": (8, 8)}  # the last has both labels


def write_set(root: Path, splits: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    rows = [("path", "split", "labels")]
    for split, count in splits.items():
        for i in range(count):
            chosen = [name for name in CORNERS if rng.random() < 0.5]
            pixels = rng.integers(0, 60, (16, 16, 3))
            for top, left in (CORNERS[name] for name in chosen):
                pixels[top : top + 8, left : left + 8] += 180
            (root / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{split}{i}.png")
            rows.append((f"{split}{i}.png", split, "|".join(chosen)))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("multilabel")
    write_set(root / "data", {"train": 96, "val": 40, "test": 40})
    flags = ["--data-dir", str(root / "data"), "--output", str(root / "run"), "--device", "cpu", "--scale", "1"]
    rates = [
        "--epochs",
        "14",
        "--batch-size",
        "16",
        "--lr",
        "0.01",
        "--hflip",
        "0",
        "--keep",
        "best",
        "--smoothing",
        "0",
    ]
    assert (
        main(["train", *flags, *MODEL, *ARGS, *rates, "--last", "1", "--num-experts", "3", "--pos-embed-std", "1"]) == 0
    )
    return root


def test_the_task_is_recognised_and_the_best_epoch_is_that_of_map(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "run"
    assert load_recipe(run / "recipe.yaml").task == "multilabel"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val_map"] > 95
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    shown = capsys.readouterr().out
    assert f"mAP {max(row['val_map'] for row in rows):.1f} %" in shown
    assert main(["evaluate", str(run), "--json", str(trained / "found.json")]) == 0
    shown, found = capsys.readouterr().out, json.loads((trained / "found.json").read_text())
    assert shown.startswith("test of the run's own data: label ranking precision ")
    assert found["map"] > 90
    assert found["f1"] > 80
    assert [row["class"] for row in found["classes"]] == ["east", "north", "south", "west"]
    assert found["classes"][2]["images"] == found["classes"][3]["images"]  # they come together
    assert {file.name for file in (run / "evaluation").iterdir()} <= {"metrics.json", "mistakes.jpg"}


def test_evaluate_takes_the_model_folder_and_a_table_with_some_of_its_labels(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = trained / "data" / "images"
    (tmp_path / "few.csv").write_text(f"path,north,west\n{images}/test0.png,1,0\n{images}/test1.png,0,1\n")
    assert main(["evaluate", str(trained / "run" / "model"), "--data-dir", str(tmp_path / "few.csv")]) == 0
    rows = capsys.readouterr().out.split("\n\n")[2].splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [["north", "1"], ["west", "1"]]
    (tmp_path / "other.csv").write_text(f"path,up,west\n{images}/test0.png,1,0\n{images}/test1.png,0,1\n")
    assert main(["evaluate", str(trained / "run" / "model"), "--data-dir", str(tmp_path / "other.csv")]) == 2
    assert "the images have other classes than the model: 2 against 4" in capsys.readouterr().err


def test_predict_gives_each_label_a_probability_of_its_own(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = trained / "bright.png"
    Image.new("RGB", (16, 16), "white").save(image)
    assert main(["predict", str(trained / "run"), str(image)]) == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert sum(label["probability"] for label in answer["labels"]) > 1.5  # a softmax would give 1


def test_analyze_counts_an_image_once_for_each_label_and_prune_scores_by_the_order_of_labels(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "run"
    assert main(["analyze", str(run), "--workers", "0"]) == 0
    counts, analysis = RoutingCounts.load(run / "routing" / "val.npz"), Analysis.load(run / "analysis.json")
    with (trained / "data" / "labels.csv").open() as file:
        sets = [row["labels"].split("|") for row in csv.DictReader(file) if row["split"] == "val"]
    assert counts.class_names == ("east", "north", "south", "west")
    assert counts.counts[0].sum(1).tolist() == [sum(name in labels for labels in sets) for name in counts.class_names]
    assert (analysis.metric, analysis.unit, analysis.images) == ("lrap", "image", 40)
    assert "label ranking precision" in (run / "report.html").read_text()
    assert main(["analyze", str(run), "--workers", "0", "--sample", "20"]) == 0
    assert Analysis.load(run / "analysis.json").metric == "lrap"
    (run / "plan.json").write_text(json.dumps({"layers": [{"layer": 2, "action": "prune"}], "split": "val"}))
    assert main(["prune", str(run), "--recover-epochs", "1"]) == 0
    evidence = json.loads((trained / "run-pruned" / "pruning.json").read_text())
    assert (evidence["metric"], evidence["split"]) == ("lrap", "test")
    capsys.readouterr()
    assert main(["evaluate", str(trained / "run-pruned")]) == 0
    assert "mAP" in capsys.readouterr().out
    assert main(["compare", str(run), str(trained / "run-pruned")]) == 0
    assert "label ranking precision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--mixup", "0.2"], "mixup and cutmix mix images of one label each: leave them 0 for multilabel"),
        (
            ["--balance-classes", "loss"],
            "balance_classes counts images by their one label: leave it out for multilabel",
        ),
        (["--per-class", "3"], "task 'multilabel' does not use per_class"),
        (["--in-memory"], "task 'multilabel' does not use in_memory"),
        (["--task", "classification"], "gives an image any number of labels: --task multilabel learns them"),
        (["--freeze", "trunk", "--cache-features", "memory", "--last", "1"], "cache_features is for classification"),
    ],
)
def test_what_needs_one_label_an_image_is_refused_in_one_line(
    flags: list[str], line: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data-dir", str(trained / "data"), "--output", str(tmp_path / "run"), "--defaults", "scratch"]
    assert main(["train", *where, *MODEL, *ARGS, "--batch-size", "16", "--epochs", "1", *flags]) == 2
    error = capsys.readouterr().err.splitlines()
    assert line in error[-1]
    assert not (tmp_path / "run" / "model").exists()


def test_an_archive_is_not_taken_for_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.tar").write_bytes(b"\0" * 1024)
    assert main(["train", "--data-dir", str(tmp_path / "set.tar"), "--output", str(tmp_path / "run")]) == 2
    assert "is an archive: --dataset tar reads it" in capsys.readouterr().err
