from pathlib import Path

import vimoe
from tests.training.tiny import recipe
from vimoe.analysis.analysis_result import Analysis
from vimoe.vit.plan import Plan


def test_train_analyze_and_evaluate_from_python_as_the_verbs_do(tmp_path: Path) -> None:
    run = vimoe.train(recipe(tmp_path / "run", last=2, num_experts=3, epochs=1))
    found = vimoe.analyze(run.path, device="cpu", shuffles=99)
    assert found.plan == Plan.load(run.path / "plan.json")
    assert found.analysis == Analysis.load(run.path / "analysis.json")
    assert found.counts.counts.shape[0] == 2
    figure = found.plot_heatmaps()
    assert {"block 1", "block 2"} <= {ax.get_label() for ax in figure.axes}
    evaluation = vimoe.evaluate(run.path, split="val", device="cpu")
    assert evaluation.score == found.analysis.score
    assert [row[0] for row in evaluation.by_class] == list(map(str, range(10)))
