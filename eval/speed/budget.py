"""The draft-token budget of this machine and pair, as a table: tokens per second by nodes and depth.

    python -m eval.speed.budget --base-model-path BASE --ea-model-path HEAD --temperature 1
    python -m eval --nodes auto ...                          does the same before it begins, and keeps the choice

The measurement is `eagle.tuning.step_cost`, on bundled problems that belong to no benchmark, in the prompt format and
under the sampling settings of the evaluation. The fastest budget is chosen. Where that is plain decoding (1 node), no
tree is worth its cost here, and methods that draft run as plain decoding.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from eagle import command
from eagle.files import write_json
from eagle.tuning.step_cost import Point, choose, measure
from eval.questions import benchmarks, prompts
from eval.reports.markdown import markdown_table
from eval.reports.tables import speedup_text
from eval.runs.load_models import add_model_flags, load_from_flags
from eval.runs.methods import Decoding

PROBLEMS = 4


def bundled_problems(tokenizer: Any, style: prompts.PromptFormat, count: int) -> list[list[int]]:
    """The first `count` bundled problems as token ids."""
    asked = benchmarks.load("gsm8k", "sample", None, count).questions
    return prompts.encode_texts(tokenizer, style, (question.turns[0] for question in asked))


def table(points: list[Point]) -> str:
    """Markdown: a row per budget, the chosen one marked, slowdowns shown as such."""
    best, plain = choose(points), next((point for point in points if point.nodes == 1), None)
    rows = [
        [
            str(point.nodes),
            str(point.depth),
            f"{point.tau:.2f}",
            f"{point.step_ms:.1f}",
            f"{point.tokens_per_second:.0f}",
            speedup_text(plain and (point.tokens_per_second / plain.tokens_per_second, None, None)),
            "chosen" if point == best else "",
        ]
        for point in points
    ]
    return markdown_table(["nodes", "depth", "tau", "step, ms", "tok/s", "speedup", ""], rows)


def kept_budget(path: Path) -> tuple[int, int] | None:
    """(nodes, depth) of an earlier choice, or None without one. Raises ValueError for a damaged file."""
    if not path.is_file():
        return None
    try:
        chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
        return int(chosen["nodes"]), int(chosen["depth"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the choice of an earlier run as JSON ({type(error).__name__}: {error}); remove the "
            "file, or pass --nodes and --depth"
        ) from error


def kept_or_measured(path: Path, engine: Any, style: prompts.PromptFormat, decoding: Decoding, seed: int) -> Decoding:
    """The decoding with the budget of an earlier choice in `path`, else with one measured now and written there.

    A resumed run goes on with the budget that it began with.
    """
    kept = kept_budget(path)
    if kept is None:
        points = measure(engine, bundled_problems(engine.tokenizer, style, PROBLEMS), seed=seed, **decoding.sampling())
        print(table(points))
        best = choose(points)
        if best.nodes == 1:
            print(
                "No budget is faster than plain decoding here: methods that draft run with 1 node, as plain decoding."
            )
        chosen = {"sampling": decoding.sampling(), "points": [p._asdict() for p in points], "chosen": best._asdict()}
        write_json(path, chosen)
        kept = best.nodes, best.depth
    return decoding._replace(nodes=kept[0], depth=kept[1])


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.speed.budget", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_flags(parser)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tree", default="hybrid")
    parser.add_argument("--verifier", default="hsd")
    parser.add_argument("--problems", type=int, default=PROBLEMS, help="bundled problems that each budget answers")
    parser.add_argument("--tokens", type=int, default=48, help="per answer")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure and print the table."""
    engine = load_from_flags(options)
    style = prompts.prompt_format(engine.tokenizer, options.base_model_path)
    points = measure(
        engine,
        bundled_problems(engine.tokenizer, style, options.problems),
        tree=options.tree,
        verifier=options.verifier,
        max_new_tokens=options.tokens,
        seed=options.seed,
        **Decoding(options.temperature).sampling(),
    )
    print(table(points))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = build_parser().parse_args(argv)
    return command.run(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
