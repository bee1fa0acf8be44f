"""Tables for the terminal, for notes, for papers and for the page."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vimoe.moe.config import MoEConfig
from vimoe.vit.cost import Cost, giga_macs, millions
from vimoe.vit.inspection import CostComparison

# The metrics that models are judged by, in the order in which they are looked for.
METRICS = {
    **{"top1": "top-1", "map": "mAP", "miou": "mean IoU"},
    **{"lrap": "label ranking precision", "pixels": "pixel accuracy"},
}

# A sign before anything but a number starts a formula.
_FORMULA = re.compile(r"[=@\t\r]|[+-](?=[^\d.\s])")
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"±": r"$\pm$", "−": "$-$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


class Table(NamedTuple):
    """A table of finished cells and notes on how to read it, written in every form that the toolbox needs.

    The first column stands to the left, the others to the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Aligned columns for a terminal, the notes below."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]

        def joined(cells: Sequence[str]) -> str:
            aligned = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            return "  ".join(aligned).rstrip()

        rule = "  ".join("-" * width for width in widths)
        table = "\n".join([joined(self.header), rule, *(joined(row) for row in self.rows)])
        return "\n\n".join([table, *self.notes])

    def markdown(self) -> str:
        """A GitHub table, the notes as paragraphs below."""
        rule = ["---", *("---:" for _ in self.header[1:])]
        lines = [self.header, rule, *([cell.replace("|", r"\|") for cell in row] for row in self.rows)]
        return "\n\n".join(["\n".join("| " + " | ".join(cells) + " |" for cells in lines), *self.notes]) + "\n"

    def csv(self) -> str:
        """Header and rows, without the notes; a cell that a spreadsheet would run as a formula is quoted with `'`."""
        text = io.StringIO()
        lines = [list(map(no_formula, row)) for row in (self.header, *self.rows)]
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()

    def latex(self) -> str:
        """A `tabular` that needs no package, the notes as comments above it."""
        head, *rows = (" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in (self.header, *self.rows))
        columns = "l" + "r" * (len(self.header) - 1)
        body = [f"\\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"]
        return "\n".join([*(f"% {note}" for note in self.notes), *body]) + "\n"


def no_formula(cell: str) -> str:
    """A cell of CSV; one that a spreadsheet would run as a formula is quoted with `'`."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def metric_name(key: str) -> str:
    """What readers call a metric: `top-1` for `top1`."""
    return METRICS.get(key, key)


def cost_rows(costs: Mapping[str, Cost]) -> Table:
    """The costs of models by name."""
    rows = [
        [name, millions(c.stored_params), millions(c.activated_params), giga_macs(c.macs)] for name, c in costs.items()
    ]
    return Table(("model", "stored", "activated", "multiply-adds"), rows)


def cost_table(comparison: CostComparison) -> str:
    """What `vimoe info` prints: the costs before and after, and what the MoE layers are."""
    config, dense, moe = comparison.config, comparison.dense, comparison.upcycled
    experts = config.num_experts[0]
    costs = {"dense": dense, f"ViMoE N={experts} L={len(config.layers)}": moe}
    shared = "with a shared expert" if config.shared_expert else "without a shared expert"
    return "\n".join(
        [
            comparison.name,
            "",
            cost_rows(costs).text(),
            "",
            f"MoE layers      blocks {', '.join(map(str, config.layers))} (from 0), {shared}",
            f"routing         {routing_words(config)}",
            f"start           outputs {'are' if config.keeps_function else 'differ from'} the dense model's",
            f"routing degree  C({experts}, {config.top_k})^{len(config.layers)} = {whole(config.routing_degree)}",
            f"cost of MoE     {moe.activated_params / dense.activated_params - 1:+.1%} activated parameters, "
            f"{moe.macs / dense.macs - 1:+.1%} multiply-adds, {moe.stored_params / dense.stored_params:.2f}x stored",
        ]
    )


def whole(number: int) -> str:
    """A whole number with its digits in threes, or two of them where they would be more than twelve."""
    return f"{number:,}" if number < 10**12 else f"{number:.1e}"


def routing_words(config: MoEConfig) -> str:
    """How the MoE layers of a model route, in words."""
    experts = " and ".join(map(str, sorted(set(config.num_experts))))
    if config.router == "soft":
        return f"mixtures of all tokens in {config.slots} slots of each of {experts} experts"
    if config.router == "expert_choice":
        return f"each of {experts} experts takes {config.capacity:g} times its even share of an image's tokens"
    words = f"one choice of {config.top_k} among {experts} experts for each {config.routing}"
    words += ", guided to super-classes" if config.guide else ""
    return words if config.router == "top_k" else f"{words}, up to {config.capacity:g} times an expert's even share"


def metrics_table(metrics: Mapping[str, float]) -> str:
    """The metrics of an evaluation, one a line."""
    words = {
        "top1": ("top-1", "%"),
        "top5": ("top-5", "%"),
        "mean_class": ("mean of the classes", "%"),
        "nll": ("cross-entropy", "nats"),
        "ece": ("calibration error", "points"),
        "map": ("mAP", "%"),
        "f1": ("F1, mean of labels", "%"),
        "micro_f1": ("F1, all labels", "%"),
        "bce": ("binary cross-entropy", "nats"),
        "miou": ("mean IoU", "%"),
        "aacc": ("pixel accuracy", "%"),
        "macc": ("mean class accuracy", "%"),
        "images": ("images", ""),
    }
    lines = []
    for key, value in metrics.items():
        name, unit = words[key]
        lines.append(f"{name:20} {value:>8.{2 if unit else 0}f} {unit}".rstrip())
    return "\n".join(lines)
