"""The Python API with arguments of wrong types and values: a `UserError`, never another exception."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import vimoe
from vimoe.errors import UserError

VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1.5,
    10**30,
    float("nan"),
    "x",
    "",
    b"x",
    [],
    [1, 1],
    {},
    object(),
    torch.zeros(2),
]


def model() -> nn.Module:
    made: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=32, num_heads=2, num_classes=3
    )
    return made


def upcycled() -> nn.Module:
    return vimoe.upcycle(model(), last=2, num_experts=3)


CALLS: dict[str, Callable[[Any, Path], Any]] = {
    **{
        f"upcycle {name}": lambda value, _tmp, name=name: vimoe.upcycle(model(), **{name: value})
        for name in (
            *("last", "layers", "num_experts", "top_k", "shared_expert", "routing", "gate", "gate_input", "preset"),
            *("init", "router_noise"),
        )
    },
    "prune plan": lambda value, _tmp: vimoe.prune(upcycled(), value),
    "prune layer": lambda value, _tmp: vimoe.prune(upcycled(), {2: value}),
    "prune number": lambda value, _tmp: vimoe.prune(upcycled(), {value: [0]} if value.__hash__ else value),
    "prune expert": lambda value, _tmp: vimoe.prune(upcycled(), {2: [value]}),
    "cost size": lambda value, _tmp: vimoe.cost(model(), value),
    "load": lambda value, _tmp: vimoe.load(value),
    "save folder": lambda value, _tmp: vimoe.save(upcycled(), value),
}


@pytest.mark.hostile
@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_of_the_python_api_raise_a_user_error_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = []
    for value in VALUES:
        try:
            CALLS[name](value, tmp_path)
        except UserError as error:
            if "\n" in str(error):
                wrong.append(f"{value!r}: {error}")
        except Exception as error:
            wrong.append(f"{value!r}: {type(error).__name__}: {error}")
    assert not wrong
