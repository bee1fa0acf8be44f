from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

import vimoe
from tests.analysis.examples import analysis
from tests.export.models import write_classifier
from tests.report.examples import EVIL, counts, rows
from tests.report.test_comparison import STATES
from vimoe.cli import main
from vimoe.errors import UserError
from vimoe.report.comparison import Evidence
from vimoe.report.model_card import check_card, write_card
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder
from vimoe.vit.plan import LayerPlan, Plan


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An analyzed run that was pruned as well, with a class that wants escaping."""
    folder = tmp_path / "mine"
    write_classifier(folder / "model", routing="image", num_experts=2)
    made = RunFolder(folder)
    made.write_recipe(
        Recipe(dataset="hfds/me/things", model="vit_tiny_patch16_224.augreg_in21k", pretrained=True, output=str(folder))
    )
    made.write_rows(rows())
    replace(analysis(), class_names=("a", EVIL)).save(folder / "analysis.json")
    Plan((LayerPlan(1, ()), LayerPlan(2, (0, 1)))).save(folder / "plan.json")
    counts().save(folder / "routing" / f"{analysis().split}.npz")
    Evidence(tuple(STATES), "top1", "test", 400, False, 4, folder).save(folder / "pruning.json")
    return folder


def test_the_card_says_what_the_run_holds_and_its_metadata_parse(run: Path) -> None:
    card = ModelCard.load(write_card(run, "apache-2.0"))
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("vimoe", "apache-2.0", "image-classification")
    assert (data.datasets, data.base_model) == (["me/things"], "timm/vit_tiny_patch16_224.augreg_in21k")
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 90.5, "test")
    assert "| recovered | 90.5 (88.0 to 92.0) | +0.5 (-1.0 to +2.0) |" in card.text
    assert "Blocks 1, 2 (from 0) are sparse Mixture-of-Experts layers: 1 of 2 experts for each image" in card.text
    assert "![Class × expert heatmaps](heatmaps.png)" in card.text
    assert (run / "model" / "heatmaps.png").read_bytes().startswith(b"\x89PNG")
    assert check_card(run / "model" / "README.md").endswith("\n")


def test_the_recipe_has_what_differs_and_nothing_of_the_machine(run: Path) -> None:
    text = write_card(run).read_text()
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe == {"dataset": "hfds/me/things", "model": "vit_tiny_patch16_224.augreg_in21k", "pretrained": True}
    assert str(run.parent) not in text


def test_the_three_lines_of_code_load_the_model(run: Path) -> None:
    code = write_card(run).read_text().split("```python\n")[1].split("```")[0]
    names = {"images": vimoe.load(run).patch_embed.proj.weight.new_zeros(2, 3, 32, 32)}
    exec(code.replace("hf-hub:USER/NAME", str(run)), names)
    assert names["logits"].shape == (2, 5)


def test_names_from_elsewhere_end_no_table_and_no_line(tmp_path: Path) -> None:
    vimoe.save(
        vimoe.load(write_classifier(tmp_path / "m")),
        tmp_path / "m",
        model_args={"img_size": 32, "depth": 3},
        extra={"label_names": ["a`|b", "c\n# d", EVIL, "---", ""]},
    )
    text = write_card(tmp_path / "m").read_text()
    assert "`a b`, `c # d`, `script alert(1) /script`, `---`, `?`." in text
    assert ModelCard(text).data.library_name == "timm"


def test_a_card_that_is_there_is_replaced_only_on_demand(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model" / "README.md").write_text("mine")
    assert main(["card", str(run)]) == 2
    assert "README.md exists: --overwrite replaces it" in capsys.readouterr().err
    assert (run / "model" / "README.md").read_text() == "mine"
    assert not (run / "model" / "heatmaps.png").exists()
    assert main(["card", str(run), "--overwrite"]) == 0


@pytest.mark.parametrize("damaged", ["pruning.json", "analysis.json", "recipe.yaml", "metrics.jsonl", "plan.json"])
def test_a_damaged_run_is_one_line_and_gets_no_card(run: Path, damaged: str) -> None:
    (run / damaged).write_text('{"a": [')
    with pytest.raises(UserError):
        write_card(run)
    assert not (run / "model" / "README.md").exists()


@pytest.mark.parametrize("text", ["", "no metadata", "---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_what_is_no_card_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match="is no model card"):
        check_card(tmp_path / "README.md")
