"""`kill -9` inside prune, analyze and study at drawn moments, then the same command: the results of an unbroken run.

`make soak` prints how it went.
"""

import csv
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hostile.fork import begin, vimoe
from tests.kills import soak
from tests.study.support import TINY
from vimoe.cli import main
from vimoe.vit.checkpoint import load

KILLS = 10
MODEL = '{"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "weight_init": "jax"}'
TRAIN = ["train", "--model-args", MODEL, "--last", "2", "--num-experts", "3", "--epochs", "4", "--batch-size", "128"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was analysed."""
    path: Path = tmp_path_factory.mktemp("whole") / "run"
    assert main([*TRAIN, "--device", "cpu", "--output", str(path)]) == 0
    assert main(["analyze", str(path), "--device", "cpu"]) == 0
    return path


def results(folder: Path) -> dict[str, Any]:
    """What the verbs left in a folder, by file; how long something took is left out."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "model.safetensors":
            found[name] = {key: value.tolist() for key, value in load(path.parent).state_dict().items()}
        elif path.name in ("analysis.json", "plan.json", "pruning.json", "result.json"):
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".npz":
            found[name] = path.read_bytes()
        elif path.name in ("study.csv", "curves.csv"):
            rows = csv.DictReader(path.read_text().splitlines())
            found[name] = [timeless(row) for row in rows]
    return found


def timeless(node: Any) -> Any:
    """Nested JSON without what was timed."""
    if isinstance(node, dict):
        timed = ("seconds", "speed", "wait", "per_second", "memory")
        return {key: timeless(value) for key, value in node.items() if not any(word in key for word in timed)}
    return [timeless(value) for value in node] if isinstance(node, list) else node


def check(command: Callable[[Path], list[str]], made: str, tmp_path: Path) -> None:
    """Compare what a command makes when it is killed with what it makes unbroken.

    Args:
        command: From a folder of its own to its arguments.
        made: The folder of its results in there.
    """
    torch.set_num_threads(1)
    whole, began = tmp_path / "whole", time.monotonic()
    whole.mkdir()
    assert vimoe(command(whole), whole).code == 0
    longest, expected = 1.3 * (time.monotonic() - began), results(whole / made)

    def compare(folder: Path) -> None:
        assert results(folder / made) == expected

    told = soak(lambda folder: begin(command(folder), folder), compare, tmp_path, KILLS, longest, False, True)
    print(f"\n{command(whole)[0]}: {told}")


@pytest.mark.slow
def test_kills_inside_prune_change_no_result(run: Path, tmp_path: Path) -> None:
    flags = ["--recover-epochs", "2", "--device", "cpu", "--output"]
    check(lambda folder: ["prune", str(run), *flags, str(folder / "new")], "new", tmp_path)


@pytest.mark.slow
def test_kills_inside_analyze_change_no_result(run: Path, tmp_path: Path) -> None:
    def analyze(folder: Path) -> list[str]:
        if not (folder / "run").exists():
            shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("analysis.json", "plan.json", "*.npz"))
        return ["analyze", str(folder / "run"), "--device", "cpu"]

    check(analyze, "run", tmp_path)


@pytest.mark.slow
def test_kills_inside_a_study_change_no_result(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        TINY.replace(", shared_expert: [true, false]", "") + "planned: [N2-L2-shared]\n"
    )
    flags = ["study", "-c", str(tmp_path / "tiny.yaml"), "--output"]
    check(lambda folder: [*flags, str(folder / "runs")], "runs", tmp_path)
