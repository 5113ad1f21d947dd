"""How a head gets better with what it has read: heads of one target on the same lists, a power law through them.

    python -m eagle.train.evaluation.learning POINTS.json [--output PICTURE.png] [--at 10 100]

POINTS.json holds series; every point is a head, `tokens` the millions of training tokens it had read:

    [{"name": "SmolLM2, GSM8K", "y": "overlap", "limit": 1,
      "points": [{"tokens": 1.27, "value": 0.45}, ...]}, ...]

With a `limit` L the law is L - value = c tokens^-b (an overlap cannot pass 1), without one value = a + b log(tokens).
Both are least squares. Far to the right of the points they are an extrapolation, no measurement; the column "last,
foretold" is what the law through the other points says of the last one.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eagle import command
from eagle.files import parse_json, write_file


class Series(NamedTuple):
    """Points of one quantity `y`, ascending in millions of tokens; limit: what it cannot pass, None: nothing known."""

    name: str
    y: str
    limit: float | None
    tokens: list[float]
    values: list[float]


def read_series(path: str | Path) -> list[Series]:
    """The series of a file. Raises ValueError naming the file and the series where one has fewer than two points."""
    try:
        found = []
        for one in parse_json(Path(path).read_bytes()):
            points = sorted((float(point["tokens"]), float(point["value"])) for point in one["points"])
            tokens, values = map(list, zip(*points, strict=True))
            found.append(Series(one["name"], one["y"], one.get("limit"), tokens, values))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: expected a list of series as --help shows ({type(error).__name__}: {error})"
        ) from error
    short = [series.name for series in found if len(set(series.tokens)) < 2 or min(series.tokens) <= 0]
    if short:
        raise ValueError(f"{path}, {short[0]}: expected two or more points at different numbers of tokens above 0")
    return found


def law(tokens: list[float], values: list[float], limit: float | None) -> Callable[[Any], Any]:
    """The fitted value at any number of tokens."""
    x, y = np.log(tokens), np.array(values)
    if limit is None:
        slope, start = np.polyfit(x, y, 1)
        return lambda at: start + slope * np.log(at)
    slope, start = np.polyfit(x, np.log(limit - y), 1)
    return lambda at: limit - np.exp(start + slope * np.log(at))


def table(found: list[Series], at: list[float]) -> str:
    """Markdown: the points' range, the foretold last point, the law at `at` million tokens."""
    names = ["series", "first", "last", "last, foretold", *(f"{tokens:g}M" for tokens in at)]
    rows = []
    for one in found:
        fitted = law(one.tokens, one.values, one.limit)
        ends = [f"{one.values[end]:.3f} ({one.tokens[end]:.3g}M)" for end in (0, -1)]
        earlier = one.tokens[:-1], one.values[:-1]
        foretold = f"{law(*earlier, one.limit)(one.tokens[-1]):.3f}" if len(set(earlier[0])) > 1 else ""
        rows.append([f"{one.name}: {one.y}", *ends, foretold, *(f"{fitted(tokens):.2f}" for tokens in at)])
    return command.markdown_table(names, rows)


def draw(found: list[Series], to: float, path: str | Path) -> None:
    """One panel per quantity: points, and the law up to `to` million tokens, dashed behind the last point."""
    kinds = list(dict.fromkeys(one.y for one in found))
    figure = Figure(figsize=(6.5 * len(kinds), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for number, one in enumerate(series for series in found if series.y == kind):
            fitted, color = law(one.tokens, one.values, one.limit), f"C{number}"
            panel.plot(one.tokens, one.values, "o", color=color, label=one.name)
            for low, high, style in ((one.tokens[0], one.tokens[-1], "-"), (one.tokens[-1], to, "--")):
                x = np.geomspace(low, high, 50)
                panel.plot(x, fitted(x), style, color=color, linewidth=1)
        panel.set(xscale="log", xlabel="million training tokens", title=kind)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))


def report(args: argparse.Namespace) -> None:
    """Print the table, draw the picture."""
    found = read_series(args.points)
    print(table(found, args.at))
    if args.output:
        draw(found, max([*args.at, *(one.tokens[-1] for one in found)]), args.output)
        print(args.output)


def main(argv: list[str] | None = None) -> int:
    """Fit and draw as `argv` says and return the exit status."""
    parser = command.parser("eagle.train.evaluation.learning", __doc__)
    add = parser.add_argument
    add("points", metavar="POINTS.json")
    add("--output", metavar="PICTURE.png")
    add("--at", type=command.POSITIVE, nargs="+", default=[10.0, 100.0], metavar="M", help="million tokens to foretell")
    return command.start(parser, report, argv)


if __name__ == "__main__":
    sys.exit(main())
