import json
from pathlib import Path

import pytest
import timm

import vimoe
from vimoe.cli import main
from vimoe.report.latency_table import kept_latencies
from vimoe.vit.cost import giga_macs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a model of two MoE layers and a plan."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=10)
    vimoe.upcycle(model, layers=[1, 2], num_experts=4, routing="token", shared_expert=False)
    vimoe.save(model, tmp_path / "run" / "model", model_args={"img_size": 32, "depth": 3})
    layers = [{"layer": 1, "action": "prune"}, {"layer": 2, "action": "keep", "experts": [0, 3]}]
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"layers": layers}))
    return tmp_path / "run"


def test_a_run_is_counted_as_it_is_with_its_layers_and_its_plan(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cost = vimoe.cost(vimoe.load(run / "model"))
    assert lines[2].split()[:3] == ["vit_tiny_patch16_224", f"{cost.stored_params / 1e6:.2f}", "M"]
    assert lines[6:8] == ["1                         4   prune", "2                         4  keep 2"]
    assert lines[-1] == "One choice of 1 among 4 experts for each token, without a shared expert."


def test_a_model_folder_needs_no_run_and_another_image_size_costs_more(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(run / "model"), "--image-size", "64"]) == 0
    shown = capsys.readouterr().out
    assert giga_macs(vimoe.cost(vimoe.load(run / "model"), 64).macs) in shown
    assert "prune" not in shown


def test_a_dense_model_has_no_moe_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vimoe.save(timm.create_model("vit_tiny_patch16_224", depth=1), tmp_path, model_args={"depth": 1})
    assert main(["info", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("no MoE layers\n")


def test_measure_adds_a_row_for_each_competitor_and_batch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--measure", "--batch", "1", "3", "--rounds", "1", "--threads", "1", "--no-exported"]
    assert main(["info", str(run), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[lines.index("") :] if line.startswith(("dense ", "ViMoE ", "pruned "))]
    assert [row[:2] for row in rows] == [[name, n] for n in "13" for name in ("dense", "ViMoE", "pruned")]
    assert [row[-1] for row in rows[::3]] == ["1.00", "1.00"]
    assert any(line.startswith("A batch of 3 reads ") and " of 8 experts" in line for line in lines)
    assert not (run / "latency.json").exists()  # a folder of models is no run's


def test_what_a_run_took_is_kept_for_its_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "recipe.yaml").write_text("")
    assert main(["info", str(run), "--measure", "--rounds", "1", "--no-exported"]) == 0
    (kept,) = kept_latencies(run)
    assert capsys.readouterr().out.endswith(f"\n\n{kept.text()}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["RUN", "--batch", "8"], "--batch needs --measure"),
        (["vit_tiny_patch16_224", "--measure"], "--measure runs the model of a folder, and there is no folder vit_"),
        (["RUN", "--measure", "--device", "quantum"], "device 'quantum' cannot be used here"),
        (["RUN", "--measure", "--batch", "0"], "--batch: must be at least 1, got 0"),
        (["RUN", "--last", "2"], "--last is for timm names: the model in RUN is counted as it is"),
        (["RUN/nowhere"], "there is no folder RUN/nowhere"),
        (["RUN/.."], "RUN/.. is not a model folder: it holds no config.json"),
        (["vit_smal_patch16_224"], "timm has no model 'vit_smal_patch16_224', did you mean vit_small_patch16_224, "),
        (["vit_tiny_patch16_224", "--image-size", "7"], "cannot count an image of 7x7 pixels in this model"),
        (["vit_tiny_patch16_224", "--image-size", 30 * "9"], "cannot count an image of 999"),
    ],
)
def test_a_mistake_is_one_line(run: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", *(argument.replace("RUN", str(run)) for argument in arguments)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"vimoe: error: {line.replace('RUN', str(run))}")
    assert shown.count("\n") == 1
