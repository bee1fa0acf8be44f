"""Tables in plain text, for the terminal and for notes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from vimoe.report.comparison import Variant
from vimoe.vit.inspection import CostComparison

# The figures that models are judged by, in the order in which they are looked for, as readers know them.
METRICS = {"top1": "top-1 %", "miou": "mean IoU %", "pixels": "pixels right %"}


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def join(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(aligned).rstrip()

    return "\n".join([join(lines[0]), "  ".join("-" * w for w in widths), *(join(line) for line in lines[1:])])


def millions(count: int) -> str:
    """A count in millions: three figures, and never less than a hundredth."""
    value = count / 1e6
    return f"{value:.1f} M" if value >= 10 else f"{value:.2f} M"


def giga_macs(macs: int) -> str:
    """Multiply-adds in units of 10^9, or 10^6 for small models."""
    return f"{macs / 1e9:.2f} GMAC" if macs >= 1e8 else f"{macs / 1e6:.1f} MMAC"


def cost_table(comparison: CostComparison) -> str:
    """What `vimoe info` prints: the costs before and after, and what the MoE layers are."""
    config, dense, moe = comparison.config, comparison.dense, comparison.upcycled
    experts = config.num_experts[0]
    rows = [
        [name, millions(c.stored_params), millions(c.activated_params), giga_macs(c.macs)]
        for name, c in (("dense", dense), (f"ViMoE N={experts} L={len(config.layers)}", moe))
    ]
    shared = "with a shared expert" if config.shared_expert else "without a shared expert"
    return "\n".join(
        [
            comparison.name,
            "",
            plain_table(["model", "stored", "activated", "multiply-adds"], rows),
            "",
            f"MoE layers      blocks {', '.join(map(str, config.layers))} (from 0), {shared}",
            f"routing         one choice of {config.top_k} among {experts} experts for each {config.routing}",
            f"routing degree  C({experts}, {config.top_k})^{len(config.layers)} = {config.routing_degree:,}",
            f"cost of MoE     {moe.activated_params / dense.activated_params - 1:+.1%} activated parameters, "
            f"{moe.macs / dense.macs - 1:+.1%} multiply-adds, {moe.stored_params / dense.stored_params:.2f}x stored",
        ]
    )


def variant_header(variants: Sequence[Variant]) -> tuple[str, ...]:
    """What stands over the cells of a comparison."""
    return ("model", f"test {variants[0].metric} %", "activated", "stored", "multiply-adds", "seconds")


def variant_rows(variants: Sequence[Variant]) -> list[list[str]]:
    """The cells of a comparison, one row a variant, under `variant_header`."""
    return [
        [
            variant.name,
            f"{variant.score:.1f} ± {variant.error:.1f}",
            millions(variant.cost.activated_params),
            millions(variant.cost.stored_params),
            giga_macs(variant.cost.macs),
            f"{variant.seconds:.0f}",
        ]
        for variant in variants
    ]


def variant_table(variants: Sequence[Variant]) -> str:
    """A comparison in plain text."""
    return plain_table(variant_header(variants), variant_rows(variants))


def metrics_table(figures: Mapping[str, float]) -> str:
    """The figures of an evaluation, one a line."""
    words = {
        "top1": ("top-1", "%"),
        "top5": ("top-5", "%"),
        "mean_class": ("mean of the classes", "%"),
        "nll": ("cross-entropy", "nats"),
        "ece": ("calibration error", "points"),
        "miou": ("mean IoU", "%"),
        "aacc": ("pixel accuracy", "%"),
        "macc": ("mean class accuracy", "%"),
        "images": ("images", ""),
    }
    rows = [
        (words[key][0], f"{value:.2f}" if words[key][1] else f"{value:.0f}", words[key][1])
        for key, value in figures.items()
    ]
    return "\n".join(f"{name:20} {value:>8} {unit}".rstrip() for name, value, unit in rows)


def csv_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
