"""The study's one table, `study.csv`: a row a run, everything that its tables and metrics are made of."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.study.grid import PLANNED, StudyRun, differing_fields

# Recipe keys that every study tells, whether they vary or not.
_ALWAYS = ("last", "num_experts", "top_k", "shared_expert", "routing", "preset", "baseline", "epochs")
_COUNTS = ("stored_params", "activated_params", "macs", "routing_degree")
_BY_BLOCK = ("information", "max_load", "touched")


@dataclass(frozen=True)
class StudyRow:
    """What is known of one run.

    Attributes:
        run: Its folder inside the study's.
        setting: What it is, the same for all seeds.
        qualifier: The part of `setting` beyond N, L and the shared expert, empty for the usual.
        variants: The variants that ask for it.
        kind: `start`, `dense`, `wide`, `moe`, or `planned` for what its plan made of an MoE run.
        seed: Its seed.
        recipe: Recipe keys that vary in this study, and those that every study tells.
        metric: Name of the task's main metric.
        metrics: Every metric of the task as `val_…` and `test_…`, and `seconds` of training.
        counts: `stored_params`, `activated_params`, `macs`, `routing_degree` (1 without MoE layers).
        information: Normalised mutual information of class and expert, by block.
        max_load: Largest share of the assignments that went to one expert, by block.
        touched: Experts that an image's tokens are sent to, by block.
    """

    run: str
    setting: str
    qualifier: str
    variants: tuple[str, ...]
    kind: str
    seed: int
    recipe: dict[str, Any]
    metric: str
    metrics: dict[str, float]
    counts: dict[str, int]
    information: dict[int, float]
    max_load: dict[int, float]
    touched: dict[int, float]

    @property
    def origin(self) -> str:
        """The setting of the run that a planned one was made of."""
        return self.setting.removesuffix(f"-{PLANNED}")

    @property
    def test(self) -> float:
        """The main metric on the test split."""
        return self.metrics[f"test_{self.metric}"]

    @property
    def val(self) -> float:
        """The main metric on the validation split."""
        return self.metrics[f"val_{self.metric}"]


def study_rows(runs: Sequence[StudyRun], results: Mapping[str, Mapping[str, Any]]) -> list[StudyRow]:
    """One row for each run that has a result, in the order of the plan."""
    keys = tuple(dict.fromkeys((*_ALWAYS, *differing_fields(list(runs)))))
    return [_row(run, results[run.name], keys) for run in runs if run.name in results]


def write_study(rows: Sequence[StudyRow], path: Path) -> None:
    """Write the table as CSV; what a run has no value for stays empty."""
    blocks = sorted({block for row in rows for block in row.information})
    metrics = list(dict.fromkeys(key for row in rows for key in row.metrics))
    keys = list(rows[0].recipe) if rows else []
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["run", "setting", "qualifier", "variants", "kind", "seed"]
        + [f"recipe.{key}" for key in keys]
        + ["metric", *metrics, *_COUNTS]
        + [f"{name}.{block}" for name in _BY_BLOCK for block in blocks]
    )
    for row in rows:
        writer.writerow(
            [row.run, row.setting, row.qualifier, ";".join(row.variants), row.kind, row.seed]
            + [json.dumps(row.recipe[key]) for key in keys]
            + [row.metric, *(row.metrics.get(key, "") for key in metrics), *(row.counts[key] for key in _COUNTS)]
            + [getattr(row, name).get(block, "") for name in _BY_BLOCK for block in blocks]
        )
    write_text(path, table.getvalue())


def read_study_rows(path: Path) -> list[StudyRow]:
    """Read what `write_study` wrote.

    Raises:
        UserError: There is no such file, or it is no study's table.
    """
    try:
        with path.open(newline="") as file:
            return [_read(line) for line in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no study's table: {error}") from error


def by_setting(rows: Iterable[StudyRow]) -> dict[str, list[StudyRow]]:
    """The rows of each setting, settings in the order in which they come."""
    found: dict[str, list[StudyRow]] = {}
    for row in rows:
        found.setdefault(row.setting, []).append(row)
    return found


def _row(run: StudyRun, result: Mapping[str, Any], keys: Sequence[str]) -> StudyRow:
    recipe, layers = asdict(run.recipe), result.get("layers", {})
    return StudyRow(
        run=run.name,
        setting=run.setting,
        qualifier=run.qualifier,
        variants=run.variants,
        kind=run.kind,
        seed=run.recipe.seed,
        recipe={key: recipe[key] for key in keys},
        metric=result["metric"],
        metrics={key: value for key, value in result.items() if key.startswith(("val_", "test_")) or key == "seconds"},
        counts={"routing_degree": 1, **{key: result[key] for key in _COUNTS if key in result}},
        information={int(block): layer["normalised"] for block, layer in layers.items()},
        max_load={int(block): max(layer["load"]) for block, layer in layers.items()},
        touched={int(block): layer["experts_touched"] for block, layer in layers.items()},
    )


def _read(line: Mapping[str, str]) -> StudyRow:
    def by_block(name: str) -> dict[int, float]:
        return {
            int(key.removeprefix(f"{name}.")): float(value)
            for key, value in line.items()
            if key.startswith(f"{name}.") and value
        }

    return StudyRow(
        run=line["run"],
        setting=line["setting"],
        qualifier=line["qualifier"],
        variants=tuple(line["variants"].split(";")),
        kind=line["kind"],
        seed=int(line["seed"]),
        recipe={k.removeprefix("recipe."): json.loads(v) for k, v in line.items() if k.startswith("recipe.")},
        metric=line["metric"],
        metrics={
            key: float(value)
            for key, value in line.items()
            if value and (key.startswith(("val_", "test_")) or key == "seconds")
        },
        counts={key: int(line[key]) for key in _COUNTS},
        information=by_block("information"),
        max_load=by_block("max_load"),
        touched=by_block("touched"),
    )
