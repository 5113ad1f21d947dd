"""What one method gains over others, for several runs of `python -m eval.measure.table`: a plot and a table.

    python -m eval.measure.gains demo/table.json smollm2/table.json --output gains.png --table gains.json

The method is the last one of the runs. The plot has a column per run and a row per method of --over; a line is a
temperature, named by the target's entropy there, bars are 95 % intervals, and above 0 is a gain. The table, which
`eval.report.embed` puts into documents, has the gains over all budgets together.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from eagle import command
from eagle.files import read_json, write_file, write_json
from eval.measure.ladder import ALL, INTERVALS, budget_axis
from eval.report.markdown import Table, percent

Run = dict[str, Any]  # a table.json


def read(path: Path) -> Run:
    """A table.json. Raises ValueError where the file is none."""
    try:
        run = read_json(path)
        if not all(one["gains"] for one in run["found"].values()):
            raise KeyError("gains")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not a table.json of python -m eval.measure.table with two methods or more "
            f"({type(error).__name__}: {error})"
        ) from error
    return run


def first_of(run: Run) -> dict[str, Any]:
    """A temperature's cells: all have the same methods."""
    return next(iter(run["found"].values()))


def ours_of(run: Run) -> str:
    """The method whose gains these are."""
    return list(first_of(run)["expected"])[-1]


def plot(runs: list[Run], others: list[str], path: Path) -> None:
    """One panel per run and other method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (3.2 * len(runs) + 0.6, 2.6 * len(others) + 0.6)
    figure, panels = pyplot.subplots(
        len(others), len(runs), figsize=size, sharey="row", sharex=True, squeeze=False, layout="constrained"
    )
    for column, run in enumerate(runs):
        panels[0][column].set_title(f"{run['pair']}\n{run['bench']}", fontsize=9)
        panels[-1][column].set_xlabel("nodes scored per step")
        for axes, other in zip(panels[:, column], others, strict=True):
            _panel(axes, run, other)
        panels[0][column].margins(y=0.2)
        panels[0][column].legend(loc="upper right", ncols=2, frameon=False, fontsize=8)
    ours = ours_of(runs[0])
    for axes, other in zip(panels[:, 0], others, strict=True):
        axes.set_ylabel(f"{ours} over {other}, %")
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    pyplot.close(figure)


def _panel(axes: Any, run: Run, other: str) -> None:
    """Gains in percent over the budget, one line per temperature, the coldest first."""
    axes.axhline(0, color="0.4", linewidth=0.8)
    for place, temperature in enumerate(sorted(run["found"], key=float)):
        one = run["found"][temperature]
        gains = {int(nodes): gain for nodes, gain in one["gains"][other].items() if gain and nodes != ALL}
        value, low, high = 100 * np.array(list(gains.values())).reshape(-1, 3).T
        shifted = np.array(list(gains)) * (1 + 0.06 * place)  # so that bars do not lie on one another
        label = f"{one['nats'][0]:.2f} nats"
        axes.errorbar(shifted, value, [value - low, high - value], marker="o", markersize=3, linewidth=1.2, label=label)
    budget_axis(axes, [int(nodes) for nodes in first_of(run)["expected"][other]])


def table(runs: list[Run]) -> Table:
    """A row per run and temperature, a column per method that all runs have."""
    found = [(run, one) for run in runs for one in sorted(run["found"].values(), key=lambda one: one["nats"][0])]
    others = [other for other in found[0][1]["gains"] if all(ALL in one["gains"].get(other, {}) for _, one in found)]
    rows = []
    for place, (run, one) in enumerate(found):
        first = place == 0 or found[place - 1][0] is not run
        gains = [percent(one["gains"][other][ALL], "+") for other in others]
        rows.append([run["pair"] if first else "", run["bench"] if first else "", f"{one['nats'][0]:.2f}", *gains])
    return Table(
        f"Gain of {ours_of(runs[0])}, all budgets together", INTERVALS, ["pair", "bench", "nats", *others], rows
    )


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.gains", __doc__)
    add = parser.add_argument
    add("tables", nargs="+", type=Path, metavar="TABLE.json")
    add("--over", nargs="+", default=["topk+token", "rsd+token"], metavar="M", help="methods to compare with")
    add("--output", required=True, type=Path, metavar="F.png")
    add("--table", type=Path, metavar="F.json", help="write the table, too")
    return parser


def draw(options: argparse.Namespace) -> None:
    """Read the runs, draw them, write the table. Raises ValueError where one lacks a method."""
    runs = [read(path) for path in options.tables]
    for path, run in zip(options.tables, runs, strict=True):
        known = first_of(run)["gains"]
        if missing := [other for other in options.over if other not in known]:
            raise ValueError(f"--over {' '.join(missing)}: {path} compares with {', '.join(known)}")
    plot(runs, options.over, options.output)
    if options.table:
        write_json(options.table, {"tables": [table(runs)._asdict()]})


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), draw, argv)


if __name__ == "__main__":
    raise SystemExit(main())
