"""The documentation's site: every page is there, every public name is in the reference, the code runs."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import vimoe

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


def test_the_code_of_the_first_page_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.DOTALL)
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
