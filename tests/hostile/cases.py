"""The cases of each group: what a command is given. A case prepares a folder and names the commands to run in it."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.hostile.world import World
from vimoe.training.recipe import Recipe

# From a world and an empty folder to the commands to run there.
Prepare = Callable[[World, Path], list[list[str]]]


class Case(NamedTuple):
    """One hostile input.

    Attributes:
        group: Its group in the table.
        name: What it is.
        prepare: Makes the input and gives the commands.
        refused: Whether the last command must not succeed.
        limits: Arguments of `fork.vimoe` for the last command.
    """

    group: str
    name: str
    prepare: Prepare
    refused: bool = False
    limits: Mapping[str, Any] = MappingProxyType({})


NUMBERS = [
    "0",
    "-1",
    "-5",
    "7",
    "1000000",
    str(10**30),
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    "x",
    "1,5",
    "0x10",
    "٣",
    "1_0",
]
TEXTS = ["", " ", "x", "../..", "/", "/dev/null", "\n", "a" * 5000, "💥", "$HOME", "--", "-1", "null", "[]", "{}"]


def flags() -> Iterator[Case]:
    """Values of flags that are out of range, of another type, or absurd."""
    numbers = (
        *("--img-size", "--epochs", "--batch-size", "--lr", "--weight-decay", "--layer-decay", "--warmup-epochs"),
        *("--last", "--num-experts", "--top-k", "--balance-weight", "--drop-path", "--smoothing", "--scale", "--mixup"),
        *("--accumulate", "--workers", "--val-share", "--seed", "--clip-grad", "--per-class", "--aug-repeats"),
    )
    texts = (
        *("--dataset", "--data-dir", "--model", "--opt", "--sched", "--aa", "--device", "--amp-dtype", "--routing"),
        *("--initial-checkpoint", "--train-split", "--model-args", "--preset", "--baseline", "--task", "--output"),
    )
    for flag, values in [*((f, NUMBERS) for f in numbers), *((f, TEXTS) for f in texts)]:
        for value in values:
            # A run that would work is kept from taking long by its one epoch of 18 images.
            endless = flag == "--epochs" and value in ("1000000", str(10**30))
            if endless or (flag in ("--epochs", "--workers", "--accumulate", "--aug-repeats") and value == "7"):
                continue
            yield Case("flags", f"{flag}={value[:20]!r}", _train(f"{flag}={value}"))
    for device in ("meta", "cuda:99", "tpu", "cpu:7"):
        yield Case("flags", f"--device {device}", _train(f"--device={device}"))
    verbs = (
        *("train", "evaluate", "predict", "analyze", "prune", "study", "export", "info", "demo"),
        *("card", "push", "compare"),
    )
    for verb in verbs:
        for words in (["--no-such-flag"], ["--device"], ["a", "b", "c"], ["--batch-size", "x"], ["-c"], ["-c", "/"]):
            yield Case(
                "flags", f"{verb} {' '.join(words)}", lambda _w, _f, verb=verb, words=words: [[verb, *words]], True
            )


def _train(*more: str) -> Prepare:
    return lambda world, folder: [[*world.train, "--output", str(folder / "new"), *more]]


RECIPES = {
    "empty": "",
    "no mapping": "- 1\n- 2\n",
    "a number": "3\n",
    "unknown key": "learning_rate: 1\n",
    "not closed": "lr: [1, 2\n",
    "tabs": "lr:\t1\n\tx: 2\n",
    "a python object": "lr: !!python/object/apply:os.system ['touch owned']\n",
    "binary": "model: !!binary aGVsbG8=\n",
    "a date": "lr: 2020-01-01\n",
    "a set": "model_args: !!set {a, b}\n",
    "twice": "lr: 1.0e-3\nlr: 2.0e-3\n",
    "alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(f'*{chr(97 + i)}' for _ in range(9))}]\n" for i in range(12)),
    "deep": "model_args: " + "[" * 100_000 + "]" * 100_000 + "\n",
    "deep mapping": "".join(f"{' ' * i}a:\n" for i in range(3_000)),
    "wide": "model_args: {" + ", ".join(f"k{i}: {i}" for i in range(200_000)) + "}\n",
    "endless policy": "aa: rand-m9-n100000\n",
    "merge keys": "<<: {lr: 1}\nmodel_args: {<<: {<<: {depth: 2}}}\n",
}


def recipes() -> Iterator[Case]:
    """Recipe files that are no recipes, and keys with values of other types."""

    def write(content: str | bytes) -> Prepare:
        def prepare(world: World, folder: Path) -> list[list[str]]:
            data = content if isinstance(content, bytes) else content.encode()
            (folder / "recipe.yaml").write_bytes(data)
            return [[*world.train, "--output", str(folder / "new"), "-c", str(folder / "recipe.yaml")]]

        return prepare

    for name, content in RECIPES.items():
        yield Case("recipes", name, write(content), refused=name not in ("empty", "twice", "merge keys"))
    yield Case("recipes", "not UTF-8", write(b"model: \xff\xfe\x00"), True)
    yield Case("recipes", "NUL bytes", write(b"lr: 1\x00"), True)
    yield Case("recipes", "an image", write(b"\x89PNG\r\n\x1a\n" + bytes(range(256))), True)
    for key in (field.name for field in fields(Recipe)):
        for value in ("null", "[1]", "{a: 1}", "'x y'", "1.5", "true", ".nan", "1e999", "-3", "2020-01-01"):
            yield Case("recipes", f"{key}: {value}", write(f"{key}: {value}\n"))
    yield Case("recipes", "a folder", lambda world, f: [[*world.train, "-c", str(f), "--output", str(f / "new")]], True)
    yield Case(
        "recipes", "a device", lambda world, f: [[*world.train, "-c", "/dev/zero", "--output", str(f / "new")]], True
    )


STUDY = "base: {{dataset: digits}}\nseeds: [0]\nvariants: [{{name: a, last: 1}}]\n{more}"
STUDIES = {
    "empty": "",
    "a list": "- a\n",
    "no variants": "base: {}\nseeds: [0]\n",
    "no seeds": "base: {}\nseeds: []\nvariants: [{name: a}]\n",
    "many seeds": "base: {}\nseeds: [0, 0]\nvariants: [{name: a}]\n",
    "endless grid": "base: {}\nseeds: [0]\nvariants: [{name: a, "
    + ", ".join(f"{k}: {list(range(1, 40))}" for k in ("epochs", "batch_size", "num_experts", "last", "top_k", "seed"))
    + "}]\n",
    "a date": "base: {model_args: {a: 2020-01-01}}\nseeds: [0]\nvariants: [{name: a}]\n",
    "a set": "base: {model_args: !!set {a}}\nseeds: [0]\nvariants: [{name: a}]\n",
    "binary": "base: {model_args: {a: !!binary aGk=}}\nseeds: [0]\nvariants: [{name: a}]\n",
    "a formula": "base: {}\nseeds: [0]\nvariants: [{name: '=cmd()', last: 1}]\n",
    "a path": "base: {}\nseeds: [0]\nvariants: [{name: ../../x, last: 1}]\n",
    "unknown base": "base: nowhere.yaml\nseeds: [0]\nvariants: [{name: a}]\n",
    "seeds of text": "base: {}\nseeds: [a]\nvariants: [{name: a}]\n",
    "planned unknown": "base: {}\nseeds: [0]\nvariants: [{name: a}]\nplanned: [b]\n",
}


def studies() -> Iterator[Case]:
    """Study files, dry: nothing is trained."""

    def write(content: str) -> Prepare:
        def prepare(_world: World, folder: Path) -> list[list[str]]:
            (folder / "study.yaml").write_text(content)
            return [["study", "-c", str(folder / "study.yaml"), "--output", str(folder / "out"), "--dry-run"]]

        return prepare

    for name, content in {**STUDIES, **RECIPES}.items():
        yield Case("studies", name, write(content))
    for key in ("base", "start", "seeds", "variants", "planned"):
        for value in ("null", "1", "x", "[]", "{}", "[null]", "[[1]]", "{a: {b: c}}", "true", ".nan"):
            yield Case("studies", f"{key}: {value}", write(STUDY.format(more=f"{key}: {value}\n")))


JSON_VALUES = [
    *(None, True, 0, -1, 3.5, 10**400, float("nan"), "", "x", "../..", [], [[]], {}, {"a": 1}, [None], ["a"] * 9),
    *("float8_e4m3fn", [224], [3, 0, 0], [3, -1, 224], [1e9, 1e9, 1e9], "a" * 10_000),
]


def json_edits(seed: int, content: object) -> Iterator[tuple[str, object]]:
    """Every key of a JSON document in turn with nasty values, or gone, or twice as deep."""
    chance = random.Random(seed)

    def places(node: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            yield (*path, key)
            yield from places(value, (*path, key))

    def changed(node: object, path: tuple[object, ...], value: object) -> object:
        if not path:
            return value
        copied = dict(node) if isinstance(node, dict) else list(node)  # type: ignore[call-overload]
        if value is ... and len(path) == 1:
            del copied[path[0]]
        else:
            copied[path[0]] = changed(copied[path[0]], path[1:], value)
        return copied

    for path in places(content):
        for value in (..., *chance.sample(JSON_VALUES, 5)):
            name = "/".join(map(str, path))
            yield f"{name} {'gone' if value is ... else repr(value)[:30]}", changed(content, path, value)


def _verbs(world: World, folder: Path) -> dict[str, list[str]]:
    run, there = str(world.copy(world.run, folder / "run")), ["--workers", "2", "--device", "cpu"]
    return {
        "train": [*world.train, "--output", str(folder / "new"), "--epochs", "40"],
        "evaluate": ["evaluate", run, *there],
        "predict": ["predict", run, str(world.images), "--device", "cpu"],
        "analyze": ["analyze", run, *there],
        "prune": ["prune", run, "--output", str(folder / "new"), "--recover-epochs", "1", "--device", "cpu"],
        "export": ["export", run, "--format", "torch", "--output", str(folder / "x.pt2")],
    }


VERBS = ("train", "evaluate", "predict", "analyze", "prune", "export")


def signals() -> Iterator[Case]:
    """Ctrl-C and SIGTERM at any moment: one line, or nothing left to say."""
    chance = random.Random(2)
    for verb in VERBS:
        for kind in (signal.SIGINT, signal.SIGTERM):
            for _ in range(5):
                after = chance.uniform(0.02, 1.5)
                yield Case(
                    "signals",
                    f"{kind.name} in {verb} after {after:.2f} s",
                    lambda world, folder, verb=verb: [_verbs(world, folder)[verb]],
                    limits={"stop": (kind, after)},
                )


def full_disk() -> Iterator[Case]:
    """Files that can grow no more: the old ones stay, and one line says which could not be written."""
    for verb in VERBS:
        for size in (3_000, 20_000, 60_000):  # the error line needs a few hundred
            yield Case(
                "full disk",
                f"{verb} at {size} bytes",
                lambda world, folder, verb=verb: [_verbs(world, folder)[verb]],
                limits={"largest_file": size},
            )
