"""Tokens per second by batch size: plain decoding and draft trees, on the same engine.

    OMP_NUM_THREADS=2 python -m eval.measure.batch                              the demo pair
    python -m eval.measure.batch --pair smollm2-135m --batch 4 16 --methods plain hybrid+hsd auto+hsd --output F

The bundled sample problems, which belong to no benchmark, are answered in batches of different lengths, right-padded.
Every repeat answers all of them by every method and batch size in turn, so that a drift of the machine hits all alike;
one batch of each warms up. tok/s is tokens emitted / wall seconds, prompts included, and rows that have ended
leave their batch when they are half of it; medians over the repeats. tau is 1 + mean E[accepted] over all steps.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from eagle import command
from eagle.checkpoints.pairs import DEMO
from eagle.files import check_writable, write_whole
from eval.provenance import provenance
from eval.questions import benchmarks, prompts
from eval.report.markdown import markdown_table
from eval.run.load_models import add_model_flags, load_from_flags
from eval.run.methods import PLAIN, Decoding, answer_batch, resolve, resolve_own, synchronize


class Answered(NamedTuple):
    """All problems once: tokens emitted, seconds of all batches, E[accepted] of every step of every row."""

    tokens: int
    seconds: float
    expected: list[float]


def encoded(engine: Any, count: int) -> list[list[int]]:
    """The first `count` sample problems as token ids, one by one; from the start again when there are fewer."""
    questions = benchmarks.load("gsm8k", "sample", None, count).questions
    asked = (questions[index % len(questions)] for index in range(count))
    return prompts.encode_first_turns(engine.tokenizer, "", asked)


def answer(engine: Any, rows: list[list[int]], method: str, args: argparse.Namespace, seed: int) -> Answered:
    """One batch."""
    decoding = Decoding(args.temperature, max_new_tokens=args.tokens, nodes=args.nodes, depth=args.depth)
    synchronize(engine.device)
    found = answer_batch(engine, resolve(method), rows, decoding, seed)
    steps = [step.expected_accepted for row in found for step in row.steps]
    return Answered(sum(len(row.new_tokens) for row in found), max(row.seconds for row in found), steps)


def answer_all(
    engine: Any, problems: list[list[int]], batch: int, method: str, args: argparse.Namespace, seed: int
) -> Answered:
    """Every problem, `batch` at a time."""
    groups = [problems[start : start + batch] for start in range(0, len(problems), batch)]
    parts = [answer(engine, group, method, args, seed + index) for index, group in enumerate(groups)]
    expected = [value for part in parts for value in part.expected]
    return Answered(sum(part.tokens for part in parts), sum(part.seconds for part in parts), expected)


def measure(engine: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per batch size and method."""
    problems = encoded(engine, args.problems)
    cells = [(batch, name) for batch in args.batch for name in args.methods]
    for batch, name in cells:
        answer(engine, problems[:batch], name, args, args.seed)
    runs: dict[tuple[int, str], list[Answered]] = {cell: [] for cell in cells}
    for repeat in range(args.repeats):
        for batch, name in cells:
            seed = args.seed + 1000 * repeat
            runs[batch, name].append(answer_all(engine, problems, batch, name, args, seed))
    return [summarise(batch, name, runs) for batch, name in cells]


def summarise(batch: int, name: str, runs: dict[tuple[int, str], list[Answered]]) -> dict[str, Any]:
    """Speedup is over plain decoding with the same batch size, repeat by repeat; all medians."""
    own, plain = runs[batch, name], runs[batch, PLAIN]
    rates = [run.tokens / run.seconds for run in own]
    speedups = [rate * other.seconds / other.tokens for rate, other in zip(rates, plain, strict=True)]
    expected = [value for run in own for value in run.expected]
    return {
        "batch": batch,
        "method": name,
        "tokens_per_second": statistics.median(rates),
        "speedup": statistics.median(speedups),
        "tau": 1 + (statistics.fmean(expected) if expected else 0.0),
        "tokens": own[0].tokens,
        "repeats": len(own),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row per batch size and method."""
    cells = [
        [
            str(row["batch"]),
            row["method"],
            f"{row['tau']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['speedup']:.2f}x" + (" (slower)" if row["speedup"] < 0.995 else ""),
        ]
        for row in rows
    ]
    return markdown_table(["batch", "method", "tau", "tok/s", "speedup"], cells)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = command.parser("eval.measure.batch", __doc__)
    add_model_flags(parser, default_pair=DEMO)
    parser.add_argument("--batch", type=command.COUNT, nargs="+", default=[1, 4, 16])
    parser.add_argument("--methods", nargs="+", default=[PLAIN, "hybrid+hsd"], metavar="M", help="plain must be one")
    parser.add_argument("--problems", type=command.COUNT, default=16, help="answered per repeat, method and batch size")
    parser.add_argument("--tokens", type=command.COUNT, default=128, help="per answer at most")
    parser.add_argument("--nodes", type=command.NODES, default=21)
    parser.add_argument("--depth", type=command.COUNT, default=5)
    parser.add_argument("--temperature", type=command.TEMPERATURE, default=1.0)
    parser.add_argument("--repeats", type=command.COUNT, default=3)
    parser.add_argument("--seed", type=command.SEED, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows and their origin as JSON")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, write the rows."""
    resolve_own(args.methods)
    if PLAIN not in args.methods:
        raise ValueError(f"--methods {' '.join(args.methods)}: {PLAIN} is missing, which speedups are over")
    if args.output:
        check_writable(args.output)
    rows = measure(load_from_flags(args), args)
    print(table(rows))
    if args.output:
        settings = {name: getattr(args, name) for name in ("tokens", "nodes", "depth", "temperature", "seed", "dtype")}
        write_whole(args.output, json.dumps({"rows": rows, "settings": settings, "origin": provenance()}, indent=1))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command.start(build_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
