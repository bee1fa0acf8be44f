import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.tiny import recipe
from vimoe.analysis.ablation_scores import image_scores
from vimoe.analysis.evaluate_run import WORST, evaluate
from vimoe.data.digits import digits
from vimoe.data.images import InMemory
from vimoe.data.loaders import batches
from vimoe.report.evaluation_report import class_table, score_words, write_evaluation
from vimoe.training.fit import train
from vimoe.vit.checkpoint import load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(tmp_path_factory.mktemp("evaluate") / "run", epochs=2, lr=5e-3, augment=False)).path


def test_scores_confusion_and_mistakes_agree_with_the_answers_one_by_one(run: Path) -> None:
    evaluation, test = evaluate(run, device="cpu"), digits().test
    assert isinstance(test, InMemory)
    model = load(run / "model")
    assert torch.equal(evaluation.scores, image_scores(model, batches(test)))
    assert evaluation.score.value == pytest.approx(evaluation.summary["top1"])
    assert evaluation.confusion.sum() == len(test)
    assert evaluation.confusion.diag().sum() == int(evaluation.scores.sum())
    assert evaluation.confusion.sum(1).tolist() == torch.bincount(test.targets, minlength=10).tolist()
    with torch.no_grad():
        probs = model(torch.stack([image for image, _ in test])).softmax(-1)  # type: ignore[attr-defined]
    sure, answers = probs.max(-1)
    wrong = torch.where(answers == test.targets, -1.0, sure)
    expected = wrong.argsort(descending=True)[: min(WORST, int((wrong > 0).sum()))].tolist()
    assert [mistake.place for mistake in evaluation.mistakes] == expected
    worst, place = evaluation.mistakes[0], expected[0]
    assert worst.words == f"{answers[place]} {sure[place]:.0%}\nis {test.targets[place]}"


def test_the_files_of_an_evaluation(run: Path, tmp_path: Path) -> None:
    evaluation = evaluate(run, device="cpu")
    write_evaluation(evaluation, tmp_path)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept["score"]["low"] < kept["top1"] < kept["score"]["high"]
    assert kept["classes"][3]["class"] == "3"
    with Image.open(tmp_path / "mistakes.jpg") as sheet:
        assert sheet.height > 144
    assert (tmp_path / "confusion.svg").exists()
    assert score_words(evaluation).startswith("test of the run's own data: top-1 ")
    assert len(class_table(evaluation).rows) == 10
