"""What `python -m eval.measure.table` measured, as intervals, tables and a plot.

Means are over states, intervals (95 %) from a bootstrap over questions, gains ratios of means at the same states.
"""

from pathlib import Path
from typing import Any

import numpy as np

from eagle.files import write_file
from eval.report.estimates import bootstrap, ratio
from eval.report.markdown import Table, number, percent

Values = dict[str, list[list[float]]]  # "method@nodes" -> per question, E[accepted] at each state
ALL = "all"  # budgets
INTERVALS = "At the same states; 95 % intervals over questions."
NATS = "nats"  # beside these: the entropy of p at each token of the answer, at the temperature of the table


def name(method: str, nodes: int) -> str:
    """`METHOD@NODES`, the key of a cell."""
    return f"{method}@{nodes}"


def interval(values: list[list[float]], base: list[list[float]] | None = None) -> list[float]:
    """Mean over states, low and high: 95 %, bootstrap over questions. With `base`, of the ratio minus 1."""
    rows = [(sum(v), sum(b), len(v)) for v, b in zip(values, base or values, strict=True) if v]
    ours, theirs, states = np.array(rows, dtype=float).T
    found = bootstrap(lambda a, b: ratio(a, b) - 1, ours, theirs) if base else bootstrap(ratio, ours, states)
    if found is None:
        return [float("nan")] * 3
    low, high = (found.value if bound is None else bound for bound in (found.low, found.high))
    return [round(x, 4) for x in (found.value, low, high)]


def summarise(values: Values, methods: list[str], budgets: list[int]) -> dict[str, Any]:
    """One temperature's cells, [mean, low, high] each: the entropy in nats, E[accepted] by method and nodes, and the
    gain of the last method over each of the others; of several budgets also over all of them.
    """
    cells = {method: {str(nodes): values[name(method, nodes)] for nodes in budgets} for method in methods}
    *others, ours = methods
    compared = {method: {**of, ALL: _pooled(of)} if len(of) > 1 else of for method, of in cells.items()}
    first = cells[ours][str(budgets[0])]
    return {
        "states": sum(map(len, first)),
        "questions": len(first),
        "nats": interval(values[NATS]),
        "expected": {method: {nodes: interval(cell) for nodes, cell in of.items()} for method, of in cells.items()},
        "gains": {
            method: {nodes: _gain(compared[ours][nodes], cell) for nodes, cell in compared[method].items()}
            for method in others
        },
    }


def _gain(values: list[list[float]], base: list[list[float]]) -> list[float] | None:
    """None over a method that accepts nothing."""
    return interval(values, base) if any(map(sum, base)) else None


def _pooled(cells: dict[str, list[list[float]]]) -> list[list[float]]:
    """Per question, the sum over budgets at each state."""
    return [[sum(state) for state in zip(*question, strict=True)] for question in zip(*cells.values(), strict=True)]


def tables(found: dict[str, dict[str, Any]]) -> list[Table]:
    """E[accepted] of every method, and the gains of the last one. found: temperature -> `summarise`."""
    methods = list(next(iter(found.values()))["expected"])
    *others, ours = methods
    note = "; ".join(
        f"temperature {temperature}: {one['nats'][0]:.2f} nats [{one['nats'][1]:.2f}, {one['nats'][2]:.2f}], "
        f"{one['states']} states of {one['questions']} questions"
        for temperature, one in found.items()
    )
    made = [Table("E[accepted]", f"{note}.", ["nats", "nodes", *methods], _rows(found, "expected", methods, _mean))]
    if others:
        rows = _rows(found, "gains", others, lambda gain: percent(gain, "+"))
        made.append(Table(f"Gain of {ours} over the others", INTERVALS, ["nats", "nodes", *others], rows))
    return made


def _mean(cell: list[float]) -> str:
    return number((cell[0], None, None))


def _rows(found: dict[str, dict[str, Any]], what: str, methods: list[str], write: Any) -> list[list[str]]:
    """Temperatures and budgets down, the temperature's entropy in its first row only."""
    rows = []
    for one in found.values():
        for place, nodes in enumerate(one[what][methods[0]]):
            nats = "" if place else f"{one['nats'][0]:.2f}"
            rows.append([nats, nodes, *(write(one[what][method][nodes]) for method in methods)])
    return rows


def budget_axis(axes: Any, budgets: list[int]) -> None:
    """Budgets along the x axis, every doubling equally far."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(nodes) for nodes in budgets])
    axes.grid(alpha=0.25)


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """E[accepted] over the budget, one panel per temperature, bands are intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (3.3 * len(found) + 1, 3.4)
    figure, panels = pyplot.subplots(1, len(found), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (temperature, one) in zip(panels[0], found.items()):
        for number_of, (method, cells) in enumerate(one["expected"].items()):
            budgets, points = [int(nodes) for nodes in cells], np.array(list(cells.values()))
            line = axes.plot(budgets, points[:, 0], marker="o", markersize=3.5, label=method, color=f"C{number_of}")
            axes.fill_between(budgets, points[:, 1], points[:, 2], color=line[0].get_color(), alpha=0.12)
        budget_axis(axes, budgets)
        axes.set_title(f"temperature {temperature}, {one['nats'][0]:.2f} nats", fontsize=10)
        axes.set_xlabel("nodes scored per step")
    panels[0][0].set_ylabel("E[accepted] (draft tokens per step)")
    legend = panels[0][0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper center", ncols=len(legend[0]), frameon=False)
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    pyplot.close(figure)
