"""The run folder: what a run leaves behind, and what the same command continues from.

    recipe.yaml            the resolved recipe
    metrics.jsonl          one line an epoch
    summary.csv            the same as a table
    checkpoints/           resume states (see `vimoe.training.resume_state`), until the run has come to its end
    first_batch.jpg        the first training images as the model sees them, with their labels
    evaluation/            what `evaluate` adds: metrics, confusion matrix, worst mistakes
    made_by.json           what a verb other than `train` made the folder from
    changes.jsonl          one line each time the run went on with changed augmentation
    skipped.csv            broken images, where there were any
    train_images.txt       what tells which files were learned from
    error.txt              the traceback of a step that failed
    model/                 the finished model: model.safetensors, config.json
    super_classes.yaml     by super-class its classes, where routing is guided
    initial_routers.npz    the weights of each router before the first step, by block
    routing/*.npz          routing counts
    plan.json, report.html what analysis and report add

Everything is written under another name and renamed, so that a killed process leaves whole files.
"""

import csv
import fcntl
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimoe.data.images import ImageFiles, Images, fingerprint
from vimoe.errors import UserError, first_line
from vimoe.files import write_arrays, write_text
from vimoe.training.recipe import MAY_DIFFER, Recipe, dump_recipe, load_recipe

Row = dict[str, Any]

# What tells that a folder is taken by a run.
_OF_A_RUN = ("recipe.yaml", "metrics.jsonl", "checkpoints", "start", "model", "analysis.json", "plan.json")
# What may differ where the user says so.
_AUGMENTATION = ("augment", "scale", "hflip", "color_jitter", "aa", "reprob", "mixup", "cutmix")


