"""Recompute a table from answer files in EAGLE's format, such as those published beside the HSD paper.

    python -m eval.report.released EAGLE.jsonl HSD.jsonl

The files hold, per question and turn, `new_tokens`, `wall_time` and `idxs` (the index of the last step, so steps =
idxs + 1). From these: tau = tokens / step, accepted / step = tau - 1, tok/s with the bonus tokens and without them,
the answers that reached the token limit, and the differences paired over questions with 95 % bootstrap intervals.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from eagle import command
from eval.questions.benchmarks import Line, parse, shown
from eval.report.estimates import bootstrap, ratio
from eval.report.markdown import markdown_table, number

Totals = dict[int, np.ndarray]  # question id -> tokens, steps, seconds


def read(path: str) -> Totals:
    """Each question's totals. Raises ValueError naming what a file lacks."""
    place = Path(path)
    if not place.is_file():
        raise ValueError(f"answer file {path!r} does not exist; pass a file written by EAGLE's evaluation scripts")
    totals: Totals = {}
    for line in parse(place.read_bytes(), path):
        if line.value.get("question_id") in totals:
            raise ValueError(f"{line.place}: question {line.value['question_id']} is answered twice; expected once")
        totals[line.value.get("question_id", -1)] = question_totals(line)
    return totals


def question_totals(line: Line) -> np.ndarray:
    """Float[3]: tokens, steps and seconds of one question."""
    choices = line.value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    values: dict[str, Any] = {}
    for name in ("new_tokens", "idxs", "wall_time"):
        values[name] = choice.get(name)
        if name not in choice:
            raise ValueError(
                f"{line.place}, question {line.value.get('question_id')}: no {name!r} in its choice; expected "
                "an answer file written by EAGLE's evaluation scripts"
            )
        if not isinstance(values[name], list) or not all(isinstance(x, int | float) for x in values[name]):
            raise ValueError(
                f"{line.place}, question {line.value.get('question_id')}: {name!r} of its choice is "
                f"{shown(values[name])}; expected the list of numbers that EAGLE's evaluation scripts write"
            )
    if not isinstance(line.value.get("question_id"), int):
        raise ValueError(f"{line.place}: question_id is {shown(line.value.get('question_id'))}; expected an integer")
    steps = sum(index + 1 for index in values["idxs"])
    return np.array([sum(values["new_tokens"]), steps, sum(values["wall_time"])], float)


def columns(totals: Totals, ids: list[int]) -> list[np.ndarray]:
    """Tokens, steps and seconds of these questions: three arrays Float[questions]."""
    return list(np.array([totals[i] for i in ids]).T)


def summary(name: str, totals: Totals, limit: int) -> list[str]:
    """One file's row of the table."""
    tokens, steps, seconds = columns(totals, sorted(totals))
    long = [str(i) for i in sorted(totals) if totals[i][0] >= limit]
    return [
        name,
        str(len(totals)),
        number(bootstrap(ratio, tokens, steps)),
        number(bootstrap(ratio, tokens - steps, steps)),
        number(bootstrap(ratio, tokens, seconds), 1),
        f"{(tokens - steps).sum() / seconds.sum():.1f}",
        ", ".join(long) or "–",
    ]


def compare(first: Totals, second: Totals) -> str:
    """The second file against the first: the pooled difference, and the mean of the per-question differences."""
    ids = sorted(first.keys() & second.keys())
    if not ids:
        raise ValueError("the two files share no question; expected answers to the same questions")
    a, b = columns(first, ids), columns(second, ids)
    pooled = bootstrap(lambda t, s, u, v: ratio(u, v) - ratio(t, s), a[0], a[1], b[0], b[1])
    each = b[0] / b[1] - a[0] / a[1]
    error = each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    return (
        f"second - first, tau over all steps: {number(pooled, sign='+')}\n"
        f"second - first, mean of the questions' own tau: {each.mean():+.2f} +- {error:.2f} "
        f"(standard error, {len(ids)} questions)"
    )


def print_tables(options: argparse.Namespace) -> None:
    """The table of the given files, and the second against the first."""
    files = {path: read(path) for path in (options.first, options.second) if path is not None}
    header = ["file", "n", "tau", "accepted/step", "tok/s", "tok/s without bonus", "cut at the limit"]
    rows = [summary(Path(path).name, totals, options.limit) for path, totals in files.items()]
    print(markdown_table(header, rows))
    if options.second is not None:
        print("\n" + compare(files[options.first], files[options.second]))


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = command.parser("eval.report.released", __doc__)
    parser.add_argument("first", help="answer file in EAGLE's format")
    parser.add_argument("second", nargs="?", help="another one, to compare with the first")
    parser.add_argument(
        "--limit", type=command.COUNT, default=512, help="tokens from which an answer counts as cut (512)"
    )
    return command.start(parser, print_tables, argv)


if __name__ == "__main__":
    raise SystemExit(main())
