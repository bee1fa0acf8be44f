"""A report on the made-up analysis of `tests.analysis.examples`."""

from typing import Any

import numpy as np

from tests.analysis.examples import analysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.report.gallery import thumbnail
from vimoe.report.page import Report
from vimoe.report.tables import Table
from vimoe.vit.plan import LayerPlan, Plan

EVIL = "<script>alert(1)</script>"


def counts() -> RoutingCounts:
    return RoutingCounts((1, 2), (2, 2), ("a", EVIL), np.array([[[12, 8], [9, 11]], [[0, 20], [19, 1]]]))


def rows(epochs: int = 3) -> list[dict[str, Any]]:
    routing = {str(n): {"load": [0.25, 0.75], "effective_experts": 1.75} for n in (1, 2)}
    return [{"epoch": e, "loss": 1 / e, "val_top1": 90.0 + e, "routing": routing} for e in range(1, epochs + 1)]


def report(**changes: Any) -> Report:
    images = {place: thumbnail(np.full((8, 8, 3), 20 * place, dtype=np.uint8), place % 2) for place in range(4)}
    settings: dict[str, Any] = {
        "title": f"Title {EVIL}",
        "conclusion": "It works.",
        "counts": counts(),
        "plan": Plan((LayerPlan(1, (), reason="dispensable: too little"), LayerPlan(2, (0,), reason=f"needed {EVIL}"))),
        "rows": {f"training {EVIL}": rows()},
        "recipes": {f"training {EVIL}": f"output: {EVIL}\nseed: 3"},
        "command": f"vimoe analyze '{EVIL}'",
        "tables": [Table(("model", "score"), [[f"as it is {EVIL}", "90.0"]], [f"a note {EVIL}"])],
        "analysis": analysis(),
        "images": images,
    }
    return Report(**{**settings, **changes})
