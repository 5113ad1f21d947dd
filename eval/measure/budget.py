"""What `--tree auto` and `--nodes auto` choose here, as a table: tokens per second of every candidate tree.

    python -m eval.measure.budget --pair demo --temperature 1
    python -m eval.measure.budget --pair demo --temperature 1 --tree hybrid --batch 4     one kind, 4 rows at once

tau is 1 + E[accepted] of the head's calibration (python -m eagle.calibrate), or of a brief one made now; a step's time
is measured on this machine at the first call and kept in the user's cache directory. Where no tree is faster than plain
decoding by more than the noise, plain decoding is chosen (`eagle.autotune.choice`).
"""

import argparse

from eagle import command
from eagle.autotune.candidates import AUTO, KINDS
from eagle.autotune.choice import Point, choose
from eval.report.markdown import markdown_table
from eval.report.tables import speedup_text
from eval.run.load_models import add_model_flags, load_from_flags


def table(points: list[Point]) -> str:
    """Markdown: a row per candidate, the chosen one marked, slowdowns shown as such."""
    best, plain = choose(points), points[0]
    rows = [
        [
            "plain" if point == plain else point.candidate.tree,
            str(point.candidate.nodes),
            str(point.candidate.depth),
            f"{point.tau:.2f} ± {point.standard_error:.2f}" if point.standard_error else f"{point.tau:.2f}",
            f"{point.step_ms:.1f}",
            f"{point.tokens_per_second:.0f}",
            speedup_text((point.tokens_per_second / plain.tokens_per_second, None, None)),
            "chosen" if point == best else "",
        ]
        for point in points
    ]
    return markdown_table(["tree", "nodes", "depth", "tau", "step, ms", "tok/s", "speedup", ""], rows)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.budget", __doc__)
    add_model_flags(parser)
    parser.add_argument("--temperature", type=command.TEMPERATURE, default=1.0)
    parser.add_argument("--tree", default=AUTO, choices=[AUTO, *KINDS], help="one kind of tree instead of all")
    parser.add_argument("--batch", type=command.COUNT, default=1, help="rows that are decoded at once")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure what is not known and print the table."""
    model = load_from_flags(options)
    print(table(model.auto.points(model, options.temperature, options.batch, options.tree)))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
