"""The node budget for this machine and this head: tokens per second is tau over the time of a step, both measured here.

    python -m eval.speed.budget --base-model-path BASE --ea-model-path HEAD --temperature 1
    python -m eval --nodes auto ...                          does the same before it begins, and keeps the choice

A larger tree accepts more and takes longer. Each candidate (nodes, depth) answers the first of the bundled problems
(which belong to no benchmark), alternating; the acceptance curve is 1 + mean E[accepted] over all steps, the cost curve
the median seconds of a step, and the budget with the largest quotient wins. One node is plain decoding: it is shown
beside them and never chosen.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from eagle.checkpoints.pairs import add_pair_argument, parse_with_pair
from eagle.files import write_json
from eval.questions import benchmarks, prompts
from eval.reports.tables import Table, markdown_table
from eval.runs import load_models as engines
from eval.runs.methods import Decoding, from_flags
from eval.runs.runner import Task, answer_turn

PLAIN = (1, 1)
CANDIDATES = (PLAIN, (5, 3), (7, 6), (9, 4), (9, 6), (13, 5), (16, 6), (21, 5), (32, 6), (60, 7))


class Point(NamedTuple):
    """One budget: rows scored, longest draft, 1 + mean E[accepted], median milliseconds of a step, tok/s."""

    nodes: int
    depth: int
    tau: float
    step_ms: float
    tokens_per_second: float


def choose(points: list[Point]) -> Point:
    """The fastest that drafts; of equals the smallest."""
    return max((p for p in points if p.nodes > 1), key=lambda p: (p.tokens_per_second, -p.nodes))


def summarise(nodes: int, depth: int, steps: list[Any]) -> Point:
    """StepRecords of one budget -> its point. Cut-off steps count with what they would have emitted."""
    if not steps:
        raise ValueError(f"no step was measured with {nodes} nodes: the problems were answered by their first token")
    tau = 1 + statistics.fmean(step.expected_accepted for step in steps)
    seconds = statistics.median(sum(step.seconds.values()) for step in steps)
    return Point(nodes, depth, tau, 1e3 * seconds, tau / seconds)


def measure(
    task: Task,
    tree: str = "hybrid",
    verifier: str = "hsd",
    problems: int = 4,
    tokens: int = 48,
    candidates: tuple[tuple[int, int], ...] = CANDIDATES,
) -> list[Point]:
    """Both curves for the task's engine, an `eagle.EagleModel` with a drafter, under the task's sampling settings:
    `problems` answers of at most `tokens` tokens per candidate (nodes, depth)."""
    questions = benchmarks.load("gsm8k", "sample", None, problems).questions
    steps: dict[tuple[int, int], list[Any]] = {candidate: [] for candidate in candidates}
    for index, question in enumerate([questions[0], *questions]):  # the first time warms up
        messages = [{"role": "user", "content": question.turns[0]}]
        for nodes, depth in candidates:
            method = from_flags("none" if (nodes, depth) == PLAIN else tree, verifier)
            decoding = task.decoding._replace(max_new_tokens=tokens, nodes=nodes, depth=depth)
            turn, _ = answer_turn(task._replace(decoding=decoding), method, messages, task.seed + index)
            if index:
                steps[nodes, depth] += turn.steps
    return [summarise(nodes, depth, found) for (nodes, depth), found in steps.items()]


def table(points: list[Point]) -> str:
    best, plain = choose(points), next((p for p in points if p.nodes == 1), None)
    rows = []
    for p in points:
        speedup = f"{p.tokens_per_second / plain.tokens_per_second:.2f}x" if plain else "–"
        rows.append(
            [
                str(p.nodes),
                str(p.depth),
                f"{p.tau:.2f}",
                f"{p.step_ms:.1f}",
                f"{p.tokens_per_second:.0f}",
                speedup,
                "chosen" if p == best else "",
            ]
        )
    return markdown_table(Table("Budget", "", ["nodes", "depth", "tau", "step, ms", "tok/s", "speedup", ""], rows))


def kept_or_measured(path: Path, task: Task) -> tuple[int, int]:
    """(nodes, depth) of an earlier choice in `path`, else measured now and written there: a resumed run goes on with
    the budget it began with."""
    if path.is_file():
        chosen = json.loads(path.read_text(encoding="utf-8"))["chosen"]
        return chosen["nodes"], chosen["depth"]
    points = measure(task)
    print(table(points))
    chosen = choose(points)
    write_json(
        path,
        {"temperature": task.decoding.temperature, "points": [p._asdict() for p in points], "chosen": chosen._asdict()},
    )
    return chosen.nodes, chosen.depth


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.speed.budget", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_argument(parser)
    parser.add_argument("--base-model-path")
    parser.add_argument("--ea-model-path")
    parser.add_argument("--dtype", choices=tuple(engines.DTYPES), default=engines.default_dtype())
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--tree", default="hybrid")
    parser.add_argument("--verifier", default="hsd")
    parser.add_argument("--problems", type=int, default=4, help="bundled problems each budget answers")
    parser.add_argument("--tokens", type=int, default=48, help="per answer")
    parser.add_argument("--seed", type=int, default=0)
    args = parse_with_pair(parser, argv)
    engine = engines.load(args.base_model_path, args.ea_model_path, args.dtype)
    style = prompts.prompt_format(engine.tokenizer, args.base_model_path)
    task = Task(engine, style, Decoding(args.temperature), args.seed)
    print(table(measure(task, args.tree, args.verifier, args.problems, args.tokens)))


if __name__ == "__main__":
    main()
