"""A section's numbers as pictures. One function per picture; each returns PNG bytes, or None with nothing to draw."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

from eagle.trees import TREES
from eval.report.summary import Section
from eval.run.answers import PHASES, Record
from hsd import VERIFIERS

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

TREE_COLORS = {
    "none": "#8a8f98",
    "draft model": "#8a8f98",
    "prompt look-up": "#8a8f98",
    "topk": "#2f6fb7",
    "hybrid": "#d9622b",
    "chain": "#3a9a5b",
    "multi": "#8458b3",
    "rsd": "#b8336a",
}
MORE_COLORS = ("#7a6a00", "#00798c", "#6b4226")  # of trees that are entered later
LOOKS = {"hsd": (1.0, "-"), "token": (0.5, "--"), "block": (0.75, "-.")}  # strength of the hue, dashes
LOSSY, OTHER = (0.35, ":"), (0.6, (0, (5, 1, 1, 1)))
PHASE_COLORS = dict(zip(PHASES, ("#d9622b", "#2f6fb7", "#3a9a5b", "#8a8f98"), strict=True))
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
}


def hue(row: Record) -> tuple:
    """The tree's color."""
    more = [name for name in TREES if name not in TREE_COLORS]
    later = MORE_COLORS[more.index(row["tree"]) % len(MORE_COLORS)] if row["tree"] in more else "#444444"
    return matplotlib.colors.to_rgb(TREE_COLORS.get(row["tree"], later))


def look(row: Record) -> tuple:
    """The verifier's strength and dashes: a rule that is not lossless looks like none of the others."""
    if row["tree"] == "none" or row["verifier"] not in VERIFIERS:
        return 1.0, "-"
    return LOSSY if row["lossy"] else LOOKS.get(row["verifier"], OTHER)


def color(row: Record) -> tuple:
    """The tree gives the hue, the verifier the strength: HSD is full, token-wise half."""
    shade = hue(row)
    strength = look(row)[0]
    return tuple(1 - strength * (1 - part) for part in shade)


def line_style(row: Record) -> dict[str, Any]:
    """A line's look: the tree gives the hue, the verifier the dashes."""
    return {
        "color": hue(row),
        "linewidth": 1.8,
        "linestyle": look(row)[1],
        "marker": "o",
        "markersize": 4,
    }


def png(figure: Any) -> bytes:
    """The figure as PNG; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def bars(axes: Any, rows: Sequence[Record], key: str, label: str, digits: int) -> None:
    """Horizontal bars with intervals, the first method on top."""
    shown = [row for row in rows if row[key]]
    values = [row[key].value for row in shown]
    lows = [value if row[key].low is None else row[key].low for row, value in zip(shown, values, strict=True)]
    highs = [value if row[key].high is None else row[key].high for row, value in zip(shown, values, strict=True)]
    reach = [
        [value - low for value, low in zip(values, lows, strict=True)],
        [high - value for value, high in zip(values, highs, strict=True)],
    ]
    axes.barh(
        range(len(shown)),
        values,
        xerr=reach,
        color=[color(row) for row in shown],
        height=0.66,
        error_kw={"elinewidth": 1, "capsize": 3, "ecolor": "#333333"},
    )
    axes.set_yticks(range(len(shown)), [row["method"] for row in shown])
    axes.invert_yaxis()
    axes.set_title(label)
    axes.grid(axis="y", visible=False)
    end = max(highs, default=1)
    for place, (value, high) in enumerate(zip(values, highs, strict=True)):
        axes.text(high + 0.015 * end, place, f"{value:.{digits}f}", va="center", fontsize=9)
    axes.set_xlim(0, end * 1.15)


def overview(section: Section) -> bytes | None:
    """Acceptance length and speed, with intervals."""
    rows = [row for row in section["rows"] if row["tok_s"]]
    if not rows:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 0.9 + 0.42 * len(rows)), layout="constrained")
    bars(left, rows, "tau", "tokens per target call (tau)", 2)
    bars(right, rows, "tok_s", "tokens per second", 1)
    return png(figure)


def drafting(section: Section) -> list[Record]:
    """The rows whose steps accepted anything."""
    return [row for row in section["rows"] if len(row["accepted_distribution"]) > 1]


def acceptance(section: Section) -> bytes | None:
    """Share of steps that accept at least d tokens."""
    rows = drafting(section)
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(5.2, 3.6), layout="constrained")
    for row in rows:
        shares = row["acceptance_by_depth"]
        axes.plot(range(1, len(shares) + 1), shares, label=row["method"], **line_style(row))
    axes.set(title="share of steps that accept at least d tokens", xlabel="d", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def distribution(section: Section) -> bytes | None:
    """Share of steps by accepted tokens."""
    rows = drafting(section)
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(5.2, 3.6), layout="constrained")
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        shares = row["accepted_distribution"]
        places = [length + (number - (len(rows) - 1) / 2) * width for length in range(len(shares))]
        axes.bar(places, shares, width=width, label=row["method"], color=color(row))
    axes.set(title="accepted tokens per step", xlabel="accepted draft tokens", ylabel="share of steps")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, fontsize=9)
    return png(figure)


def step_time(section: Section) -> bytes | None:
    """Milliseconds per step, stacked by phase."""
    rows = [row for row in section["rows"] if row["milliseconds"]]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(10.5, 0.9 + 0.36 * len(rows)), layout="constrained")
    left = [0.0] * len(rows)
    for phase in PHASES:
        values = [row["milliseconds"][phase] for row in rows]
        axes.barh(range(len(rows)), values, left=left, label=phase, color=PHASE_COLORS[phase], height=0.62)
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="milliseconds per step")
    axes.legend(frameon=False, ncols=len(PHASES), loc="upper left", bbox_to_anchor=(0, -0.12), fontsize=9)
    return png(figure)


def categories(section: Section) -> bytes | None:
    """Acceptance length by category."""
    rows = drafting(section)
    names = sorted({category for row in rows for category in row["categories"]})
    if len(names) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(10.5, 3.6), layout="constrained")
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        found = [row["categories"].get(name, {}).get("tau") for name in names]
        places = [i + (number - (len(rows) - 1) / 2) * width for i in range(len(names))]
        axes.bar(places, [tau.value if tau else 0 for tau in found], width=width, label=row["method"], color=color(row))
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)
    axes.set(title="tau by category")
    axes.legend(frameon=False, ncols=len(rows), loc="upper left", bbox_to_anchor=(0, -0.1), fontsize=9)
    return png(figure)


PLOTS: dict[str, Callable[[Section], bytes | None]] = {
    "overview": overview,
    "acceptance": acceptance,
    "distribution": distribution,
    "step_time": step_time,
    "categories": categories,
}


def plots(section: Section) -> dict[str, bytes]:
    """Every picture of a section that has something in it, by name."""
    with matplotlib.rc_context(STYLE):
        drawn = {name: draw(section) for name, draw in PLOTS.items()}
    return {name: picture for name, picture in drawn.items() if picture is not None}
