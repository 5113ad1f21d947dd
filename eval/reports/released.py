"""Recompute a table from answer files in EAGLE's format, such as those published beside the HSD paper.

    python -m eval.reports.released EAGLE.jsonl HSD.jsonl

The files hold, per question and turn, `new_tokens`, `wall_time` and `idxs` (the index of the last step, so steps =
idxs + 1). From these: tau = tokens / step, accepted / step = tau - 1, tok/s with the bonus tokens and without them,
the answers that reached the token limit, and the differences paired over questions with 95 % bootstrap intervals.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from eval.questions.benchmarks import parse
from eval.reports.metrics import bootstrap, ratio
from eval.reports.tables import Table, markdown_table, number

Totals = dict[int, np.ndarray]  # question id -> tokens, steps, seconds


def read(path: str) -> Totals:
    """Each question's totals. Raises ValueError naming what a file lacks."""
    place = Path(path)
    if not place.is_file():
        raise ValueError(f"answer file {path!r} does not exist; pass a file written by EAGLE's evaluation scripts")
    totals = {}
    for record in parse(place.read_bytes(), path):
        choice: dict[str, Any] = (record.get("choices") or [{}])[0]
        missing = [name for name in ("new_tokens", "idxs", "wall_time") if name not in choice]
        if missing:
            raise ValueError(
                f"{path}, question {record.get('question_id')}: no {missing[0]!r} in its choice; expected "
                "an answer file written by EAGLE's evaluation scripts"
            )
        steps = sum(index + 1 for index in choice["idxs"])
        totals[record["question_id"]] = np.array([sum(choice["new_tokens"]), steps, sum(choice["wall_time"])], float)
    return totals


def columns(totals: Totals, ids: list[int]) -> list[np.ndarray]:
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.reports.released",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", help="answer file in EAGLE's format")
    parser.add_argument("second", nargs="?", help="another one, to compare with the first")
    parser.add_argument("--limit", type=int, default=512, help="tokens from which an answer counts as cut (512)")
    options = parser.parse_args(argv)
    try:
        files = {path: read(path) for path in (options.first, options.second) if path}
        header = ["file", "n", "tau", "accepted/step", "tok/s", "tok/s without bonus", "cut at the limit"]
        rows = [summary(Path(path).name, totals, options.limit) for path, totals in files.items()]
        print(markdown_table(Table("", "", header, rows)))
        if options.second:
            print("\n" + compare(files[options.first], files[options.second]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
