from pathlib import Path

import pytest
import torch

from tests.report.test_comparison import STATES
from tests.training.tiny import recipe
from vimoe.analysis.analyze_run import analyze_run
from vimoe.data.digits import digits
from vimoe.data.scenes import digit_scenes
from vimoe.errors import UserError
from vimoe.report.comparison import Evidence
from vimoe.report.latency_table import keep_latencies
from vimoe.report.page import page
from vimoe.report.run_report import MAPS, analysis_report, pruning_report
from vimoe.report.tables import Table
from vimoe.training.fit import train
from vimoe.vit.plan import LayerPlan, Plan


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = train(recipe(tmp_path_factory.mktemp("runs") / "moe", last=2, num_experts=3))
    analyze_run(run.path, shuffles=99)
    return run.path


def test_an_analyzed_run_is_reported_from_its_folder(analyzed: Path) -> None:
    report = analysis_report(analyzed, "vimoe analyze moe")
    assert report.title == "Which MoE layers of “moe” earn their keep"
    assert report.counts.layers == (1, 2)
    assert len(report.rows["training"]) == 3
    assert "num_experts: 3" in report.recipes["training"]
    assert report.tables[0].rows[0][0] == "as it is"
    assert report.analysis is not None
    named = {place for x in report.analysis.layers for e in x.experts for place in (*e.confident, *e.unsure)}
    assert set(report.images) == named
    labels = [label for _, label in digits().val]
    assert all(image.label == labels[place] for place, image in report.images.items())
    html = page(report)
    assert "Load of the experts" in html
    assert "What each expert gets" in html


def test_the_report_shows_latencies_where_the_run_has_them(analyzed: Path) -> None:
    table = Table(("model", "ms"), [["dense", "1.25"]], ["on noise"])
    keep_latencies(table, analyzed)
    assert "1.25" in page(analysis_report(analyzed, "vimoe analyze moe"))
    (analyzed / "latency.json").unlink()


def test_a_run_that_was_not_analyzed_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no analysis at .*: `vimoe analyze` writes it"):
        analysis_report(tmp_path, "vimoe analyze")


def test_what_pruning_did_comes_with_the_analysis_and_the_plan_that_was_carried_out(
    analyzed: Path, tmp_path: Path
) -> None:
    Plan((LayerPlan(1, ()), LayerPlan(2, (0,)))).save(tmp_path / "plan.json")
    found = Evidence(tuple(STATES[:2]), "top1", "test", 360, False, 0, tmp_path)
    report = pruning_report(analyzed, found, "vimoe prune moe")
    assert report.title == "What pruning “moe” did"
    assert report.conclusion.startswith("“pruned, without recovery training” reaches 85.0 % top-1 on 360 test images")
    assert [part.experts for part in report.plan.layers] == [(), (0,)]
    assert list(report.rows) == ["training"]
    recovered = train(recipe(tmp_path, epochs=1))
    found = Evidence(tuple(STATES), "top1", "test", 360, False, 1, recovered.path)
    report = pruning_report(analyzed, found, "vimoe prune moe")
    assert list(report.rows) == list(report.recipes) == ["training", "recovery"]
    assert "recovery" in page(report)


def test_a_segmentation_run_is_reported_with_its_expert_maps(tmp_path: Path) -> None:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    settings = {"task": "segmentation", "dataset": "digit_scenes", "model_args": args, "epochs": 1, "last": 1}
    run = train(recipe(tmp_path / "scenes", num_experts=2, routing="token", **settings))
    analyze_run(run.path, shuffles=99)
    report = analysis_report(run.path, "vimoe analyze scenes")
    assert len(report.maps) == MAPS
    assert report.maps[0].experts[1].shape == (4, 4)
    masks = [digit_scenes().val[place][1] for place in range(0, 200, 200 // MAPS)]  # from all over the split
    assert all((one.classes == mask.numpy()).all() for one, mask in zip(report.maps, masks, strict=False))
    assert report.tables[0].header[1] == "val pixel accuracy % (95 %)"
    html = page(report)
    assert "where the patches of an image go" in html
    assert "each patch of an image" in html
