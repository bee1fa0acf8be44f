"""An analyzed run for Python: what was measured, the plan, and the heatmaps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.analyze_run import analyze_run
from vimoe.analysis.counts import RoutingCounts
from vimoe.report.heatmap import routing_heatmaps
from vimoe.vit.plan import Plan


@dataclass(frozen=True)
class AnalyzedRun:
    """What `vimoe.analyze` found on a run."""

    analysis: Analysis
    plan: Plan
    counts: RoutingCounts

    def plot_heatmaps(self) -> Figure:
        """How each class's choices spread over the experts, a panel a layer; `figure.savefig(path)` writes it."""
        measures = {layer.layer: layer.specialisation for layer in self.analysis.layers}
        return routing_heatmaps(self.counts, measures, self.plan)


def analyze(path: str | Path, **settings: Any) -> AnalyzedRun:
    """Analyze a finished run as `vimoe analyze` does: `routing/`, `analysis.json` and `plan.json` come into its folder.

    `settings` are those of `vimoe.analysis.analyze_run.analyze_run`, such as `split`, `max_drop` and `device`.

    Raises UserError if the run is not finished, has no MoE layer, or its images cannot be used.

    >>> found = vimoe.analyze("runs/digits", shuffles=19)  # of the example of `train`
    >>> [layer.layer for layer in found.analysis.layers], len(found.plan.layers)
    ([1, 2], 2)
    >>> found.plot_heatmaps().savefig("heatmaps.png")
    """
    path = Path(path)
    analysis, plan = analyze_run(path, **settings)
    return AnalyzedRun(analysis, plan, RoutingCounts.load(path / "routing" / f"{analysis.split}.npz"))
