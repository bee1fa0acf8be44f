"""The cases that spoil files: images, folders, models, states, plans, tars, masks."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.data.archives import image_bytes, write_tar
from tests.hostile.cases import Case, Prepare, json_edits
from tests.hostile.world import World


class Planted:
    """Unpickling it makes a file named `owned`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.folder}/owned",)


def png(width: int, height: int) -> bytes:
    """A PNG of one colour, small on disk whatever its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, lines = zlib.compressobj(9), []
    for _ in range(height):
        lines.append(packer.compress(bytes(1 + width)))
    body = b"".join(lines) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "tiff")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "random bytes": lambda: random.Random(0).randbytes(5000),
    "a text": lambda: b"hello" * 100,
    "cut short": lambda: image_bytes(9, 64)[:60],
    "EPS by another name": lambda: EPS,
    "1 x 89000": lambda: png(1, 89_000),
    "89000 x 1": lambda: png(89_000, 1),
    "30000000 x 1": lambda: png(30_000_000, 1),
    "60000 x 60000 claimed": lambda: png(1, 1).replace(struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000)),
    "1 x 1": lambda: png(1, 1),
    "NaN": lambda: tiff(np.full((8, 8), np.nan, np.float32)),
    "infinite": lambda: tiff(np.full((8, 8), np.inf, np.float32)),
    "32 bits": lambda: tiff(np.full((8, 8), 2**31 - 1, np.int32)),
    "a pickle": lambda: pickle.dumps(list(range(100))),
}


def images() -> Iterator[Case]:
    """Images that are none, in predict, in training and in validation."""
    for name, content in FILES.items():
        for where in ("predict", "train", "val", "test"):

            def prepare(
                world: World, folder: Path, where: str = where, content: Callable[[], bytes] = content
            ) -> list[list[str]]:
                if where == "predict":
                    (folder / "a.png").write_bytes(content())
                    (folder / "b.png").write_bytes(image_bytes(9))
                    return [
                        ["predict", str(world.run), str(folder / "a.png"), str(folder / "b.png"), "--device", "cpu"]
                    ]
                data = world.copy(world.images, folder / "images")
                for i in range(2):
                    (data / where / "grass" / f"00{i}.jpg").unlink()
                    (data / where / "grass" / f"00{i}.jpg").write_bytes(content())
                train = [*world.train, "--data-dir", str(data), "--output", str(folder / "new")]
                return (
                    [train]
                    if where != "test"
                    else [["evaluate", str(world.run), "--data-dir", str(data), "--device", "cpu"]]
                )

            yield Case("images", f"{name} in {where}", prepare)

    def all_empty(world: World, folder: Path) -> list[list[str]]:
        data = world.copy(world.images, folder / "images")
        for file in (data / "val").rglob("*.jpg"):
            file.unlink()
            file.write_bytes(b"")
        return [[*world.train, "--data-dir", str(data), "--output", str(folder / "new")]]

    yield Case("images", "all of val empty", all_empty, refused=True)


NAMES = [
    *(
        "$x$",
        "a_b^c$",
        "$\\frac{",
        "<script>alert(1)</script>",
        "=cmd()",
        "../up",
        "a\nb",
        "a\tb",
        "ünï",
        "💥",
        "עברית",
    ),
    *(" ", "a" * 200, "%s%n", "{x}", "\\", "'", '"', "-rf", "nan", "0", "NULL", "a;b", "a|b", "&amp;", "#", "@", "~"),
]


def class_names() -> Iterator[Case]:
    """Classes with names that mean something to a page, a plot, a table or a shell, all the way to the report."""
    for name in NAMES:

        def prepare(world: World, folder: Path, name: str = name) -> list[list[str]]:
            data = world.copy(world.images, folder / "images")
            for split in ("train", "val", "test"):
                (data / split / "grass").rename(data / split / name.replace("/", "∕"))
            run = str(folder / "new")
            return [
                [*world.train, "--data-dir", str(data), "--output", run],
                ["analyze", run, "--workers", "0", "--device", "cpu"],
                ["evaluate", run, "--workers", "0", "--device", "cpu"],
            ]

        yield Case("class names", repr(name[:20]), prepare)


def folders() -> Iterator[Case]:
    """Folders that loop, block, hide, or hold nothing; names that are no text."""

    def case(name: str, spoil: Callable[[Path], object], refused: bool = False) -> Iterator[Case]:
        def prepare(world: World, folder: Path) -> list[list[str]]:
            data = world.copy(world.images, folder / "images")
            spoil(data)
            return [[*world.train, "--data-dir", str(data), "--output", str(folder / "new")]]

        def predict(world: World, folder: Path) -> list[list[str]]:
            data = world.copy(world.images, folder / "images")
            spoil(data)
            return [["predict", str(world.run), str(data), "--device", "cpu"]]

        yield Case("folders", f"{name} in train", prepare, refused)
        yield Case("folders", f"{name} in predict", predict)

    def empty(data: Path) -> None:
        for file in data.rglob("*.jpg"):
            file.unlink()

    yield from case("a loop", lambda data: (data / "train" / "grass" / "loop").symlink_to(data / "train"))
    yield from case("a loop to itself", lambda data: (data / "train" / "self").symlink_to(data / "train" / "self"))
    yield from case("a FIFO", lambda data: os.mkfifo(data / "train" / "grass" / "pipe.jpg"))
    yield from case("a device", lambda data: (data / "train" / "grass" / "zero.jpg").symlink_to("/dev/zero"))
    yield from case("a dangling link", lambda data: (data / "train" / "grass" / "x.jpg").symlink_to("/nowhere"))
    yield from case("a folder named .jpg", lambda data: (data / "train" / "grass" / "d.jpg").mkdir())
    yield from case("no images", empty, refused=True)
    yield from case("an empty class", lambda data: (data / "train" / "empty").mkdir())
    yield from case("an extra class in val", lambda data: (data / "train" / "grass").rename(data / "val" / "new"), True)
    yield from case("deep folders", lambda data: (data / "train" / "grass" / ("/".join("d" * 200))).mkdir(parents=True))
    yield from case(
        "names that are not UTF-8",
        lambda data: os.rename(
            data / "train" / "grass" / "000.jpg", os.fsencode(data / "train" / "grass") + b"/\xff\xfe.jpg"
        ),
    )
    yield from case(
        "a class that is not UTF-8",
        lambda data: [
            os.rename(os.fsencode(data / split / "grass"), os.fsencode(data / split) + b"/gr\xff")
            for split in ("train", "val", "test")
        ],
    )
    yield Case("folders", "predict of ''", lambda world, _f: [["predict", str(world.run), "", "--device", "cpu"]], True)
    yield Case(
        "folders",
        "a file for a folder",
        lambda world, f: [[*world.train, "--data-dir", "/etc/passwd", "--output", str(f / "new")]],
        True,
    )


def model_folders() -> Iterator[Case]:
    """Model folders whose `config.json` or weights were damaged or written by somebody else."""

    def commands(folder: Path) -> list[list[str]]:
        (folder / "x.png").write_bytes(image_bytes(9))
        return [
            ["info", str(folder / "model")],
            ["predict", str(folder / "model"), str(folder / "x.png"), "--device", "cpu"],
        ]

    def edited(index: int) -> Prepare:
        def prepare(world: World, folder: Path) -> list[list[str]]:
            model = world.copy(world.run / "model", folder / "model")
            edits = list(json_edits(0, json.loads((model / "config.json").read_text())))
            _, content = edits[index % len(edits)]
            (model / "config.json").write_text(json.dumps(content))
            return commands(folder)

        return prepare

    for index in range(180):
        yield Case("model folders", f"config.json, edit {index}", edited(index))

    def with_file(name: str, content: Callable[[bytes], bytes]) -> Prepare:
        def prepare(world: World, folder: Path) -> list[list[str]]:
            model = world.copy(world.run / "model", folder / "model")
            data = (model / name).read_bytes()
            (model / name).unlink()
            (model / name).write_bytes(content(data))
            return commands(folder)

        return prepare

    def nan(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        return data[: 8 + length] + np.full((len(data) - 8 - length) // 4, np.nan, np.float32).tobytes()

    for name in ("config.json", "model.safetensors"):
        for what, change in {
            "empty": lambda _d: b"",
            "cut short": lambda d: d[: len(d) // 2],
            "random": lambda d: random.Random(0).randbytes(len(d)),
            "a pickle": lambda _d: pickle.dumps({"a": 1}),
            "deep": lambda _d: b"[" * 100_000,
            "a huge header": lambda _d: struct.pack("<Q", 2**60) + b"{}",
        }.items():
            yield Case("model folders", f"{name} {what}", with_file(name, change), refused=True)
    yield Case("model folders", "NaN weights", with_file("model.safetensors", nan))


def states() -> Iterator[Case]:
    """Resume states that were damaged, or made to run code."""

    def spoilt(name: str, content: Callable[[bytes, Path], bytes], right_sum: bool) -> Prepare:
        def prepare(world: World, folder: Path) -> list[list[str]]:
            run = world.copy(world.started, folder / "run")
            for file in sorted(run.rglob(name)):
                data = content(file.read_bytes(), folder)
                file.unlink()
                if right_sum:  # the check sum stands in the name
                    file = file.with_name(f"{file.stem.rpartition('-')[0]}-{hashlib.sha256(data).hexdigest()}.pt")
                file.write_bytes(data)
            return [[*world.train, "--output", str(run), "--epochs", "2"]]

        return prepare

    def saved(content: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    changes: dict[str, Callable[[bytes, Path], bytes]] = {
        "empty": lambda _d, _f: b"",
        "cut short": lambda d, _f: d[: len(d) // 2],
        "random": lambda d, _f: random.Random(0).randbytes(len(d)),
        "a pickle": lambda _d, f: pickle.dumps(Planted(f)),
        "another state": lambda _d, _f: saved({"a": 1}),
        "a state that runs code": lambda _d, f: saved({"a": Planted(f)}),
        "a list": lambda _d, _f: b"[]",
        "null": lambda _d, _f: b"null",
        "a line too many": lambda d, _f: d + b"\n{",
    }
    for name in ("state*.pt", "metrics.jsonl", "recipe.yaml", "summary.csv", "*.json"):
        for what, change in changes.items():
            yield Case("states", f"{name} {what}", spoilt(name, change, False))
            if name == "state*.pt":
                yield Case("states", f"{name} {what}, with the right sum", spoilt(name, change, True))

    def planted_shards(world: World, folder: Path) -> list[list[str]]:
        run = world.copy(world.started, folder / "run")
        for file in ("checkpoints/shards/.metadata", "checkpoints/shards/0/.metadata", "checkpoints/.metadata"):
            (run / file).parent.mkdir(parents=True, exist_ok=True)
            (run / file).write_bytes(pickle.dumps(Planted(folder)))
        (run / "checkpoints" / "shards" / "sums.json").write_text("{}")
        recipe = run / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("fsdp: false", "fsdp: true"))
        return [[*world.train, "--output", str(run), "--epochs", "2", "--fsdp"]]

    yield Case("states", "a pickle for shards", planted_shards)


def plans() -> Iterator[Case]:
    """Plans that do not fit, or are no plans."""

    def with_plan(content: Callable[[object], str]) -> Prepare:
        def prepare(world: World, folder: Path) -> list[list[str]]:
            plan = json.loads((world.run / "plan.json").read_text())
            (folder / "plan.json").write_text(content(plan))
            new = str(folder / "new")
            return [
                ["prune", str(world.run), "--plan", str(folder / "plan.json"), "--output", new, "--recover-epochs", "0"]
            ]

        return prepare

    for index in range(60):

        def edited(plan: object, index: int = index) -> str:
            edits = list(json_edits(1, plan))
            return json.dumps(edits[index * 7 % len(edits)][1])

        yield Case("plans", f"edit {index}", with_plan(edited))
    for name, text in {
        "deep": "[" * 100_000,
        "a large number": '{"layers": [1' + "0" * 400 + "]}",
        "empty": "",
    }.items():
        yield Case("plans", name, with_plan(lambda _p, text=text: text), True)


def tars() -> Iterator[Case]:
    """Archives with holes, lies and ranges."""

    def train(world: World, data: Path, *more: str) -> list[list[str]]:
        return [
            [*world.train, "--dataset", "tar", "--data-dir", str(data), "--output", str(data.parent / "new"), *more]
        ]

    def spoilt(change: Callable[[Path], object]) -> Prepare:
        def prepare(world: World, folder: Path) -> list[list[str]]:
            data = world.copy(world.tars, folder / "tars")
            for file in data.iterdir():
                content = file.read_bytes()
                file.unlink()
                file.write_bytes(content)
            change(data)
            return train(world, data)

        return prepare

    def hole(data: Path) -> None:
        with (data / "train.tar").open("r+b") as file:
            file.truncate(20 * 2**30)

    yield Case("tars", "a hole of 20 GB", spoilt(hole))
    yield Case("tars", "cut short", spoilt(lambda data: os.truncate(data / "train.tar", 3000)))
    yield Case(
        "tars", "random", spoilt(lambda data: (data / "train.tar").write_bytes(random.Random(0).randbytes(9000)))
    )
    yield Case("tars", "empty", spoilt(lambda data: (data / "train.tar").write_bytes(b"")))
    yield Case("tars", "a gzip", spoilt(lambda data: (data / "train.tar").write_bytes(b"\x1f\x8b" + bytes(500))))
    yield Case(
        "tars",
        "names that climb",
        spoilt(
            lambda data: write_tar(
                data / "train.tar", {f"../../{c}/{i}.png": image_bytes(i) for c in "abc" for i in range(9)}
            )
        ),
    )
    for pattern in (
        "train-{0..99999999999}.tar",
        "train-{9..0}.tar",
        "{a,b",
        "train-{0..9..3}.tar",
        "*.tar",
        "::",
        "[",
        "|",
    ):

        def shards(world: World, folder: Path, pattern: str = pattern) -> list[list[str]]:
            data = world.copy(world.tars, folder / "tars")
            return [
                [
                    *world.train,
                    "--dataset",
                    "wds/x",
                    "--data-dir",
                    str(data),
                    "--train-split",
                    pattern,
                    "--output",
                    str(folder / "new"),
                ]
            ]

        yield Case("shards", pattern, shards)


def masks() -> Iterator[Case]:
    """Masks that do not fit their images."""
    contents = {
        "empty": lambda: b"",
        "random": lambda: random.Random(0).randbytes(500),
        "another size": lambda: png(5, 5),
        "1 x 89000": lambda: png(1, 89_000),
        "values of 255": lambda: png(28, 20).replace(bytes(1), bytes(1)),
        "floats": lambda: tiff(np.full((20, 28), np.nan, np.float32)),
        "in colour": lambda: image_bytes(200, 20),
    }
    for name, content in contents.items():
        for split, count in (("training", 2), ("validation", 4)):

            def prepare(
                world: World,
                folder: Path,
                split: str = split,
                count: int = count,
                content: Callable[[], bytes] = content,
            ) -> list[list[str]]:
                data = world.copy(world.scenes, folder / "scenes")
                for file in sorted((data / "annotations" / split).iterdir())[:count]:
                    file.unlink()
                    file.write_bytes(content())
                flags = ["--task", "segmentation", "--routing", "token", "--dataset", "ade20k", "--data-dir", str(data)]
                return [[*world.train, *flags, "--batch-size", "2", "--output", str(folder / "new")]]

            yield Case("masks", f"{name} in {split}", prepare)
