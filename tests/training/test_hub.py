import threading
from pathlib import Path

import pytest

from vimoe.errors import UserError
from vimoe.training import hub
from vimoe.training.hub import check_hub

MODEL = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repository, name: None)


def test_a_hub_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(UserError, match=r"weights of vit_tiny_patch16_224 .* does not answer: .*--initial-checkpoint"):
        check_hub(MODEL, lambda: False)
    check_hub(MODEL, lambda: True)


def test_what_is_in_the_cache_needs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def cached(repository: str, name: str) -> str | None:
        asked.append((repository, name))
        return "here" if name == "model.safetensors" else None

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    check_hub(MODEL, lambda: False)
    assert asked[-1] == ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")


def test_a_hub_that_is_silent_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def silent(*_: object, **__: object) -> None:
        over.wait(60)
        raise OSError

    monkeypatch.setattr(hub, "urlopen", silent)
    monkeypatch.setattr(hub, "PATIENCE", 0.05)
    with pytest.raises(UserError, match="does not answer"):
        check_hub(MODEL)
    over.set()


def test_a_model_without_weights_on_the_hub_is_left_to_timm() -> None:
    check_hub("test_vit_of_nobody", lambda: False)
