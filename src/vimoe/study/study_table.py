"""What a study measured, gathered from its runs: all that its tables and figures are made of.

study.csv         a row a run
curves.csv        a row a run and epoch
test_right.npz    by run, whether each test image was classified right
routing/*.npz     counts [layer, class, expert] of the runs with the most MoE layers, first seed
"""

import csv
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vimoe.errors import UserError
from vimoe.files import write_arrays, write_bytes, write_text
from vimoe.report.tables import Table
from vimoe.study.grid import PLANNED, StudyRun, differing_fields
from vimoe.study.run_result import RIGHT_FILE, Result
from vimoe.training.run_folder import RunFolder

# By run, the rows of its epochs.
Curves = Mapping[str, Sequence[Mapping[str, float]]]
# By run, `[N]` bool.
Right = Mapping[str, NDArray[np.bool_]]

# Recipe keys that are kept whether they vary or not.
_ALWAYS = (
    *("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "baseline", "freeze", "epochs"),
    "guide_classes",
)
_TEXT = ("run", "setting", "qualifier", "variants", "kind", "metric")
# What is kept of each MoE layer: normalised mutual information of class and expert, the largest share of the
# assignments that went to one expert, and how many experts an image's tokens are sent to.
_BY_BLOCK = ("information", "max_load", "touched")


@dataclass(frozen=True)
class StudyRow:
    """What is known of one run; setting, qualifier, variants and kind are those of `StudyRun`."""

    run: str  # its folder inside the study's
    setting: str
    qualifier: str
    variants: tuple[str, ...]
    kind: str
    seed: int
    metric: str  # name of the task's main metric
    # The recipe keys that vary in this study, and those that are always kept.
    recipe: dict[str, Any] = field(default_factory=dict)
    # Every metric as `val_…` and `test_…`, `seconds` and `steps` of training, `shown_images`, what the model costs, its
    # `routing_degree`, and of each MoE layer `information.BLOCK` and the like.
    values: dict[str, float] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """The setting of the run that a planned one was made of."""
        return self.setting.removesuffix(f"-{PLANNED}")

    @property
    def test(self) -> float:
        """The main metric on the test split."""
        return self.values[f"test_{self.metric}"]

    @property
    def val(self) -> float:
        """The main metric on the validation split."""
        return self.values[f"val_{self.metric}"]

    def by_block(self, name: str) -> dict[int, float]:
        """One of the values that each MoE layer has, by block."""
        found = (key.partition(".") for key in self.values if key.startswith(f"{name}."))
        return {int(block): self.values[f"{name}.{block}"] for _, _, block in found}


class StudyTable(NamedTuple):
    """A study as its folder keeps it."""

    rows: list[StudyRow]
    curves: Curves
    right: Right


def study_rows(runs: Sequence[StudyRun], results: Mapping[str, Result]) -> list[StudyRow]:
    """One row for each run that has a result, in the order of the runs."""
    keys = tuple(dict.fromkeys((*_ALWAYS, *differing_fields(list(runs)))))
    return [_row(run, results[run.name], keys) for run in runs if run.name in results]


def by_setting(rows: Iterable[StudyRow]) -> dict[str, list[StudyRow]]:
    """The rows of each setting, settings in the order in which they come."""
    found: dict[str, list[StudyRow]] = {}
    for row in rows:
        found.setdefault(row.setting, []).append(row)
    return found


def deepest(rows: Iterable[StudyRow]) -> list[StudyRow]:
    """Of each N, qualifier and seed, with and without a shared expert, the MoE run with the most MoE layers."""
    found: dict[tuple[object, ...], StudyRow] = {}
    for row in rows:
        key = row.recipe["num_experts"], row.qualifier, row.recipe["shared_expert"], row.seed
        if row.kind == "moe" and (key not in found or row.recipe["last"] > found[key].recipe["last"]):
            found[key] = row
    return list(found.values())


def gather(runs: Sequence[StudyRun], results: Mapping[str, Result], folder: Path) -> None:
    """Write what the runs with a result measured into the study's folder, which holds theirs."""
    rows = study_rows(runs, results)
    write_rows(rows, folder / "study.csv")
    epochs = [{"run": row.run} | epoch for row in rows for epoch in RunFolder(folder / row.run).read_rows()]
    columns = list(dict.fromkeys(key for epoch in epochs for key in epoch if key != "routing"))
    cells = [["" if (value := epoch.get(key)) is None else str(value) for key in columns] for epoch in epochs]
    write_text(folder / "curves.csv", Table(columns, cells).csv())
    paths = {row.run: folder / row.run / RIGHT_FILE for row in rows}
    right = {run: np.load(path)["right"] for run, path in paths.items() if path.exists()}
    if right:
        write_arrays(folder / RIGHT_FILE, **right)
    shown = {row.setting: folder / row.run / "routing" / "val.npz" for row in deepest(rows) if row.seed == rows[0].seed}
    shown = {setting: path for setting, path in shown.items() if path.exists()}
    for setting, path in shown.items():
        write_bytes(folder / "routing" / f"{setting}.npz", path.read_bytes())
    for path in (folder / "routing").glob("*.npz"):
        if path.stem not in shown:  # it had the most MoE layers when fewer runs were done
            path.unlink()


def read_table(folder: Path) -> StudyTable:
    """Read what `gather` wrote. Raises UserError if there is no `study.csv`, or a file is no study's."""
    path = folder / "study.csv"
    curves: dict[str, list[dict[str, float]]] = {}
    try:
        with path.open(newline="") as file:
            rows = [_read_row(line) for line in csv.DictReader(file, restkey="too many cells")]
        if (folder / "curves.csv").exists():
            with (folder / "curves.csv").open(newline="") as file:
                for line in csv.DictReader(file):
                    run = line.pop("run")
                    curves.setdefault(run, []).append({key: float(cell) for key, cell in line.items() if cell})
        right = {}
        if (folder / RIGHT_FILE).exists():
            with np.load(folder / RIGHT_FILE) as found:
                right = dict(found)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no study's table: {error}") from error
    return StudyTable(rows, curves, right)


def write_rows(rows: Sequence[StudyRow], path: Path) -> None:
    """Write the rows as CSV; what a run has no value for stays empty."""
    lines = []
    for row in rows:
        numbers = {"seed": row.seed} | {f"recipe.{key}": value for key, value in row.recipe.items()} | row.values
        text = {key: getattr(row, key) for key in _TEXT} | {"variants": ";".join(row.variants)}
        lines.append(text | {key: json.dumps(value) for key, value in numbers.items()})
    header = sorted(dict.fromkeys(key for line in lines for key in line), key=_place)
    write_text(path, Table(header, [[line.get(key, "") for key in header] for line in lines]).csv())


def _place(key: str) -> tuple[int, int]:
    """What is known of the whole run first, then the values of each layer, block by block."""
    name, _, block = key.partition(".")
    return (_BY_BLOCK.index(name) + 1, int(block)) if name in _BY_BLOCK else (0, 0)


def _row(run: StudyRun, result: Mapping[str, Any], keys: Sequence[str]) -> StudyRow:
    recipe = asdict(run.recipe)
    values = {"routing_degree": 1} | {k: v for k, v in result.items() if type(v) in (int, float) and k != "seed"}
    for block, layer in result.get("layers", {}).items():
        measured = layer["normalised"], max(layer["load"]), layer["experts_touched"]
        values |= {f"{name}.{block}": value for name, value in zip(_BY_BLOCK, measured, strict=True)}
    return StudyRow(
        *(run.name, run.setting, run.qualifier, run.variants, run.kind, run.recipe.seed, result["metric"]),
        {key: recipe[key] for key in keys},
        values,
    )


def _read_row(line: Mapping[str, str]) -> StudyRow:
    text = {key: line[key].removeprefix("'") for key in _TEXT}  # a quote keeps spreadsheets from running a formula
    numbers = {key: json.loads(cell) for key, cell in line.items() if key not in _TEXT and cell}
    recipe = {key.removeprefix("recipe."): numbers.pop(key) for key in list(numbers) if key.startswith("recipe.")}
    variants = tuple(text.pop("variants").split(";"))
    return StudyRow(**text, variants=variants, seed=numbers.pop("seed"), recipe=recipe, values=numbers)
