"""Measured latencies as a table, and kept in a run's folder for its report."""

import json
from collections.abc import Sequence
from pathlib import Path

from vimoe.errors import UserError
from vimoe.export.contenders import EXPORTED, Measured
from vimoe.files import write_text
from vimoe.report.tables import Table

FILE = "latency.json"


def latency_table(measured: Sequence[Measured], device: str, threads: int) -> Table:
    """A row a contender and batch size, each against the dense model of equal activated size where there is one."""
    rows, notes = [], []
    for batch, latencies, touched in measured:
        for name, latency in latencies.items():
            runtime = EXPORTED if name.endswith(EXPORTED) else ""
            base = next((latencies[b + runtime] for b in ("wide", "dense") if b + runtime in latencies), latency)
            low, high = latency.quartiles
            row = [name, str(batch), f"{batch / latency.median:.1f}", f"{1e3 * latency.median:.2f}"]
            rows.append([*row, f"{1e3 * low:.2f} to {1e3 * high:.2f}", f"{latency.over(base):.2f}"])
        if touched is not None:
            notes.append(
                f"A batch of {batch} reads {touched.experts} of {touched.stored} experts: "
                f"{touched.bytes / 1e6:.1f} of {touched.stored_bytes / 1e6:.1f} MB of their weights."
            )
    rounds = len(next(iter(measured[0].latencies.values())).seconds)
    against = "wide (dense, as many activated parameters)" if "wide" in measured[0].latencies else "dense"
    against = against if "dense" in measured[0].latencies else "itself, as there is no dense model"
    notes.append(
        f"Milliseconds a batch, on noise: median and quartiles of {rounds} rounds in which all take turns; {device}, "
        f"{threads} {'thread' if threads == 1 else 'threads'}. Ratio: to {against}, in onnxruntime to its export; "
        "median of the rounds' ratios."
    )
    return Table(("model", "batch", "images/s", "ms", "quartiles", "ratio"), rows, notes)


def keep_latencies(table: Table, run: Path) -> None:
    """Write the table into a run's folder."""
    write_text(run / FILE, json.dumps(table._asdict(), indent=1) + "\n")


def kept_latencies(run: Path) -> list[Table]:
    """The table that was kept in a run's folder, if one was. Raises UserError if it cannot be read."""
    try:
        kept = json.loads((run / FILE).read_text())
        rows = [[str(cell) for cell in row] for row in kept["rows"]]
        return [Table(tuple(map(str, kept["header"])), rows, tuple(map(str, kept["notes"])))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run / FILE} holds no latencies: remove it, or measure again") from error
