"""What each expert is worth, and how far the criteria agree, as tables."""

from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.expert_criteria import CRITERIA
from vimoe.report.comparison import change
from vimoe.report.tables import Table
from vimoe.vit.plan import blocks


def expert_table(analysis: Analysis) -> Table | None:
    """A row an expert, the last block first, the most worthy of a layer first; None where no expert was scored."""
    scored = [(layer.layer, e) for layer in reversed(analysis.layers) for e in layer.experts if e.scores]
    if not scored:
        return None
    criteria = [name for name in CRITERIA if any(name in expert.scores for _, expert in scored)]
    first = next(iter(scored[0][1].scores))
    scored.sort(key=lambda pair: (-pair[0], -pair[1].scores.get(first, 0.0)))
    rows = []
    for number, expert in scored:
        cells = {name: f"{score:.3g}" for name, score in expert.scores.items()}
        cells |= {"load": f"{100 * expert.load:.1f} %"}
        cells |= {"ablation": change(expert.lost)} if expert.lost else {}
        rows.append([f"{number}, expert {expert.expert}", *(cells.get(name, "-") for name in criteria)])
    words = [f"{name}: {CRITERIA[name]}." for name in criteria if name != "ablation"]
    if "ablation" in criteria:
        words.insert(0, "ablation: change of the score in points when the router cannot choose it (95 %, paired).")
    return Table(("block", *criteria), rows, [" ".join(words)])


def agreement_table(analysis: Analysis) -> Table | None:
    """How far each criterion orders the experts as ablation does; None where there is nothing to compare."""
    if not analysis.agreements:
        return None
    rows = []
    for name in CRITERIA:
        for found in (one for one in analysis.agreements if one.criterion == name):
            rho = found.rank_correlation
            cell = "-" if rho is None else f"{rho.value:+.2f} ({rho.low:+.2f} to {rho.high:+.2f})"
            rows.append([name, blocks(found.layers), str(found.experts), cell])
    note = (
        "Spearman's rank correlation with ablation within each layer, 1 for the same order. The interval is over "
        "experts: few of them say little. “ablation” is one half of the images against the other: where that is low, "
        "the images cannot tell the experts apart, and no criterion can be seen to agree."
    )
    return Table(("criterion", "layers", "experts", "agreement with ablation (95 %)"), rows, [note])
