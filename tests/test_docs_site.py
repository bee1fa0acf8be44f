"""The documentation's site: every page is there, every public name is in the reference, the code runs."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from PIL import Image

import vimoe
from vimoe.study.grid import list_runs
from vimoe.study.study_file import read_study

ROOT = Path(__file__).parents[1]
REFERENCES = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)


def test_every_page_of_the_navigation_exists() -> None:
    pages = [page for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in entry.values()]
    assert all((ROOT / "docs" / page).exists() for page in pages)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(pages)


def test_the_reference_has_every_public_name_and_no_other() -> None:
    assert sorted(name.rpartition(".")[2] for name in REFERENCES) == sorted(vimoe.__all__)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_leads_to_the_public_name_itself(reference: str) -> None:
    module, _, name = reference.rpartition(".")
    found = getattr(import_module(module), name)
    assert found is getattr(vimoe, name)
    assert found.__module__ == module
    assert found.__doc__


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_every_page_with_code_is_run_here() -> None:
    with_code = {path.name for path in (ROOT / "docs").glob("*.md") if re.search("```(python|yaml)", path.read_text())}
    assert with_code == {"index.md", "other-loops.md", "run-a-study.md"}, "a test should run the new page's code"


@pytest.mark.parametrize("code", blocks("other-loops.md", "python"), ids=lambda code: code.strip().splitlines()[-1])
def test_the_code_of_other_loops_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the smallest of models and images, and whatever the page names before it."""
    if "peft" in code:
        pytest.importorskip("peft")
    for n in range(48):
        (tmp_path / "IMAGES" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (5 * n, 255 * (n % 2), 9)).save(tmp_path / "IMAGES" / "ab"[n % 2] / f"{n}.png")
    monkeypatch.chdir(tmp_path)
    tiny = "model='vit_tiny_patch16_224', model_args={'embed_dim': 48}, img_size=32, epochs=1, batch_size=8, workers=0"
    names: dict[str, Any] = {"vimoe": vimoe, "timm": timm}
    exec(code.replace("pretrained=True", tiny), names)
    if "balance_loss" in code:
        return  # a class, tried in tests/vit/test_transformers.py
    results = ("heatmaps.png" in code and (tmp_path / "heatmaps.png").exists(), "adapted" in names, "model" in names)
    assert any(results)


def test_the_study_of_the_page_is_one(tmp_path: Path) -> None:
    (text,) = blocks("run-a-study.md", "yaml")
    (tmp_path / "study.yaml").write_text(text)
    runs = list_runs(read_study(tmp_path / "study.yaml", tmp_path / "runs"))
    assert len(runs) == 3 * (2 + 2 * 2 * 2 + 1)


def test_the_code_of_the_first_page_runs() -> None:
    (code,) = blocks("index.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    names["loss"].backward()
    assert names["model"].blocks[11].mlp.router.weight.grad.abs().max() > 0


def test_the_site_is_built_where_its_tools_are(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    page = (tmp_path / "api" / "index.html").read_text()
    assert all(f'id="{reference}"' in page for reference in REFERENCES)
    assert not re.search(r'<(?:script|link)[^>]+(?:src|href)="https?://', page)
