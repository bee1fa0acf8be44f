"""How long the models of a study take: one of each setting, in turns, once nothing trains any more."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from vimoe.errors import UserError
from vimoe.export.latency import Latency, take_turns
from vimoe.export.probe_images import noise_images
from vimoe.files import write_text
from vimoe.study.study_table import StudyRow, by_setting
from vimoe.tasks.model import load_model
from vimoe.training.run_folder import RunFolder
from vimoe.vit.blocks import find_backbone
from vimoe.vit.meta import input_shape

FILE = "latency.json"


class Latencies(NamedTuple):
    """By setting, how long a batch took the model of its first seed; all took turns."""

    batch: int
    device: str
    threads: int
    by_setting: dict[str, Latency]


def measure_settings(rows: Sequence[StudyRow], folder: Path, batch: int, device: str, rounds: int = 20) -> Latencies:
    """Run the models of a study's folder on noise, and keep what they took there."""
    models = {
        setting: load_model(RunFolder(folder / same[0].run).model, device) for setting, same in by_setting(rows).items()
    }
    runs = {}
    for setting, model in models.items():
        images = noise_images(input_shape(find_backbone(model).vit), batch).to(device)
        runs[setting] = partial(model, images)
    with torch.inference_mode():
        found = Latencies(batch, device, torch.get_num_threads(), take_turns(runs, rounds, device))
    seconds = {setting: latency.seconds for setting, latency in found.by_setting.items()}
    write_text(folder / FILE, json.dumps({**found._asdict(), "by_setting": seconds}, indent=1) + "\n")
    return found


def read_latencies(folder: Path) -> Latencies | None:
    """What `measure_settings` kept, None where nothing was measured. Raises UserError if it cannot be read."""
    try:
        kept = json.loads((folder / FILE).read_text())
        seconds = {setting: Latency(tuple(map(float, taken))) for setting, taken in kept.pop("by_setting").items()}
        return Latencies(int(kept["batch"]), str(kept["device"]), int(kept["threads"]), seconds)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / FILE} holds no latencies: remove it, or measure again with --measure") from error
