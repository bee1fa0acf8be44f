"""The examples in the docstrings of the public names run as they stand there."""

import doctest
from pathlib import Path

import pytest
import timm
import torch

import vimoe

# They go on from one another, in this order.
ONE_RUN = ("train", "evaluate", "analyze", "Plan")


def run_examples(name: str) -> None:
    names = {"timm": timm, "torch": torch, "vimoe": vimoe}
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(vimoe, name), name, globs=names)
    assert found.examples
    said: list[str] = []
    failed = doctest.DocTestRunner().run(found, out=said.append).failed
    assert not failed, "".join(said)


@pytest.mark.parametrize("name", sorted({*vimoe.__all__} - {*ONE_RUN, "UserError"}))
def test_the_example_of_a_public_name_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(name)


def test_the_examples_of_a_run_go_on_from_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ONE_RUN:
        run_examples(name)
