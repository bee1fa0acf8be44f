from pathlib import Path

import numpy as np
import pytest

from tests.data.image_files import write_folder
from tests.training.tiny import recipe
from vimoe.errors import UserError
from vimoe.study.grid import StudyRun
from vimoe.study.run_result import RIGHT_FILE, measure, read_result
from vimoe.study.study_table import gather, read_table
from vimoe.training import feature_cache
from vimoe.training.fit import train


def test_a_run_without_a_result_that_can_be_read_has_none(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text('{"metric": "to')
    assert read_result(tmp_path) is None


def test_broken_test_images_are_left_out_counted_and_listed_and_too_many_stop_the_run(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", {"train": 4, "val": 2, "test": 3})
    (images / "test" / "grass" / "000.jpg").write_bytes(b"")
    settings = {"data_dir": str(images), "img_size": 8, "epochs": 1, "batch_size": 4, "workers": 0, "augment": False}
    some = recipe(tmp_path / "run", **settings, max_broken=0.2)
    run = train(some)
    result = measure(run, some)
    assert result["test_images"] == 8
    assert len(np.load(run.path / RIGHT_FILE)["right"]) == 8
    assert "grass/000.jpg" in (run.path / "skipped-test.csv").read_text()
    with pytest.raises(UserError, match=r"1 of the 9 images to evaluate on are broken, .* 0\.1 allows: .*000\.jpg"):
        measure(run, recipe(tmp_path / "run", **settings, max_broken=0.1))


@pytest.mark.parametrize("routing", ["image", "token"])
def test_results_on_kept_features_are_those_of_the_whole_model_and_the_trunk_runs_once(
    tmp_path: Path, routing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_folder(tmp_path / "images", {"train": 8, "val": 4, "test": 4})
    (images / "test" / "grass" / "000.jpg").write_bytes(b"")
    settings = {"data_dir": str(images), "img_size": 16, "epochs": 1, "batch_size": 8, "workers": 0, "amp": True}
    settings |= {"last": 1, "num_experts": 3, "routing": routing, "freeze": "trunk", "max_broken": 0.5}
    cached = recipe(tmp_path / "run", **settings, cache_features=str(tmp_path / "cache"))
    run = train(cached)
    whole = measure(run, recipe(tmp_path / "run", **settings))
    right, skipped = np.load(run.path / RIGHT_FILE)["right"], (run.path / "skipped-test.csv").read_text()
    routed = (run.path / "routing" / "val.npz").read_bytes()
    result = measure(run, cached)
    assert result.pop("test_nll") == pytest.approx(whole.pop("test_nll"), abs=1e-5)
    assert result.pop("test_ece") == pytest.approx(whole.pop("test_ece"), abs=1e-3)
    assert result == whole
    assert (np.load(run.path / RIGHT_FILE)["right"] == right).all()
    assert (run.path / "routing" / "val.npz").read_bytes() == routed
    assert (run.path / "skipped-test.csv").read_text() == skipped
    monkeypatch.setattr(feature_cache, "_write", lambda *_: pytest.fail("computed again"))
    assert measure(run, cached)["test_top1"] == whole["test_top1"]


def test_a_soft_router_has_a_result_and_a_row_of_the_study_without_choices(tmp_path: Path) -> None:
    settings = {"last": 1, "num_experts": 2, "routing": "token", "router": "soft", "init": "residual", "epochs": 1}
    run = StudyRun(
        "N2-L1-shared-token", "token", recipe(tmp_path / "seed0" / "N2-L1-shared-token", **settings), ("soft",)
    )
    result = measure(train(run.recipe), run.recipe)
    assert "layers" not in result
    gather([run], {run.name: result}, tmp_path)
    row = read_table(tmp_path).rows[0]
    assert row.values["test_top1"] == result["test_top1"]
    assert not list(tmp_path.glob("routing/*"))
