"""Small studies, and rows of studies that were never run."""

from pathlib import Path
from typing import Any

from vimoe.study.study_file import Study, read_study
from vimoe.study.study_table import StudyRow

TINY = """
base:
  dataset: digits
  model_args: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2, weight_init: jax}
  pos_embed_std: 1.0
  batch_size: 256
  epochs: 1
  warmup_epochs: 0.0
  device: cpu
start: {augment: false}
seeds: [0]
variants:
  - {name: main, last: [0, 2], num_experts: 2, shared_expert: [true, false]}
"""


def study(folder: Path, text: str = TINY) -> Study:
    (folder / "tiny.yaml").write_text(text)
    return read_study(folder / "tiny.yaml", folder / "runs")


def row(setting: str, seed: int, test: float, **changes: Any) -> StudyRow:
    """A run as `name_setting` would call it.

    `changes` are recipe keys, `val` where it is not `test`, how many MoE layers a plan `kept`, and how long it trained.
    """
    moe = setting.startswith("N")
    words = setting.split("-")
    last = next((int(word[1:]) for word in words if word[0] == "L"), 0)
    recipe = {
        "last": last,
        "epochs": 8,
        "num_experts": int(words[0][1:]) if moe else 8,
        "top_k": 1,
        "shared_expert": "shared" in words if moe else True,
        "routing": "image",
        "preset": "paper" if "paper" in words else "preserve",
        "baseline": words[0].rstrip("0123456789") if words[0][0] in "wlv" or (last and words[0] == "dense") else "",
        "freeze": "",
    }
    values = {
        **{"test_top1": test, "val_top1": changes.get("val", test), "test_nll": 0.5, "seconds": 10.0},
        **{"stored_params": 1000 + last, "activated_params": 900 + last, "macs": 10_000_000 + last},
        "routing_degree": recipe["num_experts"] ** last if moe else 1,
    }
    values |= {key: changes[key] for key in ("steps", "shown_images") if key in changes}
    if moe:
        kept = range(12 - changes.get("kept", last), 12)
        values |= {f"information.{block}": 0.1 * block for block in kept}
        values |= {f"{name}.{block}": value for name, value in (("max_load", 0.5), ("touched", 1.0)) for block in kept}
    qualifier = [word for word in words if word == "paper" or "=" in word or word == "planned"]
    return StudyRow(
        run=f"seed{seed}/{setting}",
        setting=setting,
        qualifier="-".join(qualifier),
        variants=("main",),
        kind="planned" if "planned" in words else "moe" if moe else "wide" if "wide" in setting else words[0],
        seed=seed,
        recipe=recipe | {k: v for k, v in changes.items() if k not in ("val", "kept", "steps", "shown_images")},
        metric="top1",
        values=values,
    )
