"""The run folder: what a run leaves behind, and what the same command continues from.

    recipe.yaml            the resolved recipe
    metrics.jsonl          one line an epoch
    summary.csv            the same as a table
    checkpoints/state.pt   resume state (tensors and numbers alone, never unpickled as code), and the one before it
    skipped.csv            broken images, where there were any
    model/                 the finished model: model.safetensors, config.json
    routing/*.npz          routing counts
    plan.json, report.html what analysis and report add

Everything is written under another name and renamed, so that a killed process leaves whole files.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import pickle
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vimoe.errors import UserError
from vimoe.files import write_bytes, write_text
from vimoe.training.recipe import Recipe, dump_recipe, load_recipe

Row = dict[str, Any]

# A folder may move, and another device computes the same run: neither makes it another recipe.
_MAY_DIFFER = ("output", "device")


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
    def finished(self) -> bool:
        """Whether the run has come to its end (the model is written last)."""
        return (self.model / "config.json").exists()

    def check(self, recipe: Recipe) -> None:
        """Make sure that the folder, if it holds a run, holds one of this recipe.

        Raises:
            UserError: It holds the run of another recipe.
        """
        recipe_file = self.path / "recipe.yaml"
        if not recipe_file.exists():
            return
        old, new = asdict(load_recipe(recipe_file)), asdict(recipe)
        for key in new:
            if old[key] != new[key] and key not in _MAY_DIFFER:
                raise UserError(
                    f"{self.path} holds a run of another recipe ({key} was {old[key]!r}, is {new[key]!r}): "
                    "choose another --output"
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

        Raises:
            UserError: Another living process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.path} is in use by another process that is still training") from error
            yield

    def write_recipe(self, recipe: Recipe) -> None:
        """Make the folder and note down whose run it is."""
        write_text(self.path / "recipe.yaml", dump_recipe(recipe))

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
        """The rows of `metrics.jsonl`, none when there is no such file."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_state(self, state: dict[str, Any]) -> None:
        """Write the resume state and keep the one before it; the first bytes are a check sum of the rest."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        newest, before = self._states
        if newest.exists():
            os.replace(newest, before)
        write_bytes(newest, hashlib.sha256(data).digest() + data)

    def read_state(self) -> dict[str, Any] | None:
        """The newest resume state that is whole, None where a run has to start from its beginning.

        Raises:
            UserError: There are states, but all are damaged.
        """
        found = [path for path in self._states if path.exists()]
        for path in found:
            try:
                data = path.read_bytes()
                if hashlib.sha256(data[32:]).digest() == data[:32]:
                    state: dict[str, Any] = torch.load(io.BytesIO(data[32:]), map_location="cpu", weights_only=True)
                    return state
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
                pass
            print(f"vimoe: {path} is damaged, the state before it is used", file=sys.stderr)
        if found:
            raise UserError(f"all resume states in {found[0].parent} are damaged: remove them to start this run anew")
        return None

    @property
    def _states(self) -> tuple[Path, Path]:
        return self.checkpoints / "state.pt", self.checkpoints / "state.before.pt"

    def write_skipped(self, lines: Collection[str], rank: int = 0) -> None:
        """Write the list of broken images that the process of this number has met."""
        if lines:
            name = f"skipped-{rank}.csv" if rank else "skipped.csv"
            write_text(self.path / name, "reason\n" + "".join(f'"{_quote(line)}"\n' for line in sorted(lines)))


def _quote(text: str) -> str:
    return text.replace('"', '""')