def kept_row(rows: Sequence[Row]) -> Row:
    """Of a run's rows that of the epoch that the finished model is of."""
    return next((row for row in rows if row.get("kept")), rows[-1])


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def model(self) -> Path:
        """The finished model's folder."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Where the resume states lie."""
        return self.path / "checkpoints"

    @property
    def super_classes(self) -> Path:
        """Where the super-classes lie that the routers are guided to."""
        return self.path / "super_classes.yaml"

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end (the model is written last)."""
        return (self.model / "config.json").exists()

    def check(self, recipe: Recipe, resume_changed: bool = False) -> dict[str, list[Any]]:
        """Make sure that the folder, if it holds a run, holds one of this recipe, but for what changes no bit.

        With `resume_changed` the augmentation may be another one from now on: by recipe key, the old value and the new
        one are returned.

        Raises UserError if it holds the run of another recipe.
        """
        recipe_file = self.path / "recipe.yaml"
        if not recipe_file.exists():
            if self.finished:
                raise UserError(f"{self.path} holds a model that was not trained there: choose another --output")
            if verb := self._made_by().get("verb"):
                raise UserError(f"{self.path} is the folder of a {verb}: choose another --output")
            return {}
        old, new = asdict(_resolved(load_recipe(recipe_file))), asdict(_resolved(recipe))
        differing = {key: [old[key], new[key]] for key in new if old[key] != new[key] and key not in MAY_DIFFER}
        changed = {key: values for key, values in differing.items() if key in _AUGMENTATION}
        for key, (before, now) in differing.items():
            if key not in changed or not resume_changed or self.finished:
                way = "" if key not in changed or self.finished else ", or go on with it with --resume-changed"
                raise UserError(
                    f"{self.path} holds a run of another recipe ({key} was {before!r}, is {now!r}): "
                    f"choose another --output{way}"
                )
        return changed

    def check_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Make sure that the folder is new, or was made by the same inputs (see `write_inputs`); writes nothing.

        They are all that the result depends on, by name, in plain JSON types.

        Raises UserError if it holds something else.
        """
        before = self._made_by()
        if not before:
            if taken := [name for name in _OF_A_RUN if (self.path / name).exists()]:
                raise UserError(f"{self.path} holds something else ({', '.join(taken)}): choose another --output")
        elif other := [key for key in inputs if key not in before or before[key] != inputs[key]]:
            raise UserError(f"{self.path} holds what came of another {' and '.join(other)}: choose another --output")

    def _made_by(self) -> dict[str, Any]:
        note = self.path / "made_by.json"
        if not note.exists():
            return {}
        try:
            inputs = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            inputs = None
        if not inputs or not isinstance(inputs, dict):
            raise UserError(f"{note} is damaged: choose another --output")
        return inputs

    def write_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Note what the folder is being made from, before anything else is written into it."""
        write_text(self.path / "made_by.json", json.dumps(inputs, indent=1) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

        What a killed process left half-written is removed.

        Raises UserError if another living process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{self.path} is in use by another process") from error
            except OSError as error:
                print(f"vimoe: {self.path} cannot be locked ({error.strerror}): run one process in it", file=sys.stderr)
            else:
                self._remove_scraps()
            yield

    def _remove_scraps(self) -> None:
        for pattern in ("*/.saving-*", ".*.writing", "*/.*.writing"):
            for scrap in self.path.glob(pattern):
                shutil.rmtree(scrap, ignore_errors=True) if scrap.is_dir() else scrap.unlink(missing_ok=True)

    def write_recipe(self, recipe: Recipe) -> None:
        """Make the folder and note down whose run it is."""
        write_text(self.path / "recipe.yaml", dump_recipe(_resolved(recipe)))

    def note_change(self, changed: dict[str, list[Any]], epoch: int, batch: int) -> None:
        """Add a line to `changes.jsonl`: the augmentation is another one from this batch of this epoch (from 1) on."""
        path = self.path / "changes.jsonl"
        before = path.read_text() if path.exists() else ""
        write_text(path, before + json.dumps({"epoch": epoch, "batch": batch, "changed": changed}) + "\n")

    def write_rows(self, rows: Sequence[Row]) -> None:
        """Write `metrics.jsonl` and `summary.csv` anew."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        table = io.StringIO()
        columns = [key for key, value in rows[0].items() if not isinstance(value, dict)]
        writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / "summary.csv", table.getvalue())

    def read_rows(self) -> list[Row]:
        """The rows of `metrics.jsonl`, none when there is no such file. Raises UserError if the file is damaged."""
        path = self.path / "metrics.jsonl"
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {first_line(error)}") from error
        if not all(isinstance(row, dict) and "epoch" in row for row in rows):
            raise UserError(f"{path} is damaged: not every line is an epoch's")
        return rows

    def write_train_images(self, images: Images) -> None:
        """Keep what tells which files are learned from (see `vimoe.data.images.fingerprint`); nothing without files."""
        if isinstance(images, ImageFiles):
            write_text(self.path / "train_images.txt", fingerprint(images) + "\n")

    def read_train_images(self) -> str:
        """The fingerprint that `write_train_images` kept, empty if none."""
        path = self.path / "train_images.txt"
        return path.read_text(errors="replace").strip() if path.is_file() else ""

    def write_initial_routers(self, weights: Mapping[int, NDArray[np.floating]]) -> None:
        """Keep the routers' weights `[E, D]` as they are before the first step, by block."""
        write_arrays(self.path / "initial_routers.npz", **{str(block): weight for block, weight in weights.items()})

    def read_initial_routers(self) -> dict[int, NDArray[np.floating]]:
        """What `write_initial_routers` kept. Raises UserError if it is missing or damaged."""
        path = self.path / "initial_routers.npz"
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
                return {int(block): kept[block] for block in kept.files}
        except FileNotFoundError as error:
            raise UserError(f"the routers' initial weights are not at {path}: `vimoe train` keeps them") from error
        except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged: {first_line(error)}") from error

    def write_skipped(self, lines: Collection[str], part: int | str = 0) -> None:
        """Write the list of broken images that the process of this number, or the evaluation of this name, has met."""
        if lines:
            quoted = (line.replace('"', '""') for line in sorted(lines))
            name = f"skipped-{part}.csv" if part else "skipped.csv"
            write_text(self.path / name, "reason\n" + "".join(f'"{line}"\n' for line in quoted))


def _resolved(recipe: Recipe) -> Recipe:
    """The recipe with a place to start from that does not depend on the working directory."""
    start = recipe.initial_checkpoint
    if not start or not os.path.exists(start):  # unlike Path.exists it takes any text
        return recipe
    return replace(recipe, initial_checkpoint=str(Path(start).resolve()))
