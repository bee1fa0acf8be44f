"""Models side by side on the same test images: how good each one is, what it costs, and how sure that is."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

from vimoe.analysis.paired import Estimate
from vimoe.errors import UserError, first_line
from vimoe.files import write_text
from vimoe.report.tables import Table, metric_name
from vimoe.vit.cost import Cost, giga_macs, millions


class Speed(NamedTuple):
    """Time and memory, measured on one machine."""

    seconds: float  # for one image in a batch of `batch_size`, median of several runs
    peak_bytes: int  # the most memory that weights and activations took at once while a batch was computed
    batch_size: int  # images at once


@dataclass(frozen=True)
class Variant:
    """A model in a comparison."""

    name: str
    score: Estimate  # how good it is on the test images, in percent
    cost: Cost
    # Percentage points lost against the model that it is compared with, paired on the same images; negative for a gain.
    # None where it is compared with nothing.
    lost: Estimate | None = None
    speed: Speed | None = None
    training: float | None = None  # seconds of training, if they are part of the comparison


@dataclass(frozen=True)
class Evidence:
    """What pruning did."""

    # The model before, the dense control where there is one, the model right after the surgery, and recovered where
    # there was a recovery.
    states: tuple[Variant, ...]
    metric: str  # what the score is: `top1`, or `pixels`
    split: str  # the split that was scored, `images` of it
    images: int
    decided: bool  # whether these images made the plan as well: where the data set holds no others
    epochs: int  # epochs of recovery
    output: Path  # the folder of the pruned model

    def save(self, path: Path) -> None:
        """Write the numbers as JSON."""
        states = [{**asdict(s), "cost": s.cost._asdict(), "speed": s.speed and s.speed._asdict()} for s in self.states]
        numbers = {key: getattr(self, key) for key in ("metric", "split", "images", "decided", "epochs")}
        write_text(path, json.dumps({**numbers, "states": states}, indent=2))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises UserError if the file is damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            states = tuple(
                Variant(
                    **state
                    | {key: state[key] and Estimate(**state[key]) for key in ("score", "lost")}
                    | {"cost": Cost(**state["cost"]), "speed": state["speed"] and Speed(**state["speed"])}
                )
                for state in values.pop("states")
            )
            return cls(states=states, output=path.parent, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {first_line(error)}") from error


def comparison_table(variants: Sequence[Variant], metric: str, images: int, note: str, split: str = "test") -> Table:
    """A row a model; all with a speed or none, and all with training seconds or none.

    They were measured on so many images of the split; `note` says how to read the changes.
    """
    header = ["model", f"{split} {metric_name(metric)} % (95 %)", "change (95 %)"]
    header += ["activated", "stored", "multiply-adds"]
    notes = [
        f"{images} {split} images, the same ones for every model. {note} Activated parameters take part for one image; "
        "stored parameters include the experts that were not chosen. Multiply-adds are for one image."
    ]
    if variants[0].speed:
        header += ["ms", "peak MB"]
        batch = variants[0].speed.batch_size
        notes.append(f"ms: for one image in a batch of {batch}, measured; peak: weights and activations of the batch.")
    if variants[0].training is not None:
        header.append("training s")
    rows = []
    for variant in variants:
        score, cost, speed = variant.score, variant.cost, variant.speed
        interval = f" ({score.low:.1f} to {score.high:.1f})" if score.low < score.high else ""
        row = [variant.name, f"{score.value:.1f}{interval}", change(variant.lost) if variant.lost else ""]
        row += [millions(cost.activated_params), millions(cost.stored_params), giga_macs(cost.macs)]
        row += [f"{1000 * speed.seconds:.2f}", f"{speed.peak_bytes / 2**20:.1f}"] if speed else []
        rows.append(row + ([] if variant.training is None else [f"{variant.training:.0f}"]))
    return Table(header, rows, notes)


def pruning_table(found: Evidence) -> Table:
    """The model before pruning, right after it, and recovered where it was."""
    note = "Changes are against the first row."
    note += " These images made the plan as well, so its losses look too small." if found.decided else ""
    return comparison_table(found.states, found.metric, found.images, note, found.split)


def comparison_sentence(one: Variant, other: Variant, metric: str, images: int, split: str = "test") -> str:
    """How `one` does against `other`, against which its loss was measured."""
    lost = one.lost
    assert lost is not None
    verdict = "within noise" if lost.low <= 0 <= lost.high else "beyond noise"
    time = one.speed and other.speed and f", time for an image {_relative(one.speed.seconds, other.speed.seconds)}"
    return (
        f"“{one.name}” reaches {one.score.value:.1f} % {metric_name(metric)} on {images} {split} images, "
        f"“{other.name}” {other.score.value:.1f} %: {change(lost, ' points (95 %: ')}, {verdict}. "
        f"{cost_changes(other.cost, one.cost)}{time or ''}."
    )


def change(lost: Estimate, between: str = " (") -> str:
    """A loss as a change, with its interval: `+1.0 (-0.5 to +2.5)`."""
    value, low, high = (round(0 - x, 1) + 0.0 for x in (lost.value, lost.high, lost.low))  # + 0.0: no minus zero
    return f"{value:+.1f}{between}{low:+.1f} to {high:+.1f})"


def cost_changes(before: Cost, after: Cost) -> str:
    """`Multiply-adds -25 %, stored parameters -75 %`."""
    macs, stored = _relative(after.macs, before.macs), _relative(after.stored_params, before.stored_params)
    return f"Multiply-adds {macs}, stored parameters {stored}"


def _relative(after: float, before: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %"
