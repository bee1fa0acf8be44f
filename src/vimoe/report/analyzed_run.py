"""An analyzed run for Python: what was measured, the plan, and the heatmaps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.analyze_run import analyze_run
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.planning import MAX_DROP
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
        return routing_heatmaps(self.counts, measures, self.plan, unit=self.analysis.unit)


def analyze(
    path: str | Path,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    split: str = "val",
    sample: int | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    shuffles: int = 199,
    max_drop: float = MAX_DROP,
    experts: Sequence[str] = (),
    note: Callable[[str], None] = lambda _: None,
) -> AnalyzedRun:
    """Analyze a finished run as `vimoe analyze` does: `routing/`, `analysis.json` and `plan.json` come into its folder.

    Args:
        dataset: Instead of the recipe's.
        data_dir: Instead of the recipe's.
        split: `train`, `val` or `test`.
        sample: So many images of the split, each class in its share; all by default.
        shuffles: Shuffled tables behind every chance level.
        max_drop: Percentage points that the plan may lose.
        experts: Criteria by which each expert is scored, see `vimoe.analysis.expert_criteria.CRITERIA`.
        note: Called with a line on what is odd but stops nothing.

    Raises UserError if the run is not finished, has no MoE layer, or its images cannot be used.

    >>> found = vimoe.analyze("runs/digits", shuffles=19)  # of the example of `train`
    >>> [layer.layer for layer in found.analysis.layers], len(found.plan.layers)
    ([1, 2], 2)
    >>> found.plot_heatmaps().savefig("heatmaps.png")
    """
    path = Path(path)
    analysis, plan = analyze_run(
        path,
        dataset=dataset,
        data_dir=data_dir,
        split=split,
        sample=sample,
        batch_size=batch_size,
        workers=workers,
        device=device,
        shuffles=shuffles,
        max_drop=max_drop,
        experts=experts,
        note=note,
    )
    return AnalyzedRun(analysis, plan, RoutingCounts.load(path / "routing" / f"{analysis.split}.npz"))
