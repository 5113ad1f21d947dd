"""Curves of a run.

python -m eagle.train.evaluation.plot OUTPUT_DIR        reads log.jsonl, writes curves.png
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eagle import command
from eagle.files import write_file
from eagle.train.log import whole_rows


def read_rows(output: str | Path) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows) of a run's log."""
    path = Path(output, "log.jsonl")
    if not path.is_file():
        raise ValueError(f"{path}: no such log; give the output directory of a training run")
    rows = whole_rows(path)
    return [row for row in rows if "loss" in row], [row for row in rows if "held_out" in row]


def plot(output: str | Path) -> Path:
    """Draw loss, acceptance by draft step and E[accepted] over optimizer steps; null in the log is a gap."""
    training, held_out = read_rows(output)
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accepted, expected = figure.subplots(1, 3)
    steps, evaluated = [row["step"] for row in training], [row["step"] for row in held_out]
    loss.plot(steps, [row["loss"] for row in training])
    loss.set(title="training loss", xlabel="step", ylabel="nats")
    depth = len(training[0]["accepted"]) if training else 0
    for step in range(depth):
        shade = (0.1, 0.3, 0.7, 1 - 0.75 * step / max(1, depth))
        accepted.plot(steps, [row["accepted"][step] for row in training], color=shade, linewidth=1)
        accepted.plot(evaluated, [row["held_out"]["accepted"][step] for row in held_out], ".", color=shade)
    accepted.set(title=f"1 - TV(p, q), draft steps 1 (dark) .. {depth}\nlines: training, dots: held out", xlabel="step")
    expected.plot(evaluated, [row["expected_accepted"] for row in held_out], "o-", label="drafted trees")
    expected.plot(evaluated, [row["held_out"]["chain"] for row in held_out], ".--", label="sampled chain")
    expected.set(title="E[accepted], held out", xlabel="step")
    expected.legend()
    path = Path(output, "curves.png")
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=110, format="png"))
    return path


def main(argv: list[str] | None = None) -> int:
    """Draw the curves of the run that `argv` names and return the exit status."""
    parser = command.parser("eagle.train.evaluation.plot", __doc__)
    parser.add_argument("output", metavar="OUTPUT_DIR")
    return command.start(parser, lambda args: print(plot(args.output)), argv)


if __name__ == "__main__":
    sys.exit(main())
