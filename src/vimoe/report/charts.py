"""Small charts as SVG elements that take their colours from the page, and so go with a light one and a dark one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from vimoe.tasks.palette import expert_colours

Points = Sequence[tuple[float, float]]

# Units of a line chart's own coordinates; it is shown at about as many CSS pixels.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 380, 220, 46, 34, 12, 14


def interval_bar(value: float, low: float, high: float, span: tuple[float, float]) -> Markup:
    """A bar from 0 to a value with its interval, as wide as the place it is put in.

    It is marked `sure` where the interval does not hold 0.

    Args:
        value: Where the bar ends.
        low: Lower end of the interval.
        high: Upper end.
        span: What the left and the right border stand for; holds 0 and everything else.
    """

    def at(x: float) -> str:
        return f"{100 * (x - span[0]) / (span[1] - span[0]):.2f}%"

    start, width = min(0.0, value), 100 * abs(value) / (span[1] - span[0])
    kind = "unsure" if low <= 0 <= high else ("loss" if value < 0 else "gain")
    return Markup(
        '<svg class="bar {kind}" aria-hidden="true"><line class="zero" x1="{zero}" x2="{zero}" y1="0" y2="100%"/>'
        '<rect x="{start}" width="{width:.2f}%" y="25%" height="50%"/>'
        '<line class="interval" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        '<line class="interval" x1="{low}" x2="{low}" y1="30%" y2="70%"/>'
        '<line class="interval" x1="{high}" x2="{high}" y1="30%" y2="70%"/><circle cx="{end}" cy="50%" r="3.5"/></svg>'
    ).format(kind=kind, zero=at(0), start=at(start), width=width, low=at(low), high=at(high), end=at(value))


def span_of(values: Sequence[float]) -> tuple[float, float]:
    """The range of all values and 0, a little wider on both sides."""
    low, high = min([0.0, *values]), max([0.0, *values])
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def span_labels(span: tuple[float, float]) -> Markup:
    """The numbers over a column of interval bars: its ends and 0, which goes before an end that it would touch."""
    zero = -100 * span[0] / (span[1] - span[0])
    left, right = (f"{end:+.1f}" if far else "" for end, far in zip(span, (zero > 30, zero < 70), strict=True))
    return Markup('<div class="ends"><span>{}</span><i style="left: {:.1f}%">0</i><span>{}</span></div>').format(
        left, zero, right
    )


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str, ordered: bool = False) -> Markup:
    """Lines over a common pair of axes.

    Args:
        series: Name of each line to its points.
        x_label: Below.
        y_label: Above the axis.
        ordered: Whether the lines are steps of a scale: one colour, from faint (first) to strong (last).
    """
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    low, high = min(ys), max(ys)
    if high - low <= 1e-6 * abs(high):  # one value, as a run of one epoch has it
        low, high = low - max(1.0, 0.05 * abs(low)), high + max(1.0, 0.05 * abs(high))
    x_ticks, y_ticks = _ticks(min(xs), max(xs), 6, whole=True), _ticks(low, high, 5)
    x_range = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    y_range = (min(y_ticks[0], low), max(y_ticks[-1], high))

    def x_at(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_range[0]) / (x_range[1] - x_range[0])

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP - 14) * (y - y_range[0]) / (y_range[1] - y_range[0])

    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, y_label),
        Markup('<text x="0" y="{}">{}</text>').format(TOP, y_label),
        Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(WIDTH - RIGHT, HEIGHT - 5, x_label),
    ]
    for y in y_ticks:
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, y=y_at(y)
            )
        )
        parts.append(
            Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(LEFT - 6, y_at(y) + 4, round(y, 6))
        )
    for x in x_ticks:
        place = (x_at(x), HEIGHT - BOTTOM + 15)
        parts.append(Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(*place, x))
    for i, (name, points) in enumerate(series.items()):
        shade = 0.2 + 0.8 * i / max(1, len(series) - 1) if ordered else 1
        look = f'class="s0" stroke-opacity="{shade:.2f}"' if ordered else f'class="s{i % 6}"'
        where = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
        parts.append(Markup("<g " + look + "><title>{}</title>").format(name))
        parts.append(Markup('<polyline points="{}"/>').format(where))
        if len(points) == 1:
            parts.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x_at(points[0][0]), y_at(points[0][1]))
            )
        parts.append(Markup("</g>"))
    return Markup("").join([*parts, Markup("</svg>")])


def load_chart(loads: Sequence[Sequence[float]]) -> Markup:
    """Shares that sum to 1, stacked over time, each expert in its colour, the first at the bottom.

    Args:
        loads: For each time, the load of every expert.
    """
    times = [0.0, 1.0] if len(loads) == 1 else [i / (len(loads) - 1) for i in range(len(loads))]
    rows = [loads[0], loads[0]] if len(loads) == 1 else loads
    floor = [0.0] * len(rows)
    parts = [Markup('<svg class="load" viewBox="0 0 100 100" preserveAspectRatio="none" role="img">')]
    for expert, colour in enumerate(expert_colours(len(rows[0])).tolist()):
        roof = [low + row[expert] for low, row in zip(floor, rows, strict=True)]
        upper = [(100 * t, 100 - 100 * y) for t, y in zip(times, roof, strict=True)]
        lower = [(100 * t, 100 - 100 * y) for t, y in zip(times, floor, strict=True)]
        where = " ".join(f"{x:.2f},{y:.2f}" for x, y in [*upper, *lower[::-1]])
        told = f"expert {expert}: {rows[0][expert]:.0%} at first, {rows[-1][expert]:.0%} at last"
        parts.append(
            Markup('<polygon points="{}" fill="{}"><title>{}</title></polygon>').format(where, hex_colour(colour), told)
        )
        floor = roof
    return Markup("").join([*parts, Markup("</svg>")])


def hex_colour(rgb: Sequence[int]) -> str:
    """`#rrggbb`."""
    return "#" + "".join(f"{part:02x}" for part in rgb)


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers that span `low` to `high`."""
    locator = MaxNLocator(nbins=most, integer=whole, steps=[1, 2, 2.5, 5, 10])
    values = [float(x) for x in locator.tick_values(low, high)]
    return [x for x in values if low <= x <= high] or [low] if whole else values
