"""What README, docs and configs say can be followed: links lead somewhere, commands are accepted, code runs."""

import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from vimoe.cli import VERBS
from vimoe.cli.arguments import Parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")])
SOURCES = [*PAGES, *sorted(ROOT.glob("configs/**/*.yaml"))]


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def commands() -> Iterator[Any]:
    """Every command of the form `vimoe VERB …` with its flags; continued lines are joined."""
    for source in SOURCES:
        text = re.sub(r"\\\n#? *", "", source.read_text())
        for found in re.findall(rf"(?:^|[`$#] ?|^ +|-m )vimoe ((?:{'|'.join(VERBS)}) [^`\n|]*)", text, re.MULTILINE):
            words = shlex.split(found, comments=True)
            if (
                words[1:2] != ["…"]
                and len(words) > 1
                and (words[0] == "demo" or any(not word.startswith("-") for word in words[1:]))
            ):
                yield pytest.param(words, id=f"{source.name}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_is_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Accepted(Exception):  # noqa: N818
        pass

    given = Parser.given

    def check(self: Parser, arguments: list[str]) -> Namespace:
        given(self, arguments)
        raise Accepted

    monkeypatch.setattr(Parser, "given", check)
    with pytest.raises(Accepted):
        import_module(f"vimoe.cli.{words[0].replace('-', '_')}").run(words[1:])


def test_enough_commands_are_found_to_be_checked() -> None:
    assert {param.values[0][0] for param in commands()} == set(VERBS)


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([0, 1])
    names: dict[str, Any] = {"images": images, "labels": labels, "criterion": cross_entropy}
    exec(first.replace("pretrained=True", "pretrained=False"), names)
    names["loss"].backward()
    exec(second, names)
    assert {block: tuple(ids.shape) for block, ids in names["record"].expert_ids.items()} == {10: (2, 1), 11: (2, 1)}


def test_no_place_of_the_project_is_somebodys_machine() -> None:
    for source in [*SOURCES, ROOT / "pyproject.toml", ROOT / "Makefile"]:
        assert not re.search(r"/(home|root|work|Users)/", source.read_text()), source
